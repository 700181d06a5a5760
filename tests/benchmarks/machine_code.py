"""Prints what the compiler makes of the attention kernels for Hopper: `python -m tests.benchmarks.machine_code`.

A line a kernel, as docs/bench.md has them: registers, spills, instructions of the longest loop that multiplies. With
another triton in front of PYTHONPATH it is that one's. No GPU is needed, and nothing is run.
"""

from __future__ import annotations

from dataclasses import replace

import triton

from backend.kernels import decode_attention, prefill_attention
from backend.kernels._form import Form
from backend.kernels.aot import build, table

LLAMA = Form(q="bf16", cache="bf16", kv_heads=8, group=4, head_dim=128, block_tokens=16)
FORMS = [replace(LLAMA, cache=cache, block_tokens=block) for cache in ("bf16", "fp8e4nv", "i8") for block in (16, 128)]
CAPABILITY = 90


def main() -> None:
    decodes = [decode_attention.variant(form) for form in FORMS]
    prefills = [prefill_attention.variant(form, CAPABILITY) for form in FORMS]
    print(f"triton {triton.__version__}")
    print(table(build([(one, CAPABILITY) for one in (*decodes, *prefills)])))


if __name__ == "__main__":
    main()
