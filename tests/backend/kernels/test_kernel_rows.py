"""Norms, the gated activation and products: float64 oracles, laws, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from ops_kit import (
    IMPLEMENTATIONS,
    implementation,
    ints,
    place,
    poisoned,
    random,
)

from backend.cache.kvcache import LayerCache
from backend.kernels import cache_write
from backend.kernels.linear import linear_reference, quantise_rows
from backend.kernels.rms_norm import rms_norm_reference
from backend.kernels.silu_and_mul import silu_and_mul_reference
from backend.model.weights import QuantWeight, quantised
from backend.ops import Ops
from traces.schema import InputError


@pytest.fixture(params=IMPLEMENTATIONS)
def name(request: pytest.FixtureRequest) -> str:
    implementation(request.param)
    return str(request.param)


@pytest.fixture
def ops(name: str) -> Ops:
    return implementation(name)


@pytest.fixture
def device(name: str) -> torch.device:
    return place(name)


@pytest.mark.parametrize(("rows", "width"), [(3, 48), (2, 1), (4, 33), (0, 16)])
def test_rms_norm_and_its_residual(ops: Ops, device: torch.device, rows: int, width: int) -> None:
    """Half a unit of the type off at most: one rounding after the norm, which is of the sum as it was rounded."""
    for dtype, rtol in ((torch.float32, 1e-6), (torch.float16, 1.01 * 2.0**-11), (torch.bfloat16, 1.01 * 2.0**-8)):
        wide = torch.randn(rows, 2 * width + 2, generator=torch.Generator().manual_seed(2)).to(dtype)
        x, residual, weight = wide[:, :width], wide[:, width : 2 * width], torch.linspace(-2, 2, width).to(dtype)
        given = [tensor.to(device) for tensor in (wide, weight)]
        normed, total = ops.rms_norm(given[0][:, :width], given[1], 1e-5, given[0][:, width : 2 * width])
        assert torch.equal(total.cpu(), x + residual)
        expected, _ = rms_norm_reference(total.cpu(), weight, 1e-5)
        torch.testing.assert_close(normed.cpu().double(), expected, rtol=rtol, atol=1e-6)
        alone, same = ops.rms_norm(given[0][:, :width], given[1], 1e-5)
        torch.testing.assert_close(alone.cpu().double(), rms_norm_reference(x, weight, 1e-5)[0], rtol=rtol, atol=1e-6)
        assert torch.equal(same.cpu(), x)


def test_norms_do_not_see_the_scale_but_see_epsilon(ops: Ops, device: torch.device) -> None:
    x, weight = torch.randn(3, 40).to(device), torch.randn(40).to(device)
    normed, _ = ops.rms_norm(x, weight, 0.0)
    torch.testing.assert_close(ops.rms_norm(8.0 * x, weight, 0.0)[0], normed, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ops.rms_norm(-x, weight, 0.0)[0], -normed)
    assert (ops.rms_norm(x, weight, 10.0)[0].abs() < normed.abs()).all()
    heads = x.view(3, 5, 8)
    expected = torch.stack([ops.rms_norm(heads[:, head], weight[:8], 1e-6)[0] for head in range(5)], 1)
    torch.testing.assert_close(ops.head_norm(heads, weight[:8], 1e-6), expected, rtol=1e-6, atol=1e-7)
    qkv = torch.randn(3, 7, 6).to(device)
    strided = qkv[:, 2:5]
    torch.testing.assert_close(
        ops.head_norm(strided, weight[:6], 1e-6), ops.head_norm(strided.contiguous(), weight[:6], 1e-6)
    )


def test_silu_and_mul(ops: Ops, device: torch.device) -> None:
    for rows, width in ((3, 5), (2, 1030), (0, 4)):
        x = random(4, rows, 2 * width)
        out = ops.silu_and_mul(x.to(device)).cpu()
        torch.testing.assert_close(out.double(), silu_and_mul_reference(x), rtol=2e-6, atol=1e-30)
    extremes = torch.tensor([[100.0, -100.0, 0.0, -1e4, 1.0, 1.0, 1.0, 1e4]])
    out = ops.silu_and_mul(extremes.to(device)).cpu()
    assert torch.equal(out[:, [0, 2, 3]], torch.tensor([[100.0, 0.0, 0.0]]))
    assert -1e-40 < float(out[0, 1]) <= 0


@pytest.mark.parametrize(("rows", "width", "outputs"), [(5, 48, 32), (1, 33, 7), (40, 64, 80), (0, 16, 16)])
@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_products_with_quantised_weights(
    ops: Ops, device: torch.device, kind: str, rows: int, width: int, outputs: int
) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, plain = torch.randn(rows, width, generator=generator), torch.randn(outputs, width, generator=generator)
    weight = quantised(plain, kind)
    there = QuantWeight(weight.data.to(device), weight.scale.to(device))
    for dtype, unit in ((torch.float32, 2.0**-20), (torch.bfloat16, 2.0**-7)):
        given = x.to(dtype)
        expected = linear_reference(given, weight)
        sizes = given.double().abs() @ (weight.data.double().abs() * weight.scale.double()[:, None]).T
        bound = unit * sizes
        if kind == "fp8":
            # fp8 units round each activation by 2^-4 of itself, or half the last step of its row, and write bf16.
            last = given.double().abs().amax(-1, keepdim=True) / 448 * 2.0**-10 if rows else given.double()[:, :1]
            bound = (2.0**-4 + 2.0**-7) * sizes + last * (
                weight.data.double().abs() * weight.scale.double()[:, None]
            ).sum(-1)
        out = ops.linear(given.to(device), there).cpu()
        assert out.dtype == dtype
        assert ((out.double() - expected).abs() <= bound).all()
    torch.testing.assert_close(ops.linear(x.to(device), plain.to(device)).cpu(), x @ plain.T, rtol=1e-4, atol=1e-4)


@settings(max_examples=4)
@given(st.integers(1, 5), st.integers(1, 70), st.integers(0, 99))
def test_rows_are_quantised_by_their_largest(rows: int, width: int, seed: int) -> None:
    x = random(seed, rows, width)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    data, scales = (tensor.cpu().double() for tensor in quantise_rows(x.to(place)))
    assert (data.abs().amax(-1) == 448).all()
    torch.testing.assert_close(scales[:, 0], x.double().abs().amax(-1) / 448)
    bound = torch.maximum(x.double().abs() * 2.0**-4, scales * 2.0**-10) * (1 + 1e-6)
    assert ((data * scales - x.double()).abs() <= bound).all()


def refusals() -> list[tuple[str, Callable[[Ops], object], str]]:
    cache, x, slots = poisoned(torch.float32), torch.randn(2, 2, 8), ints(3, 4)
    angle = torch.ones(2, 4)
    other = poisoned(torch.float16)
    strided = LayerCache(torch.zeros(4, 3, 2, 16)[..., ::2], torch.zeros(4, 3, 2, 16)[..., ::2])
    short = LayerCache(torch.zeros(4, 3, 2, 3, dtype=torch.float16), torch.zeros(4, 3, 2, 3, dtype=torch.float16))
    away = LayerCache(cache.k.to("meta"), cache.v.to("meta"))
    odd, seven = LayerCache(torch.zeros(4, 3, 2, 7), torch.zeros(4, 3, 2, 7)), torch.randn(2, 2, 7)
    return [
        ("a strided cache", lambda ops: ops.cache_write(x, x, strided, slots), "cache has to be contiguous"),
        ("copies in one", lambda ops: ops.copy_blocks(strided, ints(1), ints(2)), "cache has to be contiguous"),
        ("halves of words", lambda ops: ops.copy_blocks(short, ints(1), ints(2)), "fill whole 32-bit words"),
        ("elsewhere", lambda ops: ops.swap_out(cache, away, ints(1), ints(1)), "swapped to host memory, not to meta"),
        ("no device", lambda ops: ops.silu_and_mul(x.to("meta")), "run on cpu tensors here, not on meta: numpy"),
        (
            "half a pair",
            lambda ops: ops.rope_cache_write(seven, seven, seven, angle[:, :3], angle[:, :3], odd, slots),
            "head dim 7 is odd",
        ),
        ("a norm's rows", lambda ops: ops.rms_norm(torch.randn(2, 16)[:, ::2], torch.ones(8), 1e-6), "to be dense"),
        ("a matrix's heads", lambda ops: ops.standard_attention(x, x[:1], x), r"needs \[T, H, D\]"),
        ("a matrix's types", lambda ops: ops.standard_attention(x, x.half(), x), "contiguous tensors of one type"),
        ("a matrix's width", lambda ops: ops.standard_attention(x, x, x), "head dim 8: known are"),
        ("heads", lambda ops: ops.cache_write(torch.randn(2, 3, 8), x, cache, slots), r"k has shape \(2, 3, 8\)"),
        ("tokens", lambda ops: ops.cache_write(x, x[:1], cache, slots), r"v has shape \(1, 2, 8\)"),
        ("dense", lambda ops: ops.cache_write(x, torch.randn(2, 2, 16)[..., ::2], cache, slots), "v is strided"),
        ("angles", lambda ops: ops.rope_cache_write(x, x, x, angle, angle[:, :3], cache, slots), "sin has shape"),
        ("queries", lambda ops: ops.rope_cache_write(x[:1], x, x, angle, angle, cache, slots), "q has shape"),
        ("pairs", lambda ops: ops.copy_blocks(cache, ints(1, 2), ints(3)), "do not pair up"),
        ("layouts", lambda ops: ops.swap_out(cache, other, ints(1), ints(1)), "one layout"),
        ("norm", lambda ops: ops.rms_norm(torch.randn(2, 8), torch.ones(7), 1e-6), "rms_norm wants"),
        ("residual", lambda ops: ops.rms_norm(torch.randn(2, 8), torch.ones(8), 1e-6, torch.randn(1, 8)), "residual"),
        ("heads' norm", lambda ops: ops.head_norm(x, torch.ones(7), 1e-6), "head_norm wants"),
        ("odd", lambda ops: ops.silu_and_mul(torch.randn(2, 7)), "silu_and_mul wants"),
        (
            "widths",
            lambda ops: ops.linear(torch.randn(2, 7), quantised(torch.randn(3, 8), "int8")),
            "cannot be multiplied",
        ),
    ]


@pytest.mark.parametrize(("call", "message"), [pytest.param(*case[1:], id=case[0]) for case in refusals()])
def test_what_does_not_fit_is_refused_in_a_sentence(call: Callable[[Ops], object], message: str) -> None:
    kernels = implementation("interpret")
    with pytest.raises(InputError, match=message):
        call(kernels)


def test_a_gpu_without_fp8_is_given_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_write, "capability", lambda _: 80)
    cache, x = LayerCache.allocate(4, 3, 2, 8, dtype=torch.float8_e4m3fn), torch.randn(2, 2, 8)
    with pytest.raises(InputError, match=r"fp8 caches need compute capability 8\.9 or newer, this GPU has 8\.0"):
        cache_write.check_layout(x, x, cache, ints(3, 4))
