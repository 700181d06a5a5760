"""A pretend H200 in one process: the CUDA path runs to its last line on a machine that has no GPU.

Triton's binder, specialisation and compiler for sm_90 are the real ones; its launcher checks what it is given and
launches nothing. Tensors live in the host's memory, say that they are on cuda:0, and refuse what CUDA tensors refuse:
`.numpy()`, meeting tensors of the CPU, and, within the capture of a graph, whatever waits for the device. What kernels
would compute comes from their twins in `backend.torch_ops`. It tells no times: the device is as slow as the host.

`python tests/kits/pretend_gpu.py MODULE ARGUMENT ...` runs a module so; `install()` does it to this process, before
`backend.kernels` is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "NVIDIA H200"
MEMORY_BYTES = int(os.environ.get("PRETEND_MEMORY_BYTES", 139 << 30))
SHARED_BYTES, PROCESSORS, CYCLES_PER_S = 232_448, 132, 1.98e9
HERE, HOST = torch.device("cuda:0"), torch.device("cpu")
aten = torch.ops.aten
WAITING = {
    "_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "bincount", "unique_dim",
    "unique_consecutive", "_unique2", "repeat_interleave",
}  # fmt: skip
"""Operations whose result, or its size, the host reads from the device."""
MIXING = {"copy_", "_to_copy", "to", "index", "index_put_", "index_put", "_index_put_impl_", "set_"}
"""Operations that take tensors of the CPU beside those of the GPU (of `index` the indices)."""
WHOLE = {"scaled_dot_product_attention", "rms_norm", "linear", "einsum", "matmul"}
"""Operations that are not taken apart: their parts ask which device they are on."""


class Device:
    """What the device is doing: when it is done with everything, what is captured, what it has yet to read."""

    done_s = 0.0
    synced_s = 0.0
    depth = 0
    graph: PretendGraph | None = None
    launches: list[str] = []  # noqa: RUF012
    unread: list[tuple[Tensor, Tensor]] = []  # noqa: RUF012
    pinned: set[int] = set()  # noqa: RUF012

    @classmethod
    def wait(cls, what: str) -> None:
        if cls.graph is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        for source, before in cls.unread:
            if not torch.equal(source, before):
                raise RuntimeError("pinned memory was written before the device had read it")
        cls.unread.clear()
        time.sleep(max(0.0, cls.done_s - time.perf_counter()))
        cls.synced_s = max(cls.done_s, time.perf_counter())

    @classmethod
    def worked(cls, began_s: float) -> None:
        cls.done_s = max(cls.done_s, began_s) + time.perf_counter() - began_s


class PretendTensor(torch.Tensor):
    """A tensor on cuda:0; `held` is the same memory as the host's."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        made = torch.Tensor._make_subclass(cls, held, False)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})

    # What Python asks is told cuda:0; torch's own code goes by the memory that there is, and needs no CUDA runtime.
    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return HERE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def get_device(self) -> int:
        return 0

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        copy = kwargs.pop("copy", False)
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        device, dtype = device or HERE, dtype or self.dtype
        if not copy and device.type == "cuda" and dtype == self.dtype:
            return self
        with MODE:
            return aten._to_copy.default(self, dtype=dtype, device=device, non_blocking=non_blocking)

    def cpu(self, *_: Any) -> Tensor:
        return self.to(HOST)

    def cuda(self, *_: Any, **__: Any) -> Tensor:
        return self

    def numpy(self, **_: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to the host first"
        )

    __array__ = numpy

    def tolist(self) -> Any:
        Device.wait("tolist")
        return self.held.tolist()

    def is_pinned(self, *_: Any) -> bool:
        return False

    def __repr__(self, **_: Any) -> str:
        return f"PretendTensor({self.held!r})"


class PretendGenerator(torch.Generator):
    """torch.Generator of any device: the numbers are the host's."""

    def __new__(cls, device: Any = "cpu") -> PretendGenerator:
        return super().__new__(cls)


class PretendMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:
            return dispatched(func, args, kwargs or {})


MODE = PretendMode()


def held(value: Any) -> Any:
    """The host's tensor of a pretended one, in dataclasses too; anything else as it is."""
    if isinstance(value, PretendTensor):
        return value.held
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        if any(isinstance(one, Tensor) for one in fields.values()):
            return dataclasses.replace(value, **{name: held(one) for name, one in fields.items()})
    return value


def _cuda(place: Any) -> bool:
    return isinstance(place, torch.device) and place.type == "cuda"


def dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation of torch: done by the host, checked as CUDA checks it, recorded where a graph is captured."""
    name = func.overloadpacket.__name__
    given, _ = tree_flatten((args, kwargs))
    tensors = [one for one in given if isinstance(one, Tensor)]
    ours = [one for one in tensors if isinstance(one, PretendTensor)]
    places = [one for one in given if isinstance(one, torch.device)]
    if not ours and not any(map(_cuda, places)):
        return _on_host(func, args, kwargs)
    if name not in WHOLE and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        return func.decompose(*args, **kwargs)
    _check(func, name, args, kwargs, tensors, ours, places)
    there = any(map(_cuda, places)) if places else bool(ours)

    def host(one: Any) -> Any:
        return one.held if isinstance(one, PretendTensor) else HOST if isinstance(one, torch.device) else one

    def run() -> Any:
        plain, more = tree_map(host, (tuple(args), kwargs))
        more.pop("pin_memory", None)
        with torch.utils._python_dispatch._disable_current_modes():
            return scaled_mm(*plain, **more) if name == "_scaled_mm" else func(*plain, **more)

    began_s = time.perf_counter()
    made = run()
    if name.startswith("empty"):
        tree_map(_poison, made)
    Device.worked(began_s)
    owners = {id(one.held): one for one in ours}

    def pretended(one: Any) -> Any:
        if not isinstance(one, Tensor) or not there:
            return one
        return owners[id(one)] if id(one) in owners else PretendTensor(one)

    if Device.graph is not None and not Device.depth and not name.startswith("empty"):
        Device.graph.add(run, made)
    return tree_map(pretended, made)


def _on_host(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Operations of the CPU alone, among them those on pinned memory."""
    pinned = kwargs.pop("pin_memory", False)
    with torch.utils._python_dispatch._disable_current_modes():
        made = func(*args, **kwargs)
    if pinned:
        Device.pinned.add(made.untyped_storage().data_ptr())
    return made


def _check(func: Any, name: str, args: Any, kwargs: Any, tensors: Any, ours: Any, places: Any) -> None:
    """Raises what CUDA would."""
    if name in WAITING:
        Device.wait(name)
    if name == "index" and any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]):
        Device.wait("index by a mask")
    if kwargs.get("pin_memory"):
        raise RuntimeError("Only dense CPU tensors can be pinned")
    others = [one for one in tensors if not isinstance(one, PretendTensor) and one.ndim]
    if ours and others and name not in MIXING:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({func})")
    if name in ("index", "index_put_", "index_put") and not isinstance(args[0], PretendTensor):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    if name in ("copy_", "_to_copy"):
        target = args[0] if name == "copy_" else None
        source = args[1] if name == "copy_" else args[0]
        down = isinstance(source, PretendTensor)
        if down and (
            any(not _cuda(one) for one in places) or (target is not None and not isinstance(target, PretendTensor))
        ):
            if not (kwargs.get("non_blocking") and target is not None and _pinned(target)):
                Device.wait("a copy to the host")
        elif not down and source.ndim:
            if not _pinned(source):
                Device.wait("a copy of pageable memory")
            elif kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]):
                Device.unread.append((source, source.clone()))
            else:
                Device.wait("a copy from the host")


def scaled_mm(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: None = None, scale_result: None = None,
    out_dtype: Any = None, use_fast_accum: bool = False,
) -> Tensor:  # fmt: skip
    """torch._scaled_mm with scales by rows, which torch has for CUDA alone, and its demands there."""
    assert a.dtype == b.dtype == torch.float8_e4m3fn
    assert out_dtype == torch.bfloat16
    assert a.is_contiguous() and b.t().is_contiguous(), "the first by rows, the second by columns"  # noqa: PT018
    assert not (a.shape[1] % 16 or b.shape[1] % 16), (a.shape, b.shape)
    assert scale_a.shape == (a.shape[0], 1) and scale_b.shape == (1, b.shape[1])  # noqa: PT018
    assert scale_a.is_contiguous() and scale_b.is_contiguous()  # noqa: PT018
    assert scale_a.dtype == scale_b.dtype == torch.float32
    return ((a.float() @ b.float()) * scale_a * scale_b).to(out_dtype)


def _pinned(tensor: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() in Device.pinned


def _poison(made: Any) -> Any:
    """New memory holds anything."""
    if isinstance(made, Tensor) and made.numel():
        made.view(-1).view(torch.uint8).fill_(0x7F)
    return made


class PretendGraph:
    """torch.cuda.CUDAGraph: repeats what was recorded, on the same memory."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._work: list[tuple[Callable[[], Any], list[Tensor]]] = []

    def add(self, run: Callable[[], Any], made: Any) -> None:
        self._work.append((run, [one for one in tree_flatten(made)[0] if isinstance(one, Tensor)]))

    def replay(self) -> None:
        began_s = time.perf_counter()
        with torch.utils._python_dispatch._disable_current_modes(), torch.inference_mode():
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
    Device.wait("a capture within a capture")
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
        self._at_s = max(Device.done_s, time.perf_counter())

    def query(self) -> bool:
        return self._at_s is None or self._at_s <= max(Device.synced_s, time.perf_counter())

    def synchronize(self) -> None:
        Device.wait("an event")

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
        return Device.done_s <= time.perf_counter()

    def synchronize(self) -> None:
        Device.wait("a stream")


def _sleep(cycles: int) -> None:
    if not isinstance(cycles, int):
        raise TypeError(f"_sleep takes whole cycles, not {cycles!r}")
    Device.done_s = max(Device.done_s, time.perf_counter()) + cycles / CYCLES_PER_S


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
            if isinstance(base, Tensor) and not isinstance(base, PretendTensor) and not _pinned(base):
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

        began_s = time.perf_counter()
        with torch.utils._python_dispatch._disable_current_modes():
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


def _patch_tensors() -> None:
    """What torch's own code does with the device's runtime before any mode is asked."""
    made, move = torch.tensor, torch.Tensor.to
    tensor_type: Any = torch.Tensor

    def tensor(data: Any, *args: Any, device: Any = None, **more: Any) -> Tensor:
        plain = made(data, *args, **more)
        return plain if device is None else plain.to(device)

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not any(isinstance(one, str | torch.device) for one in (*args, *kwargs.values())):
            return move(self, *args, **kwargs)
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(
            *args, **{key: value for key, value in kwargs.items() if key != "copy"}
        )
        if not _cuda(device):
            return move(self, *args, **kwargs)
        with MODE:
            return aten._to_copy.default(self, dtype=dtype or self.dtype, device=HERE, non_blocking=non_blocking)

    def pin_memory(self: Tensor, *_: Any) -> Tensor:
        copy = self.clone()
        Device.pinned.add(copy.untyped_storage().data_ptr())
        return copy

    torch.tensor = tensor
    tensor_type.to, tensor_type.pin_memory, tensor_type.is_pinned = to, pin_memory, lambda self, *_: _pinned(self)
    tensor_type.cuda = lambda self, *_, **__: self.to(HERE)


def install() -> None:
    """Makes this process one with an H200. Nothing of it undoes it: use a process of its own."""
    cuda: Any = torch.cuda
    stream = PretendStream()
    answers: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "get_device_name": NAME,
        "get_device_capability": (9, 0), "mem_get_info": (MEMORY_BYTES - (1 << 30), MEMORY_BYTES), "memory_allocated": 0,
        "memory_reserved": 0, "max_memory_allocated": 0, "reset_peak_memory_stats": None, "empty_cache": None,
        "set_device": None, "init": None, "_lazy_init": None, "graph_pool_handle": (0, 1), "current_stream": stream,
        "default_stream": stream, "manual_seed": None, "manual_seed_all": None, "ipc_collect": None,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(cuda, name, lambda *_, answer=answer, **__: answer)
    cuda.get_device_properties = _facts
    cuda.is_current_stream_capturing = lambda: Device.graph is not None
    cuda.synchronize = lambda *_: Device.wait("synchronize")
    cuda.stream = lambda _: contextlib.nullcontext()
    cuda.device = lambda _: contextlib.nullcontext()
    cuda.Event, cuda.Stream, cuda.CUDAGraph, cuda.graph, cuda._sleep = (
        PretendEvent, PretendStream, PretendGraph, capturing, _sleep,
    )  # fmt: skip
    torch.version.cuda = "13.0"
    torch.Generator = PretendGenerator  # type: ignore[misc]
    driver = importlib.import_module("triton.runtime.driver").driver
    driver.set_active(PretendDriver())
    ops = importlib.import_module("backend.ops")
    for name, file in ops.KERNEL_FILES.items():
        module = importlib.import_module(f"backend.kernels.{file}")
        twin = getattr(importlib.import_module(f"backend.torch_ops.{ops.TORCH_FILES[name]}"), name)
        setattr(module, name, _twinned(name, getattr(module, name), twin))
    _patch_tensors()
    MODE.__enter__()


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2])]
    sys.modules["pretend_gpu"] = sys.modules[__name__]
    install()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
