"""KV that comes from tiers below the GPUs: who shares which tier, the links between, and what loads cost and saved."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd

from sim.cost.step import StepCost
from sim.engine.batch import Batch, Shape
from sim.engine.engine import Engine
from sim.engine.flight import ObservedReplica, Observer
from sim.engine.request import index_of
from sim.engine.tiers import Load, Tier
from sim.results.percentiles import distribution
from sim.scenario import Scenario
from sim.serving.clock import Clock
from sim.serving.links import Links
from sim.serving.pool import Pool, kv_bytes
from sim.serving.replica import Replica
from sim.specs.tiers import HOST, STORE, TierSize
from traces.schema import InputError

_INTO = "replicas"
"""Where all loads go: what a replica takes in is limited by where it comes from alone."""


def check_tiers(scenario: Scenario, pools: Sequence[Pool]) -> None:
    """Raise InputError where the scenario has KV tiers beside what they are not modelled with."""
    if not any(own.tiers.on for own in scenario.kinds):
        return
    pool = pools[0]
    parts, settings = pool.parts, pool.parts.scenario
    named = f"tiers.{parts.scenario.tiers.sizes[0].name}_gib is set" if parts.scenario.tiers.on else "tiers.* is set"
    why = {
        "tiers of several pools are not modelled": bool(scenario.pools),
        "executor is live, and a live run has one cache, on its device": scenario.executor == "live",
        f"engine.name is {settings.engine.name}, which brings its own cache": parts.engine_class is not None,
        f"allocator {settings.allocator.name} finds no prefixes that could be loaded (--allocator prefix does)": (
            parts.engine_class is None and not parts.traits["has_tiers"]
        ),
        "its layers keep KV of several kinds, whose loads are not modelled": bool(parts.layout.groups),
        f"policy {settings.policy.name} drafts, and loads beside drafts are not modelled": parts.drafter is not None,
        "offload.kv_layers is set, and KV in host memory is not evicted": bool(settings.offload.kv_layers),
        f"replicas of several ranks or stages ({parts.parallel}) are not modelled with tiers": (
            settings.dp > 1 or parts.parallel.pp > 1
        ),
        "failures is set, and what becomes of the tiers of a replica that dies is not modelled": scenario.failures.on,
        "autoscale is set, and what becomes of the tiers of a replica that goes is not modelled": scenario.autoscale.on,
    }
    for reason, holds in why.items():
        if holds:
            raise InputError(f"{named}, and {reason}")
    for size in settings.tiers.sizes:
        if not _blocks(size, pool):
            raise InputError(
                f"tiers.{size.name}_gib is {size.gib:g}, and a block of {parts.memory.block_tokens} tokens has "
                f"{_block_bytes(size, pool) / 2**30:.3g} GiB there"
            )


def shares_store(scenario: Scenario) -> bool:
    """Whether replicas share a store: what one evicts in a span another may ask for, so that no step may repeat."""
    return bool(scenario.tiers.store_gib) and scenario.replicas > 1


def _block_bytes(size: TierSize, pool: Pool) -> float:
    """Of all GPUs of a replica; the host keeps each GPU's own, heads that GPUs repeat included."""
    parts = pool.parts
    if size.name == HOST:
        return float(parts.memory.block_bytes * parts.parallel.rank_gpus)
    return kv_bytes(pool, parts.memory.block_tokens)


def _gpus(size: TierSize, pool: Pool) -> int:
    """GPUs that a tier's size and rate are told for each of."""
    return pool.parts.parallel.rank_gpus if size.name == HOST else 1


def _blocks(size: TierSize, pool: Pool) -> int:
    return int(size.gib * 2**30 * _gpus(size, pool) // _block_bytes(size, pool))


class KvLoads(Observer):
    """Moves what engines ask of their tiers over the tiers' links, which loads share evenly, and keeps a log.

    A host and a disk are a replica's own, the store is of all.
    """

    def __init__(self, clock: Clock, pool: Pool) -> None:
        self._pool = pool
        self._sizes = pool.parts.scenario.tiers.sizes
        self._tiers: list[list[Tier]] = []
        """By replica."""
        self._links: list[Links] = []
        for size in self._sizes:
            rate = size.bytes_per_s * _gpus(size, pool)
            places = [_place(size, index) for index in range(pool.ranks)]
            self._links.append(Links(clock, {**dict.fromkeys(places, rate), _INTO: math.inf}, size.latency_s))
        self._store: Tier | None = None
        self._log: dict[str, array[Any]] = {
            "request": array("q"),
            "tier": array("q"),
            "tokens": array("q"),
            "load_s": array("d"),
        }
        self._spared: list[tuple[int, int, int]] = []
        """(request's tokens, those found on the device, those loaded) of each load."""

    def below(self, engine: Engine) -> None:
        """Give an engine, the next by number, its tiers."""
        tiers = []
        for size in self._sizes:
            tier = self._store if size.name == STORE and self._store is not None else self._tier(size)
            if size.name == STORE:
                self._store = tier
            tiers.append(tier)
        self._tiers.append(tiers)
        engine.lay_over(tiers)

    def _tier(self, size: TierSize) -> Tier:
        instant = math.isinf(size.bytes_per_s) and not size.latency_s
        return Tier(size.name, _blocks(size, self._pool), instant=instant)

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        engine = replica.engine
        assert isinstance(engine, Engine)
        assert engine.tiers is not None
        if engine.tiers.begun:
            assert isinstance(replica, Replica)
            begun, engine.tiers.begun = engine.tiers.begun, []
            for load in begun:
                self._begin(load, engine, replica)

    def _begin(self, load: Load, engine: Engine, replica: Replica) -> None:
        self._spared.append((load.request.known, load.found_tokens, load.tokens))
        parts = [at for at, blocks in enumerate(load.blocks) if blocks]
        if load.request not in engine.roster.placed:
            for at in parts:
                self._note(load, at, 0.0)
            return
        replica.moving += 1
        left, asked_s = set(parts), replica.clock.now
        for at in parts:
            size, arrived = self._sizes[at], partial(self._arrived, load, at, asked_s, left, engine, replica)
            self._links[at].send(
                _place(size, replica.index), _INTO, load.blocks[at] * _block_bytes(size, self._pool), arrived
            )

    def _arrived(
        self, load: Load, at: int, asked_s: float, left: set[int], engine: Engine, replica: Replica
    ) -> None:
        self._note(load, at, replica.clock.now - asked_s)
        left.remove(at)
        if not left:
            replica.settle()
            engine.loaded(load.request)
            replica.moving -= 1
            replica.wake()

    def _note(self, load: Load, at: int, load_s: float) -> None:
        row = (index_of(load.request.id), at, load.blocks[at] * self._pool.parts.memory.block_tokens, load_s)
        for column, value in zip(self._log.values(), row, strict=True):
            column.append(value)

    # ---- told ------------------------------------------------------------------------------------------------------

    def loads(self) -> pd.DataFrame:
        """One row for each tier of each load, in order of arrival: `request` (as it was sent), `tier` (its place),
        `tokens`, `load_s` (from the asking to the last byte)."""
        return pd.DataFrame({name: np.array(column) for name, column in self._log.items()})

    def with_tiers(self, requests: pd.DataFrame, sent: np.ndarray) -> pd.DataFrame:
        """The table with the tokens of each request that were loaded from each tier; `sent`: which requests were."""
        loads, rows = self.loads(), np.flatnonzero(sent)
        for at, size in enumerate(self._sizes):
            own = loads[loads["tier"] == at]
            column = np.zeros(len(sent), "i8")
            np.add.at(column, rows[own["request"].to_numpy(np.int64)], own["tokens"].to_numpy(np.int64))
            requests = requests.assign(**{f"{size.name}_hit_tokens": column})
        return requests

    def facts(self) -> dict[str, Any]:
        """What the summary tells: `all` loads beside what they spared, and each tier."""
        loads = self.loads()
        told: dict[str, Any] = {"all": {"loads": len(self._spared), "saved_s": self._saved_s()}}
        told["all"] |= {"hit_tokens": int(loads["tokens"].sum()), "load_s": float(loads["load_s"].sum())}
        block_tokens = self._pool.parts.memory.block_tokens
        for at, size in enumerate(self._sizes):
            own, tiers = loads[loads["tier"] == at], {id(tiers[at]): tiers[at] for tiers in self._tiers}.values()
            tokens = int(own["tokens"].sum())
            told[size.name] = {
                "capacity_tokens": _blocks(size, self._pool) * block_tokens,
                "peak_used": max(tier.peak_blocks / tier.blocks for tier in tiers),
                "loads": len(own),
                "hit_tokens": tokens,
                "bytes": tokens / block_tokens * _block_bytes(size, self._pool),
                "load_s": distribution(own["load_s"]),
                "evicted_tokens": sum(tier.evictions for tier in tiers) * block_tokens,
            }
        return told

    def _saved_s(self) -> float:
        """Seconds that computing what was loaded would have added to prefills that are alone in their steps."""
        price = _prefill_price(self._pool.parts.cost, self._pool.parts.limits.max_num_batched_tokens)
        return math.fsum(
            price(known - found, found) - price(known - found - tokens, found + tokens)
            for known, found, tokens in self._spared
        )


def _prefill_price(cost: StepCost, most: int) -> Callable[[int, int], float]:
    """Device seconds of computing so many tokens behind so many, alone and `most` in a step."""

    @cache
    def step_s(tokens: int, past: int) -> float:
        return cost.span_s(Shape(((tokens, past),), 0, 0), 1)[0][0]

    def price(tokens: int, past: int) -> float:
        return sum(step_s(min(most, tokens - at), past + at) for at in range(0, tokens, most))

    return price


def _place(size: TierSize, index: int) -> int:
    """Whose link a replica's loads from a tier go over."""
    return -1 if size.name == STORE else index


def tier_notes(scenario: Scenario) -> list[str]:
    """What a run with tiers does not model."""
    if not scenario.tiers.on:
        return []
    return ["KV goes down to the tiers in no time: what writing it takes of a link, a disk or a step is not modelled."]
