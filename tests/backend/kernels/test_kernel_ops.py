"""The operations on the cache: laws, float64 oracles, and poison where nothing may be touched."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from ops_kit import (
    IMPLEMENTATIONS,
    STORAGE,
    bits,
    implementation,
    ints,
    moved,
    place,
    poisoned,
    random,
    same_bits,
)

from backend.cache.kvcache import LayerCache
from backend.kernels.cache_write import cache_write_reference, nearest_e4m3, stored_values
from backend.kernels.copy_blocks import copy_blocks_reference
from backend.kernels.rope import rope_cache_write_reference, rotate_reference
from backend.kernels.swap_blocks import swap_reference
from backend.ops import Ops
from backend.torch_ops.cache import int8_steps, to_e4m3

SLOTS = (3, 14, -1, 5, 2, 7)
"""Of a cache of 4 blocks of 3 tokens: first, last, none, a block's last, one of the null block, one in the middle."""


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


def angles(positions: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin [T, dim / 2] fp32 of the usual frequencies."""
    turns = positions[:, None].double() * 10000.0 ** -(torch.arange(0, dim, 2) / dim)
    return turns.cos().float(), turns.sin().float()


@pytest.mark.parametrize("storage", STORAGE)
def test_cache_write_stores_what_float64_says_and_touches_nothing_else(
    ops: Ops, device: torch.device, storage: torch.dtype
) -> None:
    for seed, dtype in enumerate((torch.float32, torch.bfloat16)):
        # Keys and values as a model has them: views into one projection's rows.
        k, v = random(seed, 6, 5, 8, dtype=dtype)[:, 1:].split(2, dim=1)
        before, slots = poisoned(storage), ints(*SLOTS)
        expected = cache_write_reference(k, v, before, slots)
        cache = moved(before, device)
        ops.cache_write(k.to(device), v.to(device), cache, slots.to(device))
        assert same_bits(cache, expected)
        assert not same_bits(cache, before)
        for was, now in zip(before.tensors(), cache.tensors(), strict=True):
            if now.ndim:
                untouched = [slot for slot in range(15) if slot not in SLOTS or slot < 3]
                assert torch.equal(bits(was).flatten(0, 1)[untouched], bits(now.cpu()).flatten(0, 1)[untouched])


def test_cache_write_of_nothing_writes_nothing(ops: Ops, device: torch.device) -> None:
    cache = moved(poisoned(torch.float32), device)
    nothing = torch.empty(0, 2, 8, device=device)
    ops.cache_write(nothing, nothing, cache, ints(device=device))
    ops.copy_blocks(cache, ints(device=device), ints(device=device))
    assert same_bits(cache, poisoned(torch.float32))
    rotated = ops.rope_cache_write(
        nothing, nothing, nothing, nothing[:, 0, :4], nothing[:, 0, :4], cache, ints(device=device)
    )
    assert rotated.shape == (0, 2, 8)


def test_broken_values_stay_visible_in_every_storage(ops: Ops, device: torch.device) -> None:
    k = torch.ones(1, 2, 8)
    k[0, 0, 3] = torch.nan
    v = torch.ones(1, 2, 8)
    v[0, 1, 0] = torch.inf
    for storage in STORAGE:
        cache = moved(poisoned(storage), device)
        ops.cache_write(k.to(device), v.to(device), cache, ints(4, device=device))
        keys, values = (stored[1, 1].cpu() for stored in stored_values(cache))
        assert keys[0].isnan().any(), storage
        torch.testing.assert_close(keys[1], torch.ones(8, dtype=torch.float64), rtol=1e-3, atol=0)
        if storage == torch.float8_e4m3fn:
            assert values[1, 0] == 448.0 * 0.5
        else:
            assert not values[1, 0].isfinite(), storage


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=8, max_size=8), st.sampled_from((1.0, 0.5, 3.0, 0.01)))
def test_quantising_is_half_a_step_off_at_most(row: list[float], scale: float) -> None:
    x = torch.tensor(row)
    steps, int8_scale = int8_steps(x[None])
    step = int8_scale.double()
    assert ((steps.double() * step - x.double()).abs() <= step / 2 * (1 + 1e-5)).all()
    value = to_e4m3(x / scale).double() * scale
    bound = torch.maximum(x.double().abs() * 2.0**-4, torch.tensor(scale * 2.0**-10)) * (1 + 1e-5)
    inside = x.abs() <= 448 * scale
    assert ((value - x.double()).abs() <= bound)[inside].all()
    assert torch.equal(value[~inside], torch.sign(x[~inside]).double() * 448 * scale)


def test_the_oracle_of_e4m3_is_the_nearest_value_with_ties_to_even() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    assert torch.equal(bits(nearest_e4m3(every.double())) & 0x7F, bits(every) & 0x7F)
    finite = every[:127].double()
    between = (finite[:-1] + finite[1:]) / 2
    assert (bits(nearest_e4m3(between)) % 2 == 0).all()
    assert torch.equal(
        nearest_e4m3(torch.tensor([1e9, -1e9, 463.0])).double(), torch.tensor([448.0, -448, 448]).double()
    )


@pytest.mark.parametrize(("storage", "dim"), [*((storage, 8) for storage in STORAGE), (torch.int8, 6)])
def test_rope_cache_write_is_rotation_then_write(
    ops: Ops, device: torch.device, storage: torch.dtype, dim: int
) -> None:
    q, k, v = (random(seed, 6, heads, dim) for seed, heads in ((1, 5), (2, 2), (3, 2)))
    cos, sin = angles(ints(0, 1, 77, 5, 9, 1000), dim)
    slots, before = ints(*SLOTS), poisoned(storage, dim=dim)
    rotated, expected = rope_cache_write_reference(q, k, v, cos, sin, before, slots)
    cache = moved(before, device)
    out = ops.rope_cache_write(*(x.to(device) for x in (q, k, v, cos, sin)), cache, slots.to(device))
    torch.testing.assert_close(out.cpu().double(), rotated, rtol=1e-5, atol=1e-6 * float(q.abs().max()))
    same = moved(before, device)
    # Quantising is told apart from rotating: the fused write stores the bits of the two steps, the first into fp32.
    wide = moved(poisoned(torch.float32, dim=dim), device)
    ops.rope_cache_write(*(x.to(device) for x in (q, k, v, cos, sin)), wide, slots.to(device))
    ops.cache_write(wide.k.flatten(0, 1)[slots.to(device).long()], v.to(device), same, slots.to(device))
    assert same_bits(cache, same)
    for stored, wanted in zip(stored_values(moved(cache, torch.device("cpu"))), stored_values(expected), strict=True):
        written = stored.flatten(0, 1)[[3, 14, 5, 7]]
        error = (written - wanted.flatten(0, 1)[[3, 14, 5, 7]]).abs()
        # A float64 angle may round to the neighbouring step.
        assert (error <= {1: 0.13, 2: 0.01, 4: 1e-5}[storage.itemsize] * written.abs().amax(-1, keepdim=True)).all()


def test_rope_of_more_heads_than_one_program_rotates(
    ops: Ops, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.kernels.rope.HEAD_TILE_ELEMENTS", 16)
    q, k = random(1, 2, 5, 8), random(2, 2, 2, 8)
    cos, sin = angles(ints(3, 4), 8)
    cache = moved(poisoned(torch.float32), device)
    given = (q.to(device), k.to(device), k.to(device), cos.to(device), sin.to(device))
    out = ops.rope_cache_write(*given, cache, slots=ints(3, 4, device=device))
    torch.testing.assert_close(out.cpu().double(), rotate_reference(q, cos, sin), rtol=1e-5, atol=1e-6)


def test_rope_laws(ops: Ops, device: torch.device) -> None:
    """Position 0 is the identity, norms stay, and scores depend on the distance of positions alone."""
    q, k = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(1)), torch.randn(4, 3, 16)

    def turned(x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = angles(positions, 16)
        cache = LayerCache.allocate(2, 2, 3, 16, device=device)
        given = (x.to(device), x.to(device), x.to(device), cos.to(device), sin.to(device))
        out = ops.rope_cache_write(*given, cache, ints(2, 3, 4, 5, device=device))
        assert torch.equal(out, cache.k.flatten(0, 1)[2:])
        assert torch.equal(x, cache.v.flatten(0, 1)[2:].cpu())
        return out.cpu()

    assert torch.equal(turned(q, ints(0, 0, 0, 0)), q)
    at, other = ints(3, 17, 200, 5), ints(1, 40, 199, 77)
    assert not torch.allclose(turned(q, at), q, atol=0.1)
    torch.testing.assert_close(turned(q, at).norm(dim=-1), q.norm(dim=-1))
    score = (turned(q, at) * turned(k, other)).sum(-1)
    shifted = (turned(q, at + 55) * turned(k, other + 55)).sum(-1)
    torch.testing.assert_close(score, shifted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(score, (turned(q, at + 1) * turned(k, other)).sum(-1), atol=1e-2)


def test_the_oracle_of_rope_is_hugging_faces_rotate_half() -> None:
    x = torch.randn(3, 2, 8, dtype=torch.float64)
    cos, sin = angles(ints(1, 2, 30), 8)
    halves = torch.cat((-x[..., 4:], x[..., :4]), dim=-1)
    expected = x * torch.cat((cos, cos), -1)[:, None] + halves * torch.cat((sin, sin), -1)[:, None]
    torch.testing.assert_close(rotate_reference(x, cos, sin), expected)


@pytest.mark.parametrize("storage", STORAGE)
def test_copied_blocks_read_equal_and_others_stay(ops: Ops, device: torch.device, storage: torch.dtype) -> None:
    before = poisoned(storage)
    cache = moved(before, device)
    sources, targets = ints(1, 4, 1), ints(3, 2, 0)
    ops.copy_blocks(cache, sources.to(device), targets.to(device))
    assert same_bits(cache, copy_blocks_reference(before, sources, targets))
    for was, now in zip(before.tensors(), cache.tensors(), strict=True):
        if now.ndim:
            old, new = bits(was), bits(now.cpu())
            assert torch.equal(new[[3, 2]], old[[1, 4]])
            assert torch.equal(new[[0, 1, 4]], old[[0, 1, 4]])
            assert not torch.equal(new[3], old[3])


def test_blocks_larger_than_a_program_are_copied_whole(
    ops: Ops, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.kernels.copy_blocks.WORDS", 16)
    before = poisoned(torch.int8, block_tokens=5, heads=3, dim=12)
    cache = moved(before, device)
    ops.copy_blocks(cache, ints(2, device=device), ints(1, device=device))
    assert same_bits(cache, copy_blocks_reference(before, ints(2), ints(1)))


@pytest.mark.parametrize("storage", STORAGE)
def test_a_swapped_block_comes_back_bit_for_bit(ops: Ops, device: torch.device, storage: torch.dtype) -> None:
    before, empty = poisoned(storage), LayerCache.allocate(6, 3, 2, 8, dtype=storage)
    cache = moved(before, device)
    host = moved(empty, torch.device("cpu"), pinned=device.type == "cuda")
    out, there = ints(1, 3, 2), ints(5, 2, 0)
    ops.swap_out(cache, host, out.to(device), there.to(device))
    if device.type == "cuda":
        torch.cuda.synchronize()
    assert same_bits(host, swap_reference(before, empty, out, there))
    wiped = poisoned(storage)
    for tensor in wiped.tensors():
        if tensor.ndim:
            bits(tensor)[1:] = 0
    cache = moved(wiped, device)
    ops.swap_in(cache, host, ints(1, 3, device=device), ints(5, 2, device=device))
    for was, now in zip(before.tensors(), cache.tensors(), strict=True):
        if now.ndim:
            assert torch.equal(bits(now.cpu())[[0, 1, 3]], bits(was)[[0, 1, 3]])
            assert not bits(now.cpu())[[2, 4]].any()
