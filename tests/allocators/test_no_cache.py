"""Without a KV cache every step computes all tokens that are known: what the cache saves, counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from engine_kit import Setup, run
from hypothesis import given, settings
from law_cases import EXAMPLES, Case, Row, cases, laws
from law_watchers import same_decisions, sequences

from sim.cost.fixed import FixedCost
from sim.engine.batch import Batch, Limits
from sim.engine.flight import Flight, Observer
from sim.engine.memory import KvPool, Usage
from sim.engine.request import Request
from sim.load import names
from sim.serving.replica import Replica

few = settings(laws, max_examples=EXAMPLES or 15)
POLICIES = [name for name in names("sim.policies") if name != "speculative"]


class Recomputation(Observer):
    """Each share of a step is all that is known of its sequence, from the first token on."""

    def __init__(self, case: Case) -> None:
        self.known = {id: req.prompt_tokens for req in case.requests() for id in sequences(req)}
        self.budget = case.setup.limits.max_num_batched_tokens
        self.padded = case.setup.policy == "static"
        self.pool_tokens = case.setup.pool.tokens

    def planned(self, replica: Replica, batch: Batch) -> None:
        assert not batch.lockstep
        assert batch.tokens <= self.budget
        for req, tokens, past in batch.entries:
            assert past == 0
            assert tokens == self.known[req.id]
            self.known[req.id] += 1
        for req in batch.first_tokens:
            self.known[req.id] = req.prompt_tokens + 1
        if not batch.empty:
            assert batch.shape.decodes == 0 or all(tokens == 1 for _, tokens, _ in batch.entries)
            assert all(past == 0 for _, past in batch.shape.prefills), "nothing is there to be attended"
            assert self.padded or batch.padding_tokens == 0

    def sealed(self, replica: Replica, flight: Flight) -> None:
        assert flight.batch.repeats == 1
        assert replica.engine.usage() == Usage(0, 0, 0, 0, 0, self.pool_tokens)


def computed_of(prompt: int, output: int) -> int:
    return sum(prompt + token for token in range(output))


def recomputes(case: Case) -> None:
    done = run(case.setup, case.workload(), [Recomputation(case)])
    tokens: dict[int, int] = {}
    for step in done.steps:
        for id, count, _ in step:
            tokens[id] = tokens.get(id, 0) + count
    for req in done.requests:
        assert tokens[req.id] == computed_of(req.prompt_tokens, req.output_tokens)
        for id in sequences(req)[1:]:
            # The other sequences begin with their second token: the prompt is computed once for all.
            assert tokens.get(id, 0) == computed_of(req.prompt_tokens, req.output_tokens) - req.prompt_tokens
        steps = [done.token_steps()[id] for id in sequences(req)]
        assert {len(one) for one in steps} == {req.output_tokens}
        assert req.finish_s == done.ends_s[max(one[-1] for one in steps)]
    assert done.engine.preemptions == 0
    same_decisions(done, run(replace(case.setup, spans=False), case.workload()))


@pytest.mark.parametrize("most_samples", [1, 4])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_step_computes_all_that_is_known(policy: str, most_samples: int) -> None:
    @few
    @given(cases(policy, "no-cache", most_samples))
    def keeps(case: Case) -> None:
        # A threshold would cut prompts, of which nothing stays; `sim.serving.assemble` refuses it.
        case = replace(case, setup=replace(case.setup, policy_parameters={}, host_blocks=0)).admissible()
        if case.rows:
            recomputes(case)

    keeps()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("beams", [False, True])
def test_all_sequences_of_a_request_are_computed_anew(policy: str, beams: bool, depth: int) -> None:
    setup = Setup(policy, "no-cache", pool=KvPool(8, 4), depth=depth)
    recomputes(Case(setup, [Row(0.0, 7, 5, samples=3, beams=beams), Row(0.0, 4, 9)], 4))


@pytest.mark.parametrize(("prompt", "output"), [(1, 1), (1, 40), (30, 1), (30, 40)])
def test_an_answer_of_n_tokens_costs_n_passes(prompt: int, output: int) -> None:
    setup = Setup(allocator="no-cache", cost=FixedCost(0.0, per_token_s=1.0))
    done = run(setup, Case(setup, [Row(0.0, prompt, output)], 4).workload())
    assert done.table["prefill_tokens"].sum() + done.table["decode_requests"].sum() == computed_of(prompt, output)
    assert done.requests[0].finish_s == computed_of(prompt, output)
    assert done.table["decode_context_tokens"].sum() + done.table["prefill_past_tokens"].sum() == 0
    cached = replace(setup, allocator="paged")
    assert run(cached, Case(cached, [Row(0.0, prompt, output)], 4).workload()).requests[0].finish_s == (
        prompt + output - 1
    )


def test_a_padded_batch_computes_its_whole_rows() -> None:
    """The row of 9 tokens ends first; those of the other are still padded like it, and all of them are computed."""
    setup = Setup("static", "no-cache", policy_parameters={"batch_size": 2}, cost=FixedCost(0.0, per_token_s=1.0))
    done = run(setup, Case(setup, [Row(0.0, 9, 2), Row(0.0, 3, 5)], 4).workload())
    step_s = np.diff(done.ends_s, prepend=0.0)
    assert step_s.tolist() == [18, 20, 22, 24, 26]


@pytest.mark.parametrize("policy", ["chunked", "continuous"])
def test_prompts_beyond_one_step_are_refused(policy: str) -> None:
    engine = Setup(policy, "no-cache", limits=Limits(max_num_batched_tokens=64)).engine()
    assert engine.refusal(Request(0, 0.0, 60, 5)) is None
    for prompt, output in ((65, 1), (60, 6)):
        refusal = engine.refusal(Request(0, 0.0, prompt, output))
        assert refusal == ("without a KV cache its 65 tokens must fit in one step, and max_num_batched_tokens is 64")


def test_newcomers_are_admitted_beside_those_that_recompute() -> None:
    """Prefill-first batching, whose steps of prompts alone make the others wait: each newcomer has the next step."""
    setup = Setup("continuous", "no-cache")
    case = Case(setup, [Row(0.0, 5, 20), Row(0.0035, 5, 2)], 4)
    done = run(setup, case.workload())
    assert done.steps[4] == [(1, 5, 0)]
    assert done.steps[5] == [(0, 9, 0), (1, 6, 0)]


def test_memory_stays_empty() -> None:
    setup = Setup(allocator="no-cache", pool=KvPool(1, 1))
    done = run(setup, Case(setup, [Row(0.0, 50, 5)] * 3, 4).workload())
    assert (done.table["kv_free_tokens"] == 1).all()
