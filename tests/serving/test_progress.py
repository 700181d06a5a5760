"""Who preempts in turns is told from who gets further at last."""

from __future__ import annotations

import pytest

from sim.engine.batch import Batch, Entry
from sim.engine.request import Request
from sim.serving.progress import MOST_BATCHES, NoProgressError, Preempting


def plan(*shares: tuple[int, int], lockstep: int = 0) -> Batch:
    """Of (request, tokens that it will have computed) each; one more is preempted."""
    entries = [Entry(Request(number, 0.0, 9_000, 9), 1, computed - 1) for number, computed in shares]
    return Batch(0, 0.0, entries, lockstep, [Request(99, 0.0, 5, 5)])


def taken_in(watch: Preempting, batches: int) -> None:
    for at in range(batches):
        watch.check(plan((at % 3, 1 + at % 5)), 1.5)


def test_those_who_take_turns_are_told() -> None:
    watch = Preempting()
    taken_in(watch, MOST_BATCHES)
    with pytest.raises(NoProgressError, match=r"s requests preempt one another in turns"):
        taken_in(watch, 2 * MOST_BATCHES)


def test_one_who_gets_further_by_a_token_a_step_is_enough() -> None:
    watch = Preempting()
    for at in range(2 * MOST_BATCHES):
        watch.check(plan((0, 1 + at), (1, 3)), 0.0)


def test_rows_in_lockstep_get_further() -> None:
    watch = Preempting()
    for _ in range(2 * MOST_BATCHES):
        watch.check(plan((1, 3), lockstep=1), 0.0)
