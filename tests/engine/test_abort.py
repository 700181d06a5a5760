"""A request that is given up leaves nothing behind, and the others do not notice but by the room that it left."""

from __future__ import annotations

import random
from itertools import product

import pytest
from engine_kit import Setup
from law_watchers import check_nothing_leaked

from sim.engine.batch import Limits, Outcome
from sim.engine.memory import KvPool
from sim.engine.request import NO_SEAT, Request, SharedPrefix
from sim.load import names

POLICIES = [name for name in names("sim.policies") if name != "speculative"]
ALLOCATORS = ["paged", "prefix", "contiguous-oracle", "contiguous-max", "windowed", "no-cache"]
TIGHT = KvPool(40, 4, 64, window_tokens=12)


@pytest.mark.parametrize("several", ["", "samples", "beams"])
@pytest.mark.parametrize(("policy", "allocator"), list(product(POLICIES, ALLOCATORS)))
def test_whoever_is_given_up_at_any_moment_leaves_nothing(policy: str, allocator: str, several: str) -> None:
    aborted = kept = 0
    for seed in range(6):
        rng = random.Random(seed)
        engine = Setup(policy, allocator, pool=TIGHT, limits=Limits(6, 64), host_blocks=20 * (seed % 2)).engine()
        prefix = SharedPrefix(list(range(8)), 4)
        requests = [
            Request(id, 0.0, rng.randint(1, 30), rng.randint(1, 12), rng.randint(0, 2), prefix) for id in range(14)
        ]
        if several and allocator != "windowed":
            for req in requests[::3]:
                req.split(3, (lambda count: [2, 0, 1]) if several == "beams" else None)
        open_ = [req for req in requests if engine.refusal(req) is None]
        for req in open_:
            engine.add(req)
        steps = 0
        while engine.busy:
            steps += 1
            assert steps < 1000
            batch = engine.plan(float(steps))
            if batch.empty:
                continue
            if rng.random() < 0.3:
                before = engine.abort(rng.choice(open_)) if open_ else False
                aborted += before
            engine.roster.check()
            engine.seal(batch, rng.randint(1, batch.repeats))
            engine.roster.check()
            engine.commit(batch, Outcome([0.0] * batch.repeats, [0.0] * batch.repeats, 0.0), float(steps))
            engine.roster.check()
            open_ = [req for req in open_ if not req.finished]
            if open_ and rng.random() < 0.3:
                req = rng.choice(open_)
                if engine.abort(req):
                    open_.remove(req)
                    aborted += 1
                engine.roster.check()
        kept += sum(req.known == req.prompt_tokens + req.output_tokens for req in requests)
        check_nothing_leaked(engine, 20 * (seed % 2))
    assert aborted > 10
    assert kept > 5


def test_all_sequences_of_a_request_go_together() -> None:
    engine = Setup(limits=Limits(8, 64)).engine()
    req, other = Request(0, 0.0, 6, 9).split(3), Request(1, 0.0, 6, 9)
    for one in (req, other):
        engine.add(one)
    for _ in range(3):
        batch = engine.plan(0.0)
        engine.seal(batch, 1)
        engine.commit(batch, Outcome([0.0], [0.0], 0.0), 0.0)
    assert len(engine.running) == 4
    assert engine.abort(req)
    assert list(engine.running) == [other]
    engine.roster.check()
    assert engine.usage().shared == 0


def test_who_ends_with_what_is_under_way_ends() -> None:
    engine = Setup().engine()
    req = Request(0, 0.0, 4, 1)
    assert req.seat is NO_SEAT
    engine.add(req)
    batch = engine.plan(0.0)
    assert not engine.abort(req)
    engine.seal(batch, 1)
    assert engine.commit(batch, Outcome([1.0], [1.0], 0.0), 1.0).finished == [req]
    NO_SEAT.seq = 3
    with pytest.raises(AssertionError, match="the seat of none"):
        engine.roster.check()
    NO_SEAT.seq = -1
