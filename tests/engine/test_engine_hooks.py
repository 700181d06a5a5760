"""What an executor may tell the engine, and what the engine counts for a cost model that asks."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from engine_kit import MS, Setup, Watch

from sim.cost.step import advanced
from sim.engine.batch import Batch, Limits, Outcome
from sim.engine.engine import Engine
from sim.engine.flight import Flight, Observer
from sim.engine.lockstep import LengthsTold
from sim.engine.memory import KvPool
from sim.engine.request import Request
from sim.serving.clock import Clock, WallClock
from sim.serving.executor import OnTheWall, Predicted
from sim.serving.replica import Replica


def sampling(engine: Engine, batch: Batch) -> list[Request]:
    """Who gets a token from a batch just planned."""
    listed = {entry.request for entry in batch.entries}
    drawn = [entry.request for entry in batch.entries if entry.request.seat.last_token_step == batch.first_step]
    return drawn + [req for req in engine.roster.lockstep if req not in listed and batch.lockstep]


class Ending:
    """Ends each answer after as many tokens as `lengths` says."""

    def __init__(self, engine: Engine, lengths: list[int]) -> None:
        self._engine = engine
        self._lengths = lengths
        self._tokens = [0] * len(lengths)

    def execute(self, batch: Batch) -> Outcome:
        result = Predicted(MS, overlap_host=False).execute(batch)
        drawn = sampling(self._engine, batch)
        for req in drawn:
            self._tokens[req.id] += 1
        return replace(result, ended=tuple(req.id for req in drawn if self._tokens[req.id] == self._lengths[req.id]))


def served(setup: Setup, requests: list[Request], lengths: list[int]) -> tuple[list[Request], Engine]:
    engine, clock, done = setup.engine(), Clock(), []
    replica = Replica(clock, engine, Ending(engine, lengths), on_finish=done.append, observer=Watch(1, []))
    for req in requests:
        replica.submit(req)
    clock.run()
    return sorted(done, key=lambda req: req.id), engine


@pytest.mark.parametrize("policy", ["chunked", "continuous", "priority", "static"])
@pytest.mark.parametrize("allocator", ["paged", "prefix", "contiguous-oracle", "no-cache"])
def test_an_answer_that_ends_early_is_a_short_answer(policy: str, allocator: str) -> None:
    """Ending at a token leaves the same times as a trace that asks for just so many tokens, and leaks nothing."""
    rng = random.Random(5)
    lengths = [rng.randint(1, 9) for _ in range(8)]
    prompts = [rng.randint(1, 20) for _ in lengths]
    setup = Setup(policy, allocator, pool=KvPool(256, 4, 64), limits=Limits(16, 400), spans=False)
    early, engine = served(setup, [Request(i, 0.0, p, 12) for i, p in enumerate(prompts)], lengths)
    short, _ = served(
        setup, [Request(i, 0.0, p, n) for i, (p, n) in enumerate(zip(prompts, lengths, strict=True))], [99] * 8
    )
    assert [req.output_tokens for req in early] == lengths
    assert [(req.first_token_s, req.finish_s) for req in early] == [(req.first_token_s, req.finish_s) for req in short]
    assert engine.allocator.free_blocks == 256
    assert engine.usage().free == 1024


class Piped:
    """Steps that leave their first stage after `MS`, and are through the last one half of it later."""

    def execute(self, batch: Batch) -> Outcome:
        return replace(Predicted(MS, overlap_host=False).execute(batch), late_s=0.0005)


@pytest.mark.parametrize(("depth", "finish_s"), [(1, 6 * 0.0015), (2, 6 * 0.001 + 0.0005)])
def test_a_step_may_start_before_the_output_of_the_last_is_there(depth: int, finish_s: float) -> None:
    """One batch at a time waits for each output; of two in flight the second starts when the first stage is free."""
    clock, done, log = Clock(), [], Watch(1, [])
    replica = Replica(clock, Setup(spans=False).engine(), Piped(), depth=depth, on_finish=done.append, observer=log)
    replica.submit(Request(0, 0.0, 4, 6))
    clock.run()
    assert done[0].finish_s == pytest.approx(finish_s)
    assert done[0].first_token_s == pytest.approx(0.0015) == log.step_end_s[0][0]
    assert log.step_end_s[0][-1] == done[0].finish_s


def test_who_ends_anyhow_may_be_named_too() -> None:
    done, engine = served(Setup(spans=False), [Request(0, 0.0, 4, 3)], [3])
    assert (done[0].output_tokens, engine.allocator.free_blocks) == (3, 4096)


class Longest(Observer):
    """Compares the longest context that a shape tells with that of every decode row."""

    def __init__(self) -> None:
        self.compared = self.told = self.told_mixed = 0

    def planned(self, replica: Replica, batch: Batch) -> None:
        lockstep = replica.engine.roster.lockstep
        listed = {entry.request for entry in batch.entries}
        rows = [past + 1 for _, tokens, past in batch.entries if tokens == 1 and past]
        if batch.lockstep:
            rows += [lockstep.computed(req) for req in lockstep if req not in listed]
        assert batch.shape.decode_longest == max(rows, default=0)
        if lengths := batch.shape.decode_lengths:
            # From the longest on, each group as large as all before it.
            rest, size = sorted(rows, reverse=True), 1
            for count, tokens in zip(lengths[::2], lengths[1::2], strict=True):
                assert (count, tokens) == (len(rest[:size]), sum(rest[:size]))
                rest, size = rest[size:], len(rows) - len(rest[size:])
            assert not rest
            self.told += 1
            self.told_mixed += bool(batch.shape.prefills)
        self.compared += len(rows) > 1

    def sealed(self, replica: Replica, flight: Flight) -> None:
        flight.usage = replica.engine.usage()
        last = advanced(flight.batch.shape, flight.batch.repeats - 1)
        if flight.batch.shape.decodes:
            assert last.decode_longest == flight.batch.shape.decode_longest + flight.batch.repeats - 1
            assert last.decode_longest <= last.decode_context


@pytest.mark.parametrize("spans", [True, False])
@pytest.mark.parametrize("blocks", [40, 400])
@pytest.mark.parametrize("lengths", ["never", "alone", "always"])
def test_the_longest_context_of_a_step(spans: bool, blocks: int, lengths: LengthsTold) -> None:
    rng, clock, watch = random.Random(blocks), Clock(), Longest()
    setup = Setup(pool=KvPool(blocks, 4), limits=Limits(8, 32))
    policy, allocator = setup.engine().policy, setup.engine().allocator
    engine = Engine(policy, allocator, setup.limits, spans=spans, ranks=True, lengths=lengths)
    finished: list[Any] = []
    replica = Replica(clock, engine, Predicted(MS, overlap_host=False), on_finish=finished.append, observer=watch)
    for number in range(30):
        req = Request(number, 0.0, rng.randint(1, 60), rng.randint(1, 40))
        clock.call_at(rng.random(), lambda event, req=req: replica.submit(req))
    clock.run()
    assert len(finished) == 30
    assert watch.compared > 20
    assert not watch.told if lengths == "never" else watch.told > 20
    assert watch.told_mixed > 5 if lengths == "always" else not watch.told_mixed


def test_on_the_wall_a_step_lasts_until_it_has_ended() -> None:
    """Simulated time is real time: planning counts, and nothing happens early."""
    clock = WallClock()
    setup = Setup()
    done: list[Request] = []
    replica = Replica(
        clock,
        setup.engine(),
        OnTheWall(Predicted(MS, overlap_host=False), lambda: clock.elapsed_s),
        on_finish=done.append,
        observer=Watch(1, []),
    )
    clock.call_at(0.0, lambda event: replica.submit(Request(0, 0.0, 4, 3)))
    clock.call_at(0.05, lambda event: replica.submit(Request(1, 0.05, 4, 3)))
    clock.run()
    assert [req.id for req in done] == [0, 1]
    assert 0.05 <= done[1].finish_s <= clock.elapsed_s
