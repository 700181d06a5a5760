"""Attention windows in the price: pairs counted one by one, mixed layers by hand, and what a window saves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import api, catalog
from sim.catalog import load_gpu, load_model
from sim.cost.attend import Affine, attended
from sim.cost.efficiency import Efficiency
from sim.cost.roofline import Roofline
from sim.engine.batch import Shape
from sim.serving.pool import Pool
from sim.specs.model import AttentionWindow
from traces.schema import InputError

H100 = load_gpu("h100")
LLAMA = load_model("llama-3.1-8b")
GEMMA = load_model("gemma-2-9b")
SLICES = st.lists(st.tuples(st.integers(1, 6000), st.integers(0, 20_000)), min_size=1, max_size=3).map(tuple)
SPANS = st.integers(1, 3) | st.integers(1, 30_000)
EFF = Efficiency.of(H100)


def device_s(cost: Roofline, shape: Shape) -> float:
    return cost.span_s(shape, 1)[0][0]


@given(st.integers(0, 300), st.integers(1, 400))
def test_attended_pairs_are_counted_one_by_one(tokens: int, span: int) -> None:
    assert attended(tokens, span) == sum(min(position + 1, span) for position in range(tokens))


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 700))
def test_pairs_of_a_slice(new: int, past: int, span: int) -> None:
    pairs = sum(min(position + 1, span) for position in range(past, past + new))
    assert Affine(1.0, 0.0, 0.0).window_s(new, past, span) == pairs


def test_keys_of_a_slice() -> None:
    """Of 500 past tokens 30 are within the window: those and the 7 new ones are read, and made anew where latent."""
    assert Affine(0.0, 0.0, 1.0).window_s(7, 500, 30) == 37
    assert Affine(0.0, 0.0, 0.0, 1.0).window_s(7, 500, 30) == 30
    assert Affine(0.0, 1.0, 0.0).window_s(7, 500, 30) == 7
    assert Affine(0.0, 0.0, 0.0, 1.0).slice_s(7, 500) == 500


@given(SLICES, SPANS, st.integers(0, 5000))
def test_a_window_never_costs_more_and_a_wider_one_never_less(
    slices: tuple[tuple[int, int], ...], span: int, wider: int
) -> None:
    shape = Shape(slices)
    narrow, wide = (Roofline(LLAMA, H100, window=AttentionWindow(tokens, 0, 20)) for tokens in (span, span + wider))
    assert device_s(narrow, shape) <= device_s(wide, shape) * (1 + 1e-12)
    assert device_s(wide, shape) <= device_s(Roofline(LLAMA, H100), shape) * (1 + 1e-12)


@given(SLICES, st.integers(1, 300), st.integers(1, 3000))
def test_a_window_that_holds_everything_changes_nothing(
    slices: tuple[tuple[int, int], ...], decodes: int, each: int
) -> None:
    context = decodes * each
    shape = Shape(slices, decodes, context, 0, 0, context, decodes)
    for window in (AttentionWindow(30_000, 0, 32), AttentionWindow(29_000, 1000, 11)):
        cost = Roofline(LLAMA, H100, window=window)
        seconds, host_s = cost.span_s(shape, 3)
        plain, plain_host_s = Roofline(LLAMA, H100).span_s(shape, 3)
        assert seconds == pytest.approx(plain, rel=1e-12)
        assert host_s == plain_host_s


def test_decode_attention_of_mixed_layers_by_hand() -> None:
    """Gemma-2-9B, 21 full and 21 window layers: 2 x 8 heads x 256 x 2 B for each token, at its share of the rate."""
    cost = Roofline(GEMMA, H100)
    rows = Shape(decodes=10, decode_context=10, decode_window_context=10)
    long = rows._replace(decode_context=10 + 60_000, decode_window_context=10 + 30_000)
    token_s = 2 * 8 * 256 * 2 / (EFF.decode_attention_memory * 3.35e12)
    name = "decode attention"
    more_s = cost.explain(long)[name].seconds - cost.explain(rows)[name].seconds
    joined = EFF.decode_split_s * (60_000 + 30_000) / (10 * EFF.decode_split_tokens)
    assert more_s == pytest.approx(21 * (token_s * (60_000 + 30_000) + joined))


def test_prefill_of_mixed_layers_by_hand() -> None:
    """The window layers do the pairs of a prompt of 8,192 within 4,096, at 4 x 16 heads x 256 FLOPs each."""
    name, shape = "prefill attention", Shape(((8192, 0),))
    mixed = Roofline(GEMMA, H100).explain(shape)[name].seconds
    full = Roofline(GEMMA, H100, window=None).explain(shape)[name].seconds
    saved = 8192 * 8193 // 2 - (4096 * 4097 // 2 + 4096 * 4096)
    assert full - mixed == pytest.approx(
        21 * saved * 4 * 16 * 256 / (EFF.prefill_attention_compute * 989.4e12), rel=1e-9
    )


def test_the_models_own_window_is_the_default() -> None:
    cost = Roofline(load_model("mistral-7b-v0.1"), H100)
    assert cost.window == AttentionWindow(4096, 0, 32)
    shape = Shape(decodes=1, decode_context=30_000, decode_window_context=4096)
    assert device_s(cost, shape) == device_s(cost, shape._replace(decode_context=4096))
    assert Roofline(LLAMA, H100).window is None


def test_a_shape_that_forgets_the_window_is_an_error() -> None:
    """Priced as given, its window layers would cost nothing."""
    with pytest.raises(ValueError, match="3 decode rows attend 0 tokens within the window"):
        Roofline(GEMMA, H100).span_s(Shape(decodes=3, decode_context=30), 1)


def test_a_window_on_more_layers_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match=r"an attention window on 33 layers: model .* has 32"):
        Roofline(LLAMA, H100, window=AttentionWindow(64, 0, 33))


def test_four_norms_a_layer() -> None:
    shape = Shape(((100, 0),))
    two, four = (Roofline(replace(GEMMA, post_norms=post), H100).explain(shape)["norms"] for post in (False, True))
    assert four.seconds / two.seconds == pytest.approx((4 * 42 + 1) / (2 * 42 + 1))


def test_a_run_through_full_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts that grow through the window: spans change nothing, and it costs less than attending everything."""
    text = (Path(catalog.__file__).parent / "models/gemma-2-9b.toml").read_text()
    narrow, full = tmp_path / "narrow.toml", tmp_path / "full.toml"
    narrow.write_text(text.replace("sliding_window_tokens = 4096", "sliding_window_tokens = 250"))
    full.write_text(text.replace("sliding_window_tokens = 4096\nsliding_layers = 21\n", ""))
    settings: dict[str, Any] = {"trace": "chatbot_arena.jsonl", "limit": 30, "rate": 20.0, "gpu": "h100"}
    windowed, plain = (api.run(**settings, model=str(path)) for path in (narrow, full))
    assert windowed.requests["e2e_s"].sum() < 0.9999 * plain.requests["e2e_s"].sum()
    monkeypatch.setattr(Pool, "engines", lambda pool, spans: [pool.parts.engine(spans=False)])
    stepwise = api.run(**settings, model=str(narrow))
    assert len(stepwise.steps) > len(windowed.steps)
    for name in ("first_token_s", "finish_s"):
        assert stepwise.requests[name].to_numpy() == pytest.approx(windowed.requests[name].to_numpy(), abs=1e-9)
