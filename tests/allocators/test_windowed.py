"""The windowed allocator: what falls out of the window is given back, and nothing that a token still attends.

The watchers of `law_watchers.py` follow each block's content in every group of layers; here they learn what a token
attends (Jiang et al. 2023, section 2; Xiao et al. 2023, section 3.2) and count what attention has to read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from engine_kit import Setup, run, slivers
from hypothesis import given, settings
from hypothesis import strategies as st
from law_cases import EXAMPLES, Case, Chaos, Row, cases, laws
from law_watchers import Counters, check_nothing_leaked, same_decisions, watched
from window_watchers import WindowContents

from sim.allocators.windowed import Windowed
from sim.cost.step import Constant, Term
from sim.engine.batch import Batch, Limits, Shape
from sim.engine.flight import Flight, Observer
from sim.engine.memory import NULL_BLOCK, KvPool
from sim.engine.request import Request
from sim.load import build, names
from sim.serving.replica import Replica
from traces.schema import InputError

few = settings(laws, max_examples=EXAMPLES or 12)
POLICIES = [name for name in names("sim.policies") if name != "speculative"]
LAYERS = [(1, 0), (1, 1), (1, 5), (2, 1)]
"""(full, windowed) layers; a model whose layers are all alike counts as (1, 0)."""


@dataclass(frozen=True)
class WindowCost:
    """A step costs by what its decode rows attend, with and without the window."""

    base_s: float = 0.001
    per_token_s: float = 0.00003

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        within, growth = shape.decode_window_context, shape.decode_window_growth
        fixed = self.base_s + self.per_token_s * sum(new for new, _ in shape.prefills)
        return [fixed + self.per_token_s * (within + growth * step) for step in range(repeats)], 0.0

    def explain(self, shape: Shape) -> dict[str, Term]:
        return {"step": Term(self.span_s(shape, 1)[0][0], "fixed")}

    def describe(self) -> list[Constant]:
        return []


class WindowShapes(Observer):
    """What the decode rows of every single step attend, counted row by row."""

    def __init__(self, window_tokens: int, *, padded: bool) -> None:
        self.window_tokens = window_tokens
        self.padded = padded
        self._contexts: list[int] = []
        self.saturations = 0

    def planned(self, replica: Replica, batch: Batch) -> None:
        contexts = [past + 1 for _, tokens, past in slivers(replica.engine, batch) if tokens == 1 and past]
        if self.padded and batch.shape.decodes:
            contexts = [batch.shape.decode_context // batch.shape.decodes] * batch.shape.decodes
        self._contexts = [] if batch.shape.prefills and self.padded else contexts
        assert batch.shape.decodes == len(self._contexts)
        assert batch.shape.decode_context == sum(self._contexts)

    def sealed(self, replica: Replica, flight: Flight) -> None:
        shape, window = flight.batch.shape, self.window_tokens
        growing = [context < window for context in self._contexts]
        assert shape.decode_window_growth == sum(growing)
        for step in range(flight.batch.repeats):
            attended = sum(min(context + step, window) for context in self._contexts)
            assert shape.decode_window_context + step * shape.decode_window_growth == attended
        self.saturations += any(growing) and any(
            context + flight.batch.repeats - 1 == window for context in self._contexts
        )


# ---- the laws -------------------------------------------------------------------------------------------------------


@st.composite
def windows(draw: st.DrawFn, policy: Any, most_samples: int = 1) -> Case:
    """A case whose pool holds little more than the largest request needs, and windows shorter than most requests."""
    case = draw(cases(policy, "windowed", most_samples))
    size = case.setup.pool.block_tokens
    full, windowed = draw(st.sampled_from(LAYERS))
    recent, sinks = draw(st.integers(size, 20)), draw(st.sampled_from([0, 0, 1, 4, 9]))
    limits = replace(case.setup.limits, max_num_seqs=draw(st.sampled_from([5, 8])))
    setup = replace(
        case.setup,
        limits=limits,
        allocator_parameters={"window_tokens": recent, "sink_tokens": sinks},
        cost=draw(st.sampled_from([case.setup.cost, WindowCost()])),
        window_tokens=recent + sinks,
        host_blocks=0,
    )

    def with_blocks(blocks: int) -> Setup:
        step_tokens = limits.max_num_batched_tokens
        pool = KvPool(blocks, size, 64, max_step_tokens=step_tokens, full_layers=full, window_layers=windowed)
        return replace(setup, pool=pool)

    roomy = replace(case, setup=with_blocks(1000)).admissible()
    fewest = 1
    while any(with_blocks(fewest).engine().refusal(req) for req in (roomy.requests() if roomy.rows else ())):
        fewest += 1
    return replace(roomy, setup=with_blocks(fewest + draw(st.integers(0, 6))))


def keeps_the_laws(case: Case) -> int:
    """Run a case with every law checked; returns the preemptions."""
    shapes = WindowShapes(case.setup.window_tokens, padded=case.setup.policy == "static")
    counters = Counters(case)
    done = run(case.setup, case.workload(), [counters, WindowContents(case), shapes])
    counters.check_end(done)
    check_nothing_leaked(done.engine, 0)
    same_decisions(done, run(replace(case.setup, spans=False), case.workload()))
    return done.engine.preemptions


@pytest.mark.parametrize("most_samples", [1, 4])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_keeps_the_laws_within_a_window(policy: str, most_samples: int) -> None:
    @few
    @given(windows(policy, most_samples))
    def keeps(case: Case) -> None:
        if case.rows:
            keeps_the_laws(case)

    keeps()


@few
@given(windows(None, 4), st.integers(0, 2**32), st.booleans(), st.booleans())
def test_a_chaotic_policy_breaks_no_law_within_a_window(case: Case, seed: int, holds: bool, every_step: bool) -> None:
    if case.rows:
        chaos = Chaos(seed, every_step=every_step, holds_finished=holds)
        watched(replace(case, setup=replace(case.setup, policy=chaos)), WindowContents)


def test_the_laws_meet_preemptions_and_windows_that_fill() -> None:
    preemptions = saturations = 0
    for seed in range(6):
        pool = KvPool(8, 4, 64, max_step_tokens=16, full_layers=1, window_layers=seed % 3)
        setup = Setup(
            allocator="windowed",
            allocator_parameters={"window_tokens": 9},
            pool=pool,
            limits=Limits(6, 16),
            cost=WindowCost(),
            depth=1 + seed % 2,
            window_tokens=9,
        )
        case = Case(setup, [Row(0.002 * at, 3 + 5 * (at % 3), 18 - at) for at in range(6)], 4)
        shapes = WindowShapes(9, padded=False)
        done = run(setup, case.workload(), [shapes])
        preemptions += done.engine.preemptions
        saturations += shapes.saturations
    assert preemptions >= 5
    assert saturations >= 5


@pytest.mark.parametrize("policy", POLICIES)
@few
@given(data=st.data())
def test_a_window_that_nothing_fills_is_paging(policy: str, data: st.DataObject) -> None:
    case = data.draw(cases(policy, "paged", 3))
    setup = replace(case.setup, allocator_parameters={}, host_blocks=0)
    case = replace(case, setup=setup).admissible()
    if not case.rows:
        return
    windowed = replace(setup, allocator="windowed", allocator_parameters={"window_tokens": 10_000})
    one, other = watched(case), watched(replace(case, setup=windowed), WindowContents)
    same_decisions(one, other)
    for name in one.table:
        assert one.table[name].tolist() == other.table[name].tolist(), name


# ---- by hand --------------------------------------------------------------------------------------------------------


def allocated(tokens: int, layers: tuple[int, int] = (1, 0), sink_tokens: int = 0) -> tuple[Windowed, Request]:
    """A request that has computed so many tokens, one chunk, in blocks of 4 under a window of 6."""
    pool = KvPool(20, 4, full_layers=layers[0], window_layers=layers[1])
    allocator = Windowed(pool, window_tokens=6, sink_tokens=sink_tokens)
    req = Request(0, 0.0, 100, 100)
    assert allocator.grow(req, tokens)
    req.computed = tokens
    return allocator, req


def test_blocks_go_when_a_new_one_is_taken() -> None:
    allocator, req = allocated(15)
    assert list(allocator.table(req)) == [1, 2, 3, 4]
    # Token 15 attends 10 to 15, but needs no block: nothing is given back.
    assert allocator.grow(req, 1)
    assert list(allocator.table(req)) == [1, 2, 3, 4]
    req.computed = 16
    # Token 16 attends 11 to 16.
    assert allocator.grow(req, 1)
    assert list(allocator.table(req)) == [NULL_BLOCK, NULL_BLOCK, 3, 4, 5]
    assert allocator.free_blocks == 17
    req.computed = 17
    allocator.release(req)
    assert allocator.free_blocks == 20


def test_sinks_stay() -> None:
    allocator, req = allocated(16, sink_tokens=3)
    assert allocator.grow(req, 1)
    assert list(allocator.table(req)) == [1, NULL_BLOCK, 3, 4, 5]
    assert allocator.window_span_tokens == 9


def test_layers_with_full_attention_keep_their_table() -> None:
    # Of 6 layers 2 attend all: a unit of one such group and two with the window, and blocks a third as large.
    allocator, req = allocated(16, (2, 4))
    assert [tuple(group) for group in allocator.groups] == [(1, 0), (2, 6)]
    assert allocator.pool.blocks == 60
    assert allocator.grow(req, 1)
    full, *windowed = allocator.tables(req)
    assert len(full) == 5
    assert NULL_BLOCK not in full
    assert [[at for at, block in enumerate(table) if block] for table in windowed] == [[2, 3, 4]] * 2
    assert allocator.free_blocks == 60 - 5 - 2 * 3


def test_blocks_of_mixed_layers_are_as_large_as_a_group() -> None:
    pool = KvPool(10, 16, block_bytes=6000, full_layers=1, window_layers=5, window_tokens=32)
    allocator = Windowed(pool)
    assert (allocator.pool.blocks, allocator.pool.block_bytes) == (60, 1000)
    assert allocator.recent_tokens == 32


def test_the_longest_request_needs_no_more_than_window_and_step() -> None:
    pool = KvPool(100, 16, max_step_tokens=64)
    allocator = Windowed(pool, window_tokens=128, sink_tokens=4)
    # A sink's block, (128 + 64) / 16 rows, and one more as neither begins at a block's edge.
    assert allocator.refusal(Request(0, 0.0, 100_000, 1000)) is None
    small = Windowed(KvPool(13, 16, max_step_tokens=64), window_tokens=128, sink_tokens=4)
    assert "needs 14 KV blocks" in str(small.refusal(Request(0, 0.0, 100_000, 1000)))


def test_a_long_request_runs_in_a_pool_of_the_window() -> None:
    parameters = {"window_tokens": 32, "sink_tokens": 4}
    setup = Setup(
        allocator="windowed",
        allocator_parameters=parameters,
        pool=KvPool(8, 8, max_step_tokens=16),
        limits=Limits(4, 16),
        window_tokens=36,
    )
    done = run(setup, Case(setup, [Row(0.0, 2000, 500)], 4).workload())
    assert done.engine.preemptions == 0
    assert done.table["kv_used_tokens"].max() <= 8 * 8


def test_a_span_ends_where_memory_comes_back() -> None:
    """The first new block after a long prompt drops three: the one who waits is admitted in that step."""
    setup = Setup(
        allocator="windowed",
        allocator_parameters={"window_tokens": 4},
        pool=KvPool(6, 4, 64, max_step_tokens=64),
        window_tokens=4,
    )
    case = Case(setup, [Row(0.0, 13, 9), Row(0.0, 9, 2)], 4)
    done = watched(case, WindowContents)
    assert done.steps[4] == [(0, 1, 16), (1, 9, 0)]
    same_decisions(done, watched(case.without_spans(), WindowContents))


def test_attention_within_a_window_costs_a_constant() -> None:
    setup = Setup(
        allocator="windowed",
        allocator_parameters={"window_tokens": 20},
        pool=KvPool(64, 4, max_step_tokens=64),
        cost=WindowCost(),
        window_tokens=20,
    )
    done = run(setup, Case(setup, [Row(0.0, 10, 40)], 4).workload())
    step_s = np.diff(done.ends_s, prepend=0.0)
    # After the prompt, steps attend 11, 12, ... 20 tokens, and then 20 for ever.
    attended = [min(11 + step, 20) for step in range(39)]
    np.testing.assert_allclose(step_s[1:], [0.001 + 0.00003 * tokens for tokens in attended])
    assert done.table["repeats"].tolist() == [1, 10, 29]


@pytest.mark.parametrize(
    ("pool", "parameters", "message"),
    [
        (KvPool(8, 16), {}, "this model has none"),
        (KvPool(8, 16), {"window_tokens": 15}, "less than a block of 16 tokens"),
        (KvPool(8, 16, window_tokens=8), {}, "less than a block of 16 tokens"),
        (KvPool(8, 16), {"window_tokens": -1}, "at least 0"),
        (KvPool(8, 16), {"window_tokens": 32, "sink_tokens": -1}, "at least 0"),
    ],
)
def test_impossible_windows_are_refused(pool: KvPool, parameters: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("sim.allocators", "windowed", parameters, pool)
