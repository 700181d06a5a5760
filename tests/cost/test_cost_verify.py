"""Verifying drafts: a row's KV is read once for all of its queries, and each query has a row of logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from drafting_kit import drafter
from test_profile_cost import COSTS as PROFILED

from sim.catalog import load_gpu, load_model
from sim.cost.efficiency import Efficiency
from sim.cost.fixed import FixedCost
from sim.cost.offload import Offload
from sim.cost.roofline import Roofline
from sim.cost.step import StepCost, course_s
from sim.engine.batch import Courses, Shape, Verifies
from sim.specs.model import AttentionWindow
from sim.specs.tree import DraftTree
from sim.speculation.drafters import Drafted, Drafter

COSTS = {
    "whole": Roofline(load_model("llama-3.1-8b"), load_gpu("h100")),
    "window": Roofline(load_model("llama-3.1-8b"), load_gpu("h100"), window=AttentionWindow(100, 0, 32)),
    "half the layers": Roofline(load_model("gemma-2-9b"), load_gpu("h100")),
}
ROWS = ((5, 1000), (3, 40))
_TREE = Drafter("eagle", drafter("eagle").model, DraftTree((2, 1, 1, 1)))
COURSE_COSTS: dict[str, StepCost] = {
    **COSTS,
    "layers of several kinds": Roofline(load_model("gemma-3-12b"), load_gpu("h100")),
    "offloaded": Roofline(load_model("llama-3.1-8b"), load_gpu("h100"), offload=Offload(kv_layers=4)),
    "eager": Roofline(load_model("llama-3.1-8b"), load_gpu("h100"), cuda_graphs=False),
    "fixed": FixedCost(1.0, 0.5, 0.25),
    "profile": PROFILED["plain"],
    "eager profile": PROFILED["eager"],
    **{
        name: Drafted(COSTS["whole"], made, Roofline(made.model, load_gpu("h100")) if made.has_cache else None)  # type: ignore[arg-type]
        for name, made in (*((kind, drafter(kind)) for kind in ("eagle", "medusa", "ngram")), ("tree", _TREE))
    },
}


def rows_within(span: int) -> Verifies:
    """The rows as a shape tells them."""
    return tuple((tokens, 1, past, min(past, span)) for tokens, past in ROWS)


@pytest.mark.parametrize("name", COSTS)
def test_attention_reads_a_row_once_however_many_its_queries(name: str) -> None:
    cost = COSTS[name]
    span = cost.window.span_tokens if cost.window else 0
    verifies = Shape(verifies=rows_within(span))
    decode = Shape(
        decodes=len(ROWS),
        decode_context=sum(new + past for new, past in ROWS),
        decode_window_context=sum(min(past, span) + new for new, past in ROWS) if span else 0,
    )
    verify_s = cost.explain(verifies)["verify attention"].seconds
    assert verify_s == pytest.approx(cost.explain(decode)["decode attention"].seconds, rel=1e-12)


def test_a_graph_of_equal_rows_alone_is_whole() -> None:
    """Where rows differ, a step waits for as many launches as a mixed one."""
    model, gpu = load_model("tiny-llama"), load_gpu("h100")
    slow = replace(Efficiency.of(gpu), launch_s=1e-4)
    cost = Roofline(model, gpu, efficiency=slow, verify_tokens=4)
    whole = {"all": Shape(verifies=((4, 3, 90, 0),)), "no drafts": Shape(decodes=3, decode_context=93)}
    pieces = {
        "fewer": Shape(verifies=((3, 3, 90, 0),)), "unequal": Shape(verifies=((4, 2, 60, 0), (3, 1, 30, 0))),
        "beside a row without": Shape(decodes=1, decode_context=31, verifies=((4, 2, 60, 0),)),
        "beside a prompt": Shape(prefills=((2, 0),), verifies=((4, 2, 60, 0),)),
        "a prompt": Shape(prefills=((9, 0),)),
    }  # fmt: skip
    launching_s = 3 * model.layers * cost.efficiency.launch_s
    for name, shape in (whole | pieces).items():
        assert cost.in_pieces(shape) == (name in pieces), name
        assert ("launch gaps" in cost.explain(shape)) == (name in pieces), name
        device_s = cost.span_s(shape, 1)[0][0]
        assert (device_s == pytest.approx(launching_s)) == (name in pieces), name
    assert not Roofline(model, gpu).in_pieces(pieces["fewer"])


@pytest.mark.parametrize("name", COSTS)
def test_the_rest_counts_tokens_and_rows_of_logits(name: str) -> None:
    """Drafts beside a decode batch: as many tokens and rows as one more decode row for each."""
    cost = COSTS[name]
    window = {"decode_window_context": 8} if cost.window else {}
    shape = Shape(verifies=rows_within(cost.window.span_tokens if cost.window else 0))
    verifies, decodes = cost.explain(shape), cost.explain(Shape(decodes=8, decode_context=8, **window))
    attention = {"verify attention", "decode attention"}
    assert {name: verifies[name] for name in verifies.keys() - attention} == {
        name: decodes[name] for name in decodes.keys() - attention
    }
    assert cost.span_s(shape, 1)[0][0] == pytest.approx(
        sum(term.seconds for term in verifies.values() if not term.on_host), rel=1e-12
    )


def test_a_window_must_be_told() -> None:
    """Rows that do not say what they attend within the window have no price there."""
    with pytest.raises(ValueError, match="within the window of 100"):
        COSTS["window"].span_s(Shape(verifies=rows_within(0)), 1)


@pytest.mark.parametrize("name", COURSE_COSTS)
@pytest.mark.parametrize("rows", [1, 7, 150])
def test_steps_priced_at_once_are_those_priced_one_by_one(name: str, rows: int) -> None:
    """To the bit: whether a span is planned at once changes no result."""
    cost = COURSE_COSTS[name]
    window = next((one.window.span_tokens for one in (cost, COSTS.get(name)) if getattr(one, "window", None)), 0)
    pasts = [rows * 80 + rows * 3 * step + step % 2 for step in range(60)]
    withins = [min(past, rows * window) for past in pasts] if window else []
    first = Shape(
        verifies=((5, rows, pasts[0], withins[0] if withins else 0),),
        proposals=(rows, 4 * rows, 4),
        proposal_context=pasts[0] + 5 * rows,
    )
    courses = Courses(first, pasts, withins)
    device, host_s = course_s(cost, courses)
    assert [([step_s], host_s) for step_s in device] == [cost.span_s(courses.shape(step), 1) for step in range(60)]


def test_steps_whose_host_seconds_differ_are_not_priced_at_once() -> None:
    """A step ends a span whose host takes longer than the first one's."""

    class Growing(FixedCost):
        def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
            return [1.0] * repeats, float(shape.verifies[0][2] > 100)

    courses = Courses(Shape(verifies=((5, 1, 90, 0),)), [90, 95, 101, 104], [])
    assert course_s(Growing(1.0), courses) == ([1.0, 1.0], 0.0)
