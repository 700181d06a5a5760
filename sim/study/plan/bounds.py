"""What a replica can take at most, from the costs of its steps alone, in milliseconds. It simulates nothing.

Every answer errs upwards: no simulated capacity exceeds it (tests/study/test_plan_bounds.py). A request needs its
prompt computed and a decode row in output - 1 steps. Of all steps that hold so many rows as seats, KV memory and the
limit on the time per token allow, the cheapest per row are taken, prompts are computed in the portions that cost
least beside them, and nobody ever waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from sim.cost.roofline import Roofline
from sim.engine.batch import Shape
from sim.results import metrics
from sim.results.percentiles import Floats, percentiles
from sim.scenario import Scenario
from sim.serving.assemble import Parts, assemble
from sim.serving.workload import samples
from sim.study.statistics import GROWTH_ALLOWED
from traces.schema import Trace

if TYPE_CHECKING:
    from sim.study.plan.observation import Clause

SLACK = 1.02
"""Graphs of captured sizes make prices bend: a mixture of sizes may cost so much less than any one."""
PORTIONS = 12
SAMPLE = 64
FLAT = 1.05
"""Where twice the rows would give less than so many times the rate, it is the device that binds."""
SURELY_OVER = 1.2
"""A share of requests is above a limit at any load where so many times as many as may be are, each served alone."""


@dataclass(frozen=True, slots=True)
class RateBound:
    """At most so many requests per second and replica, and what binds there."""

    rate_per_s: float
    binds: str
    """A clause of the SLO, "seats", "KV memory", "token budget" or "compute"."""
    rows: float
    """Decode rows of a step at that rate."""
    step_s: float
    lifetime_s: float
    """The 90th percentile of a request's time in the system there, if it never waits."""
    floors: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Clauses that no load meets: (what requests alone take, the limit), in seconds."""

    def replicas(self, rate_per_s: float) -> int | None:
        """The fewest that a rate can do with; None where no number will do."""
        return max(1, math.ceil(rate_per_s / self.rate_per_s * (1 - 1e-12))) if self.rate_per_s > 0 else None


@dataclass(frozen=True, slots=True)
class Mix:
    """What the requests of a trace ask for, in the mean."""

    prompts: Floats
    outputs: Floats
    """Sorted, each by itself."""
    prompt: float
    """Prompt tokens of a request that are computed."""
    decodes: float
    """Decode rows of a request: its output less the first token."""
    context: float
    """KV tokens that a decode row attends, and `window_context` with an attention window."""
    window_context: float
    shared: bool
    """May prompts be in the cache already?"""
    free_prompts: bool
    """May prompts cost nothing: since they may be in the cache, or are computed elsewhere?"""

    @classmethod
    def of(cls, trace: Trace, span_tokens: int, several: bool, *, prompts_elsewhere: bool = False) -> Mix:
        """several: requests ask for several sequences, which share their prompt."""
        table = trace.table
        prompts, outputs = (np.asarray(table[name], np.float64) for name in ("prompt_tokens", "output_tokens"))
        rows = np.maximum(outputs - 1, 0)
        attended = rows * prompts + rows * (rows + 1) / 2
        total = max(float(rows.sum()), 1.0)
        shared = several or "prefix_blocks" in table or "token_ids" in table
        free = shared or prompts_elsewhere
        within = attended
        if span_tokens:
            grows = np.clip(span_tokens - prompts, 0, rows)
            within = grows * prompts + grows * (grows + 1) / 2 + (rows - grows) * span_tokens
        return cls(
            np.sort(prompts),
            np.sort(outputs),
            1.0 if free else float(prompts.mean()),
            float(rows.mean()),
            float(attended.sum()) / total,
            float(within.sum()) / total,
            shared,
            free,
        )


def saturation(scenario: Scenario, trace: Trace, slo: str | None = None) -> RateBound:
    """The most that one replica can take of this trace's requests under an SLO (None: the scenario's, if it has one).

    Raises InputError for a scenario that cannot be assembled.
    """
    text = scenario.slo if slo is None else slo
    if not text:
        return bound_of(assemble(scenario), trace, ())
    from sim.study.plan.observation import clauses_of  # noqa: PLC0415 - which a run without an SLO has no use for

    return bound_of(assemble(scenario), trace, clauses_of(metrics.parse_slo(text)))


def bound_of(
    parts: Parts, trace: Trace, clauses: Sequence[Clause], slower: float = 1.0, *, prompts_elsewhere: bool = False
) -> RateBound:
    """The same of parts and clauses; with `slower`, every step lasts so many times as long as the cost model says.

    Of a replica of several ranks, what one does while the others are idle, times their number; of one of several stages
    what it does of as many batches at once.

    prompts_elsewhere: the replica decodes what others have computed the prompts of.
    """
    bound = _of_rank(parts, trace, clauses, slower, prompts_elsewhere=prompts_elsewhere)
    return replace(bound, rate_per_s=bound.rate_per_s * parts.scenario.parallel.dp * parts.scenario.parallel.pp)


def _of_rank(
    parts: Parts, trace: Trace, clauses: Sequence[Clause], slower: float, *, prompts_elsewhere: bool
) -> RateBound:
    sequences = samples(trace.table, parts.scenario.workload)
    span_tokens = parts.window.span_tokens if parts.window else 0
    mix = Mix.of(trace, span_tokens, sequences is not None, prompts_elsewhere=prompts_elsewhere)
    price = MeanPrice(parts, mix, slower)
    floors = dict(_floors(price, mix, clauses))
    if floors:
        return RateBound(0.0, next(iter(floors)), 0.0, 0.0, 0.0, floors)
    ahead = 1 + (parts.scenario.speculation.shape.drafts if parts.drafter is not None else 0)
    decodes = mix.decodes / ahead
    if decodes < 1e-9:
        rate = 1 / price.prompt_s(mix.prompt)
        return RateBound(rate * SLACK / (1 - GROWTH_ALLOWED), "compute", 0.0, 1 / rate, 1 / rate)
    seats, cap, capped_by = parts.limits.max_num_seqs, float(parts.limits.max_num_seqs), "seats"
    if not mix.shared and parts.window is None and parts.pool.tokens / mix.context < cap:
        cap, capped_by = parts.pool.tokens / mix.context, "KV memory"
    limit_s, limited_by = _step_limit(clauses, ahead)
    sizes = [size for size in _sizes(seats) if size < cap] + [min(seats, math.ceil(cap))]
    points = [(float(rows), price.step_s(rows, rows * mix.prompt / decodes)) for rows in sizes]
    reached = [point for point in points if point[1] <= limit_s]
    beyond = next((point for point in points if point[1] > limit_s), None)
    if beyond is not None:  # as many rows as the limit leaves between two sizes
        rows, step_s = reached[-1] if reached and reached[-1][0] < beyond[0] else (0.0, 0.0)
        share = (limit_s - step_s) / (beyond[1] - step_s)
        reached.append((rows + share * (beyond[0] - rows), limit_s))
    rows, step_s = max(reached, key=lambda point: point[0] / point[1])
    rate = rows / step_s / decodes
    binds = _binds(rows, rate, reached, decodes, limited_by if beyond else "", capped_by)
    if binds == capped_by and rows + rows * mix.prompt / decodes >= parts.limits.max_num_batched_tokens:
        binds = "token budget"
    lifetime_s = float(percentiles(mix.outputs, [90.0])[0]) / ahead * step_s + price.prompt_s(mix.prompt)
    return RateBound(rate * SLACK / (1 - GROWTH_ALLOWED), binds, float(rows), step_s, lifetime_s)


def _binds(
    rows: float, rate: float, reached: Sequence[tuple[float, float]], decodes: float, limited_by: str, capped_by: str
) -> str:
    half = [point[0] / point[1] / decodes for point in reached if point[0] <= rows / 2]
    if half and rate < FLAT * max(half):
        return "compute"
    return limited_by or capped_by


class MeanPrice:
    """Lower bounds of what steps cost, for a mix of requests."""

    def __init__(self, parts: Parts, mix: Mix, slower: float) -> None:
        self._cost, self._mix, self._slower = parts.cost, mix, slower
        self._waits_for_host = not parts.asynchronous
        self._budget = parts.limits.max_num_batched_tokens
        self._windowed = parts.window is not None
        self.drafts = parts.drafter is not None
        places = np.linspace(0, len(mix.prompts) - 1, min(SAMPLE, len(mix.prompts))).astype(int)
        attention_s = self._prefill_attention_s(tuple((int(mix.prompts[place]), 0) for place in places))
        self._attention_s = 0.0 if mix.free_prompts else attention_s / len(places)
        """Of a prompt's attention to itself, where many are computed together."""
        self.decode_s: Callable[[int], float] = lru_cache(maxsize=None)(self._decode_s)
        self.prompt_s: Callable[[float], float] = lru_cache(maxsize=None)(self._prompt_s)

    def of(self, shape: Shape) -> float:
        [device_s], host_s = self._cost.span_s(shape, 1)
        return (device_s + (host_s if self._waits_for_host else 0.0)) * self._slower

    def rows(self, rows: int, context: float, within: float, prefills: tuple[tuple[int, int], ...] = ()) -> Shape:
        return Shape(
            prefills=prefills,
            decodes=rows,
            decode_context=int(rows * context),
            decode_window_context=max(rows, int(rows * within)) if self._windowed else 0,
            decode_longest=int(context) if rows else 0,
        )

    def _decode_s(self, rows: int) -> float:
        return self.of(self.rows(rows, self._mix.context, self._mix.window_context))

    def step_s(self, rows: int, prompt_tokens: float) -> float:
        """Seconds from one step of so many rows to the next, where so many prompt tokens come in the mean."""
        mix, alone_s = self._mix, self.decode_s(rows)
        requests = prompt_tokens / mix.prompt
        between_s = requests * self.prompt_s(mix.prompt)
        least_s = math.inf
        for portion in self._portions(prompt_tokens, self._budget - rows):
            together = self.rows(rows, mix.context, mix.window_context, ((portion, 0),))
            more_s = self.of(together) - alone_s - self._own_attention_s(portion)
            least_s = min(least_s, more_s * prompt_tokens / portion)
        beside_s = max(least_s, 0.0) + requests * self._attention_s * self._slower
        return alone_s + min(beside_s, between_s)

    def _prompt_s(self, prompt: float) -> float:
        """Seconds for one prompt of many, in steps of their own."""
        least_s = math.inf
        for portion in self._portions(1.0, self._budget):
            own_s = self._own_attention_s(portion)
            least_s = min(least_s, (self.of(Shape(prefills=((portion, 0),))) - own_s) * prompt / portion)
        return max(least_s, 0.0) + self._attention_s * self._slower

    def _own_attention_s(self, portion: int) -> float:
        return self._prefill_attention_s(((portion, 0),)) * self._slower

    def _prefill_attention_s(self, prefills: tuple[tuple[int, int], ...]) -> float:
        if isinstance(self._cost, Roofline):
            return self._cost.prefill_attention_s(prefills)
        term = self._cost.explain(Shape(prefills=prefills)).get("prefill attention")
        return 0.0 if term is None else term.seconds

    @staticmethod
    def _portions(least: float, most: int) -> list[int]:
        low = max(1, math.ceil(least))
        return sorted({int(size) for size in np.geomspace(low, max(low, most), PORTIONS)})

    def alone_s(self, prompt: int) -> float:
        """Seconds to the first token of a request that has the replica to itself."""
        total_s, past = 0.0, 0
        while past < prompt:
            new = min(self._budget, prompt - past)
            total_s += self.of(Shape(prefills=((new, past),)))
            past += new
        return total_s


def _sizes(most: int) -> list[int]:
    """Rows for which CUDA graphs are captured, and beyond them a geometric scale."""
    captured = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]
    further = [int(size) for size in np.geomspace(544, max(most, 544), 30)] if most > 512 else []
    return sorted({size for size in (*captured, *further) if size <= most})


def _step_limit(clauses: Sequence[Clause], ahead: int) -> tuple[float, str]:
    """The longest mean step in which the limits on the time per token can still be met, and the clause."""
    limit_s, name = math.inf, ""
    for clause in clauses:
        for limit in clause.limits:
            if limit.metric == "tpot":
                allowed_s = limit.limit_s * ahead / max(1 - clause.share, 0.05)
                if allowed_s < limit_s:
                    limit_s, name = allowed_s, clause.name
    return limit_s, name


def _floors(price: MeanPrice, mix: Mix, clauses: Sequence[Clause]) -> Iterator[tuple[str, tuple[float, float]]]:
    """The clauses that requests miss even if each has the replica to itself: what it takes then, and the limit."""
    answered = float((mix.outputs > 1).mean())
    for clause in clauses:
        if clause.statistic == "mean":
            continue
        allowed = min(1.0, SURELY_OVER * clause.share)
        for limit in clause.limits:
            least_s = 0.0
            if limit.metric in ("ttft", "e2e") and not mix.free_prompts:
                least_s = price.alone_s(int(np.percentile(mix.prompts, 100 * (1 - allowed))))
            elif limit.metric in ("tpot", "itl") and answered > allowed and not price.drafts:
                least_s = price.of(price.rows(1, 1.0, 1.0))
            if least_s > limit.limit_s:
                yield clause.name, (least_s, limit.limit_s)
