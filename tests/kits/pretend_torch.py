"""Tensors of the pretended H200 (`pretend_gpu`): the host's memory, under CUDA's rules.

A mode sees every operation of torch: it computes with the host's tensors, refuses what CUDA refuses, and hands what it
did to the graph that is being captured.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

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
    graph: Any = None
    launches: list[str] = []  # noqa: RUF012
    unread: list[tuple[Tensor, Tensor]] = []  # noqa: RUF012
    locked: set[int] = set()  # noqa: RUF012

    @classmethod
    def sync(cls, what: str) -> None:
        if cls.graph is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        unread, cls.unread = cls.unread, []
        if not all(torch.equal(source, before) for source, before in unread):
            raise RuntimeError("pinned memory was written before the device had read it")
        time.sleep(max(0.0, cls.done_s - time.monotonic()))
        cls.synced_s = max(cls.done_s, time.monotonic())

    @classmethod
    def worked(cls, began_s: float) -> None:
        cls.done_s = max(cls.done_s, began_s) + time.monotonic() - began_s


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
        asked = {"dtype": dtype, "device": device, "non_blocking": non_blocking}
        with MODE:
            return dispatched(aten._to_copy.default, (self,), asked, asked=True)

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
        Device.sync("tolist")
        return self.held.tolist()

    def ispinned(self, *_: Any) -> bool:
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


def dispatched(func: Any, args: Any, kwargs: dict[str, Any], *, asked: bool = False) -> Any:
    """One operation of torch: done by the host, checked as CUDA checks it, recorded where a graph is captured.

    `asked`: Python wants a tensor of the device elsewhere. Torch's own code names the CPU where it changes a type.
    """
    name = func.overloadpacket.__name__
    given, _ = tree_flatten((args, kwargs))
    tensors = [one for one in given if isinstance(one, Tensor)]
    ours = [one for one in tensors if isinstance(one, PretendTensor)]
    places = [one for one in given if isinstance(one, torch.device)]
    if ours and not asked and name in ("to", "_to_copy"):
        places = []
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
        with _disable_current_modes():
            return scaled_mm(*plain, **more) if name == "_scaled_mm" else func(*plain, **more)

    began_s = time.monotonic()
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
    with _disable_current_modes():
        made = func(*args, **kwargs)
    if pinned:
        Device.locked.add(made.untyped_storage().data_ptr())
    return made


def _check(func: Any, name: str, args: Any, kwargs: Any, tensors: Any, ours: Any, places: Any) -> None:
    """Raises what CUDA would."""
    if name in WAITING:
        Device.sync(name)
    if name == "index" and any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]):
        Device.sync("index by a mask")
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
            if not (kwargs.get("non_blocking") and target is not None and pinned(target)):
                Device.sync("a copy to the host")
        elif not down and source.ndim:
            if not pinned(source):
                Device.sync("a copy of pageable memory")
            elif kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]):
                Device.unread.append((source, source.clone()))
            else:
                Device.sync("a copy from the host")


def scaled_mm(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: None = None, scale_result: None = None,
    out_dtype: Any = None, use_fast_accum: bool = False,
) -> Tensor:  # fmt: skip
    """torch._scaled_mm with scales by rows, which torch has for CUDA alone, and its demands there."""
    assert a.dtype == b.dtype == torch.float8_e4m3fn
    assert out_dtype == torch.bfloat16
    assert a.is_contiguous(), "the first is not stored by rows"
    assert b.t().is_contiguous(), "the second is not stored by columns"
    assert a.shape[1] % 16 == 0
    assert b.shape[1] % 16 == 0
    assert (scale_a.shape, scale_b.shape) == ((a.shape[0], 1), (1, b.shape[1]))
    assert scale_a.is_contiguous()
    assert scale_b.is_contiguous()
    assert scale_a.dtype == scale_b.dtype == torch.float32
    return ((a.float() @ b.float()) * scale_a * scale_b).to(out_dtype)


def pinned(tensor: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() in Device.locked


def _poison(made: Any) -> Any:
    """New memory holds anything."""
    if isinstance(made, Tensor) and made.numel():
        made.view(-1).view(torch.uint8).fill_(0x7F)
    return made


def patch_tensors() -> None:
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
        Device.locked.add(copy.untyped_storage().data_ptr())
        return copy

    torch.tensor = tensor
    tensor_type.to, tensor_type.pin_memory, tensor_type.is_pinned = to, pin_memory, lambda self, *_: pinned(self)
    tensor_type.cuda = lambda self, *_, **__: self.to(HERE)
