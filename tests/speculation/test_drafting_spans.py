"""Steps with drafts planned at once, since it is known which drafts will be right, are those planned one by one."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import pandas as pd
import pytest
from drafting_kit import Drafts, drafting, run_drafts
from engine_kit import PlainPaged, Run, workload
from hypothesis import given
from law_cases import Case, laws, pressed
from law_watchers import same_decisions
from test_drafting_laws import draft_cases

from sim.engine.batch import Limits
from sim.engine.drafting import DraftingEngine
from sim.engine.flight import Flight, ObservedReplica, Observer
from sim.engine.memory import KvPool
from sim.engine.request import Request
from sim.engine.wiring import wire
from sim.load import build
from sim.serving.source import Workload
from sim.specs.tree import DraftTree
from sim.speculation.acceptance import Acceptance
from sim.speculation.drafters import FixedDrafts
from traces.schema import InputError

LONG = KvPool(4000, 4, 4000)


def both(setup: Drafts, work: Any) -> tuple[Run, Run, int]:
    """(with foresight, without, steps that were planned with others) of a workload, which come out alike to the bit."""
    at_once, single = run_drafts(replace(setup, ahead=True), work()), run_drafts(setup, work())
    same_decisions(at_once, single)
    assert at_once.ends_s.tolist() == single.ends_s.tolist()
    pd.testing.assert_frame_equal(at_once.table, single.table, check_exact=True)
    assert list(at_once.watch.sample) == list(single.watch.sample)
    engines = at_once.engine, single.engine
    assert all(isinstance(engine, DraftingEngine) for engine in engines)
    ours, theirs = (engine.tally for engine in engines)  # type: ignore[attr-defined]
    assert (+ours.verifies, +ours.proposals, ours.requests) == (+theirs.verifies, +theirs.proposals, theirs.requests)
    clocks = [engine.tokens for engine in engines]
    runs = [sorted(zip(one.request, one.first_step, one.last_step, strict=True)) for one in clocks]
    assert runs[0] == runs[1]
    assert clocks[0].same_step == clocks[1].same_step
    return at_once, single, single.watch.plans - at_once.watch.plans


@laws
@given(draft_cases())
def test_in_small_cases(case: Case) -> None:
    if case.rows:
        assert isinstance(case.setup, Drafts)
        both(case.setup, case.workload)


@pytest.mark.parametrize("allocator", ["paged", "prefix"])
def test_under_pressure(allocator: str) -> None:
    """Requests are preempted where memory runs out, and not a step earlier or later."""
    preempted = saved = 0
    for seed, base in product(range(3), ("chunked", "continuous", "priority", "sjf")):
        rng = random.Random(f"{base}{allocator}{seed}")
        case = pressed(seed, "speculative", allocator)
        pool = KvPool(rng.choice((18, 20, 34)), 3, 60)
        k, rates = rng.choice((1, 2, 4)), rng.choice(((0.7,), (0.9, 0.5, 0.2), (1.0,)))
        case = drafting(case, base=base, k=k, rates=rates, seed=seed, pool=pool, lookahead=rng.random() < 0.3)
        assert isinstance(case.setup, Drafts)
        done, _, steps = both(case.setup, case.workload)
        preempted += done.engine.preemptions
        saved += steps
    assert preempted
    assert saved


class EndedError(Exception):
    """The run has gone as far as it is watched."""


class Named(Observer):
    """Preempts all who run once a step is sealed, the last of a long span or number `step`, and ends the run."""

    def __init__(self, step: int = -1) -> None:
        self.step = step
        self.matches: list[int] = []

    def sealed(self, replica: ObservedReplica, flight: Flight) -> None:
        batch, engine = flight.batch, replica.engine
        last = batch.first_step + batch.repeats - 1
        if (last == self.step) if self.step >= 0 else batch.repeats > 16:
            assert isinstance(engine, DraftingEngine)
            self.step = last
            engine.roster.scatter()  # those in lockstep get counters of their own
            for req in engine.running:
                engine.allocator.release(req)
                self.matches.append(engine.allocator.match(req))
            raise EndedError


@pytest.mark.parametrize("seed", range(3))
def test_what_a_span_filled_is_named_as_if_step_by_step(seed: int) -> None:
    """Whoever is preempted after a span finds as much of its own again as after the same steps one by one."""
    setup = Drafts(allocator="prefix", k=4, rates=(0.7,), seed=seed, pool=LONG, limits=Limits(4))
    work = [(0.0, 5, 400), (0.0, 8, 400), (0.0, 11, 400)]
    at_once = Named()
    with pytest.raises(EndedError):
        run_drafts(replace(setup, ahead=True), workload(work), [at_once])
    single = Named(at_once.step)
    with pytest.raises(EndedError):
        run_drafts(setup, workload(work), [single])
    assert at_once.matches == single.matches
    assert min(single.matches) > 40


@pytest.mark.parametrize("widths", [(2, 2, 1), (1, 1, 1, 1), (3,)])
def test_with_trees(widths: tuple[int, ...]) -> None:
    setup = Drafts(tree=DraftTree(widths), rates=(0.6, 0.4), pool=LONG, limits=Limits(6, 64))
    work = [(0.3 * at, 3 + at, 60) for at in range(9)]
    assert both(setup, lambda: workload(work))[2] > 50


def test_up_to_the_longest_context() -> None:
    """Near the last position of the model drafts are left out, and those steps are planned by themselves."""
    setup = Drafts(k=4, rates=(0.8,), pool=LONG, limits=Limits(4, 64, max_model_len=70))
    assert both(setup, lambda: workload([(0.0, 9 + at, 70 - 9 - at) for at in range(4)]))[2] > 10


def test_a_span_ends_where_who_waits_finds_more() -> None:
    """A prompt that is never cut fits the budget once enough of it is named by an answer, which it contains."""
    setup = Drafts(
        allocator="prefix",
        base="continuous",
        policy_parameters={"order": "decode-first"},
        k=2,
        pool=LONG,
        limits=Limits(4, 24),
    )
    ids = tuple(range(70))
    work = Workload([0.0, 0.0015], [4, 52], [66, 3], prefix_ids=[ids, ids[:52]], known_tokens=[70, 52])
    done, _, saved = both(setup, lambda: work)
    first, second = done.requests
    assert second.prefix_hit_tokens >= 32
    assert second.first_scheduled_s < first.finish_s
    assert saved > 3


def test_who_waits_for_a_seat_ends_no_span() -> None:
    setup = Drafts(k=4, pool=LONG, limits=Limits(2))
    done, _, saved = both(setup, lambda: workload([(0.0, 8, 200)] * 6))
    assert saved > 0.8 * len(done.ends_s)


def test_prompts_first_make_those_in_lockstep_pause() -> None:
    """Steps of prompts alone give them nothing: their tokens have gaps there, and they stay together."""
    setup = Drafts(base="continuous", k=3, pool=LONG, limits=Limits(8, 64))
    done, _, saved = both(setup, lambda: workload([(0.004 * at, 30, 60) for at in range(8)]))
    assert saved > 20
    assert len(done.engine.tokens.request) > 8 + 10


def test_steps_are_saved_where_nobody_comes_or_goes() -> None:
    """Four answers of 400 tokens: about 150 steps, and one plan for up to 64 of them."""
    setup = Drafts(k=4, rates=(0.7,), pool=LONG, limits=Limits(4))
    done, _, saved = both(setup, lambda: workload([(0.0, 8, 400)] * 4))
    assert saved > 0.85 * len(done.ends_s)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("k", [1, 4, 7])
def test_the_steps_ahead_have_the_analytic_distribution(rate: float, k: int) -> None:
    """Leviathan et al. 2023: n < k drafts are right with a^n (1 - a), all with a^k;
    a step gives (1 - a^(k+1)) / (1 - a) tokens."""
    luck = Acceptance([rate], seed=3)
    right: Counter[int] = Counter()
    for at in range(40):
        req = Request(at, 0.0, 4, 1000)
        told, pasts = luck.course(req, k, 900, 7)
        course = list(told)
        assert sum(course) + len(course) >= 900 > sum(course[:-1]) + len(course) - 1
        assert pasts == [7 + sum(course[:at]) + at for at in range(len(course))]
        assert [luck(req, k) for _ in course] == course
        right.update(course)
    total = right.total()
    for n in range(k + 1):
        share = rate**n * (1 - rate) if n < k else rate**k
        assert right[n] / total == pytest.approx(share, abs=4 * (max(share * (1 - share), 1e-9) / total) ** 0.5)
    mean = 1 + sum(n * times for n, times in right.items()) / total
    assert mean == pytest.approx((1 - rate ** (k + 1)) / (1 - rate), rel=0.03)


def test_what_is_ahead_follows_what_was_drawn() -> None:
    """A step of fewer drafts in between shifts all that come; asking alone shifts nothing."""
    luck, other = Acceptance([0.7, 0.6, 0.5], seed=5), Acceptance([0.7, 0.6, 0.5], seed=5)
    req = Request(7, 0.0, 4, 300)

    def coming(tokens: int) -> list[int]:
        return list(luck.course(req, 4, tokens, 0)[0])

    assert coming(50) == coming(300)[: len(coming(50))]
    assert luck(req, 2) == other(req, 2)
    ahead = coming(300)[:20]
    assert ahead == [other(req, 4) for _ in range(20)]
    luck.skip(req, sum(ahead) + 20)
    assert coming(200)[:3] == [other(req, 4) for _ in range(3)]


def test_an_allocator_with_half_of_what_lockstep_needs_is_refused() -> None:
    allocator = PlainPaged(LONG)
    allocator.takes_ahead = True  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="takes_ahead, and no method 'rows_ahead'"):
        wire(build("sim.policies", "speculative", {}), allocator, Limits(), proposer=FixedDrafts(4))
