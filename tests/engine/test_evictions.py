"""What an eviction takes out of a step goes with all that builds on it, and with nothing else."""

from __future__ import annotations

import random

import pytest
from engine_kit import Setup
from law_cases import Case, Row, chained
from law_watchers import watched

from sim.engine.batch import Limits
from sim.engine.memory import KvPool
from sim.engine.step import Step


class Regretful:
    """Grants all, and takes some of it back within the step, whoever else was given KV on top of it."""

    every_step = True

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def __call__(self, step: Step) -> None:
        step.advance_running()
        for req in step.waiting:
            if not step.grant(req):
                break
        for req, *_ in list(step.entries):
            if req in step.running and req.preemptions < 3 and self._rng.random() < 0.4:
                step.evict(req)


@pytest.mark.parametrize("seed", range(24))
def test_whatever_is_taken_out_of_a_step_nobody_reads_it(seed: int) -> None:
    """Requests of few different prompts, admitted together: most build on what others compute in the same step."""
    rng = random.Random(seed)
    block_tokens, samples = (1, 2, 4)[seed % 3], 1 + seed // 12
    setup = Setup(Regretful(seed), "prefix", pool=KvPool(480 // block_tokens, block_tokens), limits=Limits(9, 40))
    rows = []
    for number in range(10):
        prefix = chained(tuple(rng.randrange(2) for _ in range(4)))
        several = samples if number % 2 else 1
        rows.append(
            Row(0.002 * (number // 5), 17 + rng.randrange(6), 1 + rng.randrange(4), 0, prefix, several, several > 1)
        )
    done = watched(Case(setup, rows, 4))
    assert done.column("preemptions").sum() > 0
    assert done.column("prefix_hit_tokens").sum() > 0


class Interrupting:
    """Four tokens of each request a step; evicts request 0 in the step that admits request 1."""

    every_step = True

    def __call__(self, step: Step) -> None:
        step.advance_running(4)
        for req in step.waiting:
            step.grant(req, 4)
        running = {req.id: req for req in step.running}
        if 1 in running and 0 in running and not running[0].preemptions:
            step.evict(running[0])


@pytest.mark.parametrize(("units", "preempted"), [((0, 1, 1), 0), ((0, 0, 0), 1)])
def test_only_who_builds_on_what_was_taken_out_goes_too(units: tuple[int, ...], preempted: int) -> None:
    """Request 0 computes its second block when request 1 comes: with the first in common it is safe, with both not."""
    setup = Setup(Interrupting(), "prefix", pool=KvPool(64, 4))
    rows = [Row(0.0, 13, 2, 0, chained((0, 0, 0))), Row(0.0005, 13, 2, 0, chained(units))]
    done = watched(Case(setup, rows, 4))
    assert done.column("preemptions").tolist() == [1, preempted]
