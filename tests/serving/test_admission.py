"""Admission and retries: textbook queues, hand-worked buckets and waits, and what a client sees of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from law_cases import laws
from queueing_kit import agree, poisson, single_steps

from sim import api
from sim.cost.fixed import FixedCost
from sim.cost.step import Term
from sim.engine.batch import Shape
from sim.engine.request import Request
from sim.report.run.operations import operation_lines, operation_panels
from sim.scenario import build
from sim.serving.admission import QUEUE, REQUESTS, TOKENS, WAIT, Admission, Bucket
from sim.serving.clock import Clock
from sim.serving.hooks import Hooks
from sim.serving.retries import Retries
from sim.serving.run import simulate
from sim.specs.operations import AdmissionSettings, RetrySettings
from traces.rows import from_frame
from traces.schema import InputError, Trace

LOAD: dict[str, Any] = {
    "workload.trace": "chatbot_arena.jsonl", "workload.limit": 140, "workload.rate": 20.0, "front_end.name": "off",
}  # fmt: skip


class Served:
    """Admission before a number of servers that each serve for a given time, and what became of each request."""

    def __init__(self, settings: AdmissionSettings, service_s: Sequence[float]) -> None:
        self.clock = Clock()
        self.started: list[tuple[float, int]] = []
        self.refused: list[tuple[float, int, str]] = []
        self.asked_s: dict[int, float] = {}
        self._service_s = service_s
        self.admission = Admission(self.clock, settings, self._serve, self._refuse, self.asked_s)

    def _serve(self, req: Request) -> None:
        self.started.append((self.clock.now, req.id))
        end_s = self.clock.now + self._service_s[req.id]
        self.clock.call_at(end_s, lambda event: self.admission.left())

    def _refuse(self, req: Request, limit: str) -> None:
        self.refused.append((self.clock.now, req.id, limit))

    def run(self, arrivals: Sequence[tuple[float, int]], priorities: Sequence[int] = ()) -> Served:
        """arrivals: (time, tokens of prompt and answer)."""
        for number, (time_s, tokens) in enumerate(arrivals):
            req = Request(number, time_s, tokens - 1, 1, priorities[number] if priorities else 0)
            self.clock.call_at(time_s, lambda event, req=req: self.admission.submit(req), first=True)  # type: ignore[misc]
        self.clock.run_out()
        return self


def test_a_bucket_by_hand() -> None:
    bucket = Bucket(2.0, 3.0)
    assert bucket.has(3.0, 0.0)
    bucket.take(3.0)
    assert not bucket.has(1.0, 0.4)
    assert bucket.has(1.0, 0.5)
    bucket.take(1.0)
    assert not bucket.has(3.1, 100.0)
    assert bucket.has(3.0, 100.0)


def test_rates_refuse_by_hand() -> None:
    settings = AdmissionSettings(requests_per_s=1.0, burst_requests=2, tokens_per_s=10.0, burst_tokens=20)
    ran = Served(settings, [1.0] * 5).run([(0.0, 15), (0.0, 10), (0.0, 5), (0.0, 2), (1.0, 12)])
    assert [req for _, req in ran.started] == [0, 2]
    assert ran.refused == [(0.0, 1, TOKENS), (0.0, 3, REQUESTS), (1.0, 4, TOKENS)]


def test_who_waits_goes_by_priority_and_the_last_in_order_is_given_up() -> None:
    settings = AdmissionSettings(max_outstanding=1, max_queued=2, max_wait_s=10.0)
    arrivals = [(0.0, 2), (0.1, 2), (0.2, 2), (0.3, 2), (0.4, 2)]
    ran = Served(settings, [8.0] * 5).run(arrivals, [0, 5, 5, 9, 1])
    assert [req for _, req in ran.started] == [0, 4]
    assert ran.refused == [(0.3, 3, QUEUE), (0.4, 2, QUEUE), (0.1 + 10.0, 1, WAIT)]
    assert ran.asked_s == {4: 0.4}


def test_who_comes_when_a_place_is_free_does_not_overtake_those_who_wait() -> None:
    ran = Served(AdmissionSettings(max_outstanding=1), [2.0] * 3)
    last = Request(2, 2.0, 1, 1)
    ask = ran.admission.submit
    ran.clock.call_at(1.5, lambda event: ran.clock.call_at(2.0, lambda event: ask(last)) and None)
    ran.run([(0.0, 2), (1.0, 2)])
    assert [req for _, req in ran.started] == [0, 1, 2]


def erlang_c(servers: int, load: float) -> float:
    """The share of requests that wait at `servers` servers of which each is busy for `load` of the time."""
    offered = servers * load
    last = offered**servers / math.factorial(servers) / (1 - load)
    return last / (sum(offered**k / math.factorial(k) for k in range(servers)) + last)


def erlang_b(servers: int, offered: float) -> float:
    terms = [offered**k / math.factorial(k) for k in range(servers + 1)]
    return terms[-1] / sum(terms)


UNIT = 1_000


@dataclass(frozen=True)
class Service(FixedCost):
    """Counts as measured, so that a whole run tells its sources."""

    def explain(self, shape: Shape) -> dict[str, Term]:
        return {"all": Term(self.span_s(shape, 1)[0][0], "measured")}


def exponential(rate_per_s: float, count: int, seed: int) -> Trace:
    """Poisson requests of one step each, which takes 1 s on average."""
    rng = np.random.default_rng(seed)
    prompts = np.maximum(1, np.rint(rng.exponential(UNIT, count))).astype(int).tolist()
    work = single_steps(poisson(rate_per_s, count, seed + 1), prompts)
    columns = {name: getattr(work, name) for name in ("arrival_s", "prompt_tokens", "output_tokens")}
    return from_frame(pd.DataFrame(columns))


def queue(servers: int, trace: Trace, **admission: Any) -> Any:
    """So many replicas of one seat each, whose steps take a millisecond a token, behind one queue."""
    settings = {
        "replicas": servers,
        "router.name": "least-outstanding",
        "engine.max_num_seqs": 1,
        "engine.max_num_batched_tokens": 10**6,
        "engine.async_scheduling": False,
        "kv.blocks": 4096,
        "allocator.name": "paged",
        "front_end.name": "off",
        **{f"admission.{key}": value for key, value in admission.items()},
    }
    cost = Service(base_s=0.0, per_token_s=1 / UNIT)
    return simulate(build(settings), trace=trace, hooks=Hooks(cost=cost))


def test_one_queue_before_three_replicas_is_mmc() -> None:
    """M/M/c (Erlang 1917): the share that waits, and the mean wait C / (c (1 - load)), with services of mean 1."""
    load, servers = 0.7, 3
    ran = queue(servers, exponential(servers * load, 12_000, seed=5), max_outstanding=servers)
    waited_s = (ran.requests["first_scheduled_s"] - ran.requests["arrival_s"]).to_numpy()
    waits = erlang_c(servers, load)
    agree(waited_s, waits / (servers * (1 - load)))
    agree(waited_s > 1e-9, waits)
    assert ran.requests["queue_s"].max() < 1e-9  # nobody waits at a replica
    # Work conservation: who waits has come while all servers were at work.
    starts_s, ends_s = (np.sort(ran.requests[name].to_numpy()) for name in ("first_scheduled_s", "finish_s"))
    came_s = ran.requests["arrival_s"].to_numpy()
    busy = np.searchsorted(starts_s, came_s) - np.searchsorted(ends_s, came_s)
    assert (busy[waited_s > 1e-9] == servers).all()
    assert (busy[waited_s <= 1e-9] < servers).all()


def test_without_a_queue_erlang_b_is_lost() -> None:
    servers, offered = 3, 2.4
    ran = queue(servers, exponential(offered, 12_000, seed=8), max_outstanding=servers, max_queued=0)
    lost = (ran.requests["status"] == "rejected").to_numpy()
    agree(lost, erlang_b(servers, offered))
    assert ran.summary["requests"]["rejected"] == ran.summary["admission"]["refused"][QUEUE] == lost.sum()


def test_waits_of_a_client_grow_by_the_factor_up_to_the_most() -> None:
    settings = RetrySettings(attempts=5, base_s=1.0, factor=3.0, max_s=5.0, jitter=0.0)
    clock, sent, asked_s = Clock(), [], {}  # type: ignore[var-annotated]
    retries = Retries(clock, settings, 0, lambda req: sent.append(clock.now), asked_s)
    req, told_s = Request(0, 7.0, 1, 1), 7.0
    while retries.again(req, told_s):
        clock.run_out()
        told_s = clock.now
    assert sent == [8.0, 11.0, 16.0, 21.0]
    assert asked_s == {0: 7.0}
    drawn = Retries(clock, RetrySettings(attempts=5, jitter=0.5), 3, lambda req: None, {})
    waits_s = [drawn.wait_s(number, 1) for number in range(2_000)]
    assert 0.5 < min(waits_s) < 0.51
    assert np.mean(waits_s) == pytest.approx(0.75, abs=0.01)
    assert waits_s[:5] == [drawn.wait_s(number, 1) for number in range(5)]


def test_ttft_counts_from_the_first_time_that_a_client_asked() -> None:
    alone = api.run(**LOAD)
    ran = api.run(**LOAD, **{"admission.requests_per_s": 10.0, "retry.attempts": 8, "slo": "ttft=1"})
    late = ran.requests["engine_arrival_s"] > ran.requests["arrival_s"]
    done = ran.requests["status"] == "completed"
    assert (ran.requests["arrival_s"] == alone.requests["arrival_s"]).all()
    assert late.sum() > 20
    waited_s = (ran.requests["engine_arrival_s"] - ran.requests["arrival_s"])[late & done]
    assert (waited_s >= 0.5 - 1e-9).all()
    assert (ran.requests["ttft_s"] - ran.requests["engine_ttft_s"])[late & done].to_numpy() == pytest.approx(waited_s)
    retries, refused = ran.summary["retries"], ran.summary["requests"]["rejected"]
    assert retries["requests"] == retries["answered"] + refused
    assert ran.summary["admission"]["refused"][REQUESTS] == retries["sent_again"] + refused
    assert ran.summary["goodput"]["fraction"] <= done.mean()
    assert ran.summary["engine_ttft_s"]["mean"] < ran.summary["ttft_s"]["mean"]


def test_a_front_end_that_refuses_is_asked_again() -> None:
    limit = {"front_end.name": "custom", "front_end.max_num_queued_reqs": 3, "front_end.latency_s": 0.01}
    once = api.run(**(LOAD | limit))
    often = api.run(**(LOAD | limit | {"retry.attempts": 6}))
    assert often.summary["requests"]["completed"] > once.summary["requests"]["completed"]
    sent = often.summary["front_end"]["refused"]["max_num_queued_reqs"]
    assert sent == often.summary["retries"]["sent_again"] + often.summary["requests"]["rejected"]
    done = often.requests[often.requests["status"] == "completed"]
    again = done[done["engine_arrival_s"] - done["arrival_s"] > 0.1]
    assert len(again) == often.summary["retries"]["answered"] > 20
    assert (again["ttft_s"] > 0.5).all()
    assert once.requests["reason"][once.requests["status"] == "rejected"].str.startswith("the front end refused").all()


@laws
@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(2, 60), st.integers(-1, 2)), min_size=1, max_size=25),
    st.integers(1, 3),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.3]),
)
def test_everybody_is_served_or_refused_once(
    drawn: list[tuple[float, int, int]], most: int, queued: int, wait_s: float
) -> None:
    drawn = sorted(drawn)
    settings = AdmissionSettings(5.0, 2, 50.0, 80, most, queued, wait_s)
    ran = Served(settings, [0.4] * len(drawn)).run([row[:2] for row in drawn], [row[2] for row in drawn])
    ends = sorted([req for _, req in ran.started] + [req for _, req, _ in ran.refused])
    assert ends == list(range(len(drawn)))
    times = np.array([time_s for time_s, _ in ran.started])
    for time_s in times:
        assert ((times <= time_s) & (times + 0.4 > time_s + 1e-9)).sum() <= most


def test_priorities_are_drawn_from_the_seed() -> None:
    shares = {"workload.priority_shares.0": 1.0, "workload.priority_shares.7": 3.0}
    ran = api.run(**LOAD, **shares, **{"admission.max_outstanding": 4})
    first = ran.requests["priority"] == 0
    assert 20 < first.sum() < 50
    assert ran.requests["ttft_s"][first].mean() < 0.2 * ran.requests["ttft_s"][~first].mean()
    assert api.run(**LOAD, **shares).requests["priority"].equals(ran.requests["priority"])


def test_pages_tell_who_was_refused() -> None:
    ran = api.run(**LOAD, **{"admission.requests_per_s": 5.0, "admission.max_outstanding": 2, "retry.attempts": 2})
    lines = dict(operation_lines(ran.summary))
    refused = ran.summary["admission"]["refused"][REQUESTS]
    assert lines["Admission"].startswith(f"refused {refused} by requests_per_s (429); ")
    assert "sent again" in lines["Retries"]
    assert [title for title, _ in operation_panels(ran.summary)] == ["Admission", "Retries"]
    assert list(operation_lines(api.run(**LOAD).summary)) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"admission.tokens_per_s": 1.0, "admission.burst_tokens": 3},
            "admission lets nobody in: the smallest request",
        ),
        ({"retry.attempts": 2, "retry.base_s": 90.0}, "retry.max_s is 60, and retry.base_s, the first wait, is 90"),
        ({"workload.priority_shares.high": 1.0}, "workload.priority_shares.high: a priority is a whole number"),
        ({"workload.priority_shares.1": 0.0}, "workload.priority_shares are all 0, and one at least"),
        ({"admission.requests_per_s": -1.0}, "admission.requests_per_s is -1.0; it must be 0"),
        ({"pools.a.admission.max_queued": 1}, "pools.a.admission is no pool's own; say it for all of them"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        api.run(**LOAD, **settings)
