"""Fleets of several pools, as candidates of a plan: what each can do at best, and which numbers of replicas may do.

A layout is how many replicas each pool has. Pools of one role add up; prompts and decoding, where they are apart, must
both keep pace with the rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from sim.results.bill import Rates
from sim.scenario import Scenario
from sim.serving.pool import Pool, pools_of
from sim.specs.fleet import BOTH, DECODE, PREFILL
from sim.study.plan.bounds import RateBound, bound_of
from sim.study.plan.model_band import typical_error
from sim.study.plan.observation import Clause
from traces.rows import keep_rows
from traces.schema import InputError, Trace

MOST_LAYOUTS = 150
"""Of a candidate so many are looked at, the cheapest by their bounds."""
MOST_COMBINATIONS = 2_000_000
BEYOND = 2.0
"""A pool of no more than so many times the replicas that its bound asks for is looked at, and one more."""

Sizes = tuple[int, ...]
"""Replicas of each pool, in the order of the scenario."""


@dataclass(frozen=True, slots=True)
class PoolAtBest:
    """One pool: a replica's GPUs and price, and the most of the rate that it can do of what its role is."""

    name: str
    role: str
    gpus: int
    usd_per_hour: float | None
    price_source: str
    bound: RateBound
    common: float
    """The common error of its steps (`sim.results.band`)."""

    def fewest(self, rate: float) -> int:
        """Replicas with which the pool alone can do its part of the rate at best."""
        return self.bound.replicas(rate) or 1


def at_best(scenario: Scenario, trace: Trace, clauses: Sequence[Clause], slower: float = 1.0) -> list[PoolAtBest]:
    """Each pool of a scenario at best; with `slower`, every step lasts so many times as long.

    Raises InputError as `pools_of`.
    """
    shortest = scenario.transfer.min_prompt_tokens
    return [_at_best(pool, trace, clauses, slower, shortest) for pool in pools_of(scenario)]


def _at_best(pool: Pool, trace: Trace, clauses: Sequence[Clause], slower: float, shortest: int) -> PoolAtBest:
    parts = pool.parts
    rates = Rates.of(parts.scenario.parallel.gpus, parts.gpu, parts.scenario.price)
    gpus = parts.scenario.parallel.gpus
    usd = None if rates.usd_per_gpu_hour is None else rates.usd_per_gpu_hour * gpus
    if pool.role == PREFILL:
        bound = _of_prompts(pool, trace, clauses, slower, shortest)
    else:
        bound = bound_of(parts, trace, clauses, slower, prompts_elsewhere=pool.role == DECODE)
    common = typical_error(parts, trace, bound, role=pool.role)
    return PoolAtBest(pool.name, pool.role, gpus, usd, rates.price_source, bound, common)


def _of_prompts(pool: Pool, trace: Trace, clauses: Sequence[Clause], slower: float, shortest: int) -> RateBound:
    """The bound of a pool that computes prompts, in requests of the whole rate: short ones never come to it."""
    longer = trace.requests["prompt_tokens"].to_numpy() >= shortest
    if not longer.any():
        raise InputError(
            f"transfer.min_prompt_tokens is {shortest:,}, and no prompt of {trace.path or trace.name} is so long, so "
            f"that pools.{pool.name} would have nothing to do"
        )
    table = keep_rows(trace.requests, longer)
    prompts = replace(trace, requests=table.assign(output_tokens=1))
    bound = bound_of(pool.parts, prompts, clauses, slower)
    return replace(bound, rate_per_s=bound.rate_per_s / float(longer.mean()))


def together(pools: Sequence[PoolAtBest], sizes: Sequence[int]) -> RateBound:
    """The bound of a layout: of the stage that takes least, and as long as all stages after one another."""
    stages = [stage for role in (BOTH, PREFILL, DECODE) if (stage := _stage(pools, sizes, role)) is not None]
    least = min(stages, key=lambda stage: stage.rate_per_s)
    return replace(least, lifetime_s=sum(stage.lifetime_s for stage in stages))


def _stage(pools: Sequence[PoolAtBest], sizes: Sequence[int], role: str) -> RateBound | None:
    own = [(pool.bound, size) for pool, size in zip(pools, sizes, strict=True) if pool.role == role]
    if not own:
        return None
    rate = sum(bound.rate_per_s * size for bound, size in own)
    most, _ = max(own, key=lambda pair: pair[0].rate_per_s * pair[1])
    return replace(most, rate_per_s=rate, lifetime_s=max(bound.lifetime_s for bound, _ in own))


def layouts(pools: Sequence[PoolAtBest], rate: float, most_gpus: int) -> list[Sizes]:
    """The numbers of replicas that may do at best, the cheapest first; of equal ones first what leaves most room.

    Raises InputError where they are too many to be listed.
    """
    ranges = [range(1, math.ceil(BEYOND * pool.fewest(rate)) + 2) for pool in pools]
    ranges = [range(1, min(sizes.stop, most_gpus // pool.gpus + 1)) for pool, sizes in zip(pools, ranges, strict=True)]
    if math.prod(map(len, ranges)) > MOST_COMBINATIONS:
        raise InputError(f"{len(pools)} pools make more than {MOST_COMBINATIONS:,} layouts; plan fewer pools at once")
    able = []
    for sizes in product(*ranges):
        if sum(pool.gpus * size for pool, size in zip(pools, sizes, strict=True)) <= most_gpus:
            bound = together(pools, sizes)
            if bound.replicas(rate) == 1:
                able.append(((cost_of(pools, sizes), -bound.rate_per_s / rate), sizes))
    return [sizes for _, sizes in sorted(able, key=lambda each: each[0])]


def cost_of(pools: Sequence[PoolAtBest], sizes: Sequence[int]) -> float:
    """Dollars an hour; GPUs where a price is not known."""
    if any(pool.usd_per_hour is None for pool in pools):
        return float(sum(pool.gpus * size for pool, size in zip(pools, sizes, strict=True)))
    return sum((pool.usd_per_hour or 0.0) * size for pool, size in zip(pools, sizes, strict=True))


def with_sizes(scenario: Scenario, sizes: Sequence[int]) -> Scenario:
    """The scenario with so many replicas in each of its pools."""
    own = {
        name: replace(pool, scenario=replace(pool.scenario, replicas=size))
        for (name, pool), size in zip(scenario.pools.items(), sizes, strict=True)
    }
    return replace(scenario, pools=own)


def name_of_pool(name: str, pool: str) -> str:
    """What a pool of a candidate is called."""
    return f"pool {pool}" if name == "run" else f"{name}: pool {pool}"


def name_of_layout(name: str, sizes: Mapping[str, int]) -> str:
    words = ", ".join(f"{pool} {size}" for pool, size in sizes.items())
    return words if name == "run" else f"{name}: {words}"
