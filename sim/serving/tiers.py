"""KV that comes from tiers below the GPUs: who shares which tier, the links between, and what loads cost and saved."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
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
from sim.serving.links import Links, Transfer
from sim.serving.pool import Pool, kv_bytes, numbers
from sim.serving.ranks import Rank
from sim.serving.replica import Replica
from sim.specs.fleet import DECODE
from sim.specs.tiers import HOST, STORE
from traces.schema import InputError
from traces.table import ColumnTable

_INTO = "replicas"
"""Where all loads go: what a replica takes in is limited by where it comes from alone."""


def check_tiers(pools: Sequence[Pool], executor: str) -> None:
    """Raise InputError where pools have KV tiers beside what they are not modelled with."""
    for pool in pools:
        if pool.parts.scenario.tiers.on:
            try:
                _check_tiers(pool, executor)
            except InputError as error:
                raise InputError(f"pools.{pool.name}: {error}" if pool.name else str(error)) from None


def _check_tiers(pool: Pool, executor: str) -> None:
    parts, settings = pool.parts, pool.parts.scenario
    _, policy = find("sim.policies", settings.policy.name, settings.policy.parameters)
    why = {
        "role is decode, where KV comes from prefill pools: loads beside that are not modelled; it is for a prefill "
        "pool to say tiers.*": pool.role == DECODE,
        "executor is live, and a live run has one cache, on its device": executor == "live",
        f"engine.name is {settings.engine.name}, which brings its own cache": parts.engine_class is not None,
        "its layers keep KV of several kinds, whose loads are not modelled": bool(parts.layout.groups),
        "kv.swap_gib is set, and swapping beside tiers is not modelled": bool(settings.kv.swap_gib),
        f"allocator {settings.allocator.name} finds no prefixes that could be loaded (--allocator prefix does)": (
            parts.engine_class is None and not parts.traits["has_tiers"]
        ),
        f"policy {settings.policy.name} holds the memory of finished requests itself": policy["holds_finished"],
        f"policy {settings.policy.name} drafts, and loads beside drafts are not modelled": parts.drafter is not None,
        "offload.kv_layers is set, and KV in host memory is not evicted": bool(settings.offload.kv_layers),
    }
    for reason, holds in why.items():
        if holds:
            raise InputError(f"tiers.{settings.tiers.sizes[0].name}_gib is set, and {reason}")
    for kind in tiers_of(pool):
        if not kind.blocks:
            raise InputError(
                f"tiers.{kind.name}_gib is less than a block of {parts.memory.block_tokens} tokens has there, which is "
                f"{kind.block_bytes / 2**30:.3g} GiB of all GPUs of a replica"
            )


@dataclass(frozen=True, slots=True)
class TierKind:
    """A tier of each replica, or with `shared` one of a whole pool: its room, and the link that loads from it share."""

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
    """Moves what a pool's engines ask of their tiers over the tiers' links, which loads share evenly, and keeps a log.

    What a replica has below it dies with it (that of a disk too: what names its blocks is in the replica's memory);
    what all share stays.

    Args:
        replicas: their numbers.
    """

    def __init__(self, clock: Clock, kinds: Sequence[TierKind], replicas: Sequence[int], block_tokens: int) -> None:
        self.kinds = kinds
        self._block_tokens = block_tokens
        self._shared = {at: Tier(kind.blocks, instant=kind.instant) for at, kind in enumerate(kinds) if kind.shared}
        self._tiers: list[list[Tier]] = []
        """Of each engine that ever was."""
        self._links = [
            Links(
                clock,
                {**{kind.link(replica): kind.bytes_per_s for replica in replicas}, _INTO: math.inf},
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
        """(request's tokens, those found on the device, those loaded) of each load that came."""
        self._waits_s = 0.0
        """Of all loads, each from the asking to the last byte of its last tier."""
        self._under_way: dict[int, dict[int, dict[int, Transfer]]] = {replica: {} for replica in replicas}
        """By replica and request, what comes from each tier."""

    def below(self, engine: Engine) -> None:
        """Give an engine its tiers; before its first request."""
        tiers = [
            self._shared[at] if kind.shared else Tier(kind.blocks, instant=kind.instant)
            for at, kind in enumerate(self.kinds)
        ]
        self._tiers.append(tiers)
        engine.lay_over(tiers)

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        engine = replica.engine
        assert isinstance(engine, Engine)
        assert engine.tiers is not None
        if engine.tiers.begun:
            assert isinstance(replica, Replica | Rank)
            begun, engine.tiers.begun = engine.tiers.begun, []
            for load in begun:
                self._begin(load, engine, replica)

    def _begin(self, load: KvLoad, engine: Engine, replica: Replica | Rank) -> None:
        parts = [at for at, blocks in enumerate(load.blocks) if blocks]
        if load.request not in engine.roster.placed:
            for at in parts:
                self._note(load, at, 0.0)
            self._spare(load)
            return
        replica.moving += 1
        asked_s = replica.clock.now
        coming = self._under_way[replica.index][load.request.id] = {}
        for at in parts:
            kind, arrived = self.kinds[at], partial(self._arrived, load, at, asked_s, engine, replica)
            size = load.blocks[at] * kind.block_bytes
            coming[at] = self._links[at].send(kind.link(replica.index), _INTO, size, arrived)

    def _arrived(self, load: KvLoad, at: int, asked_s: float, engine: Engine, replica: Replica | Rank) -> None:
        self._note(load, at, replica.clock.now - asked_s)
        under_way = self._under_way[replica.index]
        coming = under_way[load.request.id]
        del coming[at]
        if not coming:
            del under_way[load.request.id]
            self._spare(load)
            self._waits_s += replica.clock.now - asked_s
            replica.settle()
            engine.loaded(load.request)
            replica.moving -= 1
            replica.wake()

    def died(self, replica: ObservedReplica) -> None:
        for coming in self._under_way[replica.index].values():
            for at, transfer in coming.items():
                self._links[at].call_off(transfer)
        self._under_way[replica.index] = {}

    def renewed(self, replica: ObservedReplica) -> None:
        assert isinstance(replica.engine, Engine)
        self.below(replica.engine)

    def _spare(self, load: KvLoad) -> None:
        self._spared.append((load.request.known, load.found_tokens, load.tokens))

    def _note(self, load: KvLoad, at: int, load_s: float) -> None:
        row = (index_of(load.request.id), at, load.blocks[at] * self._block_tokens, load_s)
        for column, value in zip(self._log.values(), row, strict=True):
            column.append(value)

    # ---- told ------------------------------------------------------------------------------------------------------

    def loads(self) -> ColumnTable:
        """One row for each tier of each load, in order of arrival: `request` (as it was sent), `tier` (its place),
        `tokens`, `load_s` (from the asking to the last byte)."""
        return ColumnTable({name: np.array(column) for name, column in self._log.items()})

    def with_tiers(self, requests: ColumnTable, sent: np.ndarray) -> ColumnTable:
        """The table with the tokens of each request that were loaded from each tier; `sent`: which requests were."""
        loads, rows = self.loads(), np.flatnonzero(sent)
        for at, kind in enumerate(self.kinds):
            name, own = f"{kind.name}_hit_tokens", loads[loads["tier"] == at]
            column = np.array(requests[name]) if name in requests else np.zeros(len(sent), "i8")
            np.add.at(column, rows[np.asarray(own["request"], np.int64)], np.asarray(own["tokens"], np.int64))
            requests = requests.assign(**{name: column})
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
        for at, kind in enumerate(self.kinds):
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


def loads_of(clock: Clock, pools: Sequence[Pool]) -> dict[str, KvLoads]:
    """The loads of the replicas of each pool that has tiers, by its name."""
    return {
        pool.name: KvLoads(clock, tiers_of(pool), mine, pool.parts.memory.block_tokens)
        for pool, mine in zip(pools, numbers(pools), strict=True)
        if pool.parts.scenario.tiers.on
    }


def tier_facts(loads: Mapping[str, KvLoads], pools: Sequence[Pool]) -> dict[str, Any] | None:
    """What the summary tells of KV tiers; of several pools with such, each tier by the names of both."""
    told = {
        pool.name: loads[pool.name].facts(pool.parts.cost, pool.parts.limits.max_num_batched_tokens)
        for pool in pools
        if pool.name in loads
    }
    if len(told) < 2:
        return next(iter(told.values()), None)
    every = [facts["all"] for facts in told.values()]
    return {"all": {key: sum(one[key] for one in every) for key in every[0]}} | {
        f"{name} {tier}": of_tier for name, facts in told.items() for tier, of_tier in facts.items() if tier != "all"
    }


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
    if not any(kind.tiers.on for kind in scenario.kinds):
        return []
    return ["KV goes down to the tiers in no time: what writing it takes of a link, a disk or a step is not modelled."]
