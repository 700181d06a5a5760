"""Live runs say the same whoever schedules, wherever the memory is, and whatever happens to a request on its way.

Every answer is held to a float64 forward of the whole text. Memory that nobody holds is NaN before each step.
"""

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
from engine_kit import PlainPaged, Setup, workload
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_kit import VOCAB, Deployment, Served, check_greedy, poison, reference_logits, tiny

from backend.kvcache import KvCache
from backend.model import ForwardBatch, Model, PrefillPart
from backend.sampling import Sampling
from backend.sequences import sequence_seed
from backend.torch_ops.sampling import sample
from sim.batch import Batch
from sim.cluster import Workload
from sim.engine import Limits
from sim.executor import Executor, StepResult
from sim.load import names
from sim.memory import KvPool
from sim.request import SAMPLE_BITS
from traces.schema import InputError

POLICIES = names("sim.policies")
ALLOCATORS = [name for name in names("sim.allocators") if name not in ("windowed", "contiguous")]
LIMITS = Limits(max_num_seqs=6, max_num_batched_tokens=48)
POOL = KvPool(48, 4, 40)
SCANT = KvPool(28, 4, 40)
TIGHT = KvPool(12, 4, 40)
# Prompts of one token, of a whole block, on either side of one; answers of one token; arrivals one by one and at once.
ROWS = [
    (0.0, 1, 25),
    (0.0, 4, 1),
    (0.0, 17, 22),
    (0.001, 8, 19),
    (0.002, 30, 9),
    (0.002, 3, 30),
    (0.01, 12, 13),
    (0.011, 5, 26),
    (0.02, 26, 11),
    (0.02, 16, 18),
]
PRIORITIES = [0, 2, 1, 0, 1, 2, 0, 0, 1, 2]
STATIC = {"batch_size": 6, "timeout_s": 0.003}


def work(**columns: Any) -> Workload:
    return workload(ROWS, priority=PRIORITIES, **columns)


def setup(policy: str = "chunked", allocator: str = "paged", **settings: Any) -> Setup:
    parameters = STATIC if policy == "static" else {}
    return Setup(policy, allocator, parameters, **{"pool": POOL, "limits": LIMITS, **settings})


def check_all(served: Served, rows: Sequence[Sequence[float]], **attention: int) -> None:
    """Every sequence of a greedy run has its length, and each token is the best one."""
    logits = partial(reference_logits, "llama", **attention)
    for id, answer in served.answers.items():
        assert len(answer) == rows[id % (1 << SAMPLE_BITS)][2]
        check_greedy(served.prompts[id], answer, logits)


@pytest.fixture(scope="module")
def answers() -> dict[int, list[int]]:
    """What the model says to each of `ROWS`: held to the reference here, so that other runs may be held to it."""
    served = Deployment(setup(pool=KvPool(400, 4, 40))).serve(work())
    check_all(served, ROWS)
    assert len({tuple(answer) for answer in served.answers.values()}) == len(ROWS)
    return served.answers


@pytest.mark.parametrize(("policy", "allocator"), list(product(POLICIES, ALLOCATORS)))
def test_every_policy_with_every_allocator_gives_the_same_answers(
    policy: str, allocator: str, answers: dict[int, list[int]]
) -> None:
    served = Deployment(setup(policy, allocator)).serve(work())
    assert served.answers == answers
    assert bool(served.executor.padded) == (policy == "static")


# Swapping and a findable prefix exclude one another.
MEMORY = [("paged", 0), ("paged", 5), ("paged", 90), ("prefix", 0)]


@pytest.mark.parametrize(("allocator", "host_blocks"), MEMORY)
@pytest.mark.parametrize("policy", ["continuous", "chunked", "priority", "sjf"])
def test_preempted_requests_go_on_as_if_nothing_had_been(
    policy: str, host_blocks: int, allocator: str, answers: dict[int, list[int]]
) -> None:
    """By recomputation, by swapping, and by both where host memory is short."""
    served = Deployment(setup(policy, allocator, pool=TIGHT, host_blocks=host_blocks)).serve(work())
    assert served.answers == answers
    assert served.engine.preemptions > 2
    assert bool(served.executor.swapped) == bool(host_blocks)
    assert served.engine.host_blocks_free == host_blocks


@pytest.mark.parametrize("tokens", [1, 3, 7])
def test_prompts_may_be_cut_anywhere(tokens: int, answers: dict[int, list[int]]) -> None:
    """A budget of so many tokens, so that chunks begin and end within blocks; and the same cut by the policy."""
    small = setup(limits=Limits(max_num_seqs=3, max_num_batched_tokens=tokens), host_blocks=5)
    assert Deployment(small).serve(work()).answers == answers
    cut = replace(setup(), policy_parameters={"long_prefill_token_threshold": tokens})
    assert Deployment(cut).serve(work()).answers == answers


def test_an_allocator_with_nothing_but_the_protocol_is_served(answers: dict[int, list[int]]) -> None:
    """Tables of an unknown allocator are read whole: nothing is assumed of how they change."""

    class Shuffling(PlainPaged):
        def table(self, req: Any) -> list[int]:
            return list(self._paged.table(req))

    class Mine(Setup):
        def engine(self) -> Any:
            engine = super().engine()
            engine.allocator = Shuffling(self.pool)
            engine._grouped = None
            return engine

    served = Deployment(Mine("chunked", pool=TIGHT, limits=LIMITS)).serve(work())
    assert served.answers == answers


def shared_prompts() -> Workload:
    """Requests whose prompts share beginnings: some at once, some after the others have gone."""
    rows = [(0.0, 22, 4), (0.0, 22, 5), (0.001, 26, 3), (0.001, 13, 6), (0.04, 30, 4), (0.05, 22, 5), (0.05, 9, 2)]
    ids = [[1, 2, 3], [1, 2, 4], [1, 2, 3], [1, 2], [1, 2, 3, 5], [9, 8], [1]]
    return workload(rows, prefix_ids=ids, prefix_unit_tokens=8)


@pytest.mark.parametrize("pool", [POOL, TIGHT])
@pytest.mark.parametrize("policy", ["static", "continuous", "chunked"])
def test_a_prefix_hit_finds_the_keys_and_values_it_stands_for(policy: str, pool: KvPool) -> None:
    work = shared_prompts()
    hit = Deployment(setup(policy, "prefix", pool=pool)).serve(work)
    plain = Deployment(setup(policy)).serve(work)
    assert hit.answers == plain.answers
    assert sum(req.prefix_hit_tokens for req in hit.requests.values()) >= 40
    assert not any(req.prefix_hit_tokens for req in plain.requests.values())
    assert hit.prompts[0][:22] == hit.prompts[2][:22]
    assert hit.prompts[0][:16] == hit.prompts[1][:16] != hit.prompts[5][:16]
    check_all(hit, list(zip(work.arrival_s, work.prompt_tokens, work.output_tokens, strict=True)))


def test_prompts_are_the_traces_own_where_it_tells_them() -> None:
    given = [[7 * at + one for one in range(prompt)] for at, (_, prompt, _) in enumerate(ROWS)]
    served = Deployment(setup(), given=given).serve(work())
    assert served.prompts == {at: [token % VOCAB for token in tokens] for at, tokens in enumerate(given)}
    check_all(served, ROWS)


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

        def execute(self, batch: Batch) -> StepResult:
            nonlocal checked
            result = self.inner.execute(batch)
            if batch.first_step % 4 == 0:
                checked += sum(map(self.check, self.inner._engine.running))
            return result

        def check(self, req: Any) -> bool:
            engine, live, cache = self.inner._engine, self.inner._live, self.inner._cache
            computed = engine.lockstep.computed(req) if req in engine.lockstep else req.computed
            table = engine.allocator.table(req)
            if not computed or any(target in table for _, target in engine.copies_asked):
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


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=8),
    policy=st.sampled_from(POLICIES),
    allocator=st.sampled_from(ALLOCATORS),
    blocks=st.integers(12, 30),
    block_tokens=st.sampled_from([1, 4, 5, 16]),
    budget=st.integers(42, 90),
    host_blocks=st.sampled_from([0, 8]),
    seed=st.integers(0, 3),
)
def test_any_workload_is_answered_as_the_reference_has_it(
    rows: list[tuple[int, int, int]],
    policy: str,
    allocator: str,
    blocks: int,
    block_tokens: int,
    budget: int,
    host_blocks: int,
    seed: int,
) -> None:
    pool = KvPool(-(-4 * blocks // block_tokens), block_tokens, 48)
    some = setup(policy, allocator, pool=pool, limits=Limits(5, budget), host_blocks=host_blocks)
    timed = sorted((at / 1000, prompt, output) for at, prompt, output in rows)
    served = Deployment(some, seed=seed).serve(workload(timed))
    check_all(served, timed)


def test_a_step_is_never_repeated_unasked(answers: dict[int, list[int]]) -> None:
    class Spanning:
        def __init__(self, inner: Executor) -> None:
            self.inner = inner

        def execute(self, batch: Batch) -> StepResult:
            batch.repeats = 2
            return self.inner.execute(batch)

    with pytest.raises(ValueError, match="cannot be repeated unasked"):
        Deployment(setup()).serve(work(), Spanning)


def test_logits_that_are_not_finite_end_the_run_in_a_sentence() -> None:
    model = tiny()
    broken = replace(model.weights, final_norm=model.weights.final_norm * float("nan"))
    with pytest.raises(InputError, match=r"logits for request \d+ are not finite"):
        Deployment(setup(), model=Model(model.spec, model.config, broken)).serve(work())
