"""Launches of kernels whose compile-time arguments are bound beforehand. It knows no operation.

Triton's own launch asks each time what a kernel is to be compiled for, spells its options out, and compares every
global that the kernel reads: most of a short launch's time on the host. Here types and sizes alone are asked, and what
was compiled for them is called.
"""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from backend.kernels._common import Constant

Grid = tuple[int, int, int]


class BoundKernel:
    """A kernel with its compile-time arguments and options; called with a grid and the other arguments, in their order.

    Floats have to be floats: a kernel is compiled for an integer 1 in another way. Where numpy interprets, where a
    profiler watches launches, and where a tensor does not begin at a multiple of 16 bytes, it is Triton's own launch.
    Of a descriptor for the copy engine type and tile are asked; what the device reads is made each time.
    """

    def __init__(self, kernel: Any, **constants: Constant) -> None:
        self._kernel = kernel
        self._constants = constants
        self._compiles = isinstance(kernel, JITFunction)
        names: list[str] = list(kernel.arg_names)
        self._tail = [constants[name] for name in names if name in constants]
        unasked = [names.index(name) for name in kernel.do_not_specialize] if self._compiles else []
        assert names[len(names) - len(self._tail) :] == [name for name in names if name in constants], names
        self._unasked = unasked
        self._known: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def __call__(self, grid: Grid, *args: Any) -> None:
        if not self._compiles or _watched():
            self._kernel[grid](*args, **self._constants)
            return
        starts = 0
        asked: list[Any] = []
        for arg in args:
            if isinstance(arg, Tensor):
                starts |= arg.data_ptr()
                asked.append(arg.dtype)
            elif isinstance(arg, TensorDescriptor):
                asked.append((arg.base.dtype, *arg.block_shape))
            else:
                asked.append(arg)
        for at in self._unasked:
            asked[at] = None
        driver = triton.runtime.driver.active
        device = driver.get_current_device()
        key = (device, *asked)
        compiled = None if starts % 16 else self._known.get(key)
        if compiled is None:
            kernel = self._kernel[grid](*args, **self._constants)
            if not starts % 16:
                self._known[key] = kernel.run, kernel.function, kernel.packed_metadata
            return
        run, function, metadata = compiled
        stream = driver.get_current_stream(device)
        run(*grid, stream, function, metadata, None, None, None, *args, *self._tail)


def _watched() -> bool:
    """Whether somebody wants to be told of launches; Triton holds chains of hooks, which are empty unless asked."""
    hook = triton.knobs.runtime.launch_enter_hook
    return bool(getattr(hook, "calls", hook))
