"""KV memory that servers told at their start, and what is predicted of it: of `shared/cases` and `shared/measured`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sim.catalog import load_gpu, load_model
from sim.catalog.presets import accountings
from sim.cost.capacity import KvCapacity, MemorySettings, memory_plan
from sim.specs.accounting import Accounting, Amount

GIB = 2**30
LEFT_OUT = ("model", "gpu")
SHARED = Path(__file__).parents[3] / "shared"
CONFIGS = {
    "Llama-3.1-8B": "configs/Llama-3.1-8B/config.json",
    "Qwen3-0.6B": "configs/Qwen--Qwen3-0.6B/config.json",
    "Qwen3-32B": "configs/Qwen--Qwen3-32B/config.json",
    "Llama-3.3-70B-FP8": "files/llama70b_fp8",
}


@dataclass(frozen=True)
class Figure:
    """`kv_gib` is what a server on one GPU had for KV; below 0 it did not start, and said by how much."""

    model: str
    config: Path
    gpu: str
    accounting: str
    seqs: int
    tokens: int
    kv_gib: float

    def plan(self, accounting: Accounting | None = None) -> KvCapacity:
        """What is predicted of it; with another accounting than that of its version, by that."""
        settings = MemorySettings(
            16, 0.9, self.tokens, self.seqs, accounting=accounting or accountings()[self.accounting]
        )
        return memory_plan(load_model(str(self.config)), load_gpu(self.gpu), settings)

    def rest_bytes(self) -> float:
        """What was held beside all that is predicted but the context."""
        planned, context = self.plan(), accountings()[self.accounting].context
        return left_bytes(planned) - self.kv_gib * GIB + context.expected

    def is_within(self, planned: KvCapacity) -> bool:
        return -planned.more_bytes <= self.kv_gib * GIB - left_bytes(planned) <= planned.less_bytes

    def plan_by(self, others: Sequence[Figure]) -> KvCapacity:
        """With a band for the context that other figures give, two at least: from the least to the most of them, and so
        far beyond on either side."""
        rests = [each.rest_bytes() for each in others]
        wide = max(rests) - min(rests)
        own = accountings()[self.accounting]
        context = Amount.of(own.context.expected, max(0.0, min(rests) - wide), max(rests) + wide)
        return self.plan(replace(own, context=context))

    def held_by(self, others: Sequence[Figure]) -> str:
        """Whether a band out of other figures holds this one; one figure has no spread, and so no band."""
        if len(others) < 2:
            return "one figure is no band"
        return "yes" if self.is_within(self.plan_by(others)) else "no"


def left_bytes(planned: KvCapacity) -> int:
    """What is left for KV; below 0 where the model does not fit."""
    return planned.usable_bytes - planned.needed_bytes


def figures() -> list[Figure]:
    """Those of one GPU for which enough is known; raises FileNotFoundError where `shared` is absent."""
    cases = SHARED / "cases"
    told = []
    for line in (cases / "README.md").read_text().splitlines():
        row = re.match(r"\| ([\w.-]+)(?: on one GPU)? \| (?:none \()?(-?\d+\.\d+)", line)
        if row and row[1] in CONFIGS:
            told.append(Figure(row[1], cases / CONFIGS[row[1]], "h100", "vllm-0.11", 1024, 8192, float(row[2])))
    meta = json.loads((SHARED / "measured" / "vllm_rtx4090_llama31_8b" / "meta.json").read_text())
    engine, cache = meta["engine_kwargs"], meta["kv_cache"]
    config = cases / CONFIGS["Llama-3.1-8B"]
    block = load_model(str(config)).kv_bytes_per_token * cache["block_size"]
    told.append(
        Figure(
            "Llama-3.1-8B", config, "rtx-4090", "vllm-0.19", engine["max_num_seqs"], engine["max_num_batched_tokens"],
            cache["num_gpu_blocks"] * block / GIB,
        )
    )  # fmt: skip
    return told


def main() -> None:
    """The table of docs/kv.md, on standard output."""
    print("| server | model | told, GiB | predicted | error | band | within | without its model | without its GPU |")
    print("|---|---|---|---|---|---|---|---|---|")
    every = figures()
    for each in every:
        planned = each.plan()
        left = left_bytes(planned) / GIB
        low, high = left - planned.more_bytes / GIB, left + planned.less_bytes / GIB
        error = f"{100 * (left / each.kv_gib - 1):+.1f} %"
        where = f"{each.accounting}, {each.gpu}, {each.seqs:,} sequences"
        said = [
            "yes" if each.is_within(planned) else "no",
            *(
                each.held_by([other for other in every if getattr(other, key) != getattr(each, key)])
                for key in LEFT_OUT
            ),
        ]
        print(
            f"| {where} | {each.model} | {each.kv_gib:.2f} | {left:.2f} | {error} | {low:.2f} to {high:.2f} "
            f"| {' | '.join(said)} |"
        )
    for each in every:
        print(f"{each.accounting} {each.model}: context {each.rest_bytes() / GIB:.2f} GiB")


if __name__ == "__main__":
    main()
