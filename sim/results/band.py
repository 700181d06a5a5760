"""How far a run's answers may be off because its steps' prices are: an interval for each, from errors of step times.

The error of a step's seconds has a part that all steps share (a card's constants are off together), which no number of
requests averages out, and one that each step has for itself, which does. The first is carried to an answer by how it
moves with all steps' seconds: to first order here, by simulating both ends in `sim.study.band`. It simulates nothing;
docs/band.md has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sim.cost import errors
from sim.cost.errors import MIXED, NORMAL_P90, PREFILL, STEP_KINDS, Error, error_of
from sim.cost.step import StepCost
from sim.cost.terms import HOST
from sim.engine.batch import Shape
from sim.results.metrics import plain
from sim.results.terms import Spent, StepTerms
from traces.table import Columns

LEVEL = 0.9
"""A band holds the truth so often, as far as errors are as the figures say."""
LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
STATISTICS = ("mean", "p50", "p90", "p99")
RATES = ("requests_per_s", "output_tokens_per_s")
FIRST_ORDER, SIMULATED = "first order", "simulated"
FRONT_END = errors.of_class("roofline", HOST).common
"""Of a front end's seconds, as of the host's: half to twice (docs/front_end.md)."""
STEADY_STEPS = 2.0
"""Where requests wait longer than so many steps in the mean, waiting is no longer a matter of the step under way."""
MOST_LOADED = 4.0
"""A greater elasticity is none that a straight line tells."""
_TAIL: Mapping[str, float] = {"mean": 1.0, "p50": 1.0, "p90": 0.2, "p99": 0.02}
"""The share of the steps that a statistic rests on."""
_MOST_SPANS = 48
_MORE = 1.25


class Ends(NamedTuple):
    """Both ends, None where they are not known."""

    low: float | None
    high: float | None


UNKNOWN = Ends(None, None)


@dataclass(frozen=True, slots=True)
class Spread:
    """How far off steps of one kind may be: standard deviations of the logarithm of their seconds; `share` of all."""

    share: float
    common: float
    independent: float


NO_STEPS = Spread(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class StepErrors:
    """What is known of the errors of a run's steps. `parts` are the common errors of all steps together by (what the
    seconds are spent on, source), in shares of all seconds; they add up by squares, those of one kind straight."""

    kinds: Mapping[str, Spread]
    parts: Mapping[tuple[str, str], float]

    @property
    def common(self) -> float:
        """Of all steps together: the kinds of steps are off together."""
        return sum(spread.share * spread.common for spread in self.kinds.values())

    @property
    def independent(self) -> float:
        """Of one step, whatever its kind."""
        return math.sqrt(sum(spread.share * spread.independent**2 for spread in self.kinds.values()))

    def common_of(self, *kinds: str) -> float:
        """Of the steps of these kinds together; of all where there are none of them."""
        found = [self.kinds[kind] for kind in kinds if kind in self.kinds]
        share = sum(spread.share for spread in found)
        return sum(spread.share * spread.common for spread in found) / share if share > 0 else self.common

    def factors(self, way: int) -> dict[str, float]:
        """By kind of step, what its seconds are multiplied by at an end of the band: -1 the fast one, +1 the slow."""
        return {kind: math.exp(way * NORMAL_P90 * spread.common) for kind, spread in self.kinds.items()}


def step_errors(pools: Sequence[tuple[StepTerms, Mapping[str, Spent]]]) -> StepErrors:
    """From the recorded spans of each pool, and their seconds by kind of step, term and source."""
    total = sum(sum(spent.values()) * terms.stride for terms, kinds in pools for spent in kinds.values())
    found: dict[str, Spread] = {}
    parts: dict[tuple[str, str], float] = {}
    for kind in STEP_KINDS:
        seconds, common, independent = 0.0, 0.0, 0.0
        for terms, kinds in pools:
            if not (own := sum(kinds.get(kind, {}).values()) * terms.stride):
                continue
            one = _of_kind(terms.cost, kind, kinds[kind])
            for key, part in one[1].items():
                parts[key] = parts.get(key, 0.0) + part * own / total
            seconds, common = seconds + own, common + own * one[0].common
            independent += own * one[0].independent ** 2
        if seconds:
            found[kind] = Spread(seconds / total, common / seconds, math.sqrt(independent / seconds))
    return StepErrors(found, dict(sorted(parts.items(), key=lambda item: -item[1])))


def _of_kind(cost: StepCost, kind: str, spent: Spent) -> tuple[Error, dict[tuple[str, str], float]]:
    """The error of steps of a kind, and its common parts."""
    total = sum(spent.values())
    parts: dict[tuple[str, str], float] = {}
    independent = 0.0
    for (term, source), seconds in spent.items():
        error = error_of(cost, term, source)
        key = errors.kind_of(term), source
        parts[key] = parts.get(key, 0.0) + seconds / total * error.common
        independent += (seconds / total * error.independent) ** 2
    whole = getattr(cost, "step_error", None)
    stated: Error | None = None if whole is None else whole(kind)
    if stated is not None:
        parts["whole steps", "measured"] = stated.common
        independent += stated.independent**2
    return Error(_by_squares(parts), math.sqrt(independent), ""), parts


def _by_squares(parts: Mapping[tuple[str, str], float]) -> float:
    """Parts of one kind are off together, whatever their source; the kinds for themselves."""
    kinds: dict[str, float] = {}
    for (kind, _), part in parts.items():
        kinds[kind] = kinds.get(kind, 0.0) + part
    return math.sqrt(sum(part**2 for part in kinds.values()))


def elasticity(terms: StepTerms) -> float:
    """By how many percent steps take longer, at a given rate of requests, where every price is 1 % higher.

    Slower steps find more requests under way, and more prompts come while they last, which makes them longer: with s
    the mean seconds of a step and f the prices, d ln s = d ln f + m d ln s, where m is the share of s that grows with
    the rows and that prompts take. The cost model is asked for it at an even choice of spans. At most `MOST_LOADED`.
    """
    chosen = terms.spans[:: -(-len(terms.spans) // _MOST_SPANS) or 1]
    whole = growing = 0.0
    for _, shape, repeats in chosen:
        seconds = _seconds(terms, shape)
        decoding = shape._replace(prefills=())
        base = _seconds(terms, decoding) if shape.prefills else seconds
        whole += repeats * seconds
        growing += repeats * (seconds - base)
        if shape.decodes:
            rows = max(shape.decodes + 1, round(_MORE * shape.decodes))
            growing += (
                repeats * max(0.0, _seconds(terms, _with_rows(decoding, rows)) - base) / (rows / shape.decodes - 1)
            )
    if not whole > 0:
        return 1.0
    return min(MOST_LOADED, 1.0 / max(1e-9, 1.0 - min(1.0, growing / whole)))


def _with_rows(shape: Shape, rows: int) -> Shape:
    """With so many decode rows that are like those there are; the longest stays."""
    ratio = rows / shape.decodes
    return shape._replace(
        decodes=rows,
        decode_context=round(shape.decode_context * ratio),
        decode_window_context=round(shape.decode_window_context * ratio),
        decode_window_growth=round(shape.decode_window_growth * ratio),
        decode_lengths=(),
    )


def _seconds(terms: StepTerms, shape: Shape) -> float:
    """Of one step of this shape, as `sim.serving.executor.Predicted` has them."""
    (device_s,), host_s = terms.cost.span_s(shape, 1)
    return max(device_s, host_s) + terms.gap.of(shape) if terms.overlap_host else device_s + host_s


def first_order(summary: Mapping[str, Any], known: StepErrors, steps: int, loaded: float | None) -> dict[str, Any]:
    """The summary's `band`, from the run alone.

    Args:
        loaded: the elasticity of steps at the run's rate; None where it is not known (several pools), so that answers
            of an open load have no interval.
        steps: how many steps the run took.

    TPOT moves with all steps by the elasticity, TTFT with the steps that have prompts, and by what the load adds; E2E
    with both by their shares. Where users wait for answers, or all came at once, everything moves as steps do. Where
    requests wait for more than the step under way, or would at the slow end, TTFT, E2E and the rates have no interval
    of first order; where they wait already, no more of them decode at once, and TPOT moves as steps do.
    """
    held_up = summary["load"]["kind"] in ("closed", "at once")
    waits = not held_up and _waits(summary)
    load = 1.0 if held_up or waits else loaded
    steady = held_up or not (waits or load is None or _fills(summary, load * known.common))
    ends: dict[str, tuple[float, float] | None] = dict.fromkeys(LATENCIES)
    if load is not None:
        ends["tpot_s"] = tpot = _factors(load * known.common)
        if steady:
            ours = _factors(known.common_of(PREFILL, MIXED) + (load - 1.0) * known.common)
            ends["ttft_s"] = ttft = _mixed(_of_front_end(summary), _factors(FRONT_END), ours)
            ends["e2e_s"] = _mixed(_share(summary["ttft_s"]["mean"], summary["e2e_s"]["mean"]), ttft, tpot)
    told = {
        part: {
            statistic: _around(summary[part][statistic], factors, known.independent, steps, statistic)
            for statistic in STATISTICS
        }
        for part, factors in ends.items()
    }
    moved = None if not steady else _factors(known.common if held_up else 0.0)
    told["throughput"] = {name: _around(summary["throughput"][name], moved, 0.0, steps, "mean") for name in RATES}
    return _document(known, FIRST_ORDER, load, told)


def simulated(
    summary: Mapping[str, Any], known: StepErrors, steps: int, ends: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The summary's `band` from the summaries of the run with all steps at the fast and at the slow end."""

    def between(part: str, name: str, own: float) -> Ends:
        values = [one[part][name] for one in (summary, *ends)]
        if any(value is None for value in values):
            return UNKNOWN
        return interval(values[0], min(values), max(values), own, steps, name if name in _TAIL else "mean")

    told: dict[str, Any] = {
        part: {statistic: between(part, statistic, known.independent) for statistic in STATISTICS} for part in LATENCIES
    }
    told["throughput"] = {name: between("throughput", name, 0.0) for name in RATES}
    if "goodput" in summary:
        told["goodput"] = {name: between("goodput", name, 0.0) for name in ("requests_per_s", "fraction")}
    return _document(known, SIMULATED, None, told)


def interval(value: float, low: float, high: float, independent: float, steps: int, statistic: str) -> Ends:
    """Around a value from what it is at both ends, and by squares what single steps do to it: a statistic rests on its
    share of the steps, whose own errors average out."""
    own = NORMAL_P90 * independent * abs(value) / math.sqrt(max(1.0, steps * _TAIL[statistic]))
    below, above = max(0.0, value - low), max(0.0, high - value)
    return Ends(max(0.0, value - math.hypot(below, own)), value + math.hypot(above, own))


def _around(
    value: float | None, factors: tuple[float, float] | None, independent: float, steps: int, statistic: str
) -> Ends:
    """Where a value is so many times itself at both ends; unknown where either is not known."""
    if value is None or factors is None:
        return UNKNOWN
    return interval(value, value * factors[0], value * factors[1], independent, steps, statistic)


def _factors(common: float) -> tuple[float, float]:
    """Of what moves by a common error of so many standard deviations, at both ends."""
    return math.exp(-NORMAL_P90 * common), math.exp(NORMAL_P90 * common)


def _mixed(share: float, one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """Of what is made of both, of the first by this share; they are off together."""
    low, high = (share * first + (1.0 - share) * second for first, second in zip(one, other, strict=True))
    return low, high


def _waits(summary: Mapping[str, Any]) -> bool:
    """Whether requests wait for more than the step under way."""
    queue_s, tpot_s = summary["queue_s"]["mean"], summary["tpot_s"]["mean"]
    if queue_s is None or summary["verdict"]["stable"] is False:
        return True
    return bool(queue_s > STEADY_STEPS * (summary["ttft_s"]["p50"] if tpot_s is None else tpot_s))


def _fills(summary: Mapping[str, Any], width: float) -> bool:
    """Whether so many more requests as are under way at the slow end would find a limit of the replicas full."""
    peaks = summary["binding"].get("peaks") or {}
    return max(peaks.values(), default=0.0) * math.exp(NORMAL_P90 * width) > 1.0


def _of_front_end(summary: Mapping[str, Any]) -> float:
    """The share of TTFT that passes in a front end; 0 without one."""
    seen, engine = summary["ttft_s"]["mean"], summary["engine_ttft_s"]["mean"]
    return _share(seen - engine, seen) if "front_end" in summary and seen else 0.0


def _share(part: float | None, whole: float | None) -> float:
    return part / whole if part and whole else 0.0


def _document(
    known: StepErrors, how: str, load: float | None, told: Mapping[str, Mapping[str, Ends]]
) -> dict[str, Any]:
    document: dict[str, Any] = plain(
        {
            "level": LEVEL,
            "how": how,
            "common": known.common,
            "independent": known.independent,
            "elasticity": load,
            "steps": {
                kind: {"share": each.share, "common": each.common, "independent": each.independent}
                for kind in STEP_KINDS
                for each in [known.kinds.get(kind, NO_STEPS)]
            },
            "parts": [
                {"of": kind, "source": source, "common": part}
                for (kind, source), part in known.parts.items()
                if part > 0
            ],
            **{part: {name: each._asdict() for name, each in intervals.items()} for part, intervals in told.items()},
        }
    )
    return document


def apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """By how much ln(TPOT of one run / that of another) may be off, at the level of the bands of their summaries; None
    where one of them has none.

    Prices of one GPU and profile are off together, so that of each part only the difference of its shares counts; those
    of two are independent. Single steps' own errors are left out: they average out.
    """
    if not one.get("band") or not other.get("band"):
        return None
    parts = [
        {
            (part["of"], part["source"]): part["common"] * (each["band"]["elasticity"] or 1.0)
            for part in each["band"]["parts"]
        }
        for each in (one, other)
    ]
    alike = all(one["inputs"].get(key) == other["inputs"].get(key) for key in ("gpu", "profile"))
    if not alike:
        return NORMAL_P90 * math.hypot(*(_by_squares(each) for each in parts))
    left = {key: abs(parts[0].get(key, 0.0) - parts[1].get(key, 0.0)) for key in {**parts[0], **parts[1]}}
    return NORMAL_P90 * _by_squares(left)


def steps_of(steps: Columns) -> int:
    """How many steps a table of spans has."""
    return int(steps["repeats"].sum()) if len(steps) else 0
