"""The simulator against queueing theory: one seat and known service times make it a textbook queue.

One seat, one output token and a synchronous engine make each request one step, so a step's cost is a service time.
`engine_kit.run` checks Little's law on each.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from engine_kit import Run, Setup, run, workload
from queueing_kit import VAST, agree, md1_wait_at_most, poisson, single_steps, waits_s

from sim.cost.fixed import FixedCost
from sim.cost.step import Constant, Term
from sim.engine.batch import Limits, Shape
from sim.serving.source import Workload

ARRIVALS = 40_000
ONE_SEAT = Limits(max_num_seqs=1, max_num_batched_tokens=10**9)


def one_server(cost: FixedCost, **more: object) -> Setup:
    return Setup(allocator="contiguous-oracle", pool=VAST, limits=ONE_SEAT, cost=cost, **more)  # type: ignore[arg-type]


def check_lindley(done: Run, service_s: np.ndarray) -> None:
    """Any single server, first come first served: W[n+1] = max(0, W[n] + S[n] - A[n]) (Lindley 1952), path by path."""
    between_s = np.diff(done.column("arrival_s"))
    wait_s, expected = 0.0, [0.0]
    for service, gap in zip(service_s[:-1], between_s, strict=True):
        wait_s = max(0.0, wait_s + service - gap)
        expected.append(wait_s)
    np.testing.assert_allclose(waits_s(done), expected, atol=1e-6)
    np.testing.assert_allclose(done.column("finish_s") - done.column("first_scheduled_s"), service_s, atol=1e-6)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_md1_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    done = run(one_server(FixedCost(base_s=1.0)), single_steps(poisson(load, ARRIVALS, seed=1)))
    waited_s = waits_s(done)
    agree(waited_s, load / (2 * (1 - load)))
    for time_s in (0.0, 0.5, 1.0, 2.0, 3.5):
        agree(waited_s <= time_s + 1e-7, md1_wait_at_most(time_s, load))
    check_lindley(done, np.ones(ARRIVALS))


def test_mm1_sojourn_is_exponential() -> None:
    load, unit = 0.6, 10_000
    rng = np.random.default_rng(2)
    prompts = np.maximum(1, np.rint(rng.exponential(unit, ARRIVALS))).astype(int)
    done = run(
        one_server(FixedCost(base_s=0.0, per_token_s=1 / unit)),
        single_steps(poisson(load, ARRIVALS, seed=3), prompts.tolist()),
    )
    sojourn_s = done.column("finish_s") - done.column("arrival_s")
    agree(sojourn_s, 1 / (1 - load))
    for time_s in (0.25, 1.0, 2.5, 5.0, 7.5):
        agree(sojourn_s > time_s, math.exp(-(1 - load) * time_s))
    check_lindley(done, prompts / unit)


def test_dd1_is_exact() -> None:
    # All times are binary fractions, so floats hold them exactly.
    count = 500
    idle = run(one_server(FixedCost(base_s=0.75)), single_steps([1.0 * at for at in range(count)]))
    assert waits_s(idle).tolist() == [0.0] * count
    assert idle.column("finish_s").tolist() == [at + 0.75 for at in range(count)]
    swamped = run(one_server(FixedCost(base_s=0.75)), single_steps([0.5 * at for at in range(count)]))
    assert waits_s(swamped).tolist() == [0.25 * at for at in range(count)]
    assert swamped.column("finish_s").tolist() == [0.75 * (at + 1) for at in range(count)]


@pytest.mark.parametrize("depth", [1, 2])
def test_dd1_of_many_tokens_is_exact(depth: int) -> None:
    # 5 tokens at 0.25 s a step: 1.25 s of service every 2 s. Planning ahead changes nothing while a request is alone.
    setup = one_server(FixedCost(base_s=0.25), depth=depth)
    done = run(setup, workload([(2.0 * at, 7, 5) for at in range(200)]))
    assert waits_s(done).tolist() == [0.0] * 200
    assert done.column("first_token_s").tolist() == [2.0 * at + 0.25 for at in range(200)]
    assert done.column("finish_s").tolist() == [2.0 * at + 1.25 for at in range(200)]


class HostBound:
    """0.25 s of the device for each token attended, and 1 s of the host for each step."""

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        past = shape.decode_context + sum(new + before for new, before in shape.prefills)
        return [0.25 * (past + at * shape.decodes) for at in range(repeats)], 1.0

    def explain(self, shape: Shape) -> dict[str, Term]:
        return {"all": Term(self.span_s(shape, 1)[0][0], "test"), "host": Term(1.0, "test", on_host=True)}

    def describe(self) -> list[Constant]:
        return []


@pytest.mark.parametrize("spans", [True, False])
@pytest.mark.parametrize(("depth", "ends_s"), [(1, [1.5, 3.25, 5.25, 7.5, 10.0]), (2, [1.0, 2.0, 3.0, 4.25, 5.75])])
def test_the_host_adds_to_the_device_or_hides_behind_it(depth: int, ends_s: list[float], spans: bool) -> None:
    # A prompt of 2 and five tokens: the device takes 0.5, 0.75, 1, 1.25 and 1.5 s. One after the other each step takes
    # 1 s more; planned ahead it takes the longer of the two.
    setup = Setup(cost=HostBound(), depth=depth, spans=spans)
    done = run(setup, workload([(0.0, 2, 5)]))
    assert done.ends_s.tolist() == ends_s
    assert done.table["device_s"].sum() == 5.0
    assert done.table["host_s"].sum() == 5.0


def test_boundless_batches_serve_whoever_came_in_the_last_step() -> None:
    """Seats and budget without end, constant steps D: each step serves all who came during the one before.

    The arrivals of a step are Poisson(rate D), independently. A step with none is followed by an idle time that an
    arrival ends, which waits for nothing; all others wait for the end of the running step, D/2 in the mean. So a step
    serves rate D + p0 requests and the mean wait is (rate D)(D/2) / (rate D + p0) with p0 = exp(-rate D).
    """
    rate_per_s, step_s = 1.3, 1.0
    setup = Setup(cost=FixedCost(base_s=step_s), limits=Limits(10**6, 10**9))
    done = run(setup, single_steps(poisson(rate_per_s, ARRIVALS, seed=4)))
    load = rate_per_s * step_s
    per_step = load + math.exp(-load)
    agree(waits_s(done), load * step_s / 2 / per_step)
    agree(np.array([len(step) for step in done.steps]), per_step)
    agree(waits_s(done) == 0.0, math.exp(-load) / per_step)


@pytest.mark.parametrize("users", [1, 2, 7])
def test_closed_loop_cycles_in_users_times_service(users: int) -> None:
    # N users without pause at one server of constant S: in the steady state each cycle takes N S.
    setup = one_server(FixedCost(base_s=0.5), concurrency=users)
    done = run(setup, workload([(0.0, 1, 1)] * 300))
    e2e_s = done.column("finish_s") - done.column("arrival_s")
    assert e2e_s[users:] == pytest.approx(0.5 * users, rel=1e-12)
    assert done.column("finish_s") == pytest.approx([0.5 * (at + 1) for at in range(300)], rel=1e-12)


def test_closed_loop_with_a_seat_each_never_waits() -> None:
    # 6 users, 6 seats, 4 tokens: all move in step, a prompt's step gives the first token; each cycle is 4 steps.
    done = run(Setup(cost=FixedCost(base_s=0.25), concurrency=6), workload([(0.0, 10, 4)] * 60))
    assert done.column("finish_s") - done.column("arrival_s") == pytest.approx(1.0, rel=1e-12)
    assert max(done.column("finish_s")) == pytest.approx(10.0, rel=1e-12)


def machine_repair(users: int, think_s: float, service_s: float) -> tuple[float, float]:
    """(throughput, response time) of N users at one queue, by mean value analysis (Reiser and Lavenberg 1980)."""
    queue = response_s = throughput = 0.0
    for population in range(1, users + 1):
        response_s = service_s * (1 + queue)
        throughput = population / (think_s + response_s)
        queue = throughput * response_s
    return throughput, response_s


def test_users_who_think_agree_with_mean_value_analysis() -> None:
    users, turns, think_s, unit = 5, 6_000, 3.0, 10_000
    rng = np.random.default_rng(5)
    count = users * turns
    # Turn t of user u is row t * users + u; it follows row (t - 1) * users + u.
    prompts = np.maximum(1, np.rint(rng.exponential(unit, count))).astype(int)
    sessions = Workload(
        [0.0] * count,
        prompts.tolist(),
        [1] * count,
        after=[at - users if at >= users else -1 for at in range(count)],
        think_s=rng.exponential(think_s, count).tolist(),
    )
    done = run(one_server(FixedCost(base_s=0.0, per_token_s=1 / unit)), sessions)
    throughput, response_s = machine_repair(users, think_s, 1.0)
    warm = slice(50 * users, None)
    agree((done.column("finish_s") - done.column("arrival_s"))[warm], response_s)
    # Users run out of turns at different times; up to the first who does, the population is whole.
    whole_s = min(done.requests[-users:], key=lambda req: req.finish_s).finish_s
    ends_s = np.sort(done.column("finish_s"))
    ends_s = ends_s[(ends_s > 100.0) & (ends_s <= whole_s)]
    agree(np.diff(ends_s), 1 / throughput)


def test_two_replicas_in_turn_halve_an_exact_load() -> None:
    # Arrivals every 0.5 s, service 0.75 s: one server would be swamped, two in turn never make anybody wait.
    setup = one_server(FixedCost(base_s=0.75), replicas=2)
    done = run(setup, single_steps([0.5 * at for at in range(100)]))
    assert waits_s(done).tolist() == [0.0] * 100
    assert [done.replica_of[at] for at in range(100)] == [at % 2 for at in range(100)]


def test_step_clock_has_no_gap_under_load_and_never_runs_backwards() -> None:
    done = run(one_server(FixedCost(base_s=1.0)), single_steps(poisson(0.9, 2_000, seed=6)))
    table = done.table
    starts, ends = table["start_s"].to_numpy(), table["end_s"].to_numpy()
    assert (starts[1:] >= ends[:-1]).all()
    busy_s = (ends - starts).sum()
    assert busy_s == pytest.approx(2_000.0)
    arrivals_s = set(done.column("arrival_s"))
    for (_, end), (start, _) in pairwise(zip(starts, ends, strict=True)):
        # The server only pauses when nobody is in the system: the next start is then an arrival.
        assert start == end or start in arrivals_s
