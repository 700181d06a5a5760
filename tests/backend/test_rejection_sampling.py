"""Drafts at a temperature leave the target's distribution as it is; rules that nearly do are told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="the live backend needs torch")
pytest.importorskip("safetensors", reason="checkpoints are safetensors files")

import numpy as np
import torch
from engine_kit import workload
from live_drafting_kit import Drafting, drafts
from live_kit import Served, reference_logits, tiny
from scipy import stats
from torch import Tensor

from backend.drafting import drafting, rejection
from backend.drafting.rejection import accepts, distribution, drawn, rest
from backend.live.sampling import Sampling
from backend.live.sequences import ACCEPT, DRAFT, RESIDUAL, uniforms
from backend.model.model import Model
from backend.torch_ops.sampling import sample
from sim.engine.batch import Limits
from sim.engine.memory import KvPool

VOCAB, TRIES = 12, 40_000
FILTERS = [(0, 1.0), (5, 1.0), (0, 0.8), (7, 0.9)]


def logits(seed: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 1.5


def exact(row: Tensor, how: Sampling) -> np.ndarray:
    """Probabilities in float64, by sorting, from the definition of top-k and top-p."""
    shares = torch.softmax(row.double() / how.temperature, 0).numpy()
    order = sorted(range(len(shares)), key=lambda token: (-float(row[token]), token))[: how.top_k or len(shares)]
    whole, reached, left = sum(shares[order]), 0.0, np.zeros(len(shares))
    for token in order:
        left[token] = shares[token]
        reached += shares[token]
        if how.top_p < 1 and reached >= how.top_p * whole:
            break
    return left / left.sum()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
def test_the_distribution_is_the_samplers(top_k: int, top_p: float) -> None:
    rows, how = logits(1, 50), Sampling(0.7, top_k, top_p)
    found = distribution(rows, how)
    for row, shares in zip(rows, found, strict=True):
        assert shares.numpy() == pytest.approx(exact(row, how), abs=1e-6)
    count = 1500
    many = rows[:1].expand(count, -1).contiguous()
    seeds, places = torch.arange(count) + 7, torch.arange(count)
    told = sample(
        many,
        temperature=torch.full((count,), 0.7),
        top_k=torch.full((count,), top_k),
        top_p=torch.full((count,), top_p),
        seeds=seeds,
        positions=places,
    )
    numbers = uniforms(seeds.numpy(), places.numpy(), 0)
    assert drawn(distribution(many, how), numbers).tolist() == told.tolist()


def test_equal_logits_are_cut_where_the_sampler_cuts_them() -> None:
    rows, how = torch.zeros(1, VOCAB), Sampling(1.0, 3)
    assert distribution(rows, how)[0].nonzero().flatten().tolist() == [0, 1, 2]


Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""From p, q, drafts, and two rows of numbers to tokens."""


def right_rule(p: Tensor, q: Tensor, guesses: Tensor, accept: Tensor, residual: Tensor) -> Tensor:
    return torch.where(accepts(p, q, guesses, accept), guesses, drawn(rest(p, q), residual))


def from_p(p: Tensor, q: Tensor, guesses: Tensor, accept: Tensor, residual: Tensor) -> Tensor:
    return torch.where(accepts(p, q, guesses, accept), guesses, drawn(p, residual))


def always(p: Tensor, q: Tensor, guesses: Tensor, accept: Tensor, residual: Tensor) -> Tensor:
    return guesses


def one_number(p: Tensor, q: Tensor, guesses: Tensor, accept: Tensor, residual: Tensor) -> Tensor:
    """The number that refused a draft chooses what stands in its place."""
    return right_rule(p, q, guesses, accept, accept)


def unfiltered(p: Tensor, q: Tensor, guesses: Tensor, accept: Tensor, residual: Tensor) -> Tensor:
    """Compares with the drafter's own distribution, though drafts were drawn from what a filter left of it."""
    whole = distribution(logits(3).expand(len(q), -1), Sampling(0.9))
    return torch.where(accepts(p, whole, guesses, accept), guesses, drawn(rest(p, whole), residual))


def chance(rule: Rule, how: Sampling, one_hot: bool = False) -> float:
    """The p-value of a chi-square test of the rule's tokens against the target's exact distribution."""
    seeds, places = np.arange(TRIES) * 3 + 1, np.arange(TRIES) % 997
    p = distribution(logits(2), how).expand(TRIES, -1)
    if one_hot:
        guesses = torch.full((TRIES,), 4)
        q = torch.nn.functional.one_hot(guesses, VOCAB).float()
    else:
        q = distribution(logits(3), how).expand(TRIES, -1)
        guesses = drawn(q, uniforms(seeds, places, DRAFT))
    told = rule(p, q, guesses, uniforms(seeds, places, ACCEPT), uniforms(seeds, places, RESIDUAL))
    expected = exact(logits(2)[0], how) * TRIES
    found = np.bincount(told.numpy(), minlength=VOCAB)
    possible = expected > 0
    if found[~possible].any():
        return 0.0
    return float(stats.chisquare(found[possible], expected[possible]).pvalue)


@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
def test_the_rule_leaves_the_targets_distribution(top_k: int, top_p: float) -> None:
    assert chance(right_rule, Sampling(0.9, top_k, top_p)) > 0.001
    assert chance(right_rule, Sampling(0.9, top_k, top_p), one_hot=True) > 0.001


@pytest.mark.parametrize("rule", [from_p, always, one_number])
def test_a_wrong_rule_is_told_apart(rule: Rule) -> None:
    assert chance(rule, Sampling(0.9)) < 1e-6


def test_a_filter_must_be_applied_to_both() -> None:
    assert chance(unfiltered, Sampling(0.9, 5)) < 1e-6


def test_a_draft_stays_as_often_as_the_two_overlap() -> None:
    """Leviathan et al. 2023, theorem 3.5: the sum of min(p, q)."""
    seeds, places, how = np.arange(TRIES), np.arange(TRIES), Sampling(0.9)
    p, q = (distribution(logits(seed), how).expand(TRIES, -1) for seed in (2, 3))
    stays = accepts(p, q, drawn(q, uniforms(seeds, places, DRAFT)), uniforms(seeds, places, ACCEPT))
    overlap = float(torch.minimum(p[0], q[0]).sum())
    assert float(stays.float().mean()) == pytest.approx(overlap, abs=4 * (0.25 / TRIES) ** 0.5)


def test_equal_distributions_keep_every_draft_and_leave_something_to_draw_from() -> None:
    p = distribution(logits(2, 500), Sampling(0.9))
    guesses = drawn(p, torch.rand(500, generator=torch.Generator().manual_seed(0)))
    assert accepts(p, p, guesses, torch.full((500,), 1 - 2**-24)).all()
    assert (rest(p, p).sum(-1) > 0).all()


def test_numbers_of_different_roles_have_nothing_in_common() -> None:
    seeds, places = np.arange(5000) * 11, np.arange(5000) % 13
    rows = np.stack([uniforms(seeds, places, role).numpy() for role in (0, DRAFT, ACCEPT, RESIDUAL)])
    off = np.abs(np.corrcoef(rows) - np.eye(4))
    assert off.max() < 0.06
    for row in rows:
        assert stats.kstest(row, "uniform").pvalue > 0.001


# ---- through the whole live run -------------------------------------------------------------------------------------

HOT = Sampling(temperature=1.3, top_k=12, top_p=0.95, seed=2)
ROWS = [(0.0, 6, 9)] * 120


def bolder() -> Model:
    """The target with logits of twice the size: it knows which tokens are likely, and not how much."""
    model = tiny()
    return Model(model.spec, model.config, replace(model.weights, final_norm=2 * model.weights.final_norm))


def served() -> Served:
    """The same prompt again and again, each answered by numbers of its own."""
    prompt = [[5, 9, 2, 77, 31, 8]] * len(ROWS)
    some = drafts("chunked", "contiguous-oracle", 3, limits=Limits(40, 400), pool=KvPool(400, 4, 40))
    return Drafting(some, sampling=HOT, draft=bolder(), given=prompt).serve(workload(ROWS))


def rank_chance(done: Served) -> float:
    """The p-value of how often the n-th most probable token was drawn, over all tokens, each given those before it."""
    found, expected = np.zeros(HOT.top_k), np.zeros(HOT.top_k)
    known: dict[tuple[int, ...], np.ndarray] = {}
    for id, answer in done.answers.items():
        text = [*done.prompts[id], *answer]
        fresh = [at for at in range(6, len(text)) if tuple(text[:at]) not in known]
        if fresh:
            told = reference_logits("llama", text[:-1])
            known |= {tuple(text[:at]): exact(told[at - 1], HOT) for at in fresh}
        for at in range(6, len(text)):
            shares = known[tuple(text[:at])]
            order = np.argsort(-shares, kind="stable")[: HOT.top_k]
            expected += shares[order]
            found[list(order).index(text[at])] += 1
    return float(stats.chisquare(found, expected).pvalue)


def test_a_live_run_draws_from_the_targets_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    done = served()
    assert {len(answer) for answer in done.answers.values()} == {9}
    assert rank_chance(done) > 0.001
    monkeypatch.setattr(drafting, "rest", lambda p, q: p)
    assert rank_chance(served()) < 1e-4
    monkeypatch.setattr(drafting, "rest", rejection.rest)
    monkeypatch.setattr(drafting, "accepts", lambda p, q, guesses, numbers: torch.ones_like(guesses) > 0)
    assert rank_chance(served()) < 1e-4
