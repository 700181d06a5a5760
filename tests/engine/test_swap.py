"""Preemption by swapping: the KV comes back instead of being computed anew, and the host's room is counted."""

from __future__ import annotations

import numpy as np
import pytest

from sim.cost.fixed import FixedCost
from sim.engine.batch import Limits
from sim.engine.engine import Engine
from sim.engine.memory import KvPool
from sim.engine.request import Request
from sim.engine.wiring import wire
from sim.load import build
from sim.results.steps import StepLog
from sim.serving.clock import Clock
from sim.serving.executor import Predicted
from sim.serving.replica import Replica

BLOCK_BYTES = 1000


def simulate(*, host_blocks: int, spans: bool = True, depth: int = 1) -> tuple[list[Request], Engine, StepLog]:
    """Six requests that together outgrow the memory of twelve blocks."""
    pool = KvPool(12, 16, 0, BLOCK_BYTES)
    engine = wire(
        build("sim.policies", "chunked", {}),
        build("sim.allocators", "paged", {}, pool),
        Limits(),
        spans=spans,
        host_blocks=host_blocks,
    )
    clock, log, finished = Clock(), StepLog(1), []
    executor = Predicted(FixedCost(base_s=0.01, per_token_s=0.001), overlap_host=False)
    replica = Replica(clock, engine, executor, depth=depth, on_finish=finished.append, observer=log)
    for index in range(6):
        req = Request(index, 0.1 * index, 20 + index, 60)
        clock.call_at(req.arrival_s, lambda event, req=req: replica.submit(req), first=True)
    clock.run()
    return sorted(finished, key=lambda req: req.id), engine, log


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("host_blocks", [0, 3, 100])
def test_everyone_finishes_and_the_host_memory_comes_back(host_blocks: int, depth: int) -> None:
    finished, engine, log = simulate(host_blocks=host_blocks, depth=depth)
    assert len(finished) == 6
    assert engine.preemptions > 0
    assert engine.host.free_blocks == host_blocks
    assert engine.allocator.free_blocks == 12
    steps = log.table().frame()
    assert steps["swapped_bytes"].sum() % (2 * BLOCK_BYTES) == 0, "what moved out moved in again"
    assert (steps["swapped_bytes"].sum() > 0) == (host_blocks > 0)


def test_what_was_swapped_is_not_computed_again() -> None:
    (_, recomputing, dropped), (_, swapping, moved) = simulate(host_blocks=0), simulate(host_blocks=100)
    assert recomputing.preemptions > 0
    assert swapping.preemptions > 0
    prompts = sum(20 + index for index in range(6))

    def computed(log: StepLog) -> int:
        steps = log.table().frame()
        return int((steps["prefill_tokens"] + steps["decode_requests"] * steps["repeats"]).sum())

    assert computed(moved) == prompts + 6 * 59
    assert computed(dropped) > computed(moved)


@pytest.mark.parametrize("depth", [1, 2])
def test_spans_change_nothing(depth: int) -> None:
    (one, _, _), (other, _, _) = (simulate(host_blocks=4, spans=spans, depth=depth) for spans in (True, False))
    assert np.allclose([req.finish_s for req in one], [req.finish_s for req in other], rtol=1e-12)
    assert [req.preemptions for req in one] == [req.preemptions for req in other]
