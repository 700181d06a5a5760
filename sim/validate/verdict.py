"""Is a prediction within its bounds, and if not, what is out and why? It reads reports and computes no error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sim.validate.attribution import largest

Report = Mapping[str, Any]
REASONS = {
    "engine": "the engine took other decisions on the same seconds",
    "kernels": "the device seconds of its steps",
    "host": "the host seconds of its steps",
    "batching": "batches that went another way",
    "capacity": "another number of KV blocks",
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Largest errors that pass, as fractions.

    Args:
        bias: of the sum of all steps.
        mape: of single steps, by kind.
        requests: of (measure, statistic).
    """

    bias: float
    mape: Mapping[str, float] = field(default_factory=dict)
    requests: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @classmethod
    def all_within(cls, fraction: float) -> Bounds:
        """The same bound for the bias and for every measure of requests; single steps are not judged."""
        return cls(fraction, {}, dict.fromkeys(JUDGED, fraction))


JUDGED = (
    ("tpot_s", "p50"),
    ("tpot_s", "p99"),
    ("e2e_s", "p50"),
    ("e2e_s", "p99"),
    ("ttft_s", "p90"),
    ("throughput", "output_tokens_per_s"),
)
ON_GPU = Bounds(
    0.02,
    {"prefill": 0.08, "mixed": 0.08, "decode": 0.05, "verify": 0.08},
    dict(zip(JUDGED, (0.03, 0.05, 0.03, 0.05, 0.10, 0.03), strict=True)),
)
"""What a calibrated profile is held to on the GPU that it was measured on."""
ON_CPU = Bounds.all_within(0.35)
"""A CPU that others share drifts by 20 to 35 % within minutes: only the twin check is sharp there."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`good` where everything is within its bounds; `reason` is a sentence, `out` lists all that is not."""

    good: bool
    reason: str
    out: tuple[str, ...] = ()


def judge(twin: Report | None, steps: Report | None, requests: Report, attribution: Report, bounds: Bounds) -> Verdict:
    """The twin check first, since nothing else means much where it fails. An error inside the spread passes."""
    if twin is not None and not twin["identical"]:
        return Verdict(False, f"the simulator is no twin of the live run: {twin['first_difference']['sentence']}")
    out = [*_steps_out(steps, bounds), *_requests_out(requests, bounds)]
    if out:
        return Verdict(False, f"{out[0]}{_because(attribution, steps)}", tuple(out))
    known = [abs(error) for key in bounds.requests if (error := _error(requests, *key)) is not None]
    if twin is None and not known:
        return Verdict(False, "none of the judged measures is known of both sides")
    worst = max(known, default=0.0)
    exact = "every decision of the live run was taken again, and " if twin is not None else ""
    return Verdict(True, f"{exact}the judged measures are within {100 * worst:.1f} % (bounds: docs/validate.md)")


def _steps_out(steps: Report | None, bounds: Bounds) -> Iterator[str]:
    if steps is None:
        return
    bias = steps["all"]["bias"]
    if bias is not None and abs(bias) > bounds.bias:
        yield f"step bias {100 * bias:+.1f} % (at most {100 * bounds.bias:g} %)"
    for kind, most in bounds.mape.items():
        mape = steps["by_kind"].get(kind, {}).get("mape")
        if mape is not None and mape > most:
            yield f"{kind} step MAPE {100 * mape:.1f} % (at most {100 * most:g} %)"


def _requests_out(requests: Report, bounds: Bounds) -> Iterator[str]:
    for (key, name), most in bounds.requests.items():
        error = _error(requests, key, name)
        if error is not None and abs(error) > most and not requests[key][name].get("inside"):
            least = "at least " if "least_error" in requests[key][name] else ""
            yield f"{key.removesuffix('_s').upper()} {name} {least}{100 * error:+.1f} % (at most {100 * most:g} %)"


def _error(requests: Report, key: str, name: str) -> float | None:
    """The error; of a value that is known by its bounds alone the least that it can be."""
    row = requests[key][name]
    error: float | None = row.get("least_error", row["error"])
    return error


def _because(attribution: Report, steps: Report | None) -> str:
    split = attribution.get("e2e_s.mean")
    if not split or not split["error"]:
        return ""
    stage = largest(split["parts"])
    most = _term(steps) if stage == "kernels" and steps is not None else ""
    return f"; of the mean E2E's error the largest part comes from {REASONS[stage]}{most}"


def _term(steps: Report) -> str:
    """The operations whose seconds are furthest off, where they were timed."""
    parts = {name: part for name, part in steps.get("by_part", {}).items() if name not in ("device", "host")}
    if not parts:
        return ""
    name = max(parts, key=lambda part: abs(parts[part]["off_s"]))
    bias = parts[name]["bias"]
    return f", most of it from {name}" + ("" if bias is None else f" ({100 * bias:+.1f} %)")
