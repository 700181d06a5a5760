"""Limits at their edges: what just fits is served, and one more of anything is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_kit import Setup, run
from law_cases import Case, Row, chained
from law_watchers import watched

from sim.engine.batch import Limits
from sim.engine.memory import KvPool
from sim.engine.queues import KeyedQueue
from sim.engine.request import Request
from sim.engine.step import Step

EDGES = {
    "max_model_len": (Setup(limits=Limits(4, 64, 12)), Row(0.0, 9, 3), Row(0.0, 9, 4)),
    "no chunks": (Setup(limits=Limits(4, 11, chunked_prefill=False)), Row(0.0, 9, 3), Row(0.0, 9, 4)),
    "no cache": (Setup(allocator="no-cache", limits=Limits(4, 11)), Row(0.0, 9, 3), Row(0.0, 9, 4)),
    "seats": (Setup(limits=Limits(3, 64)), Row(0.0, 9, 3, samples=3), Row(0.0, 9, 3, samples=4)),
    "beams": (Setup(limits=Limits(4, 3)), Row(0.0, 9, 3, samples=3, beams=True), Row(0.0, 9, 3, samples=4, beams=True)),
    "blocks": (Setup(pool=KvPool(3, 4)), Row(0.0, 9, 4), Row(0.0, 9, 5)),
    "shared blocks": (Setup(pool=KvPool(6, 4)), Row(0.0, 9, 4, samples=4), Row(0.0, 9, 4, samples=5)),
    "watermark": (
        Setup(pool=KvPool(4, 4), allocator_parameters={"watermark": 0.25}),
        Row(0.0, 9, 4),
        Row(0.0, 9, 5),
    ),
    "one piece": (Setup(allocator="contiguous-oracle", pool=KvPool(3, 4)), Row(0.0, 9, 4), Row(0.0, 9, 5)),
}


@pytest.mark.parametrize("edge", EDGES)
def test_what_just_fits_is_served_and_one_more_is_refused(edge: str) -> None:
    setup, fits, exceeds = EDGES[edge]
    case = Case(setup, [fits], 4)
    assert len(replace(case, rows=[exceeds, fits]).admissible().rows) == 1
    assert case.admissible().rows == [fits]
    assert (run(setup, case.workload()) if edge == "no cache" else watched(case)).column("finished").all()


class OneByOne:
    """Grants each request by itself, and sees that a refusal leaves it as it was."""

    every_step = True

    def __init__(self) -> None:
        self.refused = 0

    def __call__(self, step: Step) -> None:
        for req in list(step.running):
            self._ask(step, req)
        for req in step.waiting:
            self._ask(step, req)

    def _ask(self, step: Step, req: Request) -> None:
        before = (step.computed(req), step.tokens_left, step.seats_left)
        if not step.grant(req):
            assert (step.computed(req), step.tokens_left, step.seats_left) == before
            self.refused += req.seat.seq < 0


@pytest.mark.parametrize("beams", [False, True])
def test_beams_go_on_together_or_not_at_all(beams: bool) -> None:
    """Three beams beside another request, with three tokens a step: they wait until that has ended."""
    setup = Setup(OneByOne(), limits=Limits(4, 3))
    done = watched(Case(setup, [Row(0.0, 1, 6), Row(0.0, 2, 3, samples=3, beams=beams)], 4))
    assert done.column("finished").all()


def test_a_refused_admission_changes_nothing() -> None:
    """Request 1 hits what request 0 has computed, and finds no block for the rest."""
    policy, shared = OneByOne(), chained((0, 0))
    setup = Setup(policy, "prefix", pool=KvPool(4, 4))
    done = watched(Case(setup, [Row(0.0, 9, 4, 0, shared), Row(0.0015, 15, 2, 0, shared)], 4))
    assert policy.refused
    assert done.column("prefix_hit_tokens")[1] == 8


def test_a_queue_breaks_ties_by_arrival() -> None:
    """A later request of the trace may come first: its number is no arrival."""
    queue = KeyedQueue(lambda req: req.priority)
    for number, arrival_s, priority in ((0, 3.0, 1), (1, 2.0, 1), (2, 1.0, 1), (3, 9.0, 0), (4, 2.0, 1)):
        queue.add(Request(number, arrival_s, 1, 1, priority))
    assert [req.id for req in queue] == [3, 2, 1, 4, 0]
