"""Compiles kernels for GPUs that are not here and reads the result: registers, spills, instructions. It runs nothing.

The compiler runs in a subprocess (`python -m backend.kernels.aot`, a JSON job per line of standard input, a JSON result
per line out), because LLVM ends the process on what it cannot select, and because a process that interprets kernels
cannot compile them. Needs the ptxas, cuobjdump and nvdisasm that Triton brings along, and no GPU.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, TextIO

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from backend.kernels._common import KernelVariant
from backend.kernels._form import lacks_fp8

SHARED_LIMIT_BYTES: Mapping[int, int] = {
    80: 166_912,
    86: 101_376,
    89: 101_376,
    90: 232_448,
    100: 232_448,
    120: 101_376,
}
"""Shared memory one program may have, by compute capability (CUDA C++ Programming Guide, technical specifications)."""

INSTRUCTIONS = {
    "local_loads": "LDL",
    "local_stores": "STL",
    "wgmma": "HGMMA",
    "tcgen05": "UTCHMMA",
    "mma": "HMMA",
    "tma_loads": "UTMALDG",
    "async_copies": "LDGSTS",
    "wide_copies": r"LDGSTS\.(\w+\.)*128",
    "byte_loads": r"LDS\.[US]8",
    "conversions": "I2F",
}
"""What is counted in the machine code, by the fields of `Built`: patterns of an opcode's beginning."""

CODE_LINE = re.compile(r"^(?:(\.L_\w+):|\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*))", re.MULTILINE)
"""A line of nvdisasm: (label, opcode with modifiers, operands)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A compiled variant: registers per thread, shared memory per program, and counts of machine instructions.

    `error` is one sentence where the compiler refused; the numbers are 0 then. Spills are local loads and stores.
    `loop` is the number of instructions in the longest loop that multiplies matrices. `wide_copies` to shared memory
    are of 16 bytes, `byte_loads` from it of one; `conversions` are integers to floats.
    """

    name: str
    capability: int
    error: str = ""
    registers: int = 0
    shared_bytes: int = 0
    instructions: int = 0
    local_loads: int = 0
    local_stores: int = 0
    wgmma: int = 0
    tcgen05: int = 0
    mma: int = 0
    tma_loads: int = 0
    async_copies: int = 0
    wide_copies: int = 0
    byte_loads: int = 0
    conversions: int = 0
    loop: int = 0


def build(jobs: Sequence[tuple[KernelVariant, int]], tell: Callable[[Built], object] = lambda _: None) -> list[Built]:
    """Compiles each variant for its compute capability (80, 90, 100); a refusal is a result, not an exception.

    `tell` is called with each result as soon as there is one. What was compiled stays in Triton's cache, so the same
    jobs after a run that was cut short compile the rest alone.
    """
    done: list[Built] = []
    while len(done) < len(jobs):
        for one in _worked(jobs[len(done) :]):
            done.append(one)
            tell(one)
    return done


def table(built: Iterable[Built]) -> str:
    """A line each; `copies` are those to shared memory of 16 bytes a thread, of all."""
    heads = [("regs", 4), ("shared", 7), ("spills", 6), ("wgmma", 5), ("tc05", 4), ("mma", 4), ("tma", 3), ("loop", 5)]
    heads += [("bytes", 5), ("i2f", 4), ("copies", 7)]
    lines = [" sm " + " ".join(f"{head:>{width}}" for head, width in heads) + "  kernel"]
    for one in built:
        spills = one.local_loads + one.local_stores
        numbers = f"{one.registers:4} {one.shared_bytes:7} {spills:6} {one.wgmma:5} {one.tcgen05:4} {one.mma:4}"
        copies = f"{one.wide_copies}/{one.async_copies}"
        numbers += f" {one.tma_loads:3} {one.loop:5} {one.byte_loads:5} {one.conversions:4} {copies:>7}"
        lines.append(f"{one.capability:3} {numbers}  {one.name} {one.error}".rstrip())
    return "\n".join(lines)


def _worked(jobs: Sequence[tuple[KernelVariant, int]]) -> Iterator[Built]:
    """What one subprocess makes of `jobs`, in order; where it dies, the job it died of, and no further."""
    path = os.pathsep.join(path for path in sys.path if path)
    # Jobs and complaints go through files: a pipe that nobody empties would stop either side.
    with tempfile.TemporaryFile("w+") as asked, tempfile.TemporaryFile("w+") as complaints:
        for variant, capability in jobs:
            asked.write(json.dumps({"variant": asdict(variant), "capability": capability}) + "\n")
        asked.seek(0)
        with subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": path},
        ) as worker:
            assert worker.stdout is not None
            made = 0
            for line in worker.stdout:
                made += 1
                yield Built(**json.loads(line))
        if made < len(jobs):
            variant, capability = jobs[made]
            complaints.seek(0)
            last = (complaints.read().strip().splitlines() or ["no message"])[-1]
            error = f"the compiler ended with status {worker.returncode}: {last}"
            yield Built(name=variant.name, capability=capability, error=error)


def _compile(variant: KernelVariant, capability: int) -> Built:
    """Compiles in this process, specialised as JIT would be."""
    # Decode attention reads pairs of fp8 values as integers, and says so in its constants alone.
    kinds = (*variant.signature.values(), str(variant.constexprs.get("PAIRS")))
    if capability < 89 and any("fp8e4nv" in kind for kind in kinds):
        return Built(name=variant.name, capability=capability, error=lacks_fp8(capability))
    module, function = variant.kernel.split(":")
    kernel = getattr(import_module(module), function)
    names: list[str] = kernel.arg_names
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or name in variant.aligned]
    compiled = triton.compile(
        ASTSource(kernel, signature, dict(variant.constexprs), {(i,): [["tt.divisibility", 16]] for i in aligned}),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": variant.num_warps, "num_stages": variant.num_stages, "enable_fp_fusion": True},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
        code = _tool(triton.knobs.nvidia.nvdisasm.path, "-c", file.name)
    opcodes, loop = read_code(code)
    counts: dict[str, Any] = {
        field: sum(re.match(rf"{pattern}(\.|$)", opcode) is not None for opcode in opcodes)
        for field, pattern in INSTRUCTIONS.items()
    }
    return Built(
        name=variant.name,
        capability=capability,
        registers=max(int(found) for found in re.findall(r"REG:(\d+)", usage)),
        shared_bytes=int(compiled.metadata.shared),
        instructions=len(opcodes),
        loop=loop,
        **counts,
    )


def read_code(code: str) -> tuple[list[str], int]:
    """Opcodes of a disassembly with modifiers, and how many the longest loop with a matrix instruction has."""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    loop = 0
    for label, opcode, operands in CODE_LINE.findall(code):
        if label:
            labels[label] = len(opcodes)
            continue
        opcodes.append(opcode)
        target = re.search(r"(\.L_\w+)", operands) if opcode.startswith("BRA") else None
        begin = labels.get(target[1], len(opcodes)) if target else len(opcodes)
        if any(re.match(r"HG?MMA|UTC\w*MMA", inner) for inner in opcodes[begin:]):
            loop = max(loop, len(opcodes) - begin)
    return opcodes, loop


def _tool(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _work(results: TextIO) -> None:
    """The subprocess: jobs in, results out, each flushed so that a crash loses only its own."""
    for line in sys.stdin:
        job: dict[str, Any] = json.loads(line)
        variant = KernelVariant(**job["variant"])
        try:
            built = _compile(variant, job["capability"])
        except Exception as failure:  # whatever the compiler raises is this variant's result
            reason = (str(failure).strip().splitlines() or [type(failure).__name__])[-1]
            built = Built(name=variant.name, capability=job["capability"], error=f"the compiler refused: {reason}")
        results.write(json.dumps(asdict(built)) + "\n")
        results.flush()


if __name__ == "__main__":
    # What the compiler prints, as Triton does of code that ptxas fails on, is no result: it goes to standard error.
    with os.fdopen(os.dup(1), "w") as own:
        os.dup2(2, 1)
        _work(own)
