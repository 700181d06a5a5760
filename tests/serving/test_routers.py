"""Routers: what each chooses, queueing theory for those that it knows, and what an old view of the replicas costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from engine_kit import Setup, run
from hypothesis import assume, given
from law_cases import cases, laws
from queueing_kit import VAST, agree, poisson, single_steps

from sim import api
from sim.cost.fixed import FixedCost
from sim.engine.batch import Limits
from sim.engine.request import Request, SharedPrefix
from sim.load import build, names
from sim.routers.least_kv import LeastKv
from sim.routers.least_outstanding import LeastOutstanding
from sim.routers.least_tokens import LeastTokens
from sim.routers.power_of_two import PowerOfTwo
from sim.routers.prefix_affinity import PrefixAffinity
from sim.routers.random import Random
from sim.routers.session_sticky import SessionSticky
from sim.routers.weighted import Weighted
from sim.serving.snapshot import Snapshot
from traces.schema import InputError

LOCAL = [name for name in names("sim.routers") if name != "session-sticky"]


@dataclass
class Seen:
    """A snapshot of a replica, made up."""

    index: int
    outstanding: int = 0
    outstanding_tokens: int = 0
    free_kv: float = 1.0
    held: dict[int, int] = field(default_factory=dict)

    def cached_tokens(self, req: Request) -> int:
        return self.held.get(req.id, 0)


def choice(router: Any, seen: Sequence[Seen], req: Request | None = None) -> int:
    return cast(int, router(req or Request(0, 0.0, 100, 1), cast("Sequence[Snapshot]", seen)).index)


def test_each_chooses_by_what_it_is_named_for() -> None:
    seen = [Seen(0, 4, 10, 0.5), Seen(1, 3, 90, 0.7), Seen(2, 3, 40, 0.9)]
    assert choice(LeastOutstanding(), seen) == 1
    assert choice(LeastTokens(), seen) == 0
    assert choice(LeastKv(), seen) == 2
    assert choice(LeastKv(), [Seen(0, 2), Seen(1, 1)]) == 1


def test_a_session_stays_where_it_began() -> None:
    router = SessionSticky()
    first, other = Request(0, 0.0, 1, 1), Request(1, 0.0, 1, 1)
    first.session, other.session = 7, 8
    assert choice(router, [Seen(0, 1), Seen(1, 0)], first) == 1
    assert choice(router, [Seen(0, 0), Seen(1, 9)], first) == 1
    assert choice(router, [Seen(0, 0), Seen(1, 9)], other) == 0


def test_prefix_affinity_follows_the_longest_match_unless_load_is_uneven() -> None:
    req = Request(0, 0.0, 100, 1, prefix=SharedPrefix([1], 100))
    holds = {0: 64}
    router = PrefixAffinity(balance_abs=10, balance_rel=1.5)
    assert choice(router, [Seen(0, 0), Seen(1, 9, held=holds)], req) == 1
    assert choice(router, [Seen(0, 0), Seen(1, 11, held=holds)], req) == 0
    assert choice(router, [Seen(0, 30), Seen(1, 41, held=holds)], req) == 1
    assert choice(router, [Seen(0, 1), Seen(1, 9, held={0: 20}), Seen(2, 0)], req) == 2
    assert choice(router, [Seen(0, 5, held=holds), Seen(1, 4, held=holds)], req) == 1


def test_weights_say_what_counts() -> None:
    req = Request(0, 0.0, 100, 1, prefix=SharedPrefix([1], 100))
    seen = [Seen(0, 4, free_kv=0.2, held={0: 90}), Seen(1, 0, free_kv=0.1), Seen(2, 9, free_kv=0.9)]
    assert choice(Weighted(prefix=1.0, queue=0.0, kv=0.0), seen, req) == 0
    assert choice(Weighted(prefix=0.0, queue=1.0, kv=0.0), seen, req) == 1
    assert choice(Weighted(prefix=0.0, queue=0.0, kv=1.0), seen, req) == 2


UNIT = 1_000
ONE_SEAT = Setup(
    allocator="contiguous-oracle",
    pool=VAST,
    limits=Limits(max_num_seqs=1, max_num_batched_tokens=10**9),
    cost=FixedCost(base_s=0.0, per_token_s=1 / UNIT),
)


def sojourn_s(router: Any, replicas: int, load: float, count: int, seed: int) -> np.ndarray:
    """Of exponential services of mean 1 s at Poisson arrivals."""
    rng = np.random.default_rng(seed)
    prompts = np.maximum(1, np.rint(rng.exponential(UNIT, count))).astype(int)
    setup = replace(ONE_SEAT, replicas=replicas, router=lambda: router)
    done = run(setup, single_steps(poisson(load * replicas, count, seed + 1), prompts.tolist()))
    return done.column("finish_s") - done.column("arrival_s")


def jsq_of_two_s(load: float, most: int = 40) -> float:
    """Mean sojourn time of two exponential servers of rate 1, where who comes joins the shorter queue.

    From the stationary law of the Markov chain of both lengths (Kingman 1961), none longer than `most`.
    """
    rate, size = 2 * load, most + 1
    flows = np.zeros((size, size, size, size))
    for x, y in np.ndindex(size, size):
        if x:
            flows[x, y, x - 1, y] = 1.0
        if y:
            flows[x, y, x, y - 1] = 1.0
        for goes in {x <= y, x < y}:
            share = 0.5 if x == y else 1.0
            if goes and x < most:
                flows[x, y, x + 1, y] += rate * share
            if not goes and y < most:
                flows[x, y, x, y + 1] += rate * share
    chain = flows.reshape(size**2, size**2)
    balance = (chain - np.diag(chain.sum(axis=1))).T
    balance[0] = 1.0
    chance = np.linalg.solve(balance, np.eye(size**2)[0])
    lengths = np.add.outer(np.arange(size), np.arange(size)).ravel()
    return float(lengths @ chance) / rate


def test_the_shortest_of_two_queues_is_as_its_chain_says() -> None:
    agree(sojourn_s(LeastOutstanding(), 2, 0.7, 15_000, seed=11), jsq_of_two_s(0.7))


def test_random_splitting_makes_each_replica_a_queue_of_its_own() -> None:
    """M/M/1 at each: mean 1 / (1 - load)."""
    agree(sojourn_s(Random(seed=3), 4, 0.6, 15_000, seed=21), 1 / (1 - 0.6))


def test_random_splitting_of_any_services_waits_as_pollaczek_and_khinchine_say() -> None:
    """M/G/1 at each, of short services and some long ones: the mean wait is rate E[S^2] / (2 (1 - load))."""
    load, replicas, count = 0.6, 4, 15_000
    service = np.where(np.random.default_rng(41).random(count) < 0.75, 0.5, 2.5)  # of mean 1
    setup = replace(ONE_SEAT, replicas=replicas, router=lambda: Random(seed=5))
    done = run(setup, single_steps(poisson(load * replicas, count, 42), (service * UNIT).astype(int).tolist()))
    mean_square = 0.75 * 0.5**2 + 0.25 * 2.5**2
    agree(done.column("first_scheduled_s") - done.column("arrival_s"), load * mean_square / (2 * (1 - load)))


def test_two_choices_are_nearly_as_good_as_all() -> None:
    """Mitzenmacher's limit for many servers: the sum of load^(2^i - 1), against 1 / (1 - load) for one choice."""
    load = 0.8
    limit_s = sum(load ** (2**i - 2) for i in range(1, 12))
    mean_s = float(sojourn_s(PowerOfTwo(seed=1), 30, load, 20_000, seed=31)[5_000:].mean())
    assert limit_s == pytest.approx(mean_s, rel=0.1)
    assert mean_s < 0.5 / (1 - load)


RUN: dict[str, Any] = {
    "workload.trace": "chatbot_arena.jsonl",
    "workload.limit": 60,
    "workload.rate": 60.0,
    "allocator.name": "prefix",
}


@pytest.mark.parametrize("router", LOCAL)
def test_one_replica_behind_any_router_is_none(router: str) -> None:
    own = {"lora.max_loras": 1} if router == "adapter-affinity" else {}
    alone = api.run(**RUN, **own)
    behind = api.run(**RUN, **own, **{"pools.one.count": 1, "router.name": router})
    assert behind.requests.equals(alone.requests)
    assert behind.steps.equals(alone.steps)


@pytest.mark.parametrize("router", ["least-kv", "weighted", "least-tokens"])
def test_a_look_into_a_span_sees_what_single_steps_would_show(router: str) -> None:
    """A router that asks for memory in the middle of a span changes nothing but where the next request goes."""

    @laws
    @given(cases("chunked", "prefix"))
    def same(case: Any) -> None:
        case = replace(case, setup=replace(case.setup, replicas=3)).admissible()
        assume(case.rows)
        ran = [
            run(replace(each.setup, router=lambda: build("sim.routers", router, {})), each.workload())
            for each in (case, case.without_spans())
        ]
        for name in ("first_scheduled_s", "first_token_s", "finish_s"):
            assert ran[0].column(name).tolist() == ran[1].column(name).tolist()
        assert ran[0].replica_of == ran[1].replica_of

    same()


def test_an_old_view_of_the_replicas_makes_queues_uneven() -> None:
    """All who come between two looks go to the one that seemed idle."""
    load = {**RUN, "workload.limit": 400, "workload.rate": 60.0, "replicas": 4, "router.name": "least-outstanding"}
    waited = {
        poll_s: api.run(**load, **{"routing.poll_s": poll_s, "engine.max_num_seqs": 12}).requests["queue_s"].mean()
        for poll_s in (0.0, 2.0)
    }
    assert waited[2.0] > 3 * waited[0.0] + 0.01


def test_what_no_replica_tells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="router prefix-affinity asks what a replica's cache holds of a prompt"):
        api.run(**{**RUN, "allocator.name": "paged"}, **{"replicas": 2, "router.name": "prefix-affinity"})
    trace = tmp_path / "alone.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 10, "output_length": 2, "hash_ids": [1]}\n')
    with pytest.raises(InputError, match="router session-sticky follows sessions, and the trace tells none"):
        api.run(**{"workload.trace": str(trace), "replicas": 2, "router.name": "session-sticky"})
