"""Recorded decode steps give the tokens of unrecorded ones: padding, size classes and reused buffers change nothing.

Here a recording is replayed by doing its work again on the same buffers; real CUDA graphs need a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch", reason="the live backend needs torch")
pytest.importorskip("safetensors", reason="checkpoints are safetensors files")

import numpy as np
import torch
from engine_kit import Setup, workload
from live_drafting_kit import Drafting, drafts, truncated
from live_kit import Deployment, poison, tiny, work
from torch import Tensor

from backend.cache.kvcache import KvCache
from backend.live.graphs import CudaRecorder, DecodeGraphs, Recording, size_classes
from backend.live.packing import BatchPart, DrawRows, Packed, Stage, pack
from backend.live.sampling import Sampler, Sampling
from backend.model.loader import random_model
from backend.model.model import Model
from sim.catalog import load_gpu, load_model
from sim.cost.roofline import Roofline, graph_tokens
from sim.engine.batch import Batch, Limits, Outcome
from sim.engine.memory import KvPool
from sim.serving.executor import Executor

DRAWN = Sampling(temperature=0.9, top_k=30, top_p=0.95, seed=2)
POOL = KvPool(60, 4, 48)
ROWS = [(0.0, 1, 9), (0.0, 14, 12), (0.0, 9, 17), (0.004, 20, 8), (0.006, 3, 21), (0.02, 6, 5), (0.02, 17, 15)]
SAMPLES = [2, 1, 3, 1, 2, 4, 1]


class Again:
    """Records work by remembering it; counts what is replayed, and on which sizes: whole steps, and pieces."""

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.replayed: list[int] = []
        self.pieces: list[int] = []

    def __call__(self, work: Callable[[], Tensor]) -> Recording:
        result = work().clone()
        rows, whole = len(result), result.ndim == 1
        if whole:
            self.recorded.append(rows)

        def replay() -> None:
            (self.replayed if whole else self.pieces).append(rows)
            result.copy_(work())

        return Recording(replay, result)


def test_sizes_are_those_that_a_prediction_pads_to() -> None:
    assert size_classes(1) == [1]
    assert size_classes(3) == [1, 2, 4]
    assert size_classes(30) == [1, 2, 4, 8, 16, 24, 32]
    assert size_classes(5000)[-1] == 512
    for most in (1, 7, 100, 300, 600):
        assert all(graph_tokens(rows) in size_classes(most) for rows in range(1, min(most, 512) + 1))


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN])
@pytest.mark.parametrize(
    ("policy", "allocator"),
    [("static", "paged"), ("continuous", "contiguous-oracle"), ("chunked", "prefix"), ("chunked", "no-cache")],
)
def test_recorded_steps_give_the_same_answers(policy: str, allocator: str, sampling: Sampling) -> None:
    parameters = {"batch_size": 7} if policy == "static" else {}
    setup = Setup(policy, allocator, parameters, pool=POOL, limits=Limits(7, 40))
    recorder = Again()
    work = workload(ROWS, samples=SAMPLES)
    plain = Deployment(setup, sampling=sampling).serve(work)
    recorded = Deployment(setup, sampling=sampling, recorder=recorder).serve(work)
    assert recorded.answers == plain.answers
    assert recorder.recorded == [8, 4, 2, 1]
    every = steps(recorded)
    decodes = [batch for batch in every if not batch["prefill_requests"]]
    assert set(recorder.pieces) <= set(size_classes(40))
    # Each step is recorded, as a whole or in one piece more than there are layers.
    assert len(recorder.replayed) + len(recorder.pieces) // (tiny().spec.layers + 1) == len(every)
    if allocator == "no-cache":
        assert not recorder.replayed
    else:
        assert len(set(recorder.replayed)) >= 3
        assert len(recorder.replayed) >= 0.9 * len(decodes) > 10


def steps(served: Any) -> list[Any]:
    return served.log.table().frame().to_dict("records")  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("draft", "temperature", "verified"),
    [(None, 0.8, True), (tiny(), 0.0, True), (truncated(), 0.0, True), (truncated(), 0.8, False)],
    ids=["n-grams", "itself", "first layer", "first layer, drawn"],
)
def test_recorded_drafts_and_their_verification_give_the_same_answers(
    draft: Model | None, temperature: float, verified: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole graphs verify where each row has all drafts and none is in doubt, and draft the best token; pieces do the
    rest."""
    widths: list[int] = []
    drafted: list[int] = []
    run, draw = DecodeGraphs.run, DecodeGraphs.draw

    def noted(graphs: DecodeGraphs, packed: Packed, stage: Stage) -> Tensor:
        widths.append(graphs._width)
        return run(graphs, packed, stage)

    def noted_draw(graphs: DecodeGraphs, tokens: Tensor, *rest: Any) -> Tensor:
        drafted.append(len(tokens))
        return draw(graphs, tokens, *rest)

    monkeypatch.setattr(DecodeGraphs, "run", noted)
    monkeypatch.setattr(DecodeGraphs, "draw", noted_draw)
    sampling, recorder = Sampling(temperature=temperature, top_k=20, seed=5), Again()
    found = [Drafting(drafts(), draft=draft, sampling=sampling, recorder=one).serve(work()) for one in (None, recorder)]
    assert found[0].answers == found[1].answers
    # Drafts too, though wrong ones would change no answer.
    assert found[0].engine.tally.verifies == found[1].engine.tally.verifies
    assert recorder.pieces
    assert (4 in widths) == verified
    assert bool(drafted) == (draft is not None and not temperature)


@pytest.mark.parametrize("draft", [None, truncated()], ids=["n-grams", "first layer"])
def test_a_step_is_launched_in_pieces_where_it_is_priced_so(
    draft: Model | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an engine that drafts: prompts, rows of different widths, of the most drafts, of fewer, and of none."""
    recorder, cost = Again(), Roofline(tiny().spec, load_gpu("h100"), verify_tokens=4)
    whole: list[Packed] = []
    run = DecodeGraphs.run

    def noted(graphs: DecodeGraphs, packed: Packed, stage: Stage) -> Tensor:
        whole.append(packed)
        return run(graphs, packed, stage)

    monkeypatch.setattr(DecodeGraphs, "run", noted)
    seen: Counter[tuple[str, bool]] = Counter()

    class Counted:
        def __init__(self, inner: Executor) -> None:
            self._inner = inner

        def execute(self, batch: Batch) -> Outcome:
            before, shape = len(whole), batch.shape
            outcome = self._inner.execute(batch)
            in_pieces = len(whole) == before
            assert in_pieces == cost.in_pieces(shape), shape
            widths = {width for width, *_ in shape.verifies} | ({1} if shape.decodes else set())
            seen["prompt" if shape.prefills else "unequal" if len(widths) > 1 else str(widths), in_pieces] += 1
            return outcome

    Drafting(drafts(), draft=draft, recorder=recorder).serve(work(), wrap=Counted)
    assert recorder.pieces
    assert {("prompt", True), ("unequal", True), ("{4}" if draft else "{1}", False)} <= set(seen), seen


@pytest.mark.parametrize("windows", [(), (7, 2)], ids=["full", "windows"])
def test_rows_of_different_widths_are_one_launch(windows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are priced: beside rows of one token; where layers have windows, they are run with the prompts."""
    model, calls = tiny("llama", *windows), Counter[str]()
    layers = model.spec.layers
    for name in ("decode_attention", "prefill_attention"):
        operation = getattr(model.ops, name)

        def noted(*args: Any, name: str = name, operation: Any = operation, **kwargs: Any) -> Any:
            calls[name] += 1
            return operation(*args, **kwargs)

        monkeypatch.setattr(model.ops, name, noted)
    unequal = 0

    class Counted:
        def __init__(self, inner: Executor) -> None:
            self._inner = inner

        def execute(self, batch: Batch) -> Outcome:
            nonlocal unequal
            calls.clear()
            outcome, shape = self._inner.execute(batch), batch.shape
            differ = len(shape.verifies) > 1
            unequal += differ
            prompts = bool(shape.prefills) or (differ and windows != ())
            rows = bool(shape.decodes) + bool(shape.verifies) - (differ and windows != ())
            assert (calls["prefill_attention"], calls["decode_attention"]) == (layers * prompts, layers * rows), shape
            return outcome

    Drafting(drafts(), model=model).serve(work(), wrap=Counted)
    assert unequal > 5


def test_a_window_with_sinks_and_preemption_is_recorded_too() -> None:
    parameters = {"window_tokens": 7, "sink_tokens": 2}
    setup = Setup("chunked", "windowed", {}, parameters, pool=KvPool(30, 4, 48), limits=Limits(7, 40))
    found = [
        Deployment(setup, model=tiny("llama", 7, 2), recorder=recorder).serve(workload(ROWS)).answers
        for recorder in (None, Again())
    ]
    assert found[0] == found[1]
    tight = Setup("chunked", "paged", pool=KvPool(12, 4, 48), limits=Limits(7, 40), host_blocks=8)
    found = [Deployment(tight, recorder=recorder).serve(workload(ROWS)).answers for recorder in (None, Again())]
    assert found[0] == found[1]


def test_prompts_cut_to_single_tokens_are_recorded_though_they_draw_nothing() -> None:
    setup = Setup("chunked", "paged", pool=POOL, limits=Limits(3, 1))
    recorder = Again()
    work = workload(ROWS[:3])
    plain = Deployment(setup).serve(work)
    recorded = Deployment(setup, recorder=recorder).serve(work)
    assert recorded.answers == plain.answers
    assert len(recorder.replayed) > sum(prompt for _, prompt, _ in ROWS[:3])


def decode_step(rows: int, context: int, draws: DrawRows | None = None, tables: bool = True) -> Packed:
    """Rows with `context` tokens each, the last of which is new, in blocks of their own."""
    blocks = -(-context // 4)
    table = (np.arange(rows * blocks).reshape(rows, blocks) + 1).astype(np.int32) if tables else None
    assert table is not None
    counts = np.ones(rows, np.int64)
    part = BatchPart(counts, counts * (context - 1), np.arange(rows, dtype=np.int32) + 3, table, rows)
    every = np.arange(rows)
    return pack(None, part, draws or DrawRows(every, every + 5, every * 0 + context), 4)


def held(model: Model, seed: int) -> KvCache:
    cache = KvCache.allocate(model.spec, 40, 4, model.device)
    made = torch.Generator().manual_seed(seed)
    for layer in cache.layers:
        for tensor in layer.tensors():
            tensor.copy_(torch.randn(tensor.shape, generator=made))
    poison(cache, [0])
    return cache


def drawn(model: Model, cache: KvCache, sample: Sampler, packed: Packed) -> list[int]:
    batch, seeds, positions = packed.on_device(Stage(model.device).send(packed.arrays()))
    tokens: list[int] = sample(model.forward(batch, cache), seeds, positions).tolist()
    return tokens


def test_a_smaller_step_after_a_larger_one_reads_nothing_of_it() -> None:
    """Buffers are shared by all sizes and hold what the step before left."""
    model, recorder, stage = tiny(), Again(), Stage(torch.device("cpu"))
    sample = Sampler(model.ops, DRAWN, 8, model.device)
    cache = held(model, 1)
    graphs = DecodeGraphs(model, cache, sample, recorder, 6, 12)
    for rows, context in [(6, 20), (3, 5), (1, 33), (4, 8), (2, 4), (5, 9), (6, 1)]:
        packed = decode_step(rows, context)
        assert graphs.serves(packed)
        assert graphs.run(packed, stage)[:rows].tolist() == drawn(model, cache, sample, packed)
    assert recorder.replayed == [8, 4, 1, 4, 2, 8, 8]


def test_what_cannot_be_replayed_is_not() -> None:
    model = tiny()
    graphs = DecodeGraphs(model, held(model, 1), Sampler(model.ops, DRAWN, 8, model.device), Again(), 6, 12)
    assert graphs.serves(decode_step(8, 4))
    assert not graphs.serves(decode_step(9, 4))
    some = DrawRows(np.array([1]), np.array([5]), np.array([4]))
    assert not graphs.serves(decode_step(3, 4, some))
    prefill = BatchPart(np.array([3]), np.array([0]), np.arange(3, dtype=np.int32), np.ones((1, 1), np.int32), 1)
    every = np.arange(3)
    assert not graphs.serves(pack(prefill, None, DrawRows(every, every, every), 4))


def test_recording_leaves_the_cache_as_it_is() -> None:
    model = tiny()
    cache, untouched = held(model, 3), held(model, 3)
    DecodeGraphs(model, cache, Sampler(model.ops, DRAWN, 8, model.device), Again(), 8, 12)
    for layer, same in zip(cache.layers, untouched.layers, strict=True):
        assert all(torch.equal(a[1:], b[1:]) for a, b in zip(layer.tensors(), same.tensors(), strict=True))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_a_gpu(dtype: str) -> Model:
    return random_model(load_model("tiny-llama").with_dtypes(dtype=dtype), "cuda", seed=3)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_on_a_gpu_graphs_draw_the_same_bits(dtype: str) -> None:
    """Real graphs, captured once, against the same steps launched one by one."""
    model, stage = on_a_gpu(dtype), Stage(torch.device("cuda"))
    sample = Sampler(model.ops, DRAWN, 8, model.device)
    cache = held(model, 1)
    for rows, context in [(6, 20), (3, 5), (1, 33), (6, 1)]:
        drawn(model, cache, sample, decode_step(rows, context))
    graphs = DecodeGraphs(model, cache, sample, CudaRecorder(), 6, 12)
    for rows, context in [(6, 20), (3, 5), (1, 33), (4, 8), (2, 4), (5, 9), (6, 1)]:
        packed = decode_step(rows, context)
        expected = drawn(model, cache, sample, packed.padded(graph_tokens(rows)))[:rows]
        assert graphs.run(packed, stage)[:rows].tolist() == expected


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("allocator", ["paged", "prefix"])
def test_on_a_gpu_a_live_run_answers_as_on_the_cpu(allocator: str) -> None:
    """fp32, greedy: whole runs with preemption, chunks and samples, with and without graphs."""
    setup = Setup("chunked", allocator, pool=KvPool(20, 16, 96), limits=Limits(7, 40))
    found = []
    for device, recorder in (("cpu", None), ("cuda", None), ("cuda", CudaRecorder())):
        model = random_model(load_model("tiny-llama"), "cpu", seed=3)
        if device == "cuda":
            model = moved(model)
        served = Deployment(setup, model=model, recorder=recorder).serve(workload(ROWS, samples=SAMPLES))
        assert all(result.device_s[0] > 0 for result in served.executor.results)
        found.append(served.answers)
    assert found[0] == found[1] == found[2]


def moved(model: Model) -> Model:
    """The same weights on the GPU, where a generator of random numbers would give others."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.cuda()
        if isinstance(value, list):
            return [move(one) for one in value]
        if hasattr(value, "__dataclass_fields__"):
            return replace(value, **{name: move(getattr(value, name)) for name in value.__dataclass_fields__})
        return value

    return Model(model.spec, model.config, move(model.weights))
