"""What the kernel files share: compile or interpret, the names of types, `KernelVariant`. It knows no operation.

**Compile or interpret.** Triton decides at decoration time whether `@triton.jit` gives a compiled kernel or one that
numpy interprets on CPU tensors; a process has one or the other. This module decides, once, when `backend.kernels` is
imported: as the environment's TRITON_INTERPRET says, else interpret exactly where there is no CUDA device. So

- tests simply `from backend.kernels.rms_norm import rms_norm` and put tensors on `DEVICE`: interpreted without a GPU,
  compiled on one; no environment variable, no subprocess, whoever imported triton first;
- a kernel that has `UPCAST: tl.constexpr` is given `UPCAST=INTERPRETED` by its launcher: dot operands are cast to fp32
  because the interpreter's bf16 `tl.dot` is silently wrong (it multiplies the bits; up to 3.9 at least);
- ahead-of-time compilation (`backend.kernels.aot`) runs in a subprocess with TRITON_INTERPRET=0.

In kernels write `tl.sum(x, 0)`, not `x.sum(0)`: the functions are made interpretable here, the methods are not.
Arguments of a kernel are Triton's business: such a file begins with `# mypy: allow-untyped-defs, allow-incomplete-defs,
allow-untyped-calls, allow-untyped-decorators` (on one line) and `# ruff: noqa: N803`; the rest is typed in full.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import torch
import triton
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from traces.schema import InputError

TRITON_NAMES: Mapping[torch.dtype, str] = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
}
"""Triton's name of each type that kernels read and write; a pointer is "*" before it."""


@dataclass(frozen=True, slots=True)
class AbsentCard:
    """A GPU that is not here: its compute capability as 80, 90, 100, and its multiprocessors."""

    capability: int
    processors: int


absent: AbsentCard | None = None
"""The card that this process compiles for, whose tensors have shapes alone (torch's device `meta`): set by `warm`."""

INTERPRETED_PROCESSORS = 6
"""What `processors` says where numpy interprets: enough for work to be split."""


def _interprets() -> bool:
    """Does this process interpret? The environment says, else it does where there is no CUDA device."""
    asked = os.environ.get("TRITON_INTERPRET", "")
    return asked.lower() in ("1", "true", "yes", "on", "y") if asked else not torch.cuda.is_available()


def _interpret_library() -> None:
    """Gives the interpreter triton's own jitted functions (tl.sum, tl.zeros), decorated when triton was imported."""
    made: dict[int, InterpretedFunction] = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[:2] != ["triton", "language"]:
            continue
        for attribute, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                setattr(module, attribute, made.setdefault(id(value), InterpretedFunction(value.fn)))


INTERPRETED = _interprets()
"""True where numpy interprets this process's kernels (on CPU tensors), False where they are compiled (CUDA)."""

DEVICE = "cpu" if INTERPRETED else "cuda"
"""Where tensors given to kernels live in this process."""

if INTERPRETED:
    triton.knobs.runtime.interpret = True
    _interpret_library()


Constant = int | float | bool | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelVariant:
    """One compiled form of a kernel, for warming and for ahead-of-time compilation.

    `kernel` is "package.module:function". `signature` gives each run-time argument its Triton type ("*bf16", "i32",
    "fp32"), `constexprs` each compile-time argument its value; together they name every argument. Arguments in
    `aligned` (every pointer besides) are multiples of 16 at run time, as the launcher guarantees and JIT would see.
    """

    name: str
    kernel: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Constant] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 2


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; `INTERPRETED_PROCESSORS` where numpy interprets."""
    if INTERPRETED:
        return INTERPRETED_PROCESSORS
    if absent is not None:
        return absent.processors
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def capability(device: torch.device) -> int:
    """Compute capability of a CUDA device as 80, 90, 100; 90 where numpy interprets."""
    if absent is not None:
        return absent.capability
    major, minor = (9, 0) if INTERPRETED else torch.cuda.get_device_capability(device)
    return 10 * major + minor


def check_device(*tensors: torch.Tensor | None) -> None:
    """Raises InputError unless all tensors are where this process runs kernels."""
    for tensor in tensors:
        if tensor is not None and not (
            tensor.is_cpu if INTERPRETED else tensor.is_cuda or (absent is not None and tensor.is_meta)
        ):
            if INTERPRETED:
                hint = "numpy interprets kernels in this process; unset TRITON_INTERPRET, or use a machine with CUDA"
            else:
                hint = "set TRITON_INTERPRET=1 to have numpy interpret them on CPU tensors"
            raise InputError(f"kernels run on {DEVICE} tensors here, not on {tensor.device.type}: {hint}")


def next_power_of_two(count: int) -> int:
    """The least power of two that is not less than `count` (at least 1)."""
    return 1 << max(count - 1, 0).bit_length()
