"""Layers of several kinds under `paged` and `prefix`: tables of their own, one pool, windows, states, hits.

The laws are those of every allocator; the content of each block is followed in each group of layers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from engine_kit import Setup, run
from hypothesis import given, settings
from hypothesis import strategies as st
from law_cases import EXAMPLES, Case, Chaos, Row, cases, laws
from law_watchers import Counters, check_nothing_leaked, same_decisions, watched
from window_watchers import WindowContents

from sim.allocators.mixed.paged import MixedPaged
from sim.allocators.mixed.prefix import MixedPrefix
from sim.catalog import load_model
from sim.engine.batch import Limits
from sim.engine.memory import NULL_BLOCK, KvLayers, KvPool
from sim.engine.pages import in_groups, mixed_layers
from sim.engine.request import Request, SharedPrefix
from sim.specs.blocks import KvKind

few = settings(laws, max_examples=EXAMPLES or 5)
KINDS: list[list[tuple[int, int]]] = [
    [(1, 0), (1, 5)],
    [(1, 0), (3, 8)],
    [(2, 0), (1, 12)],
    [(1, 7)],
    [(1, 0)],
    [(1, 0), (2, 3), (1, 10)],
]
"""Layers as (groups, window), windows shorter than blocks among them."""


def pool_of(blocks: int, size: int, kinds: list[tuple[int, int]], states: int = 0, most: int = 0) -> KvPool:
    """A pool of `blocks` blocks of a group each; a group keeps 4 bytes a token."""
    layers = tuple(KvLayers(4 * count, window) for count, window in kinds)
    return KvPool(blocks, size, 64, 4 * size, most, layers=layers, state_bytes=4 * size * states)


# ---- the laws -------------------------------------------------------------------------------------------------------


@st.composite
def mixtures(draw: st.DrawFn, policy: Any, allocator: str, most_samples: int = 1) -> Case:
    """A case whose pool holds little more than the largest request needs."""
    case = draw(cases(policy, allocator, most_samples))
    size = case.setup.pool.block_tokens
    kinds = draw(st.sampled_from(KINDS))
    states = draw(st.sampled_from([0, 0, 1, 3]))
    limits = replace(case.setup.limits, max_num_seqs=draw(st.sampled_from([5, 8])))
    setup = replace(case.setup, limits=limits, host_blocks=0)

    def with_blocks(blocks: int) -> Setup:
        return replace(setup, pool=pool_of(blocks, size, kinds, states, limits.max_num_batched_tokens))

    roomy = replace(case, setup=with_blocks(2000)).admissible()
    fewest = 1
    while any(with_blocks(fewest).engine().refusal(req) for req in (roomy.requests() if roomy.rows else ())):
        fewest += 1
    return replace(roomy, setup=with_blocks(fewest + draw(st.integers(0, 12))))


def keeps_the_laws(case: Case) -> None:
    counters = Counters(case)
    done = run(case.setup, case.workload(), [counters, WindowContents(case)])
    counters.check_end(done)
    check_nothing_leaked(done.engine, 0)
    assert not any(sharing.holders for sharing in done.engine.allocator._sharings)
    same_decisions(done, run(replace(case.setup, spans=False), case.workload()))


@pytest.mark.parametrize("allocator", ["paged", "prefix"])
@pytest.mark.parametrize(("policy", "most_samples"), [("chunked", 1), ("chunked", 3), ("priority", 1), ("static", 3)])
def test_every_policy_keeps_the_laws(policy: str, allocator: str, most_samples: int) -> None:
    @few
    @given(mixtures(policy, allocator, most_samples))
    def keeps(case: Case) -> None:
        if case.rows:
            keeps_the_laws(case)

    keeps()


@few
@given(st.data(), st.sampled_from(["paged", "prefix"]), st.integers(0, 2**32), st.booleans(), st.booleans())
def test_a_chaotic_policy_breaks_no_law(
    data: st.DataObject, allocator: str, seed: int, holds: bool, every_step: bool
) -> None:
    case = data.draw(mixtures(None, allocator, 3))
    if case.rows:
        chaos = Chaos(seed, every_step=every_step, holds_finished=holds)
        watched(replace(case, setup=replace(case.setup, policy=chaos)), WindowContents)


def test_the_laws_meet_preemptions_and_hits() -> None:
    preemptions = hits = 0
    for seed in range(4):
        pool = pool_of(24, 4, [(1, 0), (2, 9)], states=0, most=16)
        setup = Setup(allocator="prefix", pool=pool, limits=Limits(6, 16), depth=1 + seed % 2)
        rows = [Row(0.002 * at, 9 + 3 * (at % 3), 18 - at, prefix=(1, 2)) for at in range(seed, seed + 7)]
        case = Case(setup, rows, 4)
        keeps_the_laws(case)
        done = run(setup, case.workload())
        preemptions += done.engine.preemptions
        hits += sum(req.prefix_hit_tokens for req in done.requests)
    assert preemptions >= 4
    assert hits >= 40


@pytest.mark.parametrize("allocator", ["paged", "prefix"])
@few
@given(data=st.data())
def test_a_window_that_nothing_fills_is_one_table(allocator: str, data: st.DataObject) -> None:
    """One group whose window is never left decides, and counts, as layers that keep everything."""
    case = data.draw(cases("chunked", allocator, 3))
    pool = replace(case.setup.pool, block_bytes=4 * case.setup.pool.block_tokens)
    setup = replace(case.setup, host_blocks=0, allocator_parameters={}, pool=pool)
    case = replace(case, setup=setup).admissible()
    if not case.rows:
        return
    wide = pool_of(pool.blocks, pool.block_tokens, [(1, 10_000)])
    wide = replace(wide, max_request_tokens=pool.max_request_tokens)
    one, other = watched(case), watched(replace(case, setup=replace(setup, pool=wide)), WindowContents)
    same_decisions(one, other)
    for name in one.table:
        assert one.table[name].tolist() == other.table[name].tolist(), name


# ---- groups, by hand ------------------------------------------------------------------------------------------------


def test_gemma_3_has_a_full_group_of_ten_layers_and_six_of_its_windows() -> None:
    """62 layers, every sixth full: 10 and 52, so groups of 10; the sixth group of windowed layers has 2."""
    layers, state_bytes = mixed_layers(load_model("gemma-3-27b").kv_kinds())
    layer_bytes = 2 * 16 * 128 * 2
    assert layers == ((10 * layer_bytes, 0), (52 * layer_bytes, 1024))
    assert state_bytes == 0
    whole = KvPool(1000, 16, 131_072, 62 * layer_bytes * 16, 8192, layers=layers)
    layout = in_groups(whole)
    assert [tuple(group) for group in layout.groups] == [(1, 0), (6, 1024)]
    assert (layout.pool.blocks, layout.pool.block_bytes) == (6200, 10 * layer_bytes * 16)
    # The whole context in one group; in six the window, a step and a block for two edges.
    assert layout.most_blocks(8192) == 8192 + 6 * ((1024 + 8192) // 16 + 1)
    assert layout.most_blocks(10) == 70


def test_qwen3_next_keeps_a_state_beside_one_group() -> None:
    """48 layers, every fourth full with 2 KV heads of 256: 24 KiB a token; a state of 36 layers in whole blocks."""
    model = load_model("qwen3-next-80b-a3b")
    layers, state_bytes = mixed_layers(model.kv_kinds())
    assert layers == ((12 * 2 * 2 * 256 * 2, 0),)
    assert state_bytes == 36 * (32 * 128 * 128 * 2 + 8192 * 3 * 2)
    layout = in_groups(KvPool(1000, 16, 0, 16 * layers[0].token_bytes, layers=layers, state_bytes=state_bytes))
    assert layout.row_blocks == 1
    assert layout.state_blocks == -(-state_bytes // (16 * 24_576)) == 101


def test_kinds_of_nearly_as_many_bytes_are_one_group_each() -> None:
    layers, _ = mixed_layers([KvKind(10, 100, 0, 0), KvKind(12, 100, 64, 0)])
    layout = in_groups(KvPool(100, 16, 0, 16 * 2200, layers=layers))
    assert [group.blocks for group in layout.groups] == [1, 1]
    assert layout.pool.block_bytes == 16 * 1200
    assert layout.pool.blocks == 100 * 2200 // 1200


def test_layers_that_all_keep_everything_need_no_groups() -> None:
    assert mixed_layers(load_model("llama-3.1-8b").kv_kinds()) == ((), 0)
    assert mixed_layers([KvKind(3, 100, 0, 0), KvKind(2, 50, 0, 0)]) == ((), 0)


def test_a_drafters_own_layers_keep_every_token() -> None:
    assert mixed_layers([KvKind(3, 100, 64, 0)], 40)[0] == ((40, 0), (300, 64))


# ---- requests, by hand ----------------------------------------------------------------------------------------------


def test_a_window_gives_its_rows_back_and_the_full_table_stays() -> None:
    allocator = MixedPaged(pool_of(40, 4, [(1, 0), (2, 6)]))
    req = Request(0, 0.0, 100, 100)
    assert allocator.grow(req, 16)
    assert allocator.free_blocks == 40 - 3 * 4
    req.computed = 16
    # Token 16 attends 11 to 16: two rows of the window are given back for the one that is taken.
    assert allocator.grow(req, 1)
    full, *windowed = allocator.tables(req)
    assert NULL_BLOCK not in full
    assert len(full) == 5
    assert [[at for at, block in enumerate(table) if block] for table in windowed] == [[2, 3, 4]] * 2
    assert allocator.free_blocks == 40 - 5 - 2 * 3
    allocator.release(req)
    assert allocator.free_blocks == 40


def test_a_state_is_held_from_admission_to_the_end() -> None:
    allocator = MixedPaged(pool_of(12, 4, [(1, 0)], states=5))
    first, second = Request(0, 0.0, 7, 2), Request(1, 0.0, 3, 2)
    assert allocator.admit(first, 7)
    assert allocator.free_blocks == 12 - 5 - 2
    assert not allocator.admit(second, 3)
    assert allocator.free_blocks == 5
    assert len(allocator.states(first)) == 5
    allocator.release(first)
    assert allocator.admit(second, 3)
    assert "needs 15 KV blocks" in str(allocator.refusal(Request(2, 0.0, 30, 10)))


def test_sequences_of_one_request_have_a_state_each() -> None:
    allocator = MixedPaged(pool_of(20, 4, [(1, 0)], states=3))
    req = Request(0, 0.0, 4, 4)
    req.split(3)
    assert allocator.admit(req, 4)
    assert allocator.free_blocks == 20 - 1 - 3 * 3
    req.computed = 4
    assert req.group is not None
    for child in req.group.fork():
        child.computed = 4
        allocator.fork(req, child)
    assert allocator.free_blocks == 10
    assert len(allocator.copies) == 2 * 3
    allocator.release(req)
    assert allocator.free_blocks == 13


def cached(kinds: list[tuple[int, int]], prompt: int, states: int = 0) -> MixedPrefix:
    """A pool in which a request of so many tokens ran and ended, 64 blocks of 4 tokens."""
    allocator, done = MixedPrefix(pool_of(64, 4, kinds, states, 64)), asking(0, prompt)
    assert allocator.admit(done, prompt)
    done.computed = prompt
    done.finished = True
    allocator.release(done)
    return allocator


def asking(id: int, prompt: int, same: int | None = None) -> Request:
    """A request whose first `same` tokens (None: all) are those of the others."""
    units = (prompt if same is None else same) // 4
    return Request(id, 0.0, prompt, 2, prefix=SharedPrefix(tuple(range(units)), 4))


def test_a_hit_needs_the_rows_of_the_last_window_alone() -> None:
    """Window 9 in blocks of 4: token 40 attends from 32, so two rows of the window and ten of the full layers."""
    allocator = cached([(1, 0), (2, 9)], 41)
    later = asking(1, 45, 40)
    assert allocator.match(later) == 40
    later.computed = 40
    free = allocator.free_blocks
    assert allocator.admit(later, 5)
    full, one, two = allocator.tables(later)
    assert NULL_BLOCK not in full
    for table in (one, two):
        assert [at for at, block in enumerate(table) if block != NULL_BLOCK] == [8, 9, 10, 11]
    # 10 rows of one block and 2 rows of two leave the free queue; 2 new rows take three each.
    assert allocator.free_blocks == free - 10 - 2 * 2 - 2 * 3


def test_a_hit_is_cut_to_where_a_window_is_whole() -> None:
    allocator = cached([(1, 0), (1, 9)], 41)
    # Forget the window's rows 5 and 9: the longest prefix behind two whole rows ends with row 8.
    for row, of in list(allocator._key_of.items()):
        if of % 2 == 1 and (of // 2) & 0xFFFFFF in (5, 9):
            allocator._drop_key(row)
    assert allocator.match(asking(1, 45, 40)) == 36
    # Of a prompt that parts after row 5, rows 0 to 4 are left.
    assert allocator.match(asking(2, 45, 24)) == 20


def test_a_short_prefix_is_hit_from_its_start() -> None:
    assert cached([(1, 0), (1, 9)], 41).match(asking(1, 45, 4)) == 4
    assert cached([(1, 200)], 41).match(asking(1, 45, 40)) == 40


def test_a_prefix_that_the_full_layers_lost_is_no_hit() -> None:
    allocator = cached([(1, 0), (1, 9)], 41)
    for row, of in list(allocator._key_of.items()):
        if of % 2 == 0 and (of // 2) & 0xFFFFFF == 3:
            allocator._drop_key(row)
    assert allocator.match(asking(1, 45, 40)) == 12


def test_nothing_is_hit_beside_a_state() -> None:
    assert cached([(1, 0)], 41, states=2).match(asking(1, 45, 40)) == 0


def test_a_drafter_takes_the_last_hit_off() -> None:
    allocator = cached([(1, 0), (1, 9)], 41)
    allocator.drops_last_hit = True
    assert allocator.match(asking(1, 45, 40)) == 36
