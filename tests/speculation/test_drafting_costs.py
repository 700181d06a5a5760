"""What drafting costs and takes: the price of a step that drafts, by its terms, and the memory of the drafter."""

from __future__ import annotations

import math

import pytest
from drafting_kit import DRAFTERS, drafter

from sim import catalog
from sim.cost.capacity import kv_capacity
from sim.cost.roofline import Roofline
from sim.cost.step import device_seconds
from sim.engine.batch import Shape
from sim.specs.parallel import SINGLE, Parallel
from sim.speculation.drafters import Drafted


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
        Shape(verifies=((5, 1, 300, 0), (2, 1, 90, 0)), proposals=(2, 8, 4), proposal_context=400),
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
    one, five = (cost.span_s(Shape(verifies=((n, 16, 16 * 500, 0),)), 1)[0][0] for n in (2, 5))
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
