"""Latent attention: both forms are the definition, and what they take, once measured, prices a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from profile_kit import EFFICIENCY, GPU, HEADS, Law, scaled_roofline, table
from torch import Tensor

from backend.torch_ops.latent import latent_decode, latent_prefill
from calibrate.cases import DENSITIES, GRID, Range, alike, cases
from calibrate.cli import cli
from calibrate.journal import read
from calibrate.lacks import planned
from calibrate.result import fitted
from sim.catalog import load_model
from sim.cost.profile import Meta, Profile, find
from sim.cost.profiled import Profiled
from sim.cost.roofline import Roofline
from sim.cost.speed import too_fast
from sim.engine.batch import Shape
from sim.specs.parallel import Parallel
from traces.schema import InputError

RANK, ROPE, NOPE, VALUE, QUERY_HEADS, BLOCK = 12, 4, 6, 5, 3, 4
SCALE = (NOPE + ROPE) ** -0.5


def expanded(q: Tensor, stored: Tensor, up: Tensor) -> Tensor:
    """The definition: [N, H, value] of the last N of the tokens whose latents are `stored` [L, rank + rope], q [N, H,
    nope + rope], each head with keys and values of its own."""
    new, tokens = len(q), len(stored)
    made = (stored[:, :RANK] @ up.t()).view(tokens, QUERY_HEADS, NOPE + VALUE)
    keys = torch.cat([made[..., :NOPE], stored[:, None, RANK:].expand(-1, QUERY_HEADS, -1)], 2)
    scores = torch.einsum("nhd,lhd->hnl", q, keys) * SCALE
    later = torch.arange(tokens)[None, :] > torch.arange(tokens - new, tokens)[:, None]
    weights = torch.softmax(scores.masked_fill(later, -torch.inf), -1)
    return torch.einsum("hnl,lhd->nhd", weights, made[..., NOPE:])


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 11), st.integers(0, 99))
def test_both_forms_are_the_definition(rows: int, new: int, past: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tokens = past + new
    each = -(-tokens // BLOCK)
    cache, up = random(rows * each + 2, BLOCK, RANK + ROPE), random(QUERY_HEADS * (NOPE + VALUE), RANK)
    tables = torch.randperm(len(cache), generator=generator)[: rows * each].view(rows, each).int()
    q = random(rows, QUERY_HEADS, new, NOPE + ROPE)
    stored = [cache[tables[row].long()].view(-1, RANK + ROPE)[:tokens] for row in range(rows)]
    truth = torch.stack([expanded(q[row].transpose(0, 1), stored[row], up) for row in range(rows)])
    made = torch.stack([(one[past:, :RANK] @ up.t()).view(new, QUERY_HEADS, -1).transpose(0, 1) for one in stored])
    rotary = torch.stack([one[past:, RANK:] for one in stored])[:, None].expand(-1, QUERY_HEADS, -1, -1)
    k, v = torch.cat([made[..., :NOPE], rotary], 3), made[..., NOPE:]
    out = latent_prefill(q, k, v, up, cache, tables, past, scale=SCALE)
    torch.testing.assert_close(out.transpose(1, 2), truth)

    ups = up.view(QUERY_HEADS, NOPE + VALUE, RANK)
    last = q[:, :, -1]
    absorbed = torch.cat([torch.einsum("shn,hnr->shr", last[..., :NOPE], ups[:, :NOPE]), last[..., NOPE:]], 2)
    latent = latent_decode(absorbed, cache, tables, tokens, rank=RANK, scale=SCALE)
    torch.testing.assert_close(torch.einsum("shr,hvr->shv", latent, ups[:, NOPE:]), truth[:, -1])


# ---- from tables to prices -----------------------------------------------------------------------------------------

MODEL = load_model("deepseek-v2-lite").with_dtypes("bf16", "bf16")
HEADS_OF = {"dtype": "bf16", "kv_dtype": "bf16", "heads": 16, "rank": 512, "rope_dim": 64}
SIZES = (16, 64, 256, 1024, 4096)
STEP = Shape(((300, 0), (77, 900)), 24, 24 * 700)


def profile(law: Law) -> Profile:
    made = {**HEADS_OF, "nope_dim": 128, "value_dim": 128}
    axes = {"sequences": (1, 4), "past_tokens": (0, *SIZES), "new_tokens": SIZES}
    tables = {
        "latent_prefill_attention": table("latent_prefill_attention", [made], axes, law),
        "latent_decode_attention": table(
            "latent_decode_attention", [HEADS_OF], {"sequences": (1, 8, 64), "mean_context_tokens": SIZES}, law
        ),
    }
    meta = Meta(name="latents", gpu=GPU.name, device="x", kind="measured", source="a law", date="2026-01-01")
    return Profile(meta, tables)


def test_a_device_twice_as_slow_as_the_roofline_is_priced_so() -> None:
    cost = Profiled(MODEL, GPU, profile(scaled_roofline(2.0)), efficiency=EFFICIENCY)
    priced, roof = (one.explain(STEP) for one in (cost, Roofline(MODEL, GPU, efficiency=EFFICIENCY)))
    for name in ("prefill attention", "decode attention"):
        assert priced[name].source == "interpolated"
        # Between sizes prompts' seconds bend; on the grid they are the law's.
        assert priced[name].seconds == pytest.approx(2.0 * roof[name].seconds, rel=0.25)
    known = cost.explain(Shape(((256, 64),), 64, 64 * 1024))
    assert {known[name].source for name in ("prefill attention", "decode attention")} == {"measured"}
    span_s, _ = cost.span_s(STEP, 5)
    assert span_s == sorted(span_s)


def test_drafts_are_verified_by_no_table_of_it() -> None:
    law = scaled_roofline(2.0)
    axes = {"sequences": (1, 8), "mean_context_tokens": SIZES}
    plain = table("decode_attention", [{**HEADS, "width": 4}], axes, law)
    made = profile(law)
    made = Profile(made.meta, {**made.tables, "decode_attention": plain})
    verified = Profiled(MODEL, GPU, made, efficiency=EFFICIENCY).explain(Shape(verifies=((4, 1, 500, 0),)))
    assert verified["verify attention"].source == "roofline"


def test_other_heads_are_priced_by_relatives() -> None:
    cost = Profiled(MODEL, GPU, profile(scaled_roofline(2.0)), parallel=Parallel(2), efficiency=EFFICIENCY)
    term = cost.explain(Shape(decodes=8, decode_context=8 * 1024))["decode attention"]
    roof = Roofline(MODEL, GPU, parallel=Parallel(2), efficiency=EFFICIENCY)
    assert term.source == "extrapolated"
    assert term.seconds == pytest.approx(
        2.0 * roof.explain(Shape(decodes=8, decode_context=8 * 1024))["decode attention"].seconds, rel=0.05
    )


def test_no_table_of_another_attention_prices_it() -> None:
    made = profile(scaled_roofline(2.0))
    other = Profiled(load_model("llama-3.1-8b"), GPU, made, efficiency=EFFICIENCY)
    assert {other.explain(STEP)[name].source for name in ("prefill attention", "decode attention")} <= {
        "fitted",
        "roofline",
    }


def test_rows_faster_than_the_chip_are_known() -> None:
    for factor, share in ((1.0, 0.0), (0.02, 1.0)):
        for one in profile(scaled_roofline(factor)).tables.values():
            assert len(list(too_fast(one, GPU))) == share * len(one)


# ---- measuring it on this CPU --------------------------------------------------------------------------------------

SMALL = (
    "--gpu", "cpu", "--models", "deepseek-v2-lite", "--dtype", "fp32", "--max-tokens", "16", "--max-rows", "2",
    "--max-context", "64", "--quiet",
)  # fmt: skip


def test_it_is_measured_by_itself_and_prices_a_step(tmp_path: Path) -> None:
    out = tmp_path / "latent"
    done = CliRunner().invoke(cli, [*SMALL, "--budget-s", "4", "--keep-journal", "--out", str(out)])
    assert done.exit_code == 0, done.output + str(done.exception)
    assert "measured by itself" in done.output
    assert "latent attention." not in done.output, "it is not among what lacks"
    made = find(str(out))
    assert set(made.tables) == {"latent_prefill_attention", "latent_decode_attention"}
    assert made.meta.source.endswith("attention by itself")
    spec = load_model("deepseek-v2-lite").with_dtypes("fp32", "fp32")
    row = max(made.tables["latent_decode_attention"].rows(), key=lambda one: float(one["us"]))
    shape = Shape(decodes=int(row["sequences"]), decode_context=int(row["sequences"]) * int(row["mean_context_tokens"]))
    cost = Profiled(spec, made.gpu(), made)
    term = cost.explain(shape)["decode attention"]
    assert term.source == "measured"
    assert term.seconds == pytest.approx(spec.layers * float(row["us"]) * 1e-6)
    known = cost.error_of("decode attention", "interpolated")
    assert known is not None
    assert known.common == made.meta.accuracy["latent_decode_attention"].mean
    told = read(tmp_path / "latent.journal.jsonl")
    again = fitted(told.header, told.entries, told.troubles, told.messages, name="latent").profile
    assert {name: one.csv() for name, one in again.tables.items()} == {
        name: one.csv() for name, one in made.tables.items()
    }
    cut = fitted(told.header, told.entries[:3], name="cut").profile
    model = next(iter(told.header.specs))
    assert any(f"of {sum(one.role == GRID and bool(one.decodes) for one in planned(told.header, model))} steps" in note
               for note in cut.meta.notes)  # fmt: skip


def test_a_cache_of_another_type_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, [*SMALL, "--kv-dtype", "fp8", "--out", str(tmp_path / "x")])
    assert isinstance(done.exception, InputError)
    assert "is measured with a cache of the activations' type, fp32, and not with one in fp8" in str(done.exception)


def test_cases_are_what_one_operation_can_be_asked() -> None:
    every = cases(Range(256, 8, 1024, 8192), replace(DENSITIES[1], ratio=4), 0)
    some = alike(every)
    assert len(some) < len(every)
    assert all(bool(one.prefills) != bool(one.decodes) and len({*one.prefills, *one.decodes}) == 1 for one in some)
