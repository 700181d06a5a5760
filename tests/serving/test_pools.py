"""A run's parts are built once, and a router sees snapshots of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_kit import MS, Setup

from sim import api
from sim.allocators.prefix import Prefix
from sim.engine.flight import Observer
from sim.engine.memory import KvPool
from sim.engine.request import Request, SharedPrefix
from sim.policies.chunked import Chunked
from sim.serving.clock import Clock
from sim.serving.executor import Predicted
from sim.serving.replica import Replica
from sim.serving.snapshot import Snapshot
from traces.schema import InputError

RUN: dict[str, Any] = {"workload.trace": "chatbot_arena.jsonl", "workload.limit": 20, "workload.rate": 20.0}
BUILT: list[str] = []


class Counted(Prefix):
    def __init__(self, pool: KvPool) -> None:
        super().__init__(pool)
        BUILT.append("allocator")


class CountedPolicy(Chunked):
    def __init__(self) -> None:
        super().__init__()
        BUILT.append("policy")


SEEN: list[list[tuple[int, int, int, int, int]]] = []


def watching(req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
    """All to the first, so that one is busy and one is idle."""
    SEEN.append(
        [(one.index, one.outstanding, one.running_tokens, one.free_blocks, one.cached_tokens(req)) for one in replicas]
    )
    assert {one.age_s for one in replicas} == {0.0}
    return replicas[0]


@pytest.mark.parametrize("replicas", [1, 3])
def test_each_part_is_built_once_for_each_replica(replicas: int) -> None:
    BUILT.clear()
    names = {"policy.name": "test_pools:CountedPolicy", "allocator.name": "test_pools:Counted"}
    api.run(**RUN, **names, replicas=replicas)
    assert ["policy", "allocator"] * replicas == BUILT


def test_a_subclass_of_the_users_is_served_as_what_it_is_made_of(tmp_path: Path) -> None:
    """The same hits, with outputs that come late, and the same refusal to swap, as the shipped allocator has."""
    rows = [
        {"timestamp": 40 * at, "input_length": 1536, "output_length": 30, "hash_ids": [at % 3, 10 + at % 6, 100 + at]}
        for at in range(40)
    ]
    trace = tmp_path / "shared.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"workload.trace": str(trace), "kv.blocks": 400, "engine.max_model_len": 2048}
    mine, shipped = (api.run(**settings, **{"allocator.name": name}) for name in ("test_pools:Counted", "prefix"))
    assert mine.requests.equals(shipped.requests)
    assert mine.requests["prefix_hit_tokens"].sum() > 10_000
    with pytest.raises(InputError, match="a dropped prefix stays findable"):
        api.run(**settings, **{"allocator.name": "test_pools:Counted", "kv.swap_gib": 1.0})


def test_a_router_sees_what_each_replica_holds() -> None:
    SEEN.clear()
    run = api.run(**RUN, **{"replicas": 2, "router.name": "test_pools:watching", "allocator.name": "prefix"})
    assert set(run.requests["replica"]) == {0}
    blocks = run.scenario.kv.blocks
    assert SEEN[0] == [(0, 0, 0, blocks, 0), (1, 0, 0, blocks, 0)]
    assert all(idle == (1, 0, 0, blocks, 0) for _, idle in SEEN)
    assert max(outstanding for (_, outstanding, _, _, _), _ in SEEN) > 1
    assert all((tokens > 0) <= (free < blocks) for (_, _, tokens, free, _), _ in SEEN)
    assert max(tokens for (_, _, tokens, _, _), _ in SEEN) > 100


def test_a_snapshot_tells_the_prefix_that_is_cached_there() -> None:
    engine = Setup(allocator="prefix", pool=KvPool(64, 4)).engine()
    replica = Replica(Clock(), engine, Predicted(MS, overlap_host=False), on_finish=print, observer=Observer())
    first, second = (Request(id, 0.0, 12, 2, prefix=SharedPrefix([7, 8, 9], 4)) for id in range(2))
    snapshot = Snapshot(replica, 0, 64)
    snapshot.outstanding = 1
    assert snapshot.cached_tokens(second) == 0
    engine.add(first)
    engine.plan(0.0)
    assert snapshot.cached_tokens(second) == 8
    assert (snapshot.outstanding, snapshot.running_tokens, snapshot.free_blocks) == (1, 12, 61)
    assert snapshot.free_kv == 61 / 64
