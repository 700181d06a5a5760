"""Prompts here, answers there: every token keeps its gap, KV is held until it is sent, nobody is lost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from engine_kit import Setup, run, workload
from hypothesis import given
from hypothesis import strategies as st
from law_cases import laws
from pools_kit import Between, Served, decoded_apart, serve

from sim.cost.fixed import FixedCost
from sim.engine.batch import Limits
from sim.engine.memory import KvPool
from sim.engine.request import Handover, Request
from sim.scenario import build
from sim.serving.run import simulate
from traces.rows import from_frame

COST = FixedCost(base_s=0.001, per_token_s=0.0001, per_context_token_s=0.00001)
ROWS = st.lists(st.tuples(st.sampled_from([0.0, 0.0005, 0.03]), st.integers(1, 40), st.integers(1, 20)), max_size=12)
BETWEEN = st.builds(
    Between,
    st.sampled_from([math.inf, 50_000.0, 1_000.0]),
    st.sampled_from([0.0, 0.002]),
    st.sampled_from([0, 4]),
    st.sampled_from([0, 15]),
)
Row = tuple[float, int, int]
ROOMY = Setup(pool=KvPool(400, 4, 64), limits=Limits(16, 64), cost=COST)
TIGHT = replace(ROOMY, pool=KvPool(16, 4, 64), limits=Limits(3, 24))


def placed(rows: list[Row]) -> list[Row]:
    times_s = np.cumsum([row[0] for row in rows])
    return [(float(at), prompt, output) for at, (_, prompt, output) in zip(times_s, rows, strict=True)]


def check(done: Served, rows: list[Row], between: Between) -> None:
    """What holds of every run: each token has its gap, each transfer its order, and what is short stays at home."""
    seconds, often = done.gaps.itl()
    assert often.sum() == sum(output - 1 for _, _, output in rows)
    spent_s = sum(req.finish_s - req.first_token_s for req in done.requests)
    assert float(seconds @ often) == pytest.approx(spent_s)
    longest_s = done.gaps.longest_s(len(rows))
    for req, (_, prompt, output) in zip(done.requests, rows, strict=True):
        assert req.known == prompt + output
        assert np.isnan(longest_s[req.id]) == (output == 1)
        assert req.arrival_s <= req.first_scheduled_s < req.first_token_s <= req.finish_s
    moved = done.transfers
    assert sorted(moved["request"]) == [
        at for at, (_, prompt, output) in enumerate(rows) if output > 1 and prompt >= between.min_prompt_tokens
    ]
    assert (moved["asked_s"] <= moved["placed_s"]).all()
    assert (moved["placed_s"] + between.latency_s <= moved["landed_s"] + 1e-12).all()
    first_token_s = np.array(done.column("first_token_s"))[moved["request"]] if len(moved) else np.empty(0)
    assert (moved["asked_s"].to_numpy() == first_token_s).all()
    if not between.layers:
        needed_s = moved["bytes"] / between.tokens_per_s
        assert (moved["landed_s"] - moved["placed_s"] >= needed_s * (1 - 1e-9)).all()


@pytest.mark.parametrize("allocator", ["paged", "contiguous-max", "prefix"])
@pytest.mark.parametrize("depth", [1, 2])
def test_laws_hold_over_links_and_allocators(allocator: str, depth: int) -> None:
    @laws
    @given(ROWS, BETWEEN, st.tuples(st.integers(1, 2), st.integers(1, 2)), st.booleans())
    def hold(drawn: list[Row], between: Between, counts: tuple[int, int], tight: bool) -> None:
        rows = placed(drawn)
        setup = replace(TIGHT if tight else ROOMY, allocator=allocator, depth=depth)
        done = serve(setup, setup, counts, workload(rows), between)
        check(done, rows, between)
        if not tight:
            assert all(req.preemptions == 0 for req in done.requests)
            assert (done.transfers["placed_s"] == done.transfers["asked_s"]).all()
        single = replace(setup, spans=False)
        steps = serve(single, single, counts, workload(rows), between)
        for name in ("first_scheduled_s", "first_token_s", "finish_s", "preemptions"):
            assert steps.column(name) == done.column(name), name
        assert steps.transfers.equals(done.transfers)

    hold()


@laws
@given(ROWS)
def test_over_a_link_without_cost_a_lone_request_is_served_as_by_one_engine(drawn: list[Row]) -> None:
    """Where nobody meets anybody, two pools give each token when one engine would."""
    rows = [(10.0 * at, prompt, output) for at, (_, prompt, output) in enumerate(drawn)]
    done = serve(ROOMY, ROOMY, (1, 1), workload(rows))
    alone = run(ROOMY, workload(rows))
    for name in ("first_scheduled_s", "first_token_s", "finish_s"):
        assert done.column(name) == pytest.approx(alone.column(name).tolist())


@laws
@given(ROWS)
def test_over_an_infinite_link_the_pools_are_as_simulated_apart(drawn: list[Row]) -> None:
    rows = placed(drawn)
    done = serve(ROOMY, ROOMY, (1, 1), workload(rows))
    prompts = run(ROOMY, workload([(at, prompt, 1) for at, prompt, _ in rows]))
    assert done.column("first_token_s") == prompts.column("finish_s").tolist()
    arrivals = []
    for at, (arrival_s, prompt, output) in enumerate(rows):
        if output > 1:
            req = Request(at, arrival_s, prompt, output)
            req.known, req.handover = prompt + 1, Handover(prompt, 0, "0", "1")
            arrivals.append((float(prompts.column("finish_s")[at]), req))
    # Of prompts that end together the one admitted first is handed over first.
    arrivals.sort(key=lambda each: each[0])
    ended = decoded_apart(ROOMY, arrivals)
    assert ended == {at: req.finish_s for at, req in enumerate(done.requests) if req.output_tokens > 1}


def test_decoding_goes_on_while_a_prompt_is_computed() -> None:
    """What people split pools for, by hand: a long prompt of 64 tokens stands in nobody's way."""
    rows = [(0.0, 4, 30), (0.005, 64, 2)]
    apart = serve(ROOMY, ROOMY, (1, 1), workload(rows)).gaps.longest_s(2)
    both = run(replace(ROOMY, limits=Limits(16, 128)), workload(rows))
    longest_s = max(np.diff(list(both.ends_s)))
    step_s = 0.001 + 0.0001 + 40 * 0.00001
    assert apart[0] < 2 * step_s < 0.0064 < longest_s


def test_prompts_wait_for_memory_that_is_held_until_it_is_sent() -> None:
    """By hand: 8 blocks of 4 hold one prompt of 32; 32 tokens take 0.032 s on the link, at 1,000 tokens a second."""
    small = replace(ROOMY, pool=KvPool(8, 4, 64))
    done = serve(small, ROOMY, (1, 1), workload([(0.0, 32, 5), (0.0, 32, 5)]), Between(1_000.0))
    first, second = done.requests
    prefill_s = 0.001 + 32 * 0.0001 + 32 * 0.00001
    assert first.first_token_s == pytest.approx(prefill_s)
    assert second.first_scheduled_s == pytest.approx(prefill_s + 0.032)
    assert done.transfers["landed_s"].tolist() == pytest.approx([prefill_s + 0.032, 2 * (prefill_s + 0.032)])


def test_a_transfer_waits_for_room_where_it_is_decoded() -> None:
    """By hand: the decode replica holds one request at a time, so the second's KV is sent when the first has ended."""
    small = replace(ROOMY, pool=KvPool(10, 4, 40))
    done = serve(ROOMY, small, (1, 1), workload([(0.0, 32, 5), (0.0, 32, 5)]), Between(1e6))
    moved = done.transfers
    assert moved["asked_s"][0] == moved["asked_s"][1]
    assert moved["placed_s"].tolist() == [moved["asked_s"][0], done.requests[0].finish_s]


def test_what_is_sent_by_layer_leaves_one_layer_for_after_the_prompt() -> None:
    """A fast link has sent three of four layers by the end; a slow one has sent what the prompt's time allows."""
    rows = workload([(0.0, 32, 5)])
    prefill_s = 0.001 + 32 * 0.0001 + 32 * 0.00001
    for rate, left in ((1e5, 8.0), (1e3, 32.0 - 1e3 * prefill_s)):
        moved = serve(ROOMY, ROOMY, (1, 1), rows, Between(rate, layers=4)).transfers
        assert float(moved["landed_s"][0] - moved["placed_s"][0]) == pytest.approx(left / rate)
        assert moved["bytes"][0] == 32.0


def test_what_a_decode_cache_holds_is_not_sent() -> None:
    """The second turn's prompt begins with the first's, whose KV the decode replica has kept."""
    setup = replace(ROOMY, allocator="prefix")
    rows = workload([(0.0, 32, 5), (1.0, 40, 5)], prefix_ids=[range(8), range(10)], prefix_unit_tokens=4)
    moved = serve(setup, setup, (1, 1), rows, Between(1e4)).transfers
    assert moved["tokens"].tolist() == [32, 8]


def test_what_is_on_its_way_to_a_decode_cache_is_not_found_there_yet() -> None:
    """Two requests of one prefix a moment apart: both are sent in full, and a third that comes later is not."""
    rows = [(0.0, 32, 4), (0.001, 32, 4), (5.0, 32, 4)]
    prefix = {"prefix_ids": [[1, 2]] * 3, "prefix_unit_tokens": 16}
    setup = replace(ROOMY, allocator="prefix")
    done = serve(setup, setup, (2, 1), workload(rows, **prefix), Between(tokens_per_s=100.0))
    assert done.transfers["tokens"].tolist() == [32, 32, 0]


def test_disaggregation_raises_goodput_under_a_tight_tpot_and_hurts_when_little_comes() -> None:
    """DistServe (OSDI 24), Splitwise (ISCA 24): of two GPUs one computes all prompts and disturbs no decoding."""
    rng = np.random.default_rng(4)
    prompts, outputs, gaps = rng.integers(1000, 3000, 120), rng.integers(40, 160, 120), rng.exponential(1.0, 120)
    alike: dict[str, Any] = {"replicas": 2, "router.name": "least-outstanding"}
    apart = {"pools.p.role": "prefill", "pools.d.role": "decode", "transfer.gb_per_s": 50.0}

    def told(settings: dict[str, Any], rate: float) -> tuple[float, float]:
        """(share of requests within the limits, mean end to end)"""
        rows = {"arrival_s": gaps.cumsum() / rate, "prompt_tokens": prompts, "output_tokens": outputs}
        scenario = build({"slo": "ttft=0.4,tpot=0.012", "front_end.name": "off", **settings})
        summary = simulate(scenario, trace=from_frame(pd.DataFrame(rows))).summary
        return summary["goodput"]["fraction"], summary["e2e_s"]["mean"]

    busy, idle = (told(alike, 20.0), told(apart, 20.0)), (told(alike, 1.0), told(apart, 1.0))
    assert busy[1][0] > 0.95
    assert busy[0][0] < 0.7
    assert busy[1][1] < busy[0][1]
    assert idle[0][0] == idle[1][0] == 1.0
    assert idle[1][1] > idle[0][1]
