"""A live run on a CPU and its twin: the same decisions for every policy and allocator; a broken engine is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from validate_kit import AT_ONCE, live, plan, trace_file

import sim.policies.chunked
from sim import api
from sim.engine.batch import Batch, Outcome
from sim.engine.flight import Audience, Flight, Observer
from sim.engine.step import Step
from sim.policies.chunked import Chunked
from sim.serving.executor import Recorded, RecordEndedError, Replayed
from sim.serving.replica import Replica
from sim.validate.fitted import Fitted
from sim.validate.live import LiveRuns, run_live
from sim.validate.record import Recorder
from sim.validate.retime import as_recorded
from sim.validate.run import Pricing, validate
from sim.validate.twin import ReplaySession, check_twin, first_difference, replayed
from sim.validate.verdict import Bounds
from traces.schema import InputError

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trace_file(tmp_path_factory.mktemp("trace"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> LiveRuns:
    """A live run with preemptions."""
    return live(trace_file(tmp_path_factory.mktemp("kept"), **AT_ONCE), kv_blocks=9)


@pytest.mark.parametrize("allocator", ["paged", "prefix", "contiguous"])
@pytest.mark.parametrize("policy", ["static", "continuous", "chunked", "priority", "sjf"])
def test_every_policy_has_a_twin(policy: str, allocator: str, tmp_path: Path) -> None:
    trace = trace_file(tmp_path, priority=[1, 0, 2, 0, 1, 2])
    made = live(trace, policy=policy, allocator=allocator, **{"kv_blocks": 24})
    twin = check_twin(made.scenario, made.trace, made.records[0])
    assert twin.identical, twin.difference and twin.difference.sentence()
    assert twin.steps == len(made.records[0].results) > 10


def test_preemptions_are_taken_again(kept: LiveRuns) -> None:
    (record,) = kept.records
    assert sum(len(one.evicted) for one in record.decisions) > 0
    assert check_twin(kept.scenario, kept.trace, record).identical


def test_swaps_and_samples_are_taken_again(tmp_path: Path) -> None:
    swapping = {"kv.swap_gib": 0.01, "workload.samples": 2, "engine.max_num_seqs": 8}
    made = live(trace_file(tmp_path, **AT_ONCE), kv_blocks=9, **swapping)
    (record,) = made.records
    assert any(one.swaps for one in record.decisions)
    assert any(one.copies for one in record.decisions)
    assert check_twin(made.scenario, made.trace, record).identical


@pytest.mark.parametrize("settings", [{"live.clock": "wall"}, {"concurrency": 2}])
def test_other_clocks_and_loops(settings: dict[str, Any], trace: Path) -> None:
    made = live(trace, **settings)
    assert check_twin(made.scenario, made.trace, made.records[0]).identical


def test_spans_are_compared_with_single_steps(kept: LiveRuns) -> None:
    (record,) = kept.records
    ours, _, stopped = replayed(kept.scenario, kept.trace, record, spans=True)
    assert not stopped
    assert len(ours.decisions) < len(record.decisions)
    assert first_difference(record, ours, spans=True) is None


def test_a_record_tells_what_the_run_told(trace: Path) -> None:
    chosen = api.on_device(plan(trace))
    recorder, executors = Recorder(pd.read_csv(trace)), []

    def wrap(inner: Any) -> Recorded:
        executors.append(Recorded(inner))
        return executors[0]

    result = api.simulate(chosen, hooks=api.Hooks(wrap=wrap, observer=recorder))
    seen = as_recorded(recorder.record(executors[0].shapes, executors[0].results), 16)
    shared = [name for name in seen.requests if name not in ("source_row",)]
    pd.testing.assert_frame_equal(seen.requests[shared], result.requests[shared], rtol=0, atol=1e-12)
    pd.testing.assert_frame_equal(seen.steps, result.steps, rtol=0, atol=1e-12)
    gaps = (np.sort(np.repeat(*itl)) for itl in (seen.itl, result.itl))
    np.testing.assert_allclose(*gaps, rtol=0, atol=1e-12)


def test_told_tables_are_those_of_the_allocator(kept: LiveRuns) -> None:
    seen: list[dict[int, list[int]]] = []

    class Spy(Observer):
        def sealed(self, replica: Replica, flight: Flight) -> None:
            table = replica.engine.allocator.table
            seen.append({req.id: list(table(req)) for req, _, _ in flight.batch.entries})

    recorder = Recorder(kept.trace.requests)
    session = ReplaySession(kept.records[0].results)
    api.simulate(
        kept.scenario, trace=kept.trace, hooks=api.Hooks(session=session, observer=Audience([recorder, Spy()]))
    )
    told: dict[int, list[int]] = {}
    for one, tables in zip(recorder.record().decisions, seen, strict=True):
        for sequence, before, blocks in one.tables:
            told[sequence] = [*told.get(sequence, [])[:before], *blocks]
        assert tables == {sequence: told[sequence] for sequence in tables}


def test_live_decisions_on_other_seconds(kept: LiveRuns) -> None:
    (record,) = kept.records
    cost = Fitted({"device": (0.01,) + (0.0,) * 9}, (0.0,) * 10)
    told = validate(kept, Bounds.all_within(9), Pricing(cost, "fixed")).document["attribution"]
    # All requests come at 0 and nothing is ever idle, so that the run lasts as long as its steps.
    assert told["live_decisions"]["duration_s"]["all"]["predicted"] == pytest.approx(0.01 * len(record.results))


class Shy(Chunked):
    """Admits with fewer tokens."""

    def __call__(self, step: Step) -> None:
        step.advance_running()
        for req in step.waiting:
            if not step.grant(req, 16):
                break


class Fickle(Chunked):
    """Changes its mind."""

    def __call__(self, step: Step) -> None:
        super().__call__(step)
        if step.tokens_left < 20 and len(step.entries) > 1:
            step.evict(step.entries[-1].request)


@pytest.mark.parametrize("broken", [Shy, Fickle])
def test_a_broken_policy_is_named(kept: LiveRuns, monkeypatch: pytest.MonkeyPatch, broken: type[Chunked]) -> None:
    monkeypatch.setattr(sim.policies.chunked, "Chunked", broken)
    twin = check_twin(kept.scenario, kept.trace, kept.records[0])
    assert not twin.identical
    assert twin.difference is not None
    assert twin.steps == twin.difference.step < len(kept.records[0].decisions)
    assert f"step {twin.difference.step}" in twin.difference.sentence()


def test_another_block_table_is_named(kept: LiveRuns) -> None:
    (record,) = kept.records
    at = next(at for at, one in enumerate(record.decisions) if one.tables and at > 5)
    sequence, before, blocks = record.decisions[at].tables[0]
    changed = list(record.decisions)
    changed[at] = changed[at]._replace(tables=((sequence, before, (*blocks[:-1], blocks[-1] + 1)),))
    twin = check_twin(kept.scenario, kept.trace, replace(record, decisions=changed))
    assert twin.difference is not None
    assert twin.difference.key == f"block table of sequence {sequence}"
    assert twin.difference.step <= at  # the span that holds it is named by its first step


def test_another_number_of_blocks_is_no_twin(kept: LiveRuns) -> None:
    other = replace(kept.scenario, kv=replace(kept.scenario.kv, blocks=10))
    assert not check_twin(other, kept.trace, kept.records[0]).identical


def test_a_shorter_record_ends_the_replay(kept: LiveRuns) -> None:
    (record,) = kept.records
    cut = replace(record, decisions=record.decisions[:9], results=record.results[:9], steps=record.steps[:9])
    twin = check_twin(kept.scenario, kept.trace, cut)
    assert twin.difference is not None
    assert (twin.difference.step, twin.difference.key) == (9, "the run")
    assert check_twin(kept.scenario, kept.trace, replace(cut, died="out of memory")).identical


def _dies_at(monkeypatch: pytest.MonkeyPatch, calls: int, error: Exception | None = None) -> None:
    from backend.live.live import Live

    real, seen = Live.execute, []

    def execute(self: Live, batch: Batch) -> Outcome:
        seen.append(batch)
        if len(seen) > calls:
            raise error or RuntimeError("the device is gone\nand more")
        return real(self, batch)

    monkeypatch.setattr(Live, "execute", execute)


def test_what_died_is_compared_as_far_as_it_came(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _dies_at(monkeypatch, 12)
    made = live(trace)
    (record,) = made.records
    assert record.died == "RuntimeError: the device is gone"
    assert len(record.decisions) == len(record.results) == 12
    assert check_twin(made.scenario, made.trace, record).identical
    assert "unfinished" in set(as_recorded(record, 16).requests["status"])
    assert (made.about["model"], made.about["device"]) == ("tiny-llama", "cpu")


def test_what_ran_out_of_memory_is_kept(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _dies_at(monkeypatch, 5, InputError("cpu has no memory left for a step of 48 tokens"))
    (record,) = live(trace).records
    assert record.died == "cpu has no memory left for a step of 48 tokens"
    assert len(record.decisions) == 5


def test_what_died_at_once_is_refused(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _dies_at(monkeypatch, 0)
    with pytest.raises(InputError, match=r"first step \(RuntimeError: the device is gone"):
        live(trace)


def test_requests_that_can_never_run_are_left_out(tmp_path: Path) -> None:
    trace = trace_file(tmp_path, prompt_tokens=[40, 20, 900, 50, 18, 40])
    with pytest.raises(InputError, match="can never be served"):
        run_live(plan(trace), 1)
    made = live(trace, skip_bad=True)
    assert len(made.trace) == 5
    assert check_twin(made.scenario, made.trace, made.records[0]).identical


def test_a_replay_gives_what_was_recorded() -> None:
    class Fixed:
        def execute(self, batch: Batch) -> Outcome:
            return Outcome([0.5 + batch.first_step], [0.25], 0.125)

    recorded = Recorded(Fixed())
    for step in range(4):
        recorded.execute(Batch(step, 0.0, [], 1, []))
    replay = Replayed(recorded.results)
    span = Batch(2, 0.0, [], 1, [])
    span.repeats = 5
    assert replay.execute(span) == Outcome([2.5, 3.5], [0.25, 0.25], 0.125)
    assert span.repeats == 5, "what the engine planned is the engine's"
    with pytest.raises(RecordEndedError, match="step 4"):
        replay.execute(Batch(4, 0.0, [], 1, []))
