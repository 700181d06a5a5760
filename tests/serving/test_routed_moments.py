"""Spans change nothing for a router: it sees each replica as of the moment at which it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from engine_kit import Setup, run, workload
from hypothesis import given
from hypothesis import strategies as st
from law_cases import Case, cases, laws

from sim.cost.fixed import FixedCost
from sim.engine.request import Request
from sim.routers.least_outstanding import LeastOutstanding
from sim.serving.cluster import Router, Snapshot


class By:
    """Sends a request to the replica of which a count is least, and writes down what it saw."""

    def __init__(self, count: Callable[[Snapshot, Request], int], seen: list[Any]) -> None:
        self._count = count
        self._seen = seen

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        counts = [self._count(replica, req) for replica in replicas]
        self._seen.append((req.id, *counts))
        return replicas[counts.index(min(counts))]


COUNTS: dict[str, Callable[[Snapshot, Request], int]] = {
    "outstanding": lambda replica, req: replica.outstanding,
    "running tokens": lambda replica, req: replica.running_tokens,
    "free blocks": lambda replica, req: -replica.free_blocks,
    "cached tokens": lambda replica, req: -replica.cached_tokens(req),
}


def served(case: Case, router: Callable[[], Router]) -> list[tuple[Any, ...]]:
    """What became of each request, and where."""
    done = run(replace(case.setup, replicas=3, router=router), case.workload())
    return [
        (req.id, done.replica_of[req.id], req.first_scheduled_s, req.first_token_s, req.finish_s, req.preemptions)
        for req in done.requests
    ]


@pytest.mark.parametrize("count", COUNTS)
def test_a_router_sees_the_same_with_and_without_spans(count: str) -> None:
    @laws
    @given(cases("chunked", "prefix"), st.sampled_from([1, 2]))
    def alike(case: Case, depth: int) -> None:
        case = replace(case, setup=replace(case.setup, depth=depth)).admissible()
        if not case.rows:
            return
        seen: tuple[list[Any], list[Any]] = [], []
        with_spans = served(case, lambda: By(COUNTS[count], seen[0]))
        assert with_spans == served(case.without_spans(), lambda: By(COUNTS[count], seen[1]))
        assert seen[0] == seen[1]

    alike()


@pytest.mark.parametrize("depth", [1, 2])
def test_counts_move_while_a_span_is_under_way(depth: int) -> None:
    seen: list[tuple[int, int, int]] = []
    rows = [(0, 4, 200), *((step + 0.5, 4, 1) for step in range(10, 60, 10))]
    setup = Setup(cost=FixedCost(1.0), depth=depth, replicas=2, router=lambda: By(COUNTS["running tokens"], seen))
    run(setup, workload(rows))
    tokens = [first for _, first, _ in seen[1:]]
    assert [after - before for before, after in pairwise(tokens)] == [10] * 4


@pytest.mark.parametrize("spans", [True, False])
def test_what_ends_at_one_moment_ends_in_the_order_of_replicas(spans: bool) -> None:
    """An arrival cuts the first replica's span, so that it plans its last step long after the others have theirs."""
    rows = [(0, 1, 20), (0, 1, 20), (0, 1, 20), (19, 1, 1)]
    ends = [(4, 0), (5, 1), (6, 2)]
    table = [*rows, *((0, 1, 1) for _ in ends)]
    after = [-1] * len(rows) + [before for _, before in ends]
    work = workload(table, after=after, think_s=[0.0] * len(table))
    done = run(Setup(cost=FixedCost(1.0), replicas=3, spans=spans, router=LeastOutstanding), work)
    assert [done.replica_of[before] for _, before in ends] == [0, 1, 2]
    assert [done.replica_of[id] for id, _ in ends] == [0, 1, 2]
