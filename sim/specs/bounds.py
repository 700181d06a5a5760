"""The least and the most that each number of a scenario may be, by its dotted key: one place, and all are there.

A bound is wide enough for everything that makes sense and narrow enough that what is beyond is a slip of the keyboard,
which would end as a run without end or without memory. It knows nothing of what the numbers mean together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from sim.specs.model import MAX_TP
from traces.redraw import LARGEST_CV
from traces.schema import MAX_REQUESTS, MAX_TOKENS, InputError

MAX_SEED = 2**62
MAX_BLOCKS = 10**8
"""KV blocks of all replicas together: each takes about 40 bytes of this machine's memory."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A number from `least` to `most`, both included; with `above`, more than `least`.

    `zero` says what 0 stands for, which then is allowed as well.
    """

    least: float
    most: float
    zero: str = ""
    above: bool = False

    def __str__(self) -> str:
        least = f"above {_shown(self.least)}" if self.above else f"at least {_shown(self.least)}"
        most = f"at most {_shown(self.most)}"
        if self.zero and self.least > 0:
            return f"0 ({self.zero}), or {least} and {most}"
        return f"{least} and {most}" + (f" (0: {self.zero})" if self.zero else "")

    def holds(self, value: float) -> bool:
        """Whether the value lies in it; NaN never does."""
        if self.zero and value == 0:
            return True
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def check(self, key: str, value: float) -> None:
        """Raise InputError, naming key and bound, for a value outside."""
        if not self.holds(value):
            raise InputError(f"{key} is {_given(value)}; it must be {self}")


def _shown(number: float) -> str:
    """A bound as a sentence has it."""
    return f"{number:,}" if isinstance(number, int) and abs(number) < 10**12 else f"{number:g}"


def _given(value: float) -> str:
    """A value as it was given, unless it has more digits than anyone reads (or Python prints)."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"a number of about {math.log10(abs(value)):.0f} digits"
    return str(value)


PARAMETER = Bound(-1e15, 1e15)
"""Of every number among the parameters of a policy, an allocator or a router, whose own bounds are narrower."""
EFFICIENCY = Bound(0.0, 1e9)
"""Of every value of `cost.efficiency`; those that are shares have narrower bounds in `sim.cost.efficiency`."""

BOUNDS: Mapping[str, Bound] = {
    "tp": Bound(1, MAX_TP),
    "replicas": Bound(1, 10_000),
    "seed": Bound(0, MAX_SEED),
    "workload.limit": Bound(0, 1_000_000_000, "all"),
    "workload.rate": Bound(1e-6, 1e9, "not set"),
    "workload.rate_scale": Bound(1e-6, 1e6),
    "workload.concurrency": Bound(0, MAX_REQUESTS, "not set"),
    "workload.arrivals_cv": Bound(0.001, LARGEST_CV),
    "workload.resample": Bound(0, MAX_REQUESTS, "not set"),
    "workload.samples": Bound(0, 10_000, "as the trace says"),
    "workload.beam_churn": Bound(0.0, 1.0),
    "engine.max_num_seqs": Bound(1, 1_000_000),
    "engine.max_num_batched_tokens": Bound(1, 1_000_000_000),
    "engine.max_model_len": Bound(0, 1_000_000_000, "the model's own"),
    "kv.blocks": Bound(0, MAX_BLOCKS, "derived from the memory"),
    "kv.block_tokens": Bound(1, 1_000_000),
    "kv.gpu_memory_utilization": Bound(0.0, 1.0, above=True),
    "kv.swap_gib": Bound(0.0, 1e6, "none"),
    "offload.weight_layers": Bound(0, 10_000, "none"),
    "offload.kv_layers": Bound(0, 10_000, "none"),
    "offload.host_gib": Bound(0.0, 1e6, "not limited"),
    "price.usd_per_gpu_hour": Bound(0.0, 1e6, "the catalog's"),
    "price.watts_per_gpu": Bound(0.0, 1e6, "the catalog's"),
    "price.idle_watts_per_gpu": Bound(0.0, 1e6, "not known"),
    "live.temperature": Bound(0.0, 1e6, "greedy"),
    "live.top_k": Bound(0, 1_000_000_000, "all tokens"),
    "live.top_p": Bound(0.0, 1.0, above=True),
    "speculation.k": Bound(1, 64),
    "speculation.acceptance": Bound(0.0, 1.0),
    "speculation.prompt_lookup_min": Bound(0, MAX_TOKENS, "as prompt_lookup_max"),
    "speculation.prompt_lookup_max": Bound(0, MAX_TOKENS, "as prompt_lookup_min"),
}


def check(section: str, settings: object) -> None:
    """Raise InputError for the first number among a section's settings that is out of its bound; "" is the top."""
    for entry in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, entry.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            key = f"{section}.{entry.name}" if section else entry.name
            BOUNDS[key].check(key, value)
