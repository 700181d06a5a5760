"""Speculative decoding held against what is known of it: distributions, the analytic speed-up, limits, prices."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drafting_kit import Drafts, run_drafts
from engine_kit import Run, Setup, run, workload
from scipy import stats

from sim import api, catalog, scenario
from sim.cost.capacity import kv_capacity
from sim.cost.roofline import Roofline
from sim.cost.step import Constant, FixedCost, Term, device_seconds
from sim.engine.batch import Limits, Shape
from sim.engine.drafting import DraftingEngine, Tally
from sim.engine.memory import KvPool
from sim.engine.request import Request
from sim.report.run.page import render_page
from sim.report.run.sentences import drafts_by_position
from sim.report.terminal import render, summary_view
from sim.serving.workload import load_trace
from sim.specs.parallel import SINGLE, Parallel
from sim.specs.tree import DraftTree
from sim.speculation.acceptance import Acceptance, acceptance_rates
from sim.speculation.adaptive import Adaptive
from sim.speculation.drafters import Drafted, Drafter
from sim.speculation.settings import SpeculationSettings
from sim.speculation.tables import summary as draft_summary
from traces.schema import InputError, Trace

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


def test_a_run_with_a_tree() -> None:
    """A tree of the same depth gives more tokens a step than the chain, at the price of a larger batch."""
    chain = drafted(drafter="medusa", k=3, acceptance=0.5)
    tree = drafted(drafter="medusa", k=3, acceptance=0.5, tree="3,2,1")
    found = tree.summary["speculation"]
    # Levels: 1 - 0.5^3, 1 - 0.5^2, 0.5.
    assert found["acceptance_by_position"] == pytest.approx([0.875, 0.65625, 0.328125], abs=0.02)
    assert found["tokens_per_target_step"] > 1.3 * chain.summary["speculation"]["tokens_per_target_step"]
    assert tree.steps["draft_tokens"].sum() == 15 * found["drafted_tokens"] / 3
    assert tree.summary["speculation"]["draft_weight_bytes"] == chain.summary["speculation"]["draft_weight_bytes"]


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
    return Shape(verifies=((drafts + 1, 99),) * rows, proposals=(rows * (drafts > 0), rows * drafts, drafts))


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


# ---- what it costs and takes -----------------------------------------------------------------------------------------

DRAFTERS: dict[str, dict[str, Any]] = {
    "ngram": {},
    "eagle": {},
    "medusa": {},
    "draft-model": {"draft_model": "llama-3.2-1b"},
}


def drafter(kind: str, k: int = 4) -> Drafter:
    settings = SpeculationSettings(drafter=kind, k=k, **DRAFTERS[kind])
    own = catalog.load_model(settings.draft_model) if settings.draft_model else None
    return Drafter.of(settings, catalog.load_model("llama-3.1-8b"), own)


def priced(kind: str, k: int = 4) -> Drafted:
    gpu, made = catalog.load_gpu("h100"), drafter(kind, k)
    own = Roofline(made.model, gpu) if made.model is not None and made.has_cache else None
    return Drafted(Roofline(catalog.load_model("llama-3.1-8b"), gpu), made, own)


@pytest.mark.parametrize("kind", DRAFTERS)
def test_the_price_of_a_step_adds_up(kind: str) -> None:
    cost = priced(kind)
    for shape in (
        Shape(),
        Shape(((700, 0), (60, 512))),
        Shape(((700, 0),), 3, 900, proposals=(4, 16, 4), proposal_context=1600),
        Shape(verifies=((5, 300), (2, 90)), proposals=(2, 8, 4), proposal_context=400),
    ):
        (device_s,), _ = cost.span_s(shape, 1)
        terms = cost.explain(shape)
        assert device_s == pytest.approx(device_seconds(terms.values()), rel=1e-12)
        assert all(term.seconds > 0 for term in terms.values() if not term.on_host)
        made = {name for name in terms if name.startswith("draft")}
        prefill = {"draft prefill"} if shape.prefills and kind in ("eagle", "draft-model") else set()
        step = {"ngram": set(), "medusa": {"draft heads"}}.get(kind, {"drafting"}) if shape.proposals[0] else set()
        assert made == prefill | step


@pytest.mark.parametrize("kind", ["eagle", "draft-model"])
def test_drafts_are_made_one_after_the_other(kind: str) -> None:
    """k drafts take k steps of the drafter, each of which attends one token more of every row."""
    made = drafter(kind)
    assert made.model is not None
    own = Roofline(made.model, catalog.load_gpu("h100"))
    rows, context = 6, 6 * 500
    found = priced(kind).explain(Shape(proposals=(rows, rows * 4, 4), proposal_context=context))["drafting"].seconds
    steps = [own.span_s(Shape((), rows, context + rows * (1 + at)), 1)[0][0] for at in range(4)]
    assert found == pytest.approx(math.fsum(steps), rel=1e-12)


def test_heads_are_run_once_for_all_rows() -> None:
    """A head is a layer and a vocabulary matrix: its price hardly grows with the rows, and grows with each head."""
    price = {
        (rows, k): priced("medusa")
        .explain(Shape(proposals=(rows, rows * k, k), proposal_context=9))["draft heads"]
        .seconds
        for rows, k in ((1, 1), (1, 4), (8, 4))
    }
    assert price[1, 4] == pytest.approx(4 * price[1, 1], rel=1e-12)
    assert price[8, 4] < 1.5 * price[1, 4]
    gpu, model = catalog.load_gpu("h100"), catalog.load_model("llama-3.1-8b")
    read_s = 2 * model.hidden * (model.hidden + model.vocab) / gpu.memory_bytes_per_s
    assert read_s < price[1, 1] < 2 * read_s


def test_verifying_costs_more_than_decoding_and_less_than_as_many_steps() -> None:
    cost = priced("ngram")
    one, five = (cost.span_s(Shape(verifies=((n, 500),) * 16), 1)[0][0] for n in (2, 5))
    decode = cost.span_s(Shape((), 16, 16 * 501), 1)[0][0]
    assert decode < one < five < 5 * decode


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("tp", [1, 4])
def test_the_memory_of_the_drafter(kind: str, tp: int) -> None:
    """Its weights and its KV leave fewer blocks to the target."""
    model, gpu, made = catalog.load_model("llama-3.1-8b"), catalog.load_gpu("h100"), drafter(kind)
    parallel = Parallel(tp)
    plain, ours = (kv_capacity(model, gpu, parallel=parallel, drafter=drafts) for drafts in (None, made))
    assert ours.weight_bytes - plain.weight_bytes == made.weight_bytes(parallel)
    assert ours.block_bytes - plain.block_bytes == 16 * made.kv_bytes_per_token(parallel)
    assert (ours.blocks < plain.blocks) == (kind != "ngram")
    hidden, vocab = model.hidden, model.vocab
    one = catalog.load_model("llama-3.2-1b")
    assert made.kv_bytes_per_token(parallel) == {
        "draft-model": one.kv_bytes_per_token // tp,
        "eagle": model.kv_bytes_per_token // model.layers // tp,
    }.get(kind, 0)
    if kind == "medusa":
        assert made.weight_bytes(Parallel(tp)) == 4 * (hidden * hidden + hidden * vocab) * 2 // tp
    if kind == "draft-model" and tp == 1:
        assert made.weight_bytes(SINGLE) == one.weight_bytes


# ---- the whole run ---------------------------------------------------------------------------------------------------

ARENA: dict[str, Any] = {"trace": "chatbot_arena.jsonl", "limit": 60, "rate": 3.0}


@cache
def arena_trace() -> Trace:
    return load_trace(scenario.build({}, ARENA))


@cache
def arena(**settings: Any) -> api.Result:
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return api.simulate(scenario.build({}, {**ARENA, **named}), trace=arena_trace())


def drafted(**settings: Any) -> api.Result:
    return arena(policy="speculative", **{f"speculation__{key}": value for key, value in settings.items()})


def test_the_summary_of_a_run() -> None:
    done = drafted(k=4, acceptance="0.8,0.6", drafter="eagle")
    found = done.summary["speculation"]
    rates, rows = (0.8, 0.6, 0.6, 0.6), found["drafted_tokens"] / 4
    assert found["drafter"] == "eagle"
    assert found["acceptance_by_position"] == pytest.approx(list(np.cumprod(rates)), abs=4 * 0.5 / math.sqrt(rows))
    assert found["acceptance"] == pytest.approx(np.mean(found["acceptance_by_position"]))
    assert found["tokens_per_target_step"] == pytest.approx(1 + sum(found["acceptance_by_position"]))
    assert found["accepted_tokens"] == pytest.approx(found["acceptance"] * found["drafted_tokens"])
    assert done.steps["draft_tokens"].sum() == found["drafted_tokens"]
    assert 0.02 < found["drafting_share"] < 0.5
    assert found["draft_weight_bytes"] > 1e8
    assert done.summary["requests"]["completed"] == 60
    plain = arena(**{"engine__async_scheduling": False})
    assert plain.summary["tpot_s"]["p50"] > 1.3 * done.summary["tpot_s"]["p50"]
    assert "speculation" not in plain.summary
    assert not plain.steps["draft_tokens"].any()


def test_a_run_replays_the_acceptance_of_another(tmp_path: Path) -> None:
    """A summary gives the rates by position under which it was made, each given that all before were right."""
    first = drafted(k=3, acceptance="0.8,0.5,0.4")
    (tmp_path / "summary.json").write_text(json.dumps(first.summary))
    rates = acceptance_rates(str(tmp_path / "summary.json"))
    assert rates == pytest.approx((0.8, 0.5, 0.4), abs=0.03)
    assert list(rates) == first.summary["speculation"]["rate_by_position"]
    (tmp_path / "rates.json").write_text("[0.75, 0.25]")
    assert acceptance_rates(str(tmp_path / "rates.json")) == (0.75, 0.25)
    again = drafted(k=3, acceptance=str(tmp_path / "summary.json")).summary["speculation"]
    assert again["acceptance_by_position"] == pytest.approx(
        first.summary["speculation"]["acceptance_by_position"], abs=0.03
    )


def test_a_trace_says_how_well_each_request_drafts(tmp_path: Path) -> None:
    path = tmp_path / "unlike.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens,acceptance\n0,9,41,1\n0,9,41,0\n0,9,41,\n")
    settings: dict[str, Any] = {"speculation.k": 3, "speculation.acceptance": 0.5, "engine.max_num_seqs": 1}
    done = api.run(trace=str(path), policy="speculative", **settings)
    steps = done.steps[done.steps["draft_tokens"] > 0]["start_s"].to_numpy()
    ends = done.requests["finish_s"].to_numpy()
    each = np.diff([0, *(int((steps < end).sum()) for end in ends)])
    assert each[:2].tolist() == [10, 40]
    assert 15 < each[2] < 30


@pytest.mark.parametrize("base", ["continuous", "priority", "sjf"])
def test_every_base(base: str) -> None:
    done = arena(policy="speculative", policy__base=base, speculation__k=2)
    assert done.summary["requests"]["completed"] == 60
    assert done.summary["speculation"]["tokens_per_target_step"] > 1.9


def test_the_base_takes_its_own_parameters() -> None:
    """A threshold cuts prompts as it does without drafts; what the base does not know is refused in its name."""
    cut = arena(policy="speculative", policy__long_prefill_token_threshold=16)
    whole = arena(policy="speculative")
    prefills = [done.steps["prefill_tokens"].max() for done in (cut, whole)]
    assert prefills[0] < prefills[1]
    with pytest.raises(InputError, match="policy 'continuous' has no parameter 'long_prefill_token_threshold'"):
        arena(policy="speculative", policy__base="continuous", policy__long_prefill_token_threshold=16)


def test_reports_tell_of_drafts() -> None:
    done = drafted(k=4, acceptance="0.8,0.6", drafter="eagle")
    found = done.summary["speculation"]
    shares = [f"{100 * share:.1f} %" for share in found["acceptance_by_position"]]
    text = " ".join(render(summary_view(done.summary), 200).split())
    assert f"Drafts {found['tokens_per_target_step']:.2f} tokens a target step; right by position: " in text
    assert ", ".join(shares) in text
    weights = f"{found['draft_weight_bytes'] / 2**20:.0f} MiB"
    assert f"Drafter eagle, {100 * found['drafting_share']:.1f} % of the time; weights {weights}, KV 4.00 KiB" in text
    page = render_page(done)
    for shown in ("Speculative decoding", ", ".join(shares), weights, f"{100 * found['drafting_share']:.1f} %"):
        assert shown in page
    assert "Speculative decoding" not in render_page(arena())
    assert "Draft" not in render(summary_view(arena().summary))


def test_reports_of_long_drafts_and_of_none() -> None:
    shares = [0.9**at for at in range(1, 13)]
    assert drafts_by_position({"acceptance_by_position": shares}).endswith("43.0 % .. 28.2 %")
    assert drafts_by_position({"acceptance_by_position": []}) == "nothing was drafted"


# ---- mistakes --------------------------------------------------------------------------------------------------------


EAGLE = {"speculation.drafter": "eagle"}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"speculation.drafter": "oracle"},
            "speculation.drafter is 'oracle'; known: ngram, draft-model, eagle, medusa",
        ),
        ({"speculation.k": 0}, "speculation.k is 0; it must be at least 1 and at most 64"),
        ({"speculation.k": 65}, "speculation.k is 65; it must be at least 1 and at most 64"),
        ({"speculation.acceptance": 1.5}, "speculation.acceptance is 1.5; it must be at least 0 and at most 1"),
        ({"speculation.acceptance": 2}, "speculation.acceptance is 2.0; it must be at least 0 and at most 1"),
        ({"speculation.acceptance": "0.8,-0.1"}, "speculation.acceptance is '0.8,-0.1'; expected probabilities"),
        ({"speculation.acceptance": "often"}, "speculation.acceptance is 'often'; expected probabilities"),
        ({"speculation.acceptance": math.nan}, "speculation.acceptance is nan; it must be at least 0"),
        ({"speculation.acceptance": "none.json"}, "speculation.acceptance: none.json does not exist"),
        ({"speculation.drafter": "draft-model"}, "speculation.draft_model names the model"),
        ({"speculation.draft_model": "llama-3.2-1b"}, "speculation.drafter is 'ngram'"),
        (
            {"speculation.drafter": "draft-model", "speculation.draft_model": "llama-2-7b"},
            "'llama-2-7b' has a vocabulary of 32000 tokens and 'llama-3.1-8b' one of 128256",
        ),
        ({"engine.async_scheduling": True}, "ngram has none then"),
        ({"speculation.tree": "2,2", "speculation.k": 2}, "speculation.tree needs the drafter eagle or medusa"),
        ({**EAGLE, "speculation.tree": "2,2"}, "speculation.tree '2,2' has 2 levels and speculation.k is 4; set it so"),
        ({**EAGLE, "speculation.tree": "2,x"}, "speculation.tree is '2,x'; expected candidates by level"),
        ({**EAGLE, "speculation.tree": "2,0,1,1"}, "speculation.tree is '2,0,1,1'; expected candidates by level"),
        ({**EAGLE, "speculation.tree": "3,3,3,3"}, "has 120 drafts; at most 64 are verified"),
        ({**EAGLE, "speculation.tree": "2,1,1,1", "speculation.adaptive": True}, "exclude one another"),
        ({"workload.samples": 2}, "drafting serves one for each request"),
        ({"policy.base": "static"}, "policy.base is 'static'; speculative works on top of"),
        ({"policy.base": "speculative"}, "policy.base is 'speculative'; speculative works on top of"),
        ({"policy.base": "unheard-of"}, "unknown name 'unheard-of' in policies"),
        ({"allocator": "no-cache"}, "without a KV cache there is nothing that drafts could be verified against"),
        (
            {"policy": "chunked", "speculation.k": 3},
            "speculation.k is 3, and it is read only where policy.name is speculative",
        ),
        (
            {"speculation.drafter": "draft-model", "speculation.draft_model": "llama-3.1-70b"},
            "(the drafter's 131.4 GiB of weights included)",
        ),
    ],
)
def test_mistakes_are_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        api.run(**{**ARENA, "limit": 3, "policy": "speculative", **settings})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [0, 1])
def test_certainty_may_be_a_whole_number(rate: int) -> None:
    assert drafted(acceptance=rate).summary["speculation"]["acceptance"] == rate


@pytest.mark.parametrize("text", ["{", "[]", "[0.5, 2]", '"x"', "{}", '{"speculation": {}}', "7", "[null]"])
def test_a_file_that_holds_no_rates(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"speculation\.acceptance"):
        acceptance_rates(str(path))
