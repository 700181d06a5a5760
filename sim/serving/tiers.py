"""KV that comes from tiers below the GPUs: who shares which tier, the links between, and what loads cost and saved."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from sim.cost.step import StepCost
from sim.engine.batch import Batch, Shape
from sim.engine.engine import Engine
from sim.engine.flight import ObservedReplica, Observer
from sim.engine.request import index_of
from sim.engine.tiers import KvLoad, Tier
from sim.load import find
from sim.results.percentiles import distribution
from sim.scenario import Scenario
from sim.serving.clock import Clock
from sim.serving.links import Links
from sim.serving.pool import Pool, kv_bytes
from sim.serving.replica import Replica
from sim.specs.tiers import HOST, STORE
from traces.schema import InputError
from traces.table import Table

_INTO = "replicas"
"""Where all loads go: what a replica takes in is limited by where it comes from alone."""


def check_tiers(scenario: Scenario, pools: Sequence[Pool]) -> None:
    """Raise InputError where the scenario has KV tiers beside what they are not modelled with."""
    if not any(own.tiers.on for own in scenario.kinds):
        return
    pool = pools[0]
    parts, settings = pool.parts, pool.parts.scenario
    named = f"tiers.{parts.scenario.tiers.sizes[0].name}_gib is set" if parts.scenario.tiers.on else "tiers.* is set"
    _, policy = find("sim.policies", settings.policy.name, settings.policy.parameters)
    why = {
        "tiers of several pools are not modelled": bool(scenario.pools),
        "executor is live, and a live run has one cache, on its device": scenario.executor == "live",
        f"engine.name is {settings.engine.name}, which brings its own cache": parts.engine_class is not None,
        "its layers keep KV of several kinds, whose loads are not modelled": bool(parts.layout.groups),
        "kv.swap_gib is set, and swapping beside tiers is not modelled": bool(settings.kv.swap_gib),
        f"allocator {settings.allocator.name} finds no prefixes that could be loaded (--allocator prefix does)": (
            parts.engine_class is None and not parts.traits["has_tiers"]
        ),
        f"policy {settings.policy.name} holds the memory of finished requests itself": policy["holds_finished"],
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
    for kind in tiers_of(pool):
        if not kind.blocks:
            raise InputError(
                f"tiers.{kind.name}_gib is less than a block of {parts.memory.block_tokens} tokens has there, which is "
                f"{kind.block_bytes / 2**30:.3g} GiB of all GPUs of a replica"
            )


def shares_store(scenario: Scenario) -> bool:
    """Whether replicas share a store: what one evicts in a span another may ask for, so that no step may repeat."""
    return bool(scenario.tiers.store_gib) and scenario.replicas > 1


@dataclass(frozen=True, slots=True)
class TierKind:
    """A tier of each replica, or with `shared` one of all: its room, and the link that loads from it share."""

    name: str
    blocks: int
    block_bytes: float
    """Of all GPUs of a replica."""
    bytes_per_s: float
    latency_s: float = 0.0
    shared: bool = False

    @property
    def instant(self) -> bool:
        return math.isinf(self.bytes_per_s) and not self.latency_s

    def link(self, replica: int) -> int:
        """Whose link a replica's loads go over."""
        return -1 if self.shared else replica


def tiers_of(pool: Pool) -> list[TierKind]:
    """The tiers that its replicas have, the fastest first.

    A host keeps what each GPU has, heads that GPUs repeat included, and is told for each of them.
    """
    parts, kinds = pool.parts, []
    gpus, block_tokens = parts.parallel.rank_gpus, parts.memory.block_tokens
    for size in parts.scenario.tiers.sizes:
        each, block_bytes = 1, kv_bytes(pool, block_tokens)
        if size.name == HOST:
            each, block_bytes = gpus, float(gpus * parts.memory.block_bytes)
        blocks = int(size.gib * 2**30 * each // block_bytes)
        kinds.append(
            TierKind(size.name, blocks, block_bytes, size.bytes_per_s * each, size.latency_s, size.name == STORE)
        )
    return kinds


class KvLoads(Observer):
    """Moves what engines ask of their tiers over the tiers' links, which loads share evenly, and keeps a log."""

    def __init__(self, clock: Clock, kinds: Sequence[TierKind], replicas: int, block_tokens: int) -> None:
        self._kinds = kinds
        self._block_tokens = block_tokens
        self._tiers: list[list[Tier]] = []
        """By replica."""
        self._links = [
            Links(
                clock,
                {**{kind.link(replica): kind.bytes_per_s for replica in range(replicas)}, _INTO: math.inf},
                kind.latency_s,
            )
            for kind in kinds
        ]
        self._log: dict[str, array[Any]] = {
            "request": array("q"),
            "tier": array("q"),
            "tokens": array("q"),
            "load_s": array("d"),
        }
        self._spared: list[tuple[int, int, int]] = []
        """(request's tokens, those found on the device, those loaded) of each load."""
        self._waits_s = 0.0
        """Of all loads, each from the asking to the last byte of its last tier."""

    def below(self, engine: Engine) -> None:
        """Give an engine, the next by number, its tiers; before its first request."""
        first = self._tiers[0] if self._tiers else None
        tiers = [
            first[at] if first is not None and kind.shared else Tier(kind.blocks, instant=kind.instant)
            for at, kind in enumerate(self._kinds)
        ]
        self._tiers.append(tiers)
        engine.lay_over(tiers)

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        engine = replica.engine
        assert isinstance(engine, Engine)
        assert engine.tiers is not None
        if engine.tiers.begun:
            assert isinstance(replica, Replica)
            begun, engine.tiers.begun = engine.tiers.begun, []
            for load in begun:
                self._begin(load, engine, replica)

    def _begin(self, load: KvLoad, engine: Engine, replica: Replica) -> None:
        self._spared.append((load.request.known, load.found_tokens, load.tokens))
        parts = [at for at, blocks in enumerate(load.blocks) if blocks]
        if load.request not in engine.roster.placed:
            for at in parts:
                self._note(load, at, 0.0)
            return
        replica.moving += 1
        left, asked_s = set(parts), replica.clock.now
        for at in parts:
            kind, arrived = self._kinds[at], partial(self._arrived, load, at, asked_s, left, engine, replica)
            self._links[at].send(kind.link(replica.index), _INTO, load.blocks[at] * kind.block_bytes, arrived)

    def _arrived(self, load: KvLoad, at: int, asked_s: float, left: set[int], engine: Engine, replica: Replica) -> None:
        self._note(load, at, replica.clock.now - asked_s)
        left.remove(at)
        if not left:
            self._waits_s += replica.clock.now - asked_s
            replica.settle()
            engine.loaded(load.request)
            replica.moving -= 1
            replica.wake()

    def _note(self, load: KvLoad, at: int, load_s: float) -> None:
        row = (index_of(load.request.id), at, load.blocks[at] * self._block_tokens, load_s)
        for column, value in zip(self._log.values(), row, strict=True):
            column.append(value)

    # ---- told ------------------------------------------------------------------------------------------------------

    def loads(self) -> Table:
        """One row for each tier of each load, in order of arrival: `request` (as it was sent), `tier` (its place),
        `tokens`, `load_s` (from the asking to the last byte)."""
        return Table({name: np.array(column) for name, column in self._log.items()})

    def with_tiers(self, requests: Table, sent: np.ndarray) -> Table:
        """The table with the tokens of each request that were loaded from each tier; `sent`: which requests were."""
        loads, rows = self.loads(), np.flatnonzero(sent)
        for at, kind in enumerate(self._kinds):
            own = loads[loads["tier"] == at]
            column = np.zeros(len(sent), "i8")
            np.add.at(column, rows[np.asarray(own["request"], np.int64)], np.asarray(own["tokens"], np.int64))
            requests = requests.assign(**{f"{kind.name}_hit_tokens": column})
        return requests

    def facts(self, cost: StepCost, most_tokens: int) -> dict[str, Any]:
        """What the summary tells: `all` loads beside what they spared, by the price of steps, and each tier."""
        loads = self.loads()
        told: dict[str, Any] = {
            "all": {
                "loads": len(self._spared),
                "hit_tokens": int(loads["tokens"].sum()),
                "load_s": self._waits_s,
                "saved_s": self._saved_s(_prefill_price(cost, most_tokens)),
            }
        }
        for at, kind in enumerate(self._kinds):
            own, tiers = loads[loads["tier"] == at], {id(tiers[at]): tiers[at] for tiers in self._tiers}.values()
            tokens = int(own["tokens"].sum())
            told[kind.name] = {
                "capacity_tokens": kind.blocks * self._block_tokens,
                "peak_used": max(tier.peak_blocks / tier.blocks for tier in tiers),
                "loads": len(own),
                "hit_tokens": tokens,
                "bytes": tokens // self._block_tokens * kind.block_bytes,
                "load_s": distribution(own["load_s"]),
                "evicted_tokens": sum(tier.evictions for tier in tiers) * self._block_tokens,
            }
        return told

    def _saved_s(self, price: Callable[[int, int], float]) -> float:
        """Seconds that computing what was loaded would have added to prefills that are alone in their steps."""
        return math.fsum(
            price(known - found, found) - price(known - found - tokens, found + tokens)
            for known, found, tokens in self._spared
        )


def loads_of(clock: Clock, pool: Pool) -> KvLoads:
    """The loads of a pool's replicas."""
    return KvLoads(clock, tiers_of(pool), pool.ranks, pool.parts.memory.block_tokens)


def _prefill_price(cost: StepCost, most: int) -> Callable[[int, int], float]:
    """Device seconds of computing so many tokens behind so many, alone and `most` in a step."""

    @cache
    def step_s(tokens: int, past: int) -> float:
        return cost.span_s(Shape(((tokens, past),), 0, 0), 1)[0][0]

    def price(tokens: int, past: int) -> float:
        return sum(step_s(min(most, tokens - at), past + at) for at in range(0, tokens, most))

    return price


def tier_notes(scenario: Scenario) -> list[str]:
    """What a run with tiers does not model."""
    if not scenario.tiers.on:
        return []
    return ["KV goes down to the tiers in no time: what writing it takes of a link, a disk or a step is not modelled."]
