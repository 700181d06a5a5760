"""A pretend H200 in one process: the CUDA path runs to its last line on a machine that has no GPU.

Triton's binder, specialisation and compiler for sm_90 are the real ones; its launcher checks what it is given and
launches nothing. Tensors live in the host's memory, say that they are on cuda:0, and refuse what CUDA tensors refuse:
`.numpy()`, meeting tensors of the CPU, and, within the capture of a graph, whatever waits for the device. What kernels
would compute comes from their twins in `backend.torch_ops`. It tells no times: the device is as slow as the host. A
generator of its random numbers is one of the host's: the same seed gives the CPU's weights.

`python tests/kits/pretend_gpu.py MODULE ARGUMENT ...` runs a module so; `install()` does it to this process, before
`backend.kernels` is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pretend_torch import HERE, MODE, Device, PretendGenerator, PretendTensor, held, patch_tensors, pinned
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten

NAME = "NVIDIA H200"
MEMORY_BYTES = 139 << 30
GROUP = (
    "init_process_group", "destroy_process_group", "all_reduce", "all_gather_single", "all_gather_into_tensor",
    "all_to_all_single", "reduce_scatter_single", "reduce_scatter_tensor",
)  # fmt: skip
SHARED_BYTES, PROCESSORS, CYCLES_PER_S = 232_448, 132, 1.98e9


class PretendGraph:
    """torch.cuda.CUDAGraph: repeats what was recorded, on the same memory."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._work: list[tuple[Callable[[], Any], list[Tensor]]] = []

    def add(self, run: Callable[[], Any], made: Any) -> None:
        self._work.append((run, [one for one in tree_flatten(made)[0] if isinstance(one, Tensor)]))

    def replay(self) -> None:
        began_s = time.monotonic()
        with _disable_current_modes(), torch.inference_mode():
            for run, before in self._work:
                again = [one for one in tree_flatten(run())[0] if isinstance(one, Tensor)]
                for old, new in zip(before, again, strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)
        Device.worked(began_s)

    def reset(self) -> None:
        self._work.clear()


@contextlib.contextmanager
def capturing(graph: PretendGraph, pool: Any = None, stream: Any = None, **_: Any) -> Iterator[None]:
    """torch.cuda.graph."""
    Device.sync("a capture within a capture")
    Device.graph = graph
    try:
        yield
    finally:
        Device.graph = None


class PretendEvent:
    """torch.cuda.Event."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self._timing, self._at_s = enable_timing, None

    def record(self, stream: Any = None) -> None:
        if Device.graph is not None and self._timing:
            raise RuntimeError("operation not permitted when stream is capturing: an event with timing")
        self._at_s = max(Device.done_s, time.monotonic())

    def query(self) -> bool:
        return self._at_s is None or self._at_s <= max(Device.synced_s, time.monotonic())

    def synchronize(self) -> None:
        Device.sync("an event")

    def wait(self, stream: Any = None) -> None:
        """Streams are one."""

    def elapsed_time(self, end: PretendEvent) -> float:
        if not (self._timing and end._timing) or self._at_s is None or end._at_s is None:
            raise ValueError("Both events must be created with argument 'enable_timing=True' and be recorded")
        if end._at_s > Device.synced_s:
            raise RuntimeError("device not ready: the later event has not completed")
        return 1e3 * (end._at_s - self._at_s)


class PretendStream:
    """torch.cuda.Stream; all are one."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.cuda_stream, self.device = 7, HERE

    def wait_stream(self, other: PretendStream) -> None:
        """Streams are one."""

    def wait_event(self, event: PretendEvent) -> None:
        """Streams are one."""

    def record_event(self, event: PretendEvent | None = None) -> PretendEvent:
        made = event or PretendEvent()
        made.record()
        return made

    def query(self) -> bool:
        return Device.done_s <= time.monotonic()

    def synchronize(self) -> None:
        Device.sync("a stream")


def _sleep(cycles: int) -> None:
    if not isinstance(cycles, int):
        raise TypeError(f"_sleep takes whole cycles, not {cycles!r}")
    Device.done_s = max(Device.done_s, time.monotonic()) + cycles / CYCLES_PER_S


def _answered(*_: Any, **__: Any) -> None:
    """What processes do together, where the others answer at once: 10 us of the device."""
    Device.done_s = max(Device.done_s, time.monotonic()) + 1e-5


class PretendLauncher:
    """Triton's launcher: looks at every argument as the real one does, and launches nothing."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self._name, self._meta = metadata.name, getattr(metadata, "tensordesc_meta", None)

    def __call__(self, x: int, y: int, z: int, stream: Any, function: Any, *rest: Any) -> None:
        assert all(isinstance(size, int) for size in (x, y, z)), (x, y, z)
        if not (0 <= x < 2**31 and 0 <= y < 65536 and 0 <= z < 65536):
            raise RuntimeError(f"Triton Error [CUDA]: invalid argument: a grid of {x} x {y} x {z} ({self._name})")
        for argument in rest[4:]:
            base = getattr(argument, "base", argument)
            if isinstance(base, Tensor) and not isinstance(base, PretendTensor) and not pinned(base):
                raise ValueError(f"Pointer argument cannot be accessed from Triton (cpu tensor?) ({self._name})")
            if base is not argument:
                assert base.data_ptr() % 16 == 0, f"a descriptor of memory that is not aligned ({self._name})"
        Device.launches.append(self._name)


class PretendDriver:
    """Triton's driver of the pretended device."""

    launcher_cls = PretendLauncher

    def __init__(self) -> None:
        self.utils = SimpleNamespace(get_device_properties=self._properties, load_binary=self._load)

    def _properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": SHARED_BYTES, "max_num_regs": 65536, "multiprocessor_count": PROCESSORS, "warpSize": 32,
        }  # fmt: skip

    def _load(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        if Device.graph is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: loading {name}")
        assert binary[:4] == b"\x7fELF", name
        return 1, 1, 0, 0, 1024

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        assert device == 0

    def get_current_stream(self, device: int) -> int:
        return 7

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return 9, 0

    def get_current_target(self) -> Any:
        return importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return HERE

    def get_device_interface(self) -> Any:
        return torch.cuda

    @staticmethod
    def is_active() -> bool:
        return True


def _twinned(name: str, kernel: Callable[..., Any], twin: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel's own launch, and then the twin's results in the tensors that it gave."""

    def both(*args: Any, **kwargs: Any) -> Any:
        Device.depth += 1
        try:
            made = kernel(*args, **kwargs)
        finally:
            Device.depth -= 1
        kwargs = {key: value for key, value in kwargs.items() if key not in ("plan", "tile")}
        plain = [held(one) for one in args]
        more = {key: held(value) for key, value in kwargs.items()}
        outs = [held(one) for one in (made if isinstance(made, tuple) else (made,)) if isinstance(one, Tensor)]

        def run() -> list[Tensor]:
            results = twin(*plain, **more)
            for out, result in zip(outs, results if isinstance(results, tuple) else (results,), strict=False):
                if out.data_ptr() != result.data_ptr():
                    assert out.shape == result.shape, (name, out.shape, result.shape)
                    out.copy_(result)
            return []

        began_s = time.monotonic()
        with _disable_current_modes():
            run()
        Device.worked(began_s)
        if Device.graph is not None and not Device.depth:
            Device.graph.add(run, None)
        return made

    both.__name__ = name
    return both


def _facts(*_: Any) -> SimpleNamespace:
    return SimpleNamespace(
        name=NAME, major=9, minor=0, total_memory=MEMORY_BYTES, multi_processor_count=PROCESSORS,
        L2_cache_size=60 << 20, shared_memory_per_block_optin=SHARED_BYTES, shared_memory_per_multiprocessor=228 << 10,
    )  # fmt: skip


def install() -> None:
    """Makes this process one with an H200. Nothing of it undoes it: use a process of its own."""
    cuda: Any = torch.cuda
    stream = PretendStream()
    answers: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "get_device_name": NAME,
        "get_device_capability": (9, 0), "mem_get_info": (MEMORY_BYTES - (1 << 30), MEMORY_BYTES),
        "memory_allocated": 0,
        "memory_reserved": 0, "max_memory_allocated": 0, "reset_peak_memory_stats": None, "empty_cache": None,
        "set_device": None, "init": None, "_lazy_init": None, "graph_pool_handle": (0, 1), "current_stream": stream,
        "default_stream": stream, "manual_seed": None, "manual_seed_all": None, "ipc_collect": None,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(cuda, name, lambda *_, answer=answer, **__: answer)
    cuda.get_device_properties = _facts
    cuda.is_current_stream_capturing = lambda: Device.graph is not None
    cuda.synchronize = lambda *_: Device.sync("synchronize")
    cuda.stream = lambda _: contextlib.nullcontext()
    cuda.device = lambda _: contextlib.nullcontext()
    cuda.Event, cuda.Stream, cuda.CUDAGraph, cuda.graph, cuda._sleep = (
        PretendEvent, PretendStream, PretendGraph, capturing, _sleep,
    )  # fmt: skip
    group = importlib.import_module("torch.distributed")
    for name in GROUP:
        setattr(group, name, _answered)
    torch.version.cuda = "13.0"
    torch.Generator = PretendGenerator  # type: ignore[misc]
    driver = importlib.import_module("triton.runtime.driver").driver
    driver.set_active(PretendDriver())
    ops = importlib.import_module("backend.ops")
    for name, file in ops.KERNEL_FILES.items():
        module = importlib.import_module(f"backend.kernels.{file}")
        twin = getattr(importlib.import_module(f"backend.torch_ops.{ops.TORCH_FILES[name]}"), name)
        setattr(module, name, _twinned(name, getattr(module, name), twin))
    patch_tensors()
    MODE.__enter__()


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2])]
    sys.modules["pretend_gpu"] = sys.modules[__name__]
    install()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
