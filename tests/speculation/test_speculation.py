"""Speculative decoding held against what is known of it: distributions, the analytic speed-up, limits, prices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from drafting_kit import Drafts, drafter, run_drafts
from engine_kit import Run, Setup, run, workload
from scipy import stats

from sim import catalog
from sim.cost.fixed import FixedCost
from sim.cost.roofline import Roofline
from sim.cost.step import Constant, Term
from sim.engine.batch import Limits, Shape
from sim.engine.drafting import DraftingEngine
from sim.engine.memory import KvPool
from sim.engine.request import Request
from sim.engine.tally import Tally
from sim.specs.parallel import SINGLE
from sim.specs.tree import DraftTree
from sim.speculation.acceptance import Acceptance
from sim.speculation.adaptive import Adaptive
from sim.speculation.drafters import Drafted, Drafter
from sim.speculation.settings import SpeculationSettings
from sim.speculation.tables import summary as draft_summary

ALONE = Limits(max_num_seqs=1)
LONG = KvPool(4096, 16, 65536)


@dataclass(frozen=True)
class DraftCost:
    """A target step takes `base_s`, and `per_token_s` a token; each of a proposal's steps takes `draft` of a base."""

    base_s: float = 1.0
    draft: float = 0.0
    per_token_s: float = 0.0

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        target, _ = FixedCost(self.base_s, self.per_token_s).span_s(shape, repeats)
        return [one + self.draft * self.base_s * shape.proposals[2] for one in target], 0.0

    def explain(self, shape: Shape) -> dict[str, Term]:
        return {"step": Term(self.span_s(shape, 1)[0][0], "fixed")}

    def describe(self) -> list[Constant]:
        return []


def chances(rates: Sequence[float], k: int) -> np.ndarray:
    """Probability of 0, 1, .. k right drafts: all before the first wrong one."""
    by_position = [rates[min(at, len(rates) - 1)] for at in range(k)]
    reached = np.cumprod([1.0, *by_position])
    return reached * [*(1 - np.array(by_position)), 1.0]  # type: ignore[no-any-return]


def steps_to_give(tokens: int, rates: Sequence[float], k: int) -> float:
    """Expected steps that give so many tokens, by the renewal equation: the last one may give more than is left."""
    share = chances(rates, k)
    expected = np.zeros(tokens + 1)
    for left in range(1, tokens + 1):
        expected[left] = 1 + sum(share[at] * expected[left - at - 1] for at in range(min(k + 1, left)))
    return float(expected[tokens])


def one_request(k: int, rates: Sequence[float], output: int, **setup: Any) -> Run:
    """A request that is alone, with a prompt of 9 tokens."""
    return run_drafts(Drafts(k=k, rates=rates, pool=LONG, limits=ALONE, **setup), workload([(0.0, 9, output)]))


def tally(done: Run) -> Any:
    assert isinstance(done.engine, DraftingEngine)
    return done.engine.tally


@pytest.mark.parametrize("a", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("depth", [1, 2])
def test_tokens_per_step(a: float, k: int, depth: int) -> None:
    """(1 - a^(k+1)) / (1 - a) in the mean (Leviathan et al. 2023, equation 1), within four standard errors."""
    found = tally(one_request(k, (a,), 5_000, depth=depth, seed=3))
    expected = (1 - a ** (k + 1)) / (1 - a)
    share = chances((a,), k)
    spread = math.sqrt(share @ (np.arange(1, k + 2) - expected) ** 2)
    assert expected == pytest.approx(share @ np.arange(1, k + 2))
    assert abs(found.tokens / found.rows - expected) < 4 * spread / math.sqrt(found.rows)


@pytest.mark.parametrize(("rates", "k"), [((0.7,), 4), ((0.9, 0.6, 0.3), 4), ((0.5,), 1), ((0.8,), 7)])
@pytest.mark.parametrize("depth", [1, 2])
def test_right_drafts_have_the_whole_distribution(rates: tuple[float, ...], k: int, depth: int) -> None:
    """Chi-square of how many drafts were right, and of each step's number given that of the step before."""
    counts = right_counts(rates, k, depth)
    found = np.bincount(counts, minlength=k + 1)
    assert stats.chisquare(found, chances(rates, k) * len(counts)).pvalue > 0.001
    pairs = np.zeros((k + 1, k + 1))
    np.add.at(pairs, (counts[:-1], counts[1:]), 1)
    assert stats.chi2_contingency(pairs).pvalue > 0.001
    # The test can tell: as many right drafts in the mean, each right by itself, are another distribution.
    if k > 1 and len(rates) == 1:
        mean = float(counts.mean()) / k
        other = stats.binom.rvs(k, mean, size=len(counts), random_state=1)
        observed = np.bincount(other, minlength=k + 1)
        assert stats.chisquare(observed, chances(rates, k) * len(counts)).pvalue < 1e-9


@cache
def right_counts(rates: tuple[float, ...], k: int, depth: int) -> np.ndarray:
    """Right drafts of each verification of a long answer."""
    luck, counts = Acceptance(rates, 11), list[int]()

    def noted(req: Request, drafts: int) -> int:
        right = luck(req, drafts)
        if drafts == k:
            counts.append(right)
        return right

    one_request(k, rates, 6_000, depth=depth, draw=noted)
    return np.array(counts)


@pytest.mark.parametrize(("a", "k", "c"), [(0.8, 4, 0.05), (0.6, 2, 0.1), (0.9, 8, 0.02), (0.3, 5, 0.2)])
def test_the_speed_up_of_one_request(a: float, k: int, c: float) -> None:
    """(1 - a^(k+1)) / ((1 - a)(c k + 1)): Leviathan et al. 2023, theorem 3.8, also where it is a slow-down."""
    output = 5_000
    plain = run(Setup(pool=LONG, limits=ALONE, cost=DraftCost()), workload([(0.0, 9, output)]))
    ours = one_request(k, (a,), output, cost=DraftCost(draft=c), seed=5)
    speed_up = plain.ends_s[-1] / ours.ends_s[-1]
    expected = (1 - a ** (k + 1)) / ((1 - a) * (c * k + 1))
    share = chances((a,), k)
    mean = share @ np.arange(1, k + 2)
    spread = float(np.sqrt(share @ (np.arange(1, k + 2) - mean) ** 2)) / mean
    assert speed_up == pytest.approx(expected, rel=float(4 * spread * math.sqrt(mean / output) + 1e-3))
    assert (speed_up < 1) == ((a, k) == (0.3, 5))


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("output", [1, 2, 5, 6, 11, 40])
def test_all_or_no_drafts_right(k: int, output: int) -> None:
    """With acceptance 1 a step gives k + 1 tokens, with 0 one; the prompt's step gives one in any case."""
    for rate, steps in ((1.0, 1 + math.ceil((output - 1) / (k + 1))), (0.0, output)):
        done = one_request(k, (rate,), output, cost=DraftCost(draft=0.25))
        assert done.ends_s[-1] == pytest.approx(steps * (1 + 0.25 * k))
        assert len(done.steps) == steps
        found = tally(done)
        assert (found.rows, found.tokens) == (steps - 1, (steps - 1) * (k + 1 if rate else 1))


def test_requests_may_be_unlike() -> None:
    """Each request's drafts are right at its own rate; one without has those of the run."""
    luck = Acceptance((0.9, 0.3), 2, [0.0, 1.0, math.nan])
    requests = [Request(id, 0.0, 5, 5000) for id in range(3)]
    right = [[luck(req, 2) for _ in range(1500)] for req in requests]
    assert set(right[0]) == {0}
    assert set(right[1]) == {2}
    assert np.mean(right[2]) == pytest.approx(0.9 + 0.9 * 0.3, abs=0.08)


@pytest.mark.parametrize(("rates", "k"), [((0.7,), 3), ((0.9, 0.4), 5)])
def test_short_answers_take_the_steps_of_the_renewal_equation(rates: tuple[float, ...], k: int) -> None:
    """How many steps 400 answers of 17 tokens take, the cut last ones included."""
    done = run_drafts(Drafts(k=k, rates=rates, pool=LONG, limits=Limits(4)), workload([(0.0, 3, 17)] * 400))
    assert tally(done).rows / 400 == pytest.approx(steps_to_give(16, rates, k), rel=0.03)


def test_rates_by_position_where_drafts_vary_in_number() -> None:
    """About half of the second drafts that were looked at were right, though longer drafts began better."""
    found = Tally()
    for drafts, accepted in [(1, 0)] * 10 + [(2, 2)] * 5 + [(2, 1)] * 5 + [(4, 0), (4, 0), (4, 2)]:
        found.verified(Request(0, 0.0, 9, 99), drafts, accepted)
    told = draft_summary(drafter("ngram"), 1, [found], {}, 1.0)
    assert told["acceptance_by_position"] == [11 / 23, 6 / 13, 0, 0]
    assert told["rate_by_position"] == [11 / 23, 6 / 11, 0.0, None]


def test_what_a_run_counts() -> None:
    """By hand: an answer of 6 tokens with 3 drafts, of which first 2, then all are right."""
    right = iter([0, 2, 3])
    done = one_request(3, (0.5,), 6, draw=lambda req, drafts: next(right))
    found = tally(done)
    # 1 token after the prompt, then 3, then 4 of which 2 lie beyond the end.
    assert done.steps == [[(0, 9, 0)], [(0, 4, 9)], [(0, 4, 12)]]
    assert (found.rows, found.tokens) == (2, 7)
    assert (found.drafted, found.accepted) == ([2, 2, 2], [2, 2, 1])
    assert done.table["draft_tokens"].tolist() == [0, 3, 3]
    assert done.table["decode_requests"].tolist() == [0, 1, 1]
    assert done.engine.tokens.same_step == 2 + 1


# ---- trees ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("widths", "rates"), [((3, 2, 1), (0.6,)), ((2, 2), (0.5, 0.3)), ((1, 1, 1, 1), (0.7,))])
def test_a_tree_gives_what_its_widths_promise(widths: tuple[int, ...], rates: tuple[float, ...]) -> None:
    """Of w candidates one is right with 1 - (1 - a)^w: mean and distribution of the depth that is kept."""
    tree, depth = DraftTree(widths), len(widths)
    levels = [1 - (1 - rates[min(at, len(rates) - 1)]) ** width for at, width in enumerate(widths)]
    luck, counts = Acceptance(rates, 8, tree=tree), list[int]()

    def noted(req: Request, drafts: int) -> int:
        right = luck(req, drafts)
        counts.extend([right] if drafts else [])
        return right

    done = one_request(0, rates, 9_000, tree=tree, draw=noted)
    assert {len(step) and step[0][1] for step in done.steps[1:]} == {1 + tree.drafts}
    found = np.bincount(counts, minlength=depth + 1)
    assert stats.chisquare(found, chances(levels, depth) * len(counts)).pvalue > 0.001
    expected = 1 + float(np.cumprod(levels).sum())
    assert tally(done).tokens / tally(done).rows == pytest.approx(expected, rel=0.03)
    if set(widths) == {1}:
        assert done.ends_s.tolist() == one_request(depth, rates, 9_000, seed=8).ends_s.tolist()


def test_a_budget_cuts_the_last_levels_of_a_tree() -> None:
    """With room for 4 of the 2 + 4 drafts only the first level can be kept; the drafts of the cut one are in vain."""
    tree = DraftTree((2, 2))
    assert (tree.sizes, tree.drafts) == ((2, 4), 6)
    assert [tree.levels(drafts) for drafts in range(7)] == [0, 0, 1, 1, 1, 1, 2]
    setup = Drafts(tree=tree, rates=(1.0,), pool=LONG, limits=Limits(1, 5))
    done = run_drafts(setup, workload([(0.0, 5, 11)]))
    assert [step[0][1] for step in done.steps] == [5] * 6
    assert (tally(done).drafted, tally(done).accepted) == ([5], [5])


def test_a_tree_costs_all_its_drafts() -> None:
    """Medusa's heads run once each; EAGLE's step continues every draft of the level before."""
    chain, tree = (SpeculationSettings(drafter="eagle", k=3, tree=shape) for shape in ("", "4,3,2"))
    model, gpu = catalog.load_model("llama-3.1-8b"), catalog.load_gpu("h100")
    shape = Shape(proposals=(8, 8 * 40, 40), proposal_context=8 * 500)
    price = {}
    for settings in (chain, tree):
        made = Drafter.of(settings, model, None)
        assert made.model is not None
        own = Roofline(made.model, gpu)
        price[settings.tree] = Drafted(Roofline(model, gpu), made, own).explain(shape)["drafting"].seconds
        sizes = (1, 4, 12) if settings.tree else (1, 1, 1)
        steps = (own.span_s(Shape((), 8 * size, (4000 + 8 * at) * size), 1) for at, size in enumerate(sizes, 1))
        assert price[settings.tree] == pytest.approx(math.fsum(device[0] for device, _ in steps), rel=1e-12)
    assert price["4,3,2"] > price[""]
    heads = Drafter.of(SpeculationSettings(drafter="medusa", k=3, tree="4,3,2"), model, None)
    assert heads.weight_bytes(SINGLE) == drafter("medusa", 3).weight_bytes(SINGLE)


# ---- how many drafts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [0.0, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("seats", [1, 8, 48])
@pytest.mark.parametrize("depth", [1, 2])
def test_adapting_costs_no_more_than_it_may(a: float, seats: int, depth: int) -> None:
    """At most a draft in every 64th step and five steps to learn, in all, above the time without drafts.

    Learning: the n-th draft that is wrong was tried at an estimated rate r of at most 1 / (n + 1), and only where it
    promised a gain, so it cost at most r / (1 - r) = 1 / n of a step: a harmonic series, which the rounding of rates to
    1/20 ends at 39 drafts (4.3 steps).
    """
    cost = DraftCost(draft=0.08, per_token_s=0.01)
    work, limits, waves, output = [(0.0, 8, 150)] * (3 * seats), Limits(seats, 4096), 3, 150
    plain = tpot_s(run(Setup(pool=LONG, limits=limits, cost=cost, depth=depth), workload(work)))
    setup = Drafts(k=4, rates=(a,), adaptive=True, pool=LONG, limits=limits, cost=cost, depth=depth)
    ours = run_drafts(setup, workload(work))
    without_s, with_s = (cost.span_s(trying(seats, drafts), 1)[0][0] for drafts in (0, 1))
    assert plain == pytest.approx(without_s, rel=0.01)
    learning_s = 5 * without_s / (waves * (output - 1))
    assert tpot_s(ours) <= plain + (with_s - without_s) / 64 + learning_s
    if a == 0.0:
        assert sum(tally(ours).drafted) <= 4 * seats + 39 + seats * (len(ours.steps) / 64 + 1)


def trying(rows: int, drafts: int) -> Shape:
    return Shape(
        verifies=((drafts + 1, rows, 99 * rows, 0),) if rows else (),
        proposals=(rows * (drafts > 0), rows * drafts, drafts),
    )


def tpot_s(done: Run) -> float:
    """The mean over requests of the time from one token to the next."""
    return float(np.mean([(req.finish_s - req.first_token_s) / (req.output_tokens - 1) for req in done.requests]))


def test_adapting_drafts_where_it_helps_and_not_where_it_hurts() -> None:
    """One request gains about what fixed drafts would give; at a load where these hurt, hardly any are made."""
    cost = DraftCost(draft=0.05, per_token_s=0.03)
    for seats, helps in ((1, True), (64, False)):
        work, limits = workload([(0.0, 8, 300)] * seats), Limits(seats, 4096)
        setup = Drafts(k=3, rates=(0.6,), pool=LONG, limits=limits, cost=cost)
        plain = tpot_s(run(Setup(pool=LONG, limits=limits, cost=cost), work))
        fixed = tpot_s(run_drafts(setup, work))
        adaptive = tpot_s(run_drafts(replace(setup, adaptive=True), work))
        assert (fixed < plain) == helps
        assert adaptive < 1.03 * min(fixed, plain)


def test_adapting_tells_requests_apart() -> None:
    """Of two requests in one batch, the one whose drafts are right drafts on; the other stops."""
    made = {0: 0, 1: 0}

    def draw(req: Request, drafts: int) -> int:
        made[req.id] += drafts
        return drafts if req.id == 0 else 0

    setup = Drafts(k=4, adaptive=True, pool=LONG, cost=DraftCost(draft=0.02, per_token_s=0.12), draw=draw)
    run_drafts(setup, workload([(0.0, 8, 600), (0.0, 8, 150)]))
    assert made[0] > 400
    assert made[1] < 80


def test_adapting_makes_fewer_drafts_where_later_ones_are_not_worth_their_place() -> None:
    """In one step, a request whose drafts are nearly always right makes more of them than one with half of them."""
    made: dict[int, list[int]] = {0: [], 1: []}
    luck = Acceptance((0.0,), 4, [0.97, 0.55])

    def draw(req: Request, drafts: int) -> int:
        made[req.id].append(drafts)
        return luck(req, drafts)

    setup = Drafts(k=8, adaptive=True, pool=LONG, cost=DraftCost(draft=0.002, per_token_s=0.12), draw=draw)
    run_drafts(setup, workload([(0.0, 8, 1500), (0.0, 8, 400)]))
    together = slice(100, 150)
    assert np.mean(made[0][together]) > 5
    assert 0.9 < np.mean(made[1][together]) < 4


def test_a_few_wrong_drafts_do_not_set_a_request_apart() -> None:
    """What is known of all requests counts as much as sixteen drafts of its own."""
    proposer = Adaptive(1, DraftCost(draft=0.3))
    old, new = Request(0, 0.0, 8, 8), Request(1, 0.0, 8, 8)
    for _ in range(500):
        proposer.propose(old, 1)
        proposer.verified(old, 1, 1)
        proposer.verified(old, 1, 0)
    drafts = []
    for _ in range(50):
        drafts.append(proposer.propose(new, 1))
        proposer.verified(new, 1, 0)
    # 16 / (32 + 2 n) falls below 0.3, to the nearest twentieth, after some ten wrong drafts.
    assert drafts[:9] == [1] * 9
    assert 0 in drafts[10:14]


def test_adapting_forgets_who_has_ended() -> None:
    proposer = Adaptive(4, DraftCost(draft=0.1))
    for id in range(5000):
        req = Request(id, 0.0, 8, 8)
        proposer.propose(req, 1)
        proposer.verified(req, 4, 2)
        req.finished = id % 100 > 0
    assert len(proposer._records._of) < 2000
