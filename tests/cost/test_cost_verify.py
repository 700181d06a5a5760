"""Verifying drafts: a row's KV is read once for all of its queries, and each query has a row of logits."""

from __future__ import annotations

import pytest

from sim.catalog import load_gpu, load_model
from sim.cost.roofline import Roofline
from sim.engine.batch import Shape
from sim.specs.model import AttentionWindow

COSTS = {
    "whole": Roofline(load_model("llama-3.1-8b"), load_gpu("h100")),
    "window": Roofline(load_model("llama-3.1-8b"), load_gpu("h100"), window=AttentionWindow(100, 0, 32)),
    "half the layers": Roofline(load_model("gemma-2-9b"), load_gpu("h100")),
}
ROWS = ((5, 1000), (3, 40))


@pytest.mark.parametrize("name", COSTS)
def test_attention_reads_a_row_once_however_many_its_queries(name: str) -> None:
    cost = COSTS[name]
    span = cost.window.span_tokens if cost.window else 0
    decode = Shape(
        decodes=len(ROWS),
        decode_context=sum(new + past for new, past in ROWS),
        decode_window_context=sum(min(past, span) + new for new, past in ROWS) if span else 0,
    )
    verify_s = cost.explain(Shape(verifies=ROWS))["verify attention"].seconds
    assert verify_s == pytest.approx(cost.explain(decode)["decode attention"].seconds, rel=1e-12)


@pytest.mark.parametrize("name", COSTS)
def test_the_rest_counts_tokens_and_rows_of_logits(name: str) -> None:
    """Drafts beside a decode batch: as many tokens and rows as one more decode row for each."""
    cost = COSTS[name]
    window = {"decode_window_context": 8} if cost.window else {}
    verifies, decodes = cost.explain(Shape(verifies=ROWS)), cost.explain(Shape(decodes=8, decode_context=8, **window))
    attention = {"verify attention", "decode attention"}
    assert {name: verifies[name] for name in verifies.keys() - attention} == {
        name: decodes[name] for name in decodes.keys() - attention
    }
    assert cost.span_s(Shape(verifies=ROWS), 1)[0][0] == pytest.approx(
        sum(term.seconds for term in verifies.values() if not term.on_host), rel=1e-12
    )
