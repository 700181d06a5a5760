"""The replica with least of something is the one that a look at all of them would name, at every choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from law_cases import laws

from sim import api
from sim.engine.request import Request
from sim.scenario import build
from sim.serving.ranking import MEMORY, Lineup, LineupNow, least
from sim.serving.snapshot import Snapshot
from traces.rows import from_frame
from traces.schema import Trace


class Made:
    """A replica that is made up: what is free while a span runs, and what is when it is asked."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.outstanding = self.outstanding_tokens = self.asked = 0
        self.free_kv_unsettled, self._later = 1.0, 1.0

    def span(self, now: int, later: int) -> None:
        self.free_kv_unsettled, self._later = now / 8, min(now, later) / 8

    def settle(self) -> None:
        self.asked += 1
        self.free_kv_unsettled = self._later

    @property
    def free_kv(self) -> float:
        return self._later


number = st.integers(0, 8)
moves = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["comes", "plans", "asks"]), number, number), max_size=60)


@given(moves, st.booleans())
@laws
def test_the_first_is_that_of_all(moved: list[tuple[int, str, int, int]], falls: bool) -> None:
    made = [Made(place) for place in range(5)]
    touched: set[int] = set()
    ranked = LineupNow(cast("list[Snapshot]", made), touched, lambda place: falls)
    for place, what, one, other in moved:
        replica = made[place]
        if what == "comes":
            replica.outstanding, replica.outstanding_tokens = one, other
            ranked.changed(cast("Snapshot", replica))
        elif what == "plans":
            replica.span(one, other)
            touched.add(place)
        else:
            for of in ("outstanding", "outstanding_tokens", MEMORY):
                assert least(ranked, of) is least(cast("list[Snapshot]", made), of)


def test_who_cannot_be_first_is_not_asked() -> None:
    made = [Made(place) for place in range(50)]
    touched: set[int] = set()
    ranked = LineupNow(cast("list[Snapshot]", made), touched, lambda place: True)
    for replica in made:
        replica.span(8 if replica.index == 30 else 4, 8)
    assert least(ranked, MEMORY).index == 30
    assert sum(replica.asked for replica in made) == 1


def test_what_was_seen_stays_until_the_next_look() -> None:
    made = [Made(0), Made(1)]
    seen = Lineup(cast("list[Snapshot]", made))
    made[0].outstanding = 3
    assert least(seen, "outstanding").index == 1
    made[1].outstanding = 5
    assert least(seen, "outstanding").index == 1
    seen.polled()
    assert least(seen, "outstanding").index == 0


class AllOutstanding:
    """Looks at all replicas at each choice."""

    what = "outstanding"

    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        return least(list(replicas), self.what)


class AllTokens(AllOutstanding):
    what = "outstanding_tokens"


class AllKv(AllOutstanding):
    what = MEMORY
    reads_memory = True


APART = {
    "pools.first.role": "prefill", "pools.first.count": 3, "pools.then.role": "decode", "pools.then.count": 3,
    "transfer.gb_per_s": 5.0, "kv.blocks": 600, "engine.max_model_len": 8192,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "short of memory": {"replicas": 5, "kv.blocks": 600, "engine.max_model_len": 8192},
    "of windows": {"replicas": 5, "model": "gemma-3-4b", "engine.max_num_seqs": 6},
    "that die": {"replicas": 5, "failures.mtbf_s": 1.0, "failures.mttr_s": 0.5, "front_end.name": "off"},
    "old views": {"replicas": 5, "routing.poll_s": 0.3, "kv.blocks": 900, "engine.max_model_len": 8192},
    "apart": APART,
}


@pytest.fixture(scope="module")
def busy() -> Trace:
    rng = np.random.default_rng(5)
    rows = {"arrival_s": rng.exponential(1 / 60, 120).cumsum(), "prompt_tokens": rng.integers(20, 900, 120)}
    return from_frame(pd.DataFrame({**rows, "output_tokens": rng.integers(1, 300, 120)}), name="drawn")


@pytest.mark.parametrize(
    ("case", "router", "whole"),
    [(case, "least-kv", "AllKv") for case in CASES]
    + [(case, "least-tokens", "AllTokens") for case in ("that die", "apart")],
)
def test_no_request_goes_elsewhere(busy: Trace, case: str, router: str, whole: str) -> None:
    names = (router, f"{__name__}:{whole}")
    one, other = (api.simulate(build({**CASES[case], "router.name": name}), trace=busy) for name in names)
    assert one.requests["replica"].nunique() > 2
    assert one.requests.equals(other.requests)
