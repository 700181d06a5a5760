"""What allocators do happens to real memory: sharing, copies on write, windows, sinks, swaps of any storage type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import pytest

pytest.importorskip("torch", reason="the live backend needs torch")
pytest.importorskip("safetensors", reason="checkpoints are safetensors files")

import torch
from engine_kit import workload
from live_kit import (
    ALLOCATORS,
    MEMORY,
    POOL,
    ROWS,
    SCANT,
    Deployment,
    check_all,
    check_greedy,
    poison,
    reference_logits,
    setup,
    tiny,
    work,
)

from backend.cache.kvcache import KvCache
from backend.live.sampling import Sampling
from backend.live.sequences import sequence_seed
from backend.model.model import ForwardBatch, Model, PrefillPart
from backend.torch_ops.sampling import sample
from sim.engine.batch import Batch, Limits, Outcome
from sim.engine.memory import KvPool
from sim.engine.request import SAMPLE_BITS
from sim.serving.executor import Executor

SAMPLES = [1, 3, 2, 1, 4, 1, 3, 2, 1, 2]
DRAWN = Sampling(temperature=0.8, top_k=20, top_p=0.9, seed=5)


@pytest.fixture(scope="module")
def drawn() -> dict[int, list[int]]:
    """Several answers to each prompt, drawn at random: each held to the rule and to the float64 logits."""
    served = Deployment(setup(pool=KvPool(400, 4, 40)), sampling=DRAWN).serve(work(samples=SAMPLES))
    assert len(served.answers) == sum(SAMPLES)
    for id, answer in served.answers.items():
        prompt, count = served.prompts[id], len(answer)
        logits = reference_logits("llama", [*prompt, *answer[:-1]])[len(prompt) - 1 :].float()
        expected = sample(
            logits,
            temperature=torch.full((count,), DRAWN.temperature),
            top_k=torch.full((count,), DRAWN.top_k),
            top_p=torch.full((count,), DRAWN.top_p),
            seeds=torch.full((count,), sequence_seed(DRAWN.seed, id)),
            positions=torch.arange(len(prompt), len(prompt) + count),
        )
        assert answer == expected.tolist()
    return served.answers


SOME = [
    *product(["static", "continuous", "priority", "sjf"], ["paged"]),
    *product(["chunked"], ALLOCATORS),
    ("static", "no-cache"),
    ("static", "contiguous-oracle"),
]


@pytest.mark.parametrize(("policy", "allocator"), SOME)
def test_what_a_sequence_draws_depends_on_its_number_and_place_alone(
    policy: str, allocator: str, drawn: dict[int, list[int]]
) -> None:
    """Under every policy and allocator; sequences of one request share blocks, copy them, or have copies from birth."""
    served = Deployment(setup(policy, allocator), sampling=DRAWN).serve(work(samples=SAMPLES))
    assert served.answers == drawn
    assert bool(served.executor.copied) == (allocator != "no-cache")


@pytest.mark.parametrize("allocator", ["paged", "contiguous-oracle"])
def test_a_prompt_that_ends_with_a_single_token_may_fork_too(allocator: str) -> None:
    """Then several sequences draw from one row of a step that looks like decoding."""
    rows, wild = workload([(0.0, 4, 2), (0.0, 6, 2)], samples=[4, 3]), Sampling(temperature=2.0, seed=1)
    whole = Deployment(setup(allocator=allocator, limits=Limits(7, 48)), sampling=wild).serve(rows).answers
    assert len({answer[0] for answer in whole.values()}) > 4
    assert Deployment(setup(allocator=allocator, limits=Limits(7, 1)), sampling=wild).serve(rows).answers == whole


@pytest.mark.parametrize(("allocator", "host_blocks"), MEMORY)
@pytest.mark.parametrize("policy", ["chunked", "continuous"])
def test_sequences_that_share_blocks_may_be_preempted(
    policy: str, host_blocks: int, allocator: str, drawn: dict[int, list[int]]
) -> None:
    tight = setup(policy, allocator, pool=SCANT, host_blocks=host_blocks)
    served = Deployment(tight, sampling=DRAWN).serve(work(samples=SAMPLES))
    assert served.answers == drawn
    assert served.engine.preemptions > 2
    assert served.executor.copied
    assert bool(served.executor.swapped) == bool(host_blocks)


def test_greedy_samples_are_alike_and_other_seeds_draw_otherwise(drawn: dict[int, list[int]]) -> None:
    greedy = Deployment(setup()).serve(work(samples=SAMPLES)).answers
    assert all(answer == greedy[id % (1 << SAMPLE_BITS)] for id, answer in greedy.items())
    other = Deployment(setup(), sampling=replace(DRAWN, seed=6)).serve(work(samples=SAMPLES)).answers
    assert sum(other[id] == drawn[id] for id in drawn) < 3
    several = [drawn[4 + (number << SAMPLE_BITS)] for number in range(4)]
    assert len(set(map(tuple, several))) > 2


WINDOWS = [
    ("static", 8, 0),
    ("static", 7, 2),
    ("continuous", 9, 4),
    ("chunked", 7, 2),
    ("chunked", 5, 5),
    ("chunked", 64, 3),
]


@pytest.mark.parametrize(("policy", "window", "sinks"), WINDOWS)
def test_a_window_and_sinks_are_attended_and_nothing_else(policy: str, window: int, sinks: int) -> None:
    """Blocks that fell out of the window go to others (and are NaN until then)."""
    parameters = {"window_tokens": window, "sink_tokens": sinks}
    short = setup(policy, "windowed", pool=KvPool(34, 4, 40), allocator_parameters=parameters)
    served = Deployment(short, model=tiny("llama", window, sinks)).serve(work())
    check_all(served, ROWS, window=window, sinks=sinks)


def test_a_windows_samples_share_and_copy_too() -> None:
    parameters = {"window_tokens": 7, "sink_tokens": 2}
    short = setup("chunked", "windowed", pool=KvPool(60, 4, 40), allocator_parameters=parameters)
    served = Deployment(short, model=tiny("llama", 7, 2)).serve(work(samples=SAMPLES))
    check_all(served, ROWS, window=7, sinks=2)
    assert served.executor.copied


def test_a_models_own_window_runs_with_every_allocator() -> None:
    """Mistral's window of 7: held whole by the paged allocator, in part by the windowed one."""
    model = tiny("mistral")
    found = []
    for allocator, pool in (
        ("paged", POOL),
        ("windowed", replace(POOL, window_tokens=7, window_layers=1, full_layers=0)),
    ):
        served = Deployment(setup(allocator=allocator, pool=pool), model=model).serve(work())
        logits = partial(reference_logits, "mistral", window=7)
        for id, answer in served.answers.items():
            check_greedy(served.prompts[id], answer, logits)
        found.append(served.answers)
    assert found[0] == found[1]


def recomputed(model: Model, tokens: Sequence[int], block_tokens: int) -> KvCache:
    """A cache in which these tokens, and nothing else, were computed in one go, from block 1 on."""
    count, blocks = len(tokens), -(-len(tokens) // block_tokens)
    cache = KvCache.allocate(model.spec, blocks, block_tokens)
    poison(cache, range(blocks + 1))

    def ints(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    at = torch.arange(count)
    prefill = PrefillPart(ints(0, count), ints(count), ints(*range(1, blocks + 1))[None], count)
    slots = (at + block_tokens).int()
    model.forward(ForwardBatch(torch.tensor(tokens), at, slots, ints(count - 1), prefill, None), cache)
    return cache


@pytest.mark.parametrize(("allocator", "samples"), [("paged", None), ("prefix", SAMPLES), ("contiguous-pow2", SAMPLES)])
def test_the_cache_holds_what_the_tables_say(allocator: str, samples: list[int] | None) -> None:
    """After every fourth step, the keys and values of everybody who runs are those of their own tokens."""
    checked = 0

    class Looking:
        def __init__(self, inner: Executor) -> None:
            self.inner: Any = inner

        def execute(self, batch: Batch) -> Outcome:
            nonlocal checked
            result = self.inner.execute(batch)
            if batch.first_step % 4 == 0:
                checked += sum(map(self.check, self.inner._engine.running))
            return result

        def check(self, req: Any) -> bool:
            engine, live, cache = self.inner._engine, self.inner._live, self.inner._cache
            computed = engine.roster.lockstep.computed(req) if req in engine.roster.lockstep else req.computed
            table = engine.allocator.table(req)
            if not computed or any(target in table for _, target in engine.allocator.copies):
                return False
            sequence = live.sequences.of(req)
            tokens = live.sequences.tokens(sequence.start + torch.arange(computed).numpy()).tolist()
            alone = recomputed(live.model, tokens, cache.block_tokens)
            blocks = list(table)[: alone.blocks]
            for mine, fresh in zip(cache.layers, alone.layers, strict=True):
                for held, expected in zip(mine.tensors(), fresh.tensors(), strict=True):
                    difference = held[blocks].flatten(0, 1)[:computed] - expected[1:].flatten(0, 1)[:computed]
                    assert difference.abs().max() < 2e-5
            return True

    children = work(samples=samples) if samples else work()
    host_blocks = 6 if allocator == "paged" else 0
    Deployment(setup(allocator=allocator, host_blocks=host_blocks)).serve(children, Looking)
    assert checked > 30


@pytest.mark.parametrize("kv_dtype", ["bf16", "int8", "fp8"])
def test_narrower_caches_are_moved_whole(kv_dtype: str) -> None:
    """Scales are copied and swapped with their blocks: preemption changes no token, whatever the storage type."""
    model = tiny()
    narrow = Model(replace(model.spec, kv_dtype=kv_dtype), model.config, model.weights)
    roomy = Deployment(setup(pool=KvPool(400, 4, 40)), model=narrow).serve(work(samples=SAMPLES))
    tight = setup(pool=SCANT, host_blocks=90)
    served = Deployment(tight, model=narrow).serve(work(samples=SAMPLES))
    assert served.answers == roomy.answers
    assert served.executor.swapped
