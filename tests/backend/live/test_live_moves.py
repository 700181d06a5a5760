"""Copies and swaps reach the tensors in the order in which the engine asked for them, and host memory comes back."""

from __future__ import annotations

from itertools import pairwise

import pytest

pytest.importorskip("torch", reason="the live backend needs torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.cache.kvcache import KvCache
from backend.cache.moves import Mover, independent
from backend.ops import for_device
from sim.catalog import load_model
from sim.engine.batch import Batch, Swap
from sim.engine.request import Request

BLOCKS, HOST_BLOCKS = 12, 7
MODEL = load_model("tiny-llama")
ids = st.integers(1, BLOCKS)
pairs = st.lists(st.tuples(ids, ids), max_size=12)


def numbered(dtype: str = "fp32") -> KvCache:
    """A cache in which each block, of each layer, keys and values apart, holds a number of its own."""
    cache = KvCache.allocate(MODEL, BLOCKS, 2, dtype=dtype)
    for at, layer in enumerate(cache.layers):
        for kind, tensor in enumerate(layer.tensors()):
            if tensor.ndim:
                raw = tensor.view(torch.uint8)
                for block in range(BLOCKS + 1):
                    raw[block] = block + (BLOCKS + 1) * (4 * at + kind)
    return cache


def contents(cache: KvCache) -> list[list[int]]:
    """What each block holds, in units of `numbered`, by layer and tensor; every block must hold one thing."""
    found = []
    for layer in cache.layers:
        for tensor in layer.tensors():
            if tensor.ndim:
                raw = tensor.view(torch.uint8).flatten(1)
                assert (raw == raw[:, :1]).all()
                found.append(raw[:, 0].tolist())
    return found


def batch(copies: list[tuple[int, int]], swaps: list[Swap]) -> Batch:
    made = Batch(0, 0.0, [], 1, [])
    made.copies, made.swaps = copies, swaps
    return made


@given(pairs)
def test_groups_of_copies_may_be_made_at_once(copies: list[tuple[int, int]]) -> None:
    groups = [move.pairs for move in independent(copies)]
    assert [pair for group in groups for pair in group] == copies
    for group in groups:
        targets = [target for _, target in group]
        assert len(set(targets)) == len(targets)
        others = [(source, target) for source, target in group if source != target]
        assert not {source for source, _ in others} & set(targets)
    for before, after in pairwise(groups):
        first_source, first_target = after[0]
        touched = {block for pair in before for block in pair}
        assert first_source in {target for _, target in before} or first_target in touched


@settings(max_examples=40)
@given(pairs, st.sampled_from(["fp32", "bf16", "fp8", "int8"]))
def test_copies_are_made_as_if_one_by_one(copies: list[tuple[int, int]], dtype: str) -> None:
    """Chains, a target that was a source before, a source that was a target, two copies to one block."""
    cache = numbered(dtype)
    expected = contents(cache)
    for source, target in copies:
        for tensor in expected:
            tensor[target] = tensor[source]
    Mover(for_device("cpu"), cache, 0).move(batch(copies, []))
    assert contents(cache) == expected


class Story:
    """Requests that come, are copied, swapped out and in, and end; the blocks they hold, kept in plain lists."""

    def __init__(self, draw: st.DataObject) -> None:
        self.data = draw
        self.cache = numbered()
        self.mover = Mover(for_device("cpu"), self.cache, HOST_BLOCKS)
        self.expected = contents(self.cache)
        self.away: dict[Request, list[list[int]]] = {}
        self.count = 0

    def step(self) -> None:
        copies: list[tuple[int, int]] = []
        swaps: list[Swap] = []
        for _ in range(self.data.draw(st.integers(0, 5))):
            kind = self.data.draw(st.sampled_from(["copy", "out", "in", "end"]))
            if kind == "copy":
                copies.append(self.data.draw(st.tuples(ids, ids)))
                for tensor in self.expected:
                    tensor[copies[-1][1]] = tensor[copies[-1][0]]
            elif kind == "out":
                self.out(swaps, len(copies))
            elif self.away and (kind == "in" or not swaps):
                req = self.data.draw(st.sampled_from(sorted(self.away, key=lambda req: req.id)))
                if kind == "in":
                    self.bring_in(req, swaps, len(copies))
                else:
                    req.finished = True
                    del self.away[req]
        self.mover.move(batch(copies, swaps))
        assert contents(self.cache) == self.expected
        held = sum(len(blocks[0]) for blocks in self.away.values())
        assert self.mover.host_blocks_free == HOST_BLOCKS - held

    def out(self, swaps: list[Swap], after: int) -> None:
        free = HOST_BLOCKS - sum(len(blocks[0]) for blocks in self.away.values())
        blocks = self.data.draw(st.lists(ids, min_size=1, max_size=4, unique=True))
        if len(blocks) > free:
            return
        self.count += 1
        req = Request(self.count, 0.0, 8, 8)
        self.away[req] = [[tensor[block] for block in blocks] for tensor in self.expected]
        swaps.append(Swap(req, blocks, True, after))

    def bring_in(self, req: Request, swaps: list[Swap], after: int) -> None:
        kept = self.away.pop(req)
        count = len(kept[0])
        blocks = self.data.draw(st.lists(ids, min_size=count, max_size=count, unique=True))
        for tensor, values in zip(self.expected, kept, strict=True):
            for block, value in zip(blocks, values, strict=True):
                tensor[block] = value
        swaps.append(Swap(req, blocks, False, after))


@settings(max_examples=40)
@given(st.data())
def test_swaps_and_copies_are_made_in_their_order_and_host_blocks_come_back(data: st.DataObject) -> None:
    """Also those of requests that end while their KV is away; nothing is kept for longer than it is needed."""
    story = Story(data)
    for _ in range(5):
        story.step()
    for req in story.away:
        req.finished = True
    story.mover.move(batch([], []))
    assert story.mover.host_blocks_free == HOST_BLOCKS


def test_warming_up_moves_nothing() -> None:
    cache = numbered("int8")
    before = contents(cache)
    mover = Mover(for_device("cpu"), cache, 3)
    mover.warm_up()
    assert contents(cache) == before
    assert mover.host_blocks_free == 3


def test_swapping_without_host_memory_is_a_mistake_of_the_caller() -> None:
    mover = Mover(for_device("cpu"), numbered(), 0)
    with pytest.raises(RuntimeError, match="no host memory"):
        mover.move(batch([], [Swap(Request(0, 0.0, 1, 1), [3], True, 0)]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_on_a_gpu_blocks_move_as_on_the_cpu(dtype: str) -> None:
    """A chain of copies around a swap out and in, through pinned memory."""
    found = []
    for device in ("cpu", "cuda"):
        there = numbered(dtype)
        cache = KvCache.allocate(MODEL, BLOCKS, 2, device, dtype)
        for mine, made in zip(cache.layers, there.layers, strict=True):
            for tensor, other in zip(mine.tensors(), made.tensors(), strict=True):
                tensor.copy_(other)
        mover = Mover(for_device(device), cache, HOST_BLOCKS)
        mover.warm_up()
        req = Request(1, 0.0, 8, 8)
        swaps = [Swap(req, [2, 5], True, 2), Swap(req, [9, 4], False, 3)]
        mover.move(batch([(1, 2), (2, 3), (7, 5), (3, 6)], swaps))
        back = KvCache.allocate(MODEL, BLOCKS, 2, "cpu", dtype)
        for mine, made in zip(back.layers, cache.layers, strict=True):
            for tensor, other in zip(mine.tensors(), made.tensors(), strict=True):
                tensor.copy_(other)
        found.append(contents(back))
    assert found[0] == found[1]
