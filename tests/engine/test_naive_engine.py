"""The product against a second engine (`naive_engine.py`), on random scenarios that run short of everything.

Decisions and memory must be the same, times to 1e-9. `LAW_EXAMPLES=2000` searches long and at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from zlib import crc32

import pytest
from drafting_kit import Drafts, run_drafts
from engine_kit import Run, run
from hypothesis import given, seed, settings
from law_cases import EXAMPLES, laws
from naive_engine import Flight as NaiveFlight
from naive_engine import Run as Naive
from naive_scenarios import HostedCost, Scenario, Turn, scenarios

from sim.allocators.prefix import Prefix
from sim.engine.batch import Limits
from sim.engine.flight import Flight, Observer
from sim.engine.memory import KvPool
from sim.engine.request import Request, Seat
from sim.serving.replica import Replica

ALLOCATORS = ["paged", "prefix", "contiguous-max", "contiguous-pow2", "contiguous-oracle"]
POLICIES = ["chunked", "continuous", "static", "priority", "sjf"]
BASES = ["chunked", "continuous", "priority", "sjf"]


MOST_STEPS = 2000
"""More than any of these scenarios needs. Under `priority` requests of one priority and arrival may preempt one another
for ever (vLLM's rule: the first of them in the running list gives way): then both engines must be seen to do so."""


class EndlessError(Exception):
    """More spans than MOST_STEPS."""


class Tables(Observer):
    """Who holds which blocks at the end of each span."""

    def __init__(self) -> None:
        self.at: list[dict[int, list[int]]] = []

    def sealed(self, replica: Replica, flight: Flight) -> None:
        engine = replica.engine
        if len(self.at) > MOST_STEPS:
            raise EndlessError
        self.at.append({req.id: list(engine.allocator.table(req)) for req in (*engine.running, *engine.roster.held)})


KV = [f"kv_{kind}_tokens" for kind in ("used", "shared", "reserved", "internal", "external", "free", "saved")]


KV_MEANS = [f"kv_{kind}_mean_tokens" for kind in ("used", "reserved", "internal", "free")]


def near(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    return all(map(partial(math.isclose, rel_tol=1e-9, abs_tol=1e-15), ours, theirs))


def compare(scenario: Scenario) -> Run | None:
    """Run both; the first step that differs is told, with both sides (the product's on the left). None: endless."""
    tables, setup = Tables(), scenario.setup()
    runs = run_drafts if isinstance(setup, Drafts) else run
    naive = Naive(scenario, MOST_STEPS)
    try:
        done = runs(setup, scenario.workload(), [tables])  # type: ignore[operator]
    except EndlessError:
        assert len(naive.steps) > MOST_STEPS, "only the product goes on for ever"
        assert scenario.policy == "priority"
        return None
    evicted = dict(naive.evictions)
    for at, (ours, flight) in enumerate(zip(done.steps, naive.steps, strict=False)):
        theirs = [(row.job.id, row.tokens, row.past) for row in flight.rows]
        assert ours == theirs, f"step {at} at {flight.start_s}: (request, tokens, past); naive preempts {evicted}"
    assert done.watch.evicted[0] == naive.evictions, "(step, requests preempted)"
    assert len(done.steps) == len(naive.steps)
    for row, table in zip(done.table.itertuples(index=False), tables.at, strict=True):
        compare_span(row, table, naive.steps[row.step : row.step + row.repeats])
    token_steps, ends_s = done.token_steps(), done.ends_s
    for req in done.requests:
        job = naive.jobs[req.id]
        steps, times_s = zip(*job.tokens, strict=True)
        assert len(steps) == req.output_tokens
        assert token_steps[req.id] == list(dict.fromkeys(steps)), f"request {req.id}: steps of its tokens"
        ours_s = (req.arrival_s, req.first_scheduled_s, req.first_token_s, req.finish_s, *ends_s[list(steps)])
        theirs_s = (job.arrival_s, job.scheduled_s, times_s[0], times_s[-1], *times_s)
        assert near(ours_s, theirs_s), (
            f"request {req.id}: {ours_s} and {theirs_s} (arrival, scheduled, first, last, each)"
        )
        assert (req.preemptions, req.prefix_hit_tokens) == (job.preemptions, job.hit_tokens), f"request {req.id}"
    return done


def compare_span(row: Any, table: dict[int, list[int]], steps: list[NaiveFlight]) -> None:
    """A row of the table of steps, and who held which blocks after it, with the steps that it stands for."""
    first, last, told = steps[0], steps[-1], f"steps {row.step} to {row.step + row.repeats - 1}"
    assert (row.running, row.waiting, row.padding_tokens) == first.counts, f"{told}: running, waiting, padding"
    assert table == last.tables, f"{told}: block tables"
    assert tuple(getattr(row, name) for name in KV) == last.kv, f"{told}: {KV}"
    sums = [sum(one.kv[at] for one in steps) for at in (0, 2, 3, 5)]
    assert near([getattr(row, name) * row.repeats for name in KV_MEANS], sums), f"{told}: {KV_MEANS}"
    assert near((row.start_s, row.end_s), (first.start_s, last.end_s)), f"{told}: start and end"


def agree(policy: str, allocator: str, *, drafting: bool) -> None:
    """Compare on random scenarios: other ones for each pair, and the same in each run unless LAW_EXAMPLES is set."""

    @settings(laws, max_examples=EXAMPLES or 16, report_multiple_bugs=False)
    @given(scenarios(policy, allocator, drafting=drafting))
    def agrees(scenario: Scenario) -> None:
        compare(scenario)

    (agrees if EXAMPLES else seed(crc32(f"{policy} {allocator} {drafting}".encode()))(agrees))()


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_with_every_allocator(policy: str, allocator: str) -> None:
    agree(policy, allocator, drafting=False)


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("base", BASES)
def test_drafts_on_every_policy_with_every_allocator(base: str, allocator: str) -> None:
    agree(base, allocator, drafting=True)


# ---- what the comparison caught, in small ---------------------------------------------------------------------------


def test_right_drafts_of_the_last_step_are_not_found_by_the_next_turn() -> None:
    """Without planning ahead a block is named when memory is given for what follows it (vLLM), which never comes."""
    turns = (Turn(0.0, 2, 4), Turn(0.0, 1, 1, after=0, goes_on=True))
    plain = Scenario("chunked", "prefix", turns, {}, {}, 64, 1, Limits(), HostedCost(1.0), depth=1, unit_tokens=1)
    drafted = replace(plain, drafts=2, right=(2,))
    # The first turn has 6 tokens; drafting, one step gives the last three, of which two have their KV.
    for scenario, hit_tokens in ((plain, 5), (drafted, 3), (replace(drafted, depth=2), 5)):
        done = compare(scenario)
        assert done is not None
        assert done.column("prefix_hit_tokens").tolist() == [0, hit_tokens]


def test_the_last_token_of_a_recomputation_completes_a_block_at_once() -> None:
    """It was known all the time, so its block has its name from the allocation on, though outputs come late."""
    allocator = Prefix(KvPool(8, 2))
    allocator.late_outputs = True
    req = Request(0, 0.0, 3, 5)
    req.known, req.seat = 4, Seat()  # preempted before, after its first token; a budget then leaves a single token over
    assert allocator.admit(req, 3)
    req.computed = 3
    assert allocator.grow(req, 1)
    req.computed, req.known, req.seat.in_flight = 4, 5, 1  # preempted again while its second token is in flight
    allocator.release(req)
    assert allocator.match(req) == 4


def test_what_a_victim_was_given_in_a_step_goes_to_who_comes_after_it() -> None:
    """0 is served, gives way to 1 in the same step, and its token of the budget serves the prompt of 2."""
    turns = (Turn(0.0, 2, 20, 2), Turn(0.5, 2, 20, 0), Turn(0.75, 12, 2, 1))
    memory, limits = {"reserve_full_prompt": False}, Limits(4, 3)
    done = compare(Scenario("priority", "paged", turns, {}, memory, 21, 1, limits, HostedCost(1.0), depth=1))
    assert done is not None
    assert done.watch.evicted[0][0] == (7, [0])
    assert [tokens for _, tokens, _ in done.steps[7]] == [1, 2]


def test_nobody_finds_a_block_whose_computation_was_taken_back() -> None:
    """1 is given two blocks of its prompt and gives way in the same step; 2 takes one of them, and nobody the other.

    0 ends with that step, so that 1 can come back at once.
    """
    turns = (Turn(0.0, 6, 2, 0), Turn(0.0, 13, 1, 2), Turn(0.5, 2, 12, 0))
    told, memory = {"long_prefill_token_threshold": 4}, {"reserve_full_prompt": False}
    done = compare(Scenario("priority", "prefix", turns, told, memory, 11, 2, Limits(), HostedCost(1.0), depth=1))
    assert done is not None
    assert done.watch.evicted[0][0] == (2, [1])
    assert (1, 4, 8) in done.steps[3]


def test_the_last_token_of_a_recomputation_may_come_beside_who_decodes() -> None:
    """7 computes its last known token alone in step 48, as if it decoded, and is preempted in the next planning."""
    sizes = [(14, 8), (14, 12), (14, 20), (16, 12), (14, 8), (14, 8), (14, 8), (16, 12)]
    turns = tuple(Turn(0.0, *size, 0, (1, 1) if size == (16, 12) else ()) for size in sizes)
    told, limits = {"by": "total", "long_prefill_token_threshold": 7}, Limits(2, 16)
    scenario = Scenario("sjf", "prefix", turns, told, {}, 5, 8, limits, HostedCost(1.0), depth=2, unit_tokens=8)
    done = compare(scenario)
    assert done is not None
    assert done.watch.evicted[0][-1] == (49, [7])
    assert done.steps[49] == [(7, 1, 24)]
