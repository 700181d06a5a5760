"""A step's arrays are what a loop over tokens would write, and arrive on the device as they were sent."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("torch", reason="the live backend needs torch")

import numpy as np
import torch
from engine_kit import PlainPaged
from hypothesis import given
from hypothesis import strategies as st

from backend.cache.block_tables import BlockTables, scratch_tables
from backend.live.packing import ALIGNMENT_BYTES, BatchPart, DrawRows, Packed, Stage, pack, staged_bytes
from backend.live.prompts import Prompts
from backend.live.sequences import Sequences, sequence_seed
from sim.allocators.contiguous import Contiguous
from sim.allocators.paged import Paged
from sim.allocators.prefix import Prefix
from sim.allocators.windowed import Windowed
from sim.engine.batch import Batch
from sim.engine.memory import KvPool
from sim.engine.request import SAMPLE_BITS, Request, Seat, SharedPrefix

slices = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), max_size=5)


def part(jobs: list[tuple[int, int]], kept: int, block_tokens: int, rng: random.Random) -> BatchPart | None:
    if not jobs:
        return None
    counts, pasts = np.array(jobs, np.int64).T
    columns = int(max(-(-(counts + pasts) // block_tokens)))
    tables = np.zeros((len(jobs), columns), np.int32)
    for at in range(kept):
        tables[at] = rng.sample(range(1, 500), columns)
    tokens = np.array([rng.randrange(1000) for _ in range(counts.sum())], np.int32)
    return BatchPart(counts, pasts, tokens, tables, kept)


@given(slices, st.lists(st.integers(1, 20), max_size=5), st.integers(0, 2), st.sampled_from([1, 3, 16]), st.data())
def test_a_step_is_laid_out_token_by_token(
    jobs: list[tuple[int, int]], contexts: list[int], idle: int, block_tokens: int, data: st.DataObject
) -> None:
    rng = random.Random(data.draw(st.integers(0, 100)))
    singles = [(1, past) for past in contexts]
    prefill = part(jobs, max(len(jobs) - idle, 0), block_tokens, rng)
    decode = part(singles, max(len(singles) - idle, 0), block_tokens, rng)
    total = sum(count for count, _ in jobs + singles)
    if not total:
        return
    rows = np.array(data.draw(st.lists(st.integers(0, total - 1), max_size=6)), np.int64)
    draws = DrawRows(rows, rows * 7 + 2**40, rows + 3)
    packed = pack(prefill, decode, draws, block_tokens)

    positions: list[int] = []
    slots: list[int] = []
    tokens: list[int] = []
    for work, sizes in ((prefill, jobs), (decode, singles)):
        at = 0
        for number, (count, past) in enumerate(sizes):
            assert work is not None
            for position in range(past, past + count):
                positions.append(position)
                block = int(work.tables[number][position // block_tokens])
                slots.append(block * block_tokens + position % block_tokens if number < work.real else -1)
                tokens.append(int(work.tokens[at]))
                at += 1
    assert packed.positions.tolist() == positions
    assert packed.slots.tolist() == slots
    assert packed.tokens.tolist() == tokens
    batch, seeds, drawn = packed.on_device([torch.from_numpy(one) for one in packed.arrays()])
    assert seeds.tolist() == [row * 7 + 2**40 for row in rows]
    assert drawn.tolist() == [row + 3 for row in rows]
    if rows.tolist() == list(range(total)):
        assert batch.logits_rows is None
    else:
        assert batch.logits_rows is not None
        assert batch.logits_rows.tolist() == rows.tolist()
    check_parts(batch, jobs, singles, prefill, decode)


def check_parts(
    batch: Any,
    jobs: list[tuple[int, int]],
    singles: list[tuple[int, int]],
    prefill: BatchPart | None,
    decode: BatchPart | None,
) -> None:
    if prefill is None:
        assert batch.prefill is None
    else:
        assert batch.prefill.q_starts.tolist() == [sum(count for count, _ in jobs[:at]) for at in range(len(jobs) + 1)]
        assert batch.prefill.kv_lens.tolist() == [count + past for count, past in jobs]
        assert batch.prefill.max_q == max(count for count, _ in jobs)
        assert batch.prefill.block_tables.tolist() == prefill.tables.tolist()
    if decode is None:
        assert batch.decode is None
    else:
        assert batch.decode.width == 1
        assert batch.decode.kv_lens.tolist() == [past + 1 for _, past in singles]
        assert batch.decode.block_tables.tolist() == decode.tables.tolist()


def test_a_shorter_row_is_filled_up_before_its_first_token() -> None:
    """Rows of 2, 4 and 1 tokens, numbered 0 to 6: queries of each, and which of them are the rows' own."""
    verify = part([(2, 9), (4, 0), (1, 5)], 3, 16, random.Random(1))
    zero = np.zeros(1, np.int64)
    packed = pack(None, None, DrawRows(zero, zero, zero), 16, verify).verify
    assert packed is not None
    assert packed.spread is not None
    assert packed.kept is not None
    assert (packed.width, packed.lens.tolist()) == (4, [11, 4, 6])
    assert packed.spread.tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 6, 6, 6]
    assert packed.kept.tolist() == [2, 3, 4, 5, 6, 7, 11]
    alike = pack(None, None, DrawRows(zero, zero, zero), 16, part([(3, 9), (3, 1)], 2, 16, random.Random(1))).verify
    assert alike is not None
    assert (alike.width, alike.spread, alike.kept) == (3, None, None)


def test_padding_of_a_decode_step_has_no_context_and_no_slot() -> None:
    decode = part([(1, 4), (1, 9)], 2, 4, random.Random(1))
    draws = DrawRows(np.arange(2), np.array([5, 6]), np.array([5, 10]))
    packed = pack(None, decode, draws, 4)
    wide = packed.padded(4)
    assert packed.padded(2) is packed
    assert wide.decode_lens is not None
    assert wide.decode_lens.tolist() == [5, 10, 0, 0]
    assert wide.slots.tolist() == [*packed.slots.tolist(), -1, -1]
    assert wide.tokens[:2].tolist() == packed.tokens.tolist()
    assert wide.seeds.tolist() == [5, 6, 0, 0]
    assert [len(one) for one in wide.arrays()] == [4] * 7
    assert [one.dtype for one in wide.arrays()] == [one.dtype for one in Packed.idle(4, 3).arrays()]
    assert Packed.idle(3, 2).slots.tolist() == [-1, -1, -1]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 8))
def test_scratch_blocks_are_consecutive_and_nobodys_twice(lengths: list[int], block_tokens: int) -> None:
    tables = scratch_tables(np.array(lengths), block_tokens).tolist()
    taken = 0
    for row, length in zip(tables, lengths, strict=True):
        count = -(-length // block_tokens)
        assert row[:count] == list(range(taken + 1, taken + count + 1))
        assert not any(row[count:])
        taken += count


def change(allocator: Any, running: list[Request], rng: random.Random, count: int) -> int:
    """One thing that happens to a request: it comes, grows, forks, is preempted, or ends."""
    kind = rng.choice(["come", "grow", "grow", "grow", "fork", "preempt", "end"])
    if kind == "come" or not running:
        req = Request(count, 0.0, rng.randrange(1, 20), 30)
        tokens = rng.randrange(1, req.known + 1)
        if allocator.admit(req, tokens):
            req.seat, req.computed = Seat(), tokens
            req.seat.seq = count
            running.append(req)
        return count + 1
    req = rng.choice(running)
    if kind == "grow":
        if req.computed < req.final_kv_tokens and allocator.grow(req, 1):
            req.computed += 1
            req.known = max(req.known, req.computed)
    elif kind == "fork" and hasattr(allocator, "fork") and not isinstance(allocator, Contiguous):
        child = Request(count, 0.0, req.prompt_tokens, req.output_tokens)
        child.computed, child.known, child.seat = req.computed, req.known, Seat()
        child.seat.seq = count
        allocator.fork(req, child)
        running.append(child)
    elif kind in ("preempt", "end"):
        allocator.release(req)
        running.remove(req)
        if kind == "end":
            req.finished = True
        else:
            req.computed = 0
            if allocator.admit(req, 1):
                req.seat.seq, req.computed = count, 1
                running.append(req)
    return count + 1


ALLOCATORS: list[Any] = [
    Paged,
    Prefix,
    lambda pool: Contiguous(pool, reserve="oracle"),
    lambda pool: Windowed(pool, window_tokens=6, sink_tokens=3),
    PlainPaged,
]


@pytest.mark.parametrize("make", ALLOCATORS, ids=["paged", "prefix", "contiguous", "windowed", "unknown"])
def test_rows_follow_the_allocators_tables(make: Any) -> None:
    """Whatever happens between two steps, and though many a request is in none for a while."""
    for seed in range(12):
        rng = random.Random(seed)
        allocator = make(KvPool(300, 3, 60))
        tables, running, count, peak = BlockTables(appends=getattr(allocator, "appends", False)), [], 0, 0
        for step in range(120):
            for _ in range(rng.randrange(4)):
                count = change(allocator, running, rng, count)
            batch = Batch(step, 0.0, [], 0, [])
            batch.table = allocator.table
            if getattr(allocator, "copies", None):
                batch.copies, allocator.copies = allocator.copies, []
            tables.begin(batch)
            asked = [req for req in running if rng.random() < 0.6]
            if not asked:
                continue
            expected = [list(allocator.table(req)) for req in asked]
            columns = max(map(len, expected)) + rng.randrange(3)
            taken = tables.take([tables.row(req) for req in asked], columns).tolist()
            assert taken == [blocks + [0] * (columns - len(blocks)) for blocks in expected]
            peak = max(peak, len(running))
        # Rows of requests that have gone are taken over by others.
        assert count > 100
        assert len(tables._blocks) <= max(16, 2 * peak)


def test_of_a_growing_table_only_its_end_is_read() -> None:
    read: list[Any] = []

    class Spied(list[int]):
        def __getitem__(self, at: Any) -> Any:
            read.append(at)
            return super().__getitem__(at)

    class Watching(Paged):
        def table(self, req: Request) -> Spied:
            return Spied(super().table(req))

    allocator = Watching(KvPool(300, 3, 60))
    tables, req = BlockTables(appends=True), Request(0, 0.0, 10, 30)
    assert allocator.admit(req, 10)
    req.seat, req.computed = Seat(), 10
    req.seat.seq = 0
    for step in range(9):
        batch = Batch(step, 0.0, [], 0, [])
        batch.table = allocator.table
        tables.begin(batch)
        tables.row(req)
        assert allocator.grow(req, 1)
        req.computed += 1
    assert read == [slice(0, None), slice(4, None), slice(5, None)]


def test_arrays_arrive_aligned_and_whole() -> None:
    rng = np.random.default_rng(1)
    arrays = [
        rng.integers(-5, 5, 3, np.int32),
        rng.integers(0, 2**62, 7, np.int64),
        rng.integers(0, 9, (5, 40), np.int32),
        np.empty(0, np.int32),
        rng.integers(0, 9, (2000,), np.int32),
    ]
    for into in (None, torch.zeros(staged_bytes(arrays) + 10, dtype=torch.uint8)):
        stage = Stage(torch.device("cpu"))
        tensors = stage.send(arrays, into)
        for array, tensor in zip(arrays, tensors, strict=True):
            assert torch.equal(tensor, torch.from_numpy(array))
            assert tensor.data_ptr() % ALIGNMENT_BYTES == 0 or not len(array)
            assert tensor.is_contiguous()
    again = stage.send([one + 1 for one in arrays], into)
    assert [one.data_ptr() for one in again] == [one.data_ptr() for one in tensors]
    assert torch.equal(tensors[2], torch.from_numpy(arrays[2] + 1))


def test_sequences_keep_prompts_and_answers_apart() -> None:
    """Also when the array that holds them all has grown, and for sequences of one request."""
    sequences = Sequences(Prompts(100, 3), 9)
    requests = [Request(at, 0.0, 50 + at, 40) for at in range(80)]
    child = Request(7 + (1 << SAMPLE_BITS), 0.0, 57, 40)
    for req in [*requests, child]:
        start = sequences.of(req).start
        sequences.put(start + req.prompt_tokens + np.arange(40), np.full(40, req.id % 97))
    found = {id: (prompt, tokens) for id, prompt, tokens in sequences.outputs()}
    assert len(found) == 81
    for req in [*requests, child]:
        prompt, tokens = found[req.id]
        assert prompt == req.prompt_tokens
        assert tokens[prompt:].tolist() == [req.id % 97] * 40
        assert tokens[:prompt].tolist() == Prompts(100, 3).tokens(req).tolist()
    assert found[7][1][:57].tolist() == found[child.id][1][:57].tolist()
    seeds = {sequences.of(req).seed for req in [*requests, child]}
    assert len(seeds) == 81
    assert sequences.of(child).seed == sequence_seed(9, child.id)


def test_prompts_repeat_where_prefixes_do_and_stay_within_the_vocabulary() -> None:
    prompts = Prompts(50, 4)
    shared = SharedPrefix([11, 12, 13], 8)
    one, two = Request(0, 0.0, 24, 1, prefix=shared), Request(1, 0.0, 30, 1, prefix=shared)
    third = Request(2, 0.0, 20, 1, prefix=SharedPrefix([11, 99, 13], 8))
    texts = [prompts.tokens(req).tolist() for req in (one, two, third)]
    assert list(map(len, texts)) == [24, 30, 20]
    assert texts[0] == texts[1][:24]
    assert texts[2][:8] == texts[0][:8]
    assert texts[2][8:16] != texts[0][8:16]
    assert all(0 <= token < 50 for text in texts for token in text)
    assert prompts.tokens(Request(3, 0.0, 30, 1)).tolist() != Prompts(50, 5).tokens(Request(3, 0.0, 30, 1)).tolist()
