"""Laws of attention over the paged cache: what must not matter does not, and what kernels cannot read is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from attention_kit import BF16, FP8, INT8, Case, Inputs, Runner, build, check, off_by, queries_of, runner
from ops_kit import IMPLEMENTATIONS

from backend.cache.kvcache import LayerCache
from backend.kernels import _form
from backend.kernels._common import DEVICE
from backend.kernels._decode_plan import (
    MERGE_START_TILES,
    MERGE_TILES,
    START_UP_TILES,
    item_capacity,
    make_plan,
)
from backend.kernels.decode_attention import decode_attention, plan_decode
from backend.kernels.prefill_attention import Tile, attention_reference, prefill_attention
from backend.kernels.standard_attention import standard_attention_reference
from backend.ops import DecodePlan
from backend.torch_ops import attention
from traces.schema import InputError

RAGGED = Case((9, 1), (30, 11), window=21, sinks=3)
STEP = Case((2, 2, 2), (50, 3, 17))


@pytest.fixture(params=IMPLEMENTATIONS)
def run(request: pytest.FixtureRequest) -> Runner:
    return runner(str(request.param))


def test_cutting_a_prompt_into_chunks_changes_nothing(run: Runner) -> None:
    case = Case((37,), (5,), window=30, sinks=2)
    inputs = build(case)
    whole, whole_lse = run.prefill(case, inputs)
    for begin, end in ((0, 16), (16, 17), (17, 37)):
        part = replace(
            inputs,
            q=inputs.q[begin:end],
            q_starts=torch.tensor([0, end - begin], dtype=torch.int32),
            kv_lens=torch.tensor([5 + end], dtype=torch.int32),
        )
        out, lse = run.prefill(replace(case, news=(end - begin,)), part)
        torch.testing.assert_close(out, whole[begin:end], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(lse, whole_lse[begin:end], atol=1e-5, rtol=0.0)


def test_decoding_is_the_last_row_of_a_prefill(run: Runner) -> None:
    case = Case((5, 5), (30, 0))
    inputs = build(case)
    out, lse = run.prefill(case, inputs)
    stepped, stepped_lse = run.decode(case, inputs)
    torch.testing.assert_close(stepped.flatten(0, 1), out, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(stepped_lse.flatten(0, 1), lse, atol=1e-5, rtol=0.0)


def test_a_window_over_the_whole_context_is_no_window(run: Runner) -> None:
    case = Case((9, 3), (30, 0))
    inputs = build(case)
    for wide in (replace(case, window=39), replace(case, window=1000, sinks=4)):
        for found, wanted in zip(run.prefill(wide, inputs), run.prefill(case, inputs), strict=True):
            torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)
    step = replace(STEP, window=53)
    inputs = build(STEP)
    for found, wanted in zip(run.decode(step, inputs), run.decode(STEP, inputs), strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)


def test_the_order_of_sequences_is_the_order_of_outputs(run: Runner) -> None:
    inputs = build(STEP)
    order = torch.tensor([2, 0, 1])
    turned = replace(
        inputs,
        q=queries_of(STEP, inputs)[order].flatten(0, 1).contiguous(),
        tables=inputs.tables[order],
        kv_lens=inputs.kv_lens[order],
    )
    for stepped in (True, False):
        attend = run.decode if stepped else run.prefill
        out, lse = attend(STEP, inputs)
        again, again_lse = attend(STEP, turned)
        shape = (3, 2, *out.shape[-2:])
        torch.testing.assert_close(again.view(shape), out.view(shape)[order.to(out.device)], atol=2e-6, rtol=1e-5)
        again_lse, lse = again_lse.view(shape[:3]), lse.view(shape[:3])
        torch.testing.assert_close(again_lse, lse[order.to(out.device)], atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("storage", [torch.float32, INT8])
def test_what_no_query_attends_and_where_blocks_lie_changes_no_bit(run: Runner, storage: torch.dtype) -> None:
    """NaN, huge values, other block ids, more free blocks: unread memory must not matter, freed blocks included."""
    case = replace(RAGGED, storage=storage)
    out, lse = run.prefill(case, build(case))
    assert torch.isfinite(out).all()
    for inputs in (build(case, garbage=3e4, spare=9), freed(case, build(case))):
        again, again_lse = run.prefill(case, inputs)
        assert torch.equal(again, out)
        assert torch.equal(again_lse, lse)
    # With a head dim of 32 and narrow queries, int8 is read as pairs.
    for step in (
        replace(STEP, storage=storage, window=20),
        replace(STEP, q_type=BF16, storage=storage, window=20, head_dim=32),
        Case((1, 1), (40, 2), head_dim=32, q_type=BF16, storage=storage, window=20),
    ):
        out, lse = run.decode(step, build(step))
        assert torch.isfinite(out).all()
        for inputs in (build(step, garbage=3e4, spare=9), freed(step, build(step))):
            again, again_lse = run.decode(step, inputs)
            assert torch.equal(again, out)
            assert torch.equal(again_lse, lse)


def freed(case: Case, inputs: Inputs) -> Inputs:
    """The same, where blocks that lie wholly outside a sequence's windows are the null block, itself poison."""
    tables = inputs.tables.clone()
    for s, (new, past) in enumerate(zip(case.news, case.pasts, strict=True)):
        for block in range(tables.shape[1]):
            last = (block + 1) * case.block_tokens - 1
            if block * case.block_tokens >= case.sinks and last <= past - case.window and new:
                tables[s, block] = 0
    assert not torch.equal(tables, inputs.tables)
    return replace(inputs, tables=tables)


@pytest.mark.parametrize("window", [0, 20])
def test_the_copy_engines_tiles_are_float64s(window: int) -> None:
    """TMA reads whole tiles, poison beyond the last token included; elsewhere numpy interprets the descriptors."""
    case = Case((20, 3), (27, 0), block_tokens=32, window=window, sinks=5)
    inputs = build(case)
    x = inputs.to(torch.device(DEVICE))
    found = prefill_attention(
        x.q, x.cache, x.tables, x.q_starts, x.kv_lens, max_q=20, tile=Tile(16, 16, 4, tma=True), **case.scoring
    )
    wanted = attention_reference(inputs.q, inputs.keys, inputs.values, inputs.q_starts.tolist(), **case.scoring)
    check(found, wanted, case.q_type)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("tma", [False, True])
def test_every_split_is_float64s(tma: bool, splits: int) -> None:
    """Chunks whose parts are empty, lie before every row, or hold the diagonal alone; poison beyond the last token."""
    case = Case((9, 1), (75, 0), heads=2, kv_heads=1, block_tokens=32 if tma else 4)
    inputs = build(case)
    x = inputs.to(torch.device(DEVICE))
    tile = Tile(16, 16, 4, tma=tma, splits=splits)
    found = prefill_attention(x.q, x.cache, x.tables, x.q_starts, x.kv_lens, max_q=9, tile=tile, **case.scoring)
    wanted = attention_reference(inputs.q, inputs.keys, inputs.values, inputs.q_starts.tolist(), **case.scoring)
    check(found, wanted, case.q_type)


def test_parts_of_a_window_with_sinks_are_float64s() -> None:
    case = Case((12, 1), (90, 30), heads=2, kv_heads=1, window=37, sinks=6, soft_cap=2.0)
    inputs = build(case)
    x = inputs.to(torch.device(DEVICE))
    tile = Tile(16, 16, 4, splits=4)
    found = prefill_attention(x.q, x.cache, x.tables, x.q_starts, x.kv_lens, max_q=20, tile=tile, **case.scoring)
    wanted = attention_reference(inputs.q, inputs.keys, inputs.values, inputs.q_starts.tolist(), **case.scoring)
    check(found, wanted, case.q_type)


def tiles_read(length: int, queries: int, window: int, sinks: int, keys: int) -> int:
    """Tiles that hold a key which some query attends, counted one by one."""
    seen = set()
    for at in range(max(length - queries, 0), length):
        seen |= {j // keys for j in range(at + 1) if window <= 0 or j > at - window or j < sinks}
    return len(seen)


@settings(max_examples=15)
@given(
    lengths=st.lists(st.one_of(st.integers(0, 40), st.integers(0, 3000)), min_size=1, max_size=9),
    queries=st.integers(1, 8),
    programs=st.integers(1, 9),
    slots=st.integers(1, 40),
    window=st.sampled_from([0, 1, 30, 130]),
    sinks=st.sampled_from([0, 5, 40]),
)
def test_a_plan_covers_each_context_once(
    lengths: list[int], queries: int, programs: int, slots: int, window: int, sinks: int
) -> None:
    plan = make_plan(
        torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
        queries=queries, programs=programs, slots=slots, keys=16, window=window, sinks=sinks,
    )  # fmt: skip
    spans, count = plan.spans[:-1].tolist(), int(plan.spans[-1, 0])
    items = plan.items[:count].tolist()
    assert count <= len(plan.items) == item_capacity(len(lengths), programs, slots)
    assert [s for s, *_ in items] == sorted(s for s, *_ in items)
    for s, length in enumerate(lengths):
        first, parts = spans[s]
        own = items[first : first + parts]
        assert [(item[0], item[3]) for item in own] == [(s, parts)] * parts
        edges = [0, *(end for _, _, end, _ in own)]
        assert [begin for _, begin, _, _ in own] == edges[:-1]
        assert all(begin < end for _, begin, end, _ in own) or (length == 0 and parts == 1)
        assert edges[-1] == tiles_read(length, queries, window, sinks, 16)
        assert max((end - begin for _, begin, end, _ in own), default=0) <= int(plan.spans[-1, 1])


def plan_of(lengths: list[int], programs: int, slots: int, keys: int = 16) -> DecodePlan:
    kv_lens = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    return make_plan(kv_lens, queries=1, programs=programs, slots=slots, keys=keys, window=0, sinks=0)


def parts_of(lengths: list[int], programs: int, slots: int) -> list[int]:
    return [int(parts) for parts in plan_of(lengths, programs, slots).spans[:-1, 1]]


def modelled(visits: list[int], shares: Any, programs: int, slots: int, capacity: int) -> Any:
    """Tiles that the model charges for each share of visits, in integers; infinite beyond `capacity` items."""
    seen, share = np.array(visits)[None, :], shares[:, None]
    parts = -(-seen // share)
    items, most = parts.sum(1), parts.max(1)
    time = -(-items * programs // slots) * (np.minimum(shares, max(visits)) + START_UP_TILES.value)
    time += np.where(most > 1, MERGE_START_TILES.value + MERGE_TILES.value * most, 0.0)
    return np.where(items <= capacity, time, np.inf)


def planned(visits: list[int], programs: int, slots: int) -> float:
    """Modelled time of the plan that the device makes for so many visits of each context."""
    share = int(plan_of([16 * v for v in visits], programs, slots).spans[-1, 1])
    capacity = item_capacity(len(visits), programs, slots)
    return float(modelled(visits, np.array([share]), programs, slots, capacity)[0])


def best(visits: list[int], programs: int, slots: int, sequences: int) -> float:
    """The least modelled time of all shares, with as many items as `sequences` sequences may have."""
    shares, capacity = np.arange(1, max(visits) + 1), item_capacity(sequences, programs, slots)
    return float(modelled(visits, shares, programs, slots, capacity).min())


BATCHES = st.lists(st.one_of(st.integers(1, 60), st.integers(1, 2500)), min_size=1, max_size=40)
ROOM = st.sampled_from([(8, 396), (8, 264), (1, 396), (3, 40), (16, 6)])


@settings(max_examples=30)
@given(visits=BATCHES, same=st.booleans(), room=ROOM)
def test_a_plan_is_within_two_percent_of_the_best_share(visits: list[int], same: bool, room: tuple[int, int]) -> None:
    visits = visits[:1] * len(visits) if same else visits
    least = best(visits, *room, len(visits))
    assert least <= planned(visits, *room) <= least * 1.02 + 1e-6


@settings(max_examples=30)
@given(visits=BATCHES, at=st.integers(0, 39), more=st.integers(1, 500), room=ROOM)
def test_modelled_time_rises_with_context_and_batch(
    visits: list[int], at: int, more: int, room: tuple[int, int]
) -> None:
    """Exactly with a context; with one more sequence beside the best of as many items as then there may be."""
    longer = [*visits]
    longer[at % len(visits)] += more
    assert planned(longer, *room) >= planned(visits, *room)
    assert planned([*visits, more], *room) >= best(visits, *room, len(visits) + 1)


@pytest.mark.parametrize(("batch", "context", "most"), [(8, 32768, 92.5), (32, 8192, 92.75), (1, 2048, 9.75)])
def test_no_cut_rounds_up_into_one_more_wave(batch: int, context: int, most: float) -> None:
    """Shares of whole waves, as they were scored once, came to 122.75, 105 and 13."""
    assert planned([context // 64] * batch, 8, 396) <= most


def test_a_plan_fills_the_processors_and_cuts_no_more_than_that() -> None:
    assert parts_of([16 * 1000], 8, 264)[0] >= 264 // 8  # a lone long context takes every processor
    assert parts_of([16 * 3] * 4, 8, 264) == [1] * 4  # a short one is not worth the merge
    assert parts_of([16 * 100] * 33, 8, 264) == [1] * 33  # exactly one wave: nothing to gain
    assert min(parts_of([16 * 100] * 40, 8, 264)) > 1  # 1.2 waves would take two: the batch cliff of vllm 48076
    assert parts_of([16 * 2000, 16, 16, 0], 8, 264)[1:] == [1, 1, 1]


def test_one_plan_serves_all_layers_and_counts_from_nothing_again() -> None:
    """Parts of every sequence but the empty one; which of them is the last to arrive is left to the device."""
    case = Case((2, 2, 2, 2), (300, 90, 17, -2))
    inputs = build(replace(case, pasts=(300, 90, 17, 0))).to(torch.device(DEVICE))
    kv_lens = torch.tensor(case.lengths, dtype=torch.int32, device=DEVICE)
    q = queries_of(case, inputs)
    plan = plan_decode(kv_lens, queries=2, heads=4, cache=inputs.cache, q_dtype=q.dtype)
    own = decode_attention(q, inputs.cache, inputs.tables, kv_lens, **case.scoring)
    for _ in range(2):
        shared = decode_attention(q, inputs.cache, inputs.tables, kv_lens, plan=plan, **case.scoring)
        assert all(torch.equal(a, b) for a, b in zip(shared, own, strict=True))
        assert not plan.arrived.any()
    assert int(plan.spans[:-1, 1].max()) > 1
    assert not own[0][-1].any()
    assert bool((own[1][-1] == -math.inf).all())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 3e-3), (BF16, 2e-2)])
def test_standard_attention_is_float64s(run: Runner, kind: torch.dtype, tolerance: float, causal: bool) -> None:
    """bf16's tolerance is the stored scores': eight bits of them."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(33, heads, 16, generator=generator).to(kind) for heads in (4, 2, 2))
    out = run.ops.standard_attention(q.to(run.device), k.to(run.device), v.to(run.device), causal)
    assert out.dtype == kind
    assert off_by(out, standard_attention_reference(q, k, v, causal)) < tolerance


def test_fused_attention_is_the_standard_one(run: Runner) -> None:
    case = Case((35,), (0,), heads=2, kv_heads=1)
    inputs = build(case)
    k, v = inputs.keys[0].float(), inputs.values[0].float()
    standard = run.ops.standard_attention(inputs.q.to(run.device), k.to(run.device), v.to(run.device))
    torch.testing.assert_close(run.prefill(case, inputs)[0], standard, atol=2e-6, rtol=1e-5)


CALL: dict[str, Any] = {
    "q": torch.zeros(1, 1, 4, 16),
    "block_tables": torch.zeros(1, 2, dtype=torch.int32),
    "kv_lens": torch.ones(1, dtype=torch.int32),
    "scale": 0.25,
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "head dim": ({"q": torch.zeros(1, 1, 4, 24)}, "head dim 24 (cache 16): known are"),
    "heads": ({"q": torch.zeros(1, 1, 5, 16)}, "5 query heads are no multiple of 2 KV heads"),
    "queries": ({"q": torch.zeros(1, 9, 4, 16)}, "1 to 8"),
    "order": ({"q": torch.zeros(1, 4, 2, 16).transpose(1, 2)}, "contiguous queries"),
    "type of q": ({"q": torch.zeros(1, 1, 4, 16, dtype=torch.float64)}, "not torch.float64"),
    "scale": ({"scale": 0.0}, "scale > 0"),
    "sinks": ({"sinks": -1}, "sinks >= 0"),
    "tables": ({"block_tables": torch.zeros(1, 2, dtype=torch.int64)}, "int32"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_sentence(what: str) -> None:
    change, sentence = REFUSED[what]
    call: dict[str, Any] = {
        name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in (CALL | change).items()
    }
    with pytest.raises(InputError) as refused:
        decode_attention(cache=LayerCache.allocate(4, 4, 2, 16, device=DEVICE), **call)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_sequences_are_attended_by_nothing(run: Runner) -> None:
    q, tables, lengths = (CALL[name][:0].to(run.device) for name in ("q", "block_tables", "kv_lens"))
    cache = LayerCache.allocate(4, 4, 2, 16, device=run.device)
    out, lse = run.ops.decode_attention(q, cache, tables, lengths, scale=0.25)
    assert (out.shape, lse.shape) == ((0, 1, 4, 16), (0, 1, 4))


def test_heads_and_starts_that_do_not_fit_are_refused() -> None:
    cache = LayerCache.allocate(4, 4, 2, 16)
    with pytest.raises(InputError, match="5 query heads are no multiple of 2 KV heads"):
        runner("cpu").ops.decode_attention(cache=cache, **(CALL | {"q": torch.zeros(1, 1, 5, 16)}))
    case = Case((5,), (0,))
    x = build(case).to(torch.device(DEVICE))
    with pytest.raises(InputError, match="q_starts in int32"):
        prefill_attention(x.q, x.cache, x.tables, x.q_starts.long(), x.kv_lens, max_q=5, **case.scoring)
    call = {name: one.to(DEVICE) if isinstance(one, torch.Tensor) else one for name, one in CALL.items()}
    with pytest.raises(InputError, match=r"attention reads caches in fp32, .* not torch\.float64"):
        decode_attention(cache=LayerCache.allocate(4, 4, 2, 16, device=DEVICE, dtype=torch.float64), **call)


def test_a_cache_that_is_not_contiguous_is_refused() -> None:
    cache = LayerCache.allocate(4, 2, 2, 16, device=DEVICE)
    call: dict[str, Any] = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in CALL.items()}
    with pytest.raises(InputError, match="attention needs a contiguous cache"):
        decode_attention(cache=LayerCache(cache.k.transpose(1, 2), cache.v), **call)


def test_fp8_is_refused_on_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_form, "capability", lambda device: 80)
    case = replace(STEP, storage=FP8)
    inputs = build(case).to(torch.device(DEVICE))
    with pytest.raises(InputError, match=r"fp8 caches need compute capability 8\.9 or newer, this GPU has 8\.0"):
        decode_attention(queries_of(case, inputs), inputs.cache, inputs.tables, inputs.kv_lens, **case.scoring)


def test_torch_takes_a_long_prompt_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK_TOKENS", 4)
    for case in (RAGGED, Case((10, 3), (2, 0))):
        inputs = build(case)
        wanted = attention_reference(inputs.q, inputs.keys, inputs.values, inputs.q_starts.tolist(), **case.scoring)
        check(runner("cpu").prefill(case, inputs), wanted, case.q_type)


def test_a_chunk_longer_than_max_q_is_refused_on_the_cpu() -> None:
    case = Case((5,), (0,))
    x = build(case)
    with pytest.raises(InputError, match="sequence 0 has 5 new tokens, more than max_q = 4"):
        runner("cpu").ops.prefill_attention(x.q, x.cache, x.tables, x.q_starts, x.kv_lens, max_q=4, **case.scoring)


def test_the_cap_bounds_scores(run: Runner) -> None:
    """With a tiny cap all scores are equal, so lse is log(keys) and the output the mean: an oracle by hand."""
    case = Case((1,), (30,), soft_cap=1e-6)
    inputs = build(case)
    out, lse = run.decode(case, inputs)
    torch.testing.assert_close(lse.cpu(), torch.full((1, 1, 4), math.log(31)), atol=1e-4, rtol=0.0)
    mean = inputs.values[0].mean(0).repeat_interleave(2, 0).float()
    torch.testing.assert_close(out[0, 0].cpu(), mean, atol=1e-5, rtol=0.0)
