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
from sim.engine.request import Adapter, Request, SharedPrefix
from sim.routers.adapter_affinity import AdapterAffinity
from sim.routers.prefix_affinity import PrefixAffinity
from sim.routers.weighted import Weighted
from sim.scenario import build
from sim.serving.ranking import IDLE, MEMORY, Lineup, LineupNow, SentTo, having, holders, least
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
            for of in ("outstanding", "outstanding_tokens", MEMORY, IDLE):
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


class AllCaches(PrefixAffinity):
    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        return super().__call__(req, list(replicas))


class AllWeights(Weighted):
    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        return super().__call__(req, list(replicas))


class AllAdapters(AdapterAffinity):
    def __call__(self, req: Request, replicas: Sequence[Snapshot]) -> Snapshot:
        return super().__call__(req, list(replicas))


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


@pytest.fixture(scope="module")
def familiar() -> Trace:
    """Twelve sessions whose prompts grow, of which four begin alike, and three adapters."""
    rng = np.random.default_rng(7)
    rows = []
    for at, session in enumerate(rng.integers(0, 12, 150).tolist()):
        blocks = int(rng.integers(1, 30))
        first = 1000 * max(0, session - 3)
        names = np.array([first if place < 3 else 1000 * session + 100 + place for place in range(blocks)])
        adapter = ("", "one", "two", "three")[session % 4]
        rows.append((at / 25, 16 * blocks + 5, int(rng.integers(1, 60)), names, 16, adapter))
    names = ["arrival_s", "prompt_tokens", "output_tokens", "prefix_blocks", "prefix_block_tokens", "adapter"]
    return from_frame(pd.DataFrame(rows, columns=names), name="familiar")


@pytest.mark.parametrize("case", ["short of memory", "that die", "old views", "apart"])
@pytest.mark.parametrize(
    ("router", "whole"),
    [("prefix-affinity", "AllCaches"), ("weighted", "AllWeights"), ("adapter-affinity", "AllAdapters")],
)
def test_who_holds_nothing_need_not_be_asked(familiar: Trace, case: str, router: str, whole: str) -> None:
    names = (router, f"{__name__}:{whole}")
    more: dict[str, Any] = {"allocator.name": "prefix"} | (
        {"lora.max_loras": 2} if router == "adapter-affinity" else {}
    )
    trace = familiar
    if router != "adapter-affinity":
        trace = from_frame(familiar.requests.drop(columns="adapter"), name="without adapters")
    one, other = (api.simulate(build({**CASES[case], **more, "router.name": name}), trace=trace) for name in names)
    assert one.requests["replica"].nunique() > 2
    assert one.requests.equals(other.requests)
    if router != "adapter-affinity":
        assert one.requests["prefix_hit_tokens"].sum() > 0


def test_a_first_block_or_an_adapter_is_where_it_was_sent() -> None:
    made = [Made(place) for place in (4, 2, 7)]
    sent = SentTo(prefixes=True, adapters=True)
    for ranked in (Lineup(cast("list[Snapshot]", made), sent), LineupNow(made, None, lambda place: True, sent)):  # type: ignore[arg-type]
        req = Request(0, 0.0, 40, 5, 0, SharedPrefix([17, 18], 16))
        req.adapter = Adapter(1, "one", 8)
        sent.add(req, 7)
        sent.add(req, 2)
        sent.add(req, 9)  # which is out
        assert [one.index for one in holders(ranked, req)] == [2, 7]
        assert [one.index for one in having(ranked, req)] == [2, 7]
        other = Request(1, 0.0, 40, 5, 0, SharedPrefix([18], 16))
        assert not holders(ranked, other)
        assert holders(ranked, Request(2, 0.0, 40, 5, 0, SharedPrefix([], 16))) is ranked
