"""Another's engine behind `engine.name`: decision for decision what the policy `chunked` decides without spans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import foreign_engine
import numpy as np
import pytest
from engine_kit import Setup, Watch, workload
from foreign_engine import Foreign
from hypothesis import given
from hypothesis import strategies as st
from law_cases import laws

from sim import api
from sim.cost.fixed import FixedCost
from sim.engine.batch import Limits
from sim.engine.memory import KvPool
from sim.engine.protocol import ServingEngine
from sim.engine.request import Request
from sim.serving.clock import Clock
from sim.serving.executor import Predicted
from sim.serving.replica import Replica
from sim.serving.source import RequestSource
from traces.schema import InputError

Row = tuple[float, int, int]
COST = FixedCost(base_s=0.001, per_token_s=0.0001, per_context_token_s=0.00001)
TIGHT: dict[str, Any] = {
    "engine.preset": "foretoken",
    "workload.trace": "chatbot_arena.jsonl",
    "workload.limit": 60,
    "workload.sessions": False,
    "workload.rate": 60.0,
    "workload.skip_bad": True,
    "engine.max_num_seqs": 8,
    "engine.max_num_batched_tokens": 256,
    "engine.max_model_len": 1600,
    "engine.async_scheduling": False,
    "kv.blocks": 100,
}
NAME = "foreign_engine:Foreign"


class Decisions(Watch):
    """Who computes what in each step, and who was preempted."""

    def planned(self, replica: Any, batch: Any) -> None:
        self.rows.append(sorted((req.id, tokens, past) for req, tokens, past in batch.rows))
        self.gone.append([req.id for req in batch.evicted])

    def sealed(self, replica: Any, flight: Any) -> None:
        flight.usage = replica.engine.usage()

    def committed(self, replica: Any, flight: Any) -> None:
        self.ends.append((flight.output_s, [req.id for req in flight.committed.ended]))

    def __init__(self) -> None:
        super().__init__(1, [])
        self.rows: list[Any] = []
        self.gone: list[Any] = []
        self.ends: list[Any] = []


def decided(engine: ServingEngine, rows: Sequence[Row]) -> tuple[Decisions, list[Request]]:
    clock, log, done = Clock(), Decisions(), []

    def finished(req: Request) -> None:
        done.append(req)
        source.finished(req)

    executor = Predicted(COST, overlap_host=False)
    replica = Replica(clock, engine, executor, on_finish=finished, observer=log)
    source = RequestSource(clock, workload(rows), replica.submit)
    source.start()
    clock.run()
    assert len(done) == len(rows)
    return log, sorted(done, key=lambda req: req.id)


ROWS = st.lists(st.tuples(st.sampled_from([0.0, 0.001, 0.02]), st.integers(1, 40), st.integers(1, 20)), max_size=12)


@laws
@given(ROWS, st.integers(15, 40), st.integers(1, 6), st.integers(4, 60))
def test_it_decides_as_chunked_does_without_spans(rows: list[Row], blocks: int, seats: int, budget: int) -> None:
    gaps = np.cumsum([row[0] for row in rows])
    rows = [(float(at), prompt, output) for at, (_, prompt, output) in zip(gaps, rows, strict=True)]
    setup = Setup(pool=KvPool(blocks, 4), limits=Limits(seats, budget), spans=False)
    ours, served = decided(setup.engine(), rows)
    theirs, also = decided(Foreign(setup.limits, setup.pool), rows)
    assert theirs.rows == ours.rows
    assert theirs.gone == ours.gone
    assert theirs.ends == ours.ends
    for mine, other in zip(served, also, strict=True):
        for name in ("first_scheduled_s", "first_token_s", "finish_s", "preemptions"):
            assert getattr(mine, name) == getattr(other, name), name


def test_a_scenario_runs_it_with_the_tables_of_ours() -> None:
    ours, theirs = api.run(**TIGHT), api.run(**TIGHT, **{"engine.name": NAME})
    assert ours.requests["preemptions"].sum() > 3
    same = ["status", "first_token_s", "finish_s", "ttft_s", "tpot_s", "longest_gap_s", "preemptions"]
    for name in [name for name in same if name in ours.requests]:
        assert ours.requests[name].equals(theirs.requests[name]), name
    assert ours.summary["itl_s"] == pytest.approx(theirs.summary["itl_s"], rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"allocator.name": "prefix"}, f"engine.name is {NAME}, which reads no allocator: it brings its own"),
        ({"policy.long_prefill_token_threshold": 64}, f"engine.name is {NAME}, which reads no policy"),
        ({"kv.swap_gib": 1.0}, f"engine.name is {NAME}, which reads no kv.swap_gib"),
        ({"engine.name": "vllm"}, "unknown name 'vllm' in engines; known: foretoken, or package.module:object"),
        ({"engine.name": "foreign_engine:Scheduler"}, "has no method refusal; an engine is a class like"),
    ],
)
def test_what_it_would_not_read_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        api.run(**{**TIGHT, "engine.name": NAME, **settings})


def test_it_is_short() -> None:
    """A foreign scheduler and what makes an engine of it are one file of under 120 lines."""
    assert len(Path(foreign_engine.__file__).read_text(encoding="utf-8").splitlines()) < 120
