"""Replicas that die, come back, restart in turn: everybody is answered once, whenever it happens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from engine_kit import MS, Setup, workload
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from law_cases import EXAMPLES, Case, cases
from pools_kit import Watches

from sim import api
from sim.engine.engine import Engine
from sim.engine.flight import Audience, Flight, ObservedReplica, Observer
from sim.engine.request import Request
from sim.report.run.operations import operation_lines, operation_panels
from sim.results.gaps import TokenGaps
from sim.results.presence import DIES, DOWN, DRAINS, SERVES, STOPS
from sim.routers.least_outstanding import LeastOutstanding
from sim.scenario import build
from sim.serving.clock import Clock
from sim.serving.cluster import Cluster
from sim.serving.executor import Predicted
from sim.serving.lifecycle import Lifecycle, Member
from sim.serving.replica import Replica
from sim.serving.run import simulate
from sim.serving.source import RequestSource, Workload
from traces.rows import from_frame
from traces.schema import InputError

Outage = tuple[int, float, float, bool]
"""(replica, when, for how long, whether it drains first)."""
LOAD: dict[str, Any] = {"workload.trace": "chatbot_arena.jsonl", "workload.limit": 120, "workload.rate": 20.0}


class Output(Observer):
    """When the token of each step was there, of every replica, and which tokens clients have by then."""

    def __init__(self) -> None:
        self.first_s: dict[int, list[float]] = {}

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        for req in flight.committed.first_tokens:
            self.first_s.setdefault(req.id, []).append(flight.output_s)


@dataclass
class Ran:
    done: dict[int, Request]
    lifecycle: Lifecycle
    gaps: TokenGaps
    first_s: dict[int, list[float]]
    replica_of: dict[int, int]


def serve(setup: Setup, work: Workload, replicas: int, outages: list[Outage]) -> Ran:
    """Serve by so many replicas, some of which are out for a time; every promise is checked."""
    clock, done, replica_of = Clock(), {}, {}  # type: ignore[var-annotated]
    watches, output = Watches(replicas), Output()
    engines: list[Engine] = []

    def fresh() -> Engine:
        engines.append(setup.engine())
        return engines[-1]

    def finished(index: int, req: Request) -> None:
        assert req.id not in done, f"{req} was answered twice"
        assert req.generated == req.output_tokens
        assert lifecycle.members[index].state != DOWN
        done[req.id], replica_of[req.id] = req, index
        cluster.finished(req, index)
        lifecycle.left(index)
        source.finished(req)

    fleet = [
        Replica(
            clock,
            fresh(),
            Predicted(setup.cost, overlap_host=setup.depth == 2),
            depth=setup.depth,
            on_finish=partial(finished, index),
            observer=Audience([watches, output]),
            index=index,
            alone=replicas == 1,
        )
        for index in range(replicas)
    ]
    cluster = Cluster(fleet, LeastOutstanding(), changes=True)
    lifecycle = Lifecycle(clock, [Member(one, cluster, place, fresh) for place, one in enumerate(fleet)])

    def out(index: int, down_s: float, drains: bool, event: object) -> None:
        state = lifecycle.members[index].state
        if drains and state == SERVES:
            lifecycle.drain(index, partial(lifecycle.serve_in, index, down_s))
        elif not drains and state in (SERVES, DRAINS):
            lifecycle.die(index)
            lifecycle.serve_in(index, down_s)

    for index, at_s, down_s, drains in outages:
        clock.call_at(at_s, partial(out, index, down_s, drains), first=True)
    source = RequestSource(clock, work, cluster.submit, concurrency=setup.concurrency)
    source.start()
    clock.run_out()
    assert sorted(done) == list(range(len(work))), "somebody was never answered"
    for one in fleet:
        engine = one.engine
        assert isinstance(engine, Engine)
        engine.roster.check()
        assert not engine.busy
        assert engine.allocator.free_blocks == engine.allocator.pool.blocks
        seen = cluster.snapshot(one.index)
        assert (seen.outstanding, seen.outstanding_tokens) == (0, 0), "a router counts who has left"
    gaps = TokenGaps([one.engine.tokens for one in fleet], [np.array(ends_s) for ends_s in watches.step_end_s])
    check_tokens(done, gaps)
    return Ran(done, lifecycle, gaps, output.first_s, replica_of)


def check_tokens(done: dict[int, Request], gaps: TokenGaps) -> None:
    """Each client has as many tokens as it asked for, one after the other, the first and the last at their times."""
    times: dict[int, list[float]] = {}
    for (sequence, first, last), ends_s in zip(gaps.runs, gaps.step_end_s, strict=True):
        for req, begin, end in zip(sequence.tolist(), first.tolist(), last.tolist(), strict=True):
            times.setdefault(req, []).extend(ends_s[begin : end + 1].tolist())
    for number, req in done.items():
        own = sorted(times[number])
        assert len(own) == req.output_tokens == len(set(own))
        assert (own[0], own[-1]) == (req.first_token_s, req.finish_s)


@st.composite
def outages(draw: st.DrawFn, case: Case, replicas: int) -> list[Outage]:
    unit_s = case.setup.cost.base_s / 4  # type: ignore[attr-defined]
    times = st.integers(0, 160).map(lambda quarters: quarters * unit_s)
    lasts = st.integers(1, 40).map(lambda quarters: quarters * unit_s)
    return draw(st.lists(st.tuples(st.integers(0, replicas - 1), times, lasts, st.booleans()), max_size=6))


@pytest.mark.parametrize(
    ("policy", "allocator", "depth"),
    [("chunked", "prefix", 1), ("chunked", "paged", 2), ("static", "contiguous-oracle", 1), ("sjf", "prefix", 2)],
)
def test_everybody_is_answered_once_whatever_dies_and_when(policy: str, allocator: str, depth: int) -> None:
    @settings(max_examples=EXAMPLES or 10)
    @given(st.data())
    def law(data: st.DataObject) -> None:
        case = data.draw(cases(policy, allocator))
        case = replace(case, setup=replace(case.setup, depth=depth, host_blocks=0)).admissible()
        assume(case.rows)
        replicas = data.draw(st.integers(1, 3))
        drawn = data.draw(outages(case, replicas))
        ran = [serve(each.setup, each.workload(), replicas, drawn) for each in (case, case.without_spans())]
        for name in ("first_scheduled_s", "first_token_s", "finish_s"):
            seen = [[getattr(one.done[at], name) for at in range(len(case.rows))] for one in ran]
            assert seen[0] == seen[1], f"spans change {name}"
        for one in ran:
            assert all(len(times) == 1 for times in one.first_s.values()), "a first token came twice"
            deaths = one.lifecycle.events()["event"].tolist().count(DIES)
            assert deaths or not one.lifecycle.resent

    law()


def test_an_answer_goes_on_behind_what_its_client_has() -> None:
    """By hand: a prompt of 4 and six tokens, 1 s a step; the replica dies in the middle of the fourth."""
    setup = replace(Setup(), cost=replace(MS, base_s=1.0))
    ran = serve(setup, workload([(0.0, 4, 6)]), 2, [(0, 3.5, 10.0, False)])
    req = ran.done[0]
    assert (req.first_token_s, req.finish_s) == (1.0, 6.5)
    assert ran.gaps.joins.seconds.tolist() == [1.5]
    assert sorted(ran.gaps.itl()[0].repeat(ran.gaps.itl()[1]).tolist()) == [1.0, 1.0, 1.0, 1.0, 1.5]
    assert ran.replica_of == {0: 1}
    assert ran.lifecycle.resent == {0: 1}
    # The step that was cut short ran half a second, and the other replica computes the prompt and what was out anew.
    assert ran.gaps.step_end_s[0].tolist() == [1.0, 2.0, 3.0, 3.5]
    assert ran.gaps.step_end_s[1].tolist() == [4.5, 5.5, 6.5]


@pytest.mark.parametrize("spans", [True, False])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_step_that_would_begin_at_a_death_never_does(depth: int, spans: bool) -> None:
    setup = replace(Setup(), cost=replace(MS, base_s=1.0), depth=depth, spans=spans)
    ran = serve(setup, workload([(0.0, 4, 6)]), 2, [(0, 3.0, 10.0, False)])
    assert ran.gaps.step_end_s[0].tolist() == [1.0, 2.0, 3.0]
    assert ran.gaps.step_end_s[1].tolist() == [4.0, 5.0, 6.0]
    assert ran.lifecycle.resent == {0: 1}


def test_where_nobody_serves_requests_wait_for_the_first_who_does() -> None:
    setup = replace(Setup(), cost=replace(MS, base_s=1.0))
    ran = serve(setup, workload([(0.0, 4, 1), (2.0, 4, 1)]), 1, [(0, 0.5, 4.0, False)])
    assert [ran.done[at].first_token_s for at in (0, 1)] == [5.5, 5.5]


def test_who_drains_ends_what_it_has_and_gets_nothing_new() -> None:
    setup = replace(Setup(), cost=replace(MS, base_s=1.0))
    ran = serve(setup, workload([(0.0, 4, 5), (2.0, 4, 1), (3.0, 4, 1)]), 2, [(0, 1.5, 10.0, True)])
    assert ran.replica_of == {0: 0, 1: 1, 2: 1}
    assert [(row.time_s, row.event) for row in ran.lifecycle.events().itertuples()] == [
        (1.5, DRAINS),
        (5.0, STOPS),
        (15.0, SERVES),
    ]


def test_a_dead_cache_is_cold() -> None:
    """The same prompt again finds its blocks, but not where the replica has died in between."""
    work = Workload([0.0, 5.0], [64, 64], [2, 2], prefix_ids=[[1, 2, 3, 4]] * 2, prefix_unit_tokens=16)
    hits = [
        serve(replace(Setup(), allocator="prefix"), work, 1, outages).done[1].prefix_hit_tokens
        for outages in ([], [(0, 2.0, 1.0, False)], [(0, 2.0, 1.0, True)])
    ]
    assert hits == [48, 0, 0]


def test_a_fleet_that_never_fails_is_as_one_that_cannot() -> None:
    late = {"failures.schedule": [{"at_s": 1e6, "down_s": 1.0, "replica": 1}]}
    plain, fails = api.run(**LOAD, replicas=2), api.run(**LOAD, **late, replicas=2)
    assert fails.requests.drop(columns="resent").equals(plain.requests)
    assert fails.steps.equals(plain.steps)
    assert fails.summary["bill"] == plain.summary["bill"]


def test_drawn_failures_follow_their_means_and_the_seed() -> None:
    load = {**LOAD, "workload.limit": 150, "workload.rate": 2.0, "replicas": 4}
    drawn = {"failures.mtbf_s": 20.0, "failures.mttr_s": 5.0}
    ran = api.run(**load, **drawn)
    told = ran.summary["failures"]
    assert ran.summary["requests"]["completed"] == 150
    assert told["down_s"] / (4 * ran.summary["duration_s"]) == pytest.approx(0.2, abs=0.06)
    assert ran.events is not None
    first_s = ran.events[ran.events["event"] == DIES].groupby("replica")["time_s"].min()
    assert len(first_s) == first_s.nunique() == 4, "replicas die each for itself"
    assert told["requests"] == (ran.requests["resent"] > 0).sum() > 0
    assert told["resent"] == ran.requests["resent"].sum()
    assert api.run(**load, **drawn).requests.equals(ran.requests)
    assert not api.run(**load, **drawn, seed=1).requests.equals(ran.requests)
    assert dict(operation_lines(ran.summary))["Failures"].startswith(f"{told['deaths']} deaths, 0 drained restarts")
    assert [title for title, _ in operation_panels(ran.summary)] == ["Failures"]


@pytest.mark.parametrize("drains", [True, False])
def test_all_restart_in_turn(drains: bool) -> None:
    restarts = {"restart_at_s": 1.0, "restart_s": 0.5, "restart_drains": drains}
    ran = api.run(**LOAD, replicas=3, **{f"failures.{key}": value for key, value in restarts.items()})
    assert ran.events is not None
    events = ran.events[ran.events["event"].isin([DIES, STOPS, SERVES])]
    stops = STOPS if drains else DIES
    assert list(events[["replica", "event"]].itertuples(index=False, name=None)) == [
        (replica, event) for replica in range(3) for event in (stops, SERVES)
    ]
    assert (np.diff(events["time_s"])[::2] >= 0.5 - 1e-12).all()
    assert ran.summary["requests"]["completed"] == 120
    assert (ran.summary["failures"]["resent"] == 0) == drains


APART: dict[str, Any] = {
    "model": "llama-3.2-1b", "pools.p.role": "prefill", "pools.d.role": "decode", "transfer.gb_per_s": 0.03,
}  # fmt: skip
SENDING_S = 32_768 / 3e7
"""Of the KV of a token, over such a link."""


@pytest.mark.parametrize(
    ("pool", "at_s", "asked_s", "placed_s", "tokens"),
    [
        ("p", 0.5, 0.75, 0.75, [1001]),  # the prompt is computed again as soon as its replica is back
        ("d", 0.5, 0.5, 0.75, [1001]),  # at once, and it is sent to whoever decodes next
        ("d", 1.11, 1.11, 1.36, [1000, None]),  # with what was decoded meanwhile
    ],
)
def test_kv_that_is_lost_is_computed_anew(
    pool: str, at_s: float, asked_s: float, placed_s: float, tokens: list[int | None]
) -> None:
    """One request: 1,000 tokens take 1.09 s to be sent, and something dies before it is answered."""
    trace = from_frame(pd.DataFrame({"arrival_s": [0.0], "prompt_tokens": [1000], "output_tokens": [40]}))
    dies = {"failures.schedule": [{"pool": pool, "at_s": at_s, "down_s": 0.25}]}
    ran = simulate(build({**APART, **dies}), trace=trace)
    request, moved = ran.requests.iloc[0], ran.transfers
    assert (request["status"], request["resent"]) == ("completed", 1)
    assert request["first_token_s"] < 0.1
    assert ran.itl[1].sum() == 39
    assert np.dot(*ran.itl) == pytest.approx(request["finish_s"] - request["first_token_s"])
    assert len(moved) == len(tokens)
    last = moved.iloc[-1]
    assert last["tokens"] == (tokens[-1] or last["tokens"])
    assert 1000 < last["tokens"] < 1040
    assert 0.0 < last["asked_s"] - asked_s < 0.1
    assert 0.0 <= last["placed_s"] - placed_s < 0.1
    assert last["landed_s"] - last["placed_s"] == pytest.approx(last["tokens"] * SENDING_S)
    held = ran.steps[["kv_used_tokens", "kv_reserved_tokens", "kv_internal_tokens"]].sum(axis=1)
    assert held.max() < 1100, "memory is held for what is lost"


def test_who_drains_stays_until_its_kv_is_sent() -> None:
    """A prefill replica is to restart while it computes its last prompt, whose KV takes a second to be sent."""
    trace = from_frame(pd.DataFrame({"arrival_s": [0.0], "prompt_tokens": [1000], "output_tokens": [4]}))
    ran = simulate(build({**APART, "failures.restart_at_s": 0.001, "failures.restart_s": 0.1}), trace=trace)
    assert ran.events is not None
    assert ran.transfers is not None
    stops = ran.events[(ran.events["event"] == STOPS) & (ran.events["replica"] == 0)]
    assert stops["time_s"].tolist() == ran.transfers["landed_s"].tolist()
    assert ran.requests["resent"].tolist() == [0]


def test_who_dies_while_others_are_sent_there_leaves_the_links_to_them() -> None:
    """Of two transfers over one link the second has it alone once the first one's target is dead."""
    trace = from_frame(pd.DataFrame({"arrival_s": [0.0] * 2, "prompt_tokens": [1000] * 2, "output_tokens": [2] * 2}))
    dies = {"failures.schedule": [{"pool": "d", "at_s": 0.5, "down_s": 60.0}], "pools.d.count": 2}
    ran = simulate(build({**APART, **dies}), trace=trace)
    first = ran.transfers.iloc[0]
    alone_s = first["landed_s"] - first["placed_s"]
    assert 1000 * SENDING_S < alone_s < 2 * 1000 * SENDING_S
    assert ran.requests["resent"].sum() == 1


def test_clients_behind_a_front_end_get_what_had_come_out() -> None:
    """Whatever dies, each client sees all its tokens once; one whose request was still on its way is sent elsewhere."""
    dies = {"failures.mtbf_s": 2.0, "failures.mttr_s": 0.5, "replicas": 3}
    slow = {
        "front_end.name": "custom",
        "front_end.processes": 2,
        "front_end.request_s": 0.02,
        "front_end.step_s": 0.001,
    }
    ran = api.run(**LOAD, **dies, **slow, **{"front_end.output_s": 1e-4, "front_end.latency_s": 0.005})
    requests = ran.requests
    assert (requests["status"] == "completed").all()
    assert requests["resent"].sum() > 10
    assert (requests["resent"] > 0)[requests["engine_arrival_s"] > requests["arrival_s"] + 0.1].any()
    seconds, counts = ran.itl
    assert (seconds >= 0.0).all()
    assert counts.sum() == (requests["output_tokens"] - 1).sum()
    assert np.dot(seconds, counts) == pytest.approx((requests["finish_s"] - requests["first_token_s"]).sum())
    order = requests[["arrival_s", "engine_arrival_s", "first_scheduled_s", "first_token_s", "finish_s"]].to_numpy()
    assert (np.diff(order, axis=1) >= 0.0).all()
    assert (requests["first_token_s"] >= requests["engine_arrival_s"] + requests["engine_ttft_s"] + 0.005).all()


def test_a_death_behind_a_front_end_by_hand() -> None:
    """What takes no time changes nothing: as without a front end, but for a request that was on its way."""
    free = {"front_end.name": "custom", "front_end.processes": 1}
    dies = {"failures.mtbf_s": 2.0, "failures.mttr_s": 0.5, "replicas": 3}
    with_one, without = (api.run(**LOAD, **dies, **{**free, "front_end.name": name}) for name in ("custom", "off"))
    for name in ("replica", "first_scheduled_s", "first_token_s", "finish_s", "resent"):
        assert with_one.requests[name].tolist() == without.requests[name].tolist(), name
    assert with_one.itl[1].tolist() == without.itl[1].tolist()


POOLS = {"pools.a.count": 2, "pools.b.count": 1}


def schedule(**outage: Any) -> dict[str, Any]:
    return {"failures.schedule": [{"at_s": 1.0, "down_s": 1.0, **outage}]}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (schedule(replica=3), "outage 1 of failures.schedule is of replica 3, and there are 1, counted from 0"),
        (schedule(pool="c") | POOLS, "outage 1 of failures.schedule is of pool 'c'; known: a, b"),
        (schedule(pool="b", replica=1) | POOLS, "is of replica 1, and pools.b has 1, counted from 0"),
        (schedule(pool="b"), "is of pool 'b'; the scenario has no pools: leave it out"),
        (schedule() | POOLS, "outage 1 of failures.schedule is of pool ''; known: a, b"),
        (schedule(down_s=0.0), "an outage of failures.schedule has no down_s"),
        (schedule() | {"front_end.max_num_queued_reqs": 9}, "failures and front_end.max_num_queued_reqs are both set"),
        (schedule() | {"workload.samples": 2}, "a request asks for several sequences"),
        (schedule() | {"policy.name": "speculative"}, "policy.name is speculative, and failures beside drafts"),
        ({"failures.mttr_s": 9.0}, "failures.mttr_s is 9, and it is read only where failures.mtbf_s is set"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_sentence(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as told:
        api.run(**LOAD, **asked)
    assert words in str(told.value)
