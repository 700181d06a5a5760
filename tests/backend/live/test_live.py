"""Live runs say the same whoever schedules, wherever the memory is, and whatever happens to a request on its way.

Every answer is held to a float64 forward of the whole text. Memory that nobody holds is NaN before each step.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

pytest.importorskip("torch", reason="the live backend needs torch")
pytest.importorskip("safetensors", reason="checkpoints are safetensors files")

import torch
from engine_kit import PlainPaged, Setup, workload
from hypothesis import given, settings
from hypothesis import strategies as st
from live_kit import (
    ALLOCATORS,
    LIMITS,
    MEMORY,
    POLICIES,
    POOL,
    ROWS,
    TIGHT,
    VOCAB,
    Deployment,
    check_all,
    setup,
    tiny,
    work,
)

from backend.cache.kvcache import KvCache
from backend.model.model import ForwardBatch, Model
from sim.engine.batch import Batch, Limits, Outcome
from sim.engine.memory import KvPool
from sim.engine.wiring import wire
from sim.load import build
from sim.serving.executor import Executor
from sim.serving.source import Workload
from traces.schema import InputError


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
    assert served.engine.host.free_blocks == host_blocks


@pytest.mark.parametrize("tokens", [1, 3, 7])
def test_prompts_may_be_cut_anywhere(tokens: int, answers: dict[int, list[int]]) -> None:
    """A budget of so many tokens, so that chunks begin and end within blocks; and the same cut by the policy."""
    small = setup(limits=Limits(max_num_seqs=3, max_num_batched_tokens=tokens), host_blocks=5)
    assert Deployment(small).serve(work()).answers == answers
    cut = replace(setup(), policy_parameters={"long_prefill_token_threshold": tokens})
    assert Deployment(cut).serve(work()).answers == answers


def test_an_allocator_with_nothing_but_the_protocol_is_served(answers: dict[int, list[int]]) -> None:
    """Tables of an unknown allocator are read whole: nothing is assumed of how they change."""

    class Mine(Setup):
        def engine(self) -> Any:
            return wire(build("sim.policies", "chunked", {}), PlainPaged(self.pool), self.limits, spans=False)

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
    given = [[37 * at + one for one in range(prompt)] for at, (_, prompt, _) in enumerate(ROWS)]
    served = Deployment(setup(), given=given).serve(work())
    assert served.prompts == {at: [token % VOCAB for token in tokens] for at, tokens in enumerate(given)}
    check_all(served, ROWS)


@pytest.mark.parametrize("allocator", ["paged", "no-cache"])
@pytest.mark.parametrize("policy", ["static", "chunked"])
def test_a_step_computes_as_much_as_its_shape_says(
    policy: str, allocator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a cost model prices is what the device does, padding of static batches included."""
    forward, seen = Model.forward, []

    def watch(model: Model, batch: ForwardBatch, cache: KvCache) -> torch.Tensor:
        seen.append(batch)
        return forward(model, batch, cache)

    class Comparing:
        def __init__(self, inner: Executor) -> None:
            self.inner = inner

        def execute(self, batch: Batch) -> Outcome:
            result, shape = self.inner.execute(batch), batch.shape
            made = seen.pop()
            assert len(made.tokens) == batch.tokens + batch.padding_tokens
            assert len(made.tokens) == shape.decodes + sum(tokens for tokens, _ in shape.prefills)
            lengths = made.prefill.kv_lens.tolist() if made.prefill else []
            if made.decode and not shape.prefills:
                attended = made.decode.kv_lens.tolist()
                padding = attended[batch.tokens :]
                assert padding == [shape.decode_context // shape.decodes] * batch.padding_tokens
                # Keys of a padded prompt are in no cache here, so that its own row attends fewer than the shape says.
                assert sum(attended) == shape.decode_context or policy == "static"
            elif policy == "static":
                # A short row's own tokens and its padding are two rows here; the second attends as much as any.
                assert lengths.count(shape.prefills[0][0]) == len(shape.prefills)
            else:
                assert sorted(lengths) == sorted(tokens + past for tokens, past in shape.prefills)
            return result

    monkeypatch.setattr(Model, "forward", watch)
    served = Deployment(setup(policy, allocator)).serve(work(), Comparing)
    assert bool(served.executor.padded) == (policy == "static")


@settings(max_examples=12)
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

        def execute(self, batch: Batch) -> Outcome:
            batch.repeats = 2
            return self.inner.execute(batch)

    with pytest.raises(ValueError, match="cannot be repeated unasked"):
        Deployment(setup()).serve(work(), Spanning)


def test_logits_that_are_not_finite_end_the_run_in_a_sentence() -> None:
    model = tiny()
    broken = replace(model.weights, final_norm=model.weights.final_norm * float("nan"))
    with pytest.raises(InputError, match=r"logits for request \d+ are not finite"):
        Deployment(setup(), model=Model(model.spec, model.config, broken)).serve(work())
