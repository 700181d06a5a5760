"""Each rule in which vLLM 0.33 differs from 0.19, and each setting that it added, in a schedule worked out by hand."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from drafting_kit import drafting, run_drafts
from hypothesis import given
from hypothesis import strategies as st
from law_cases import cases, laws, pressed
from law_watchers import same_decisions, watched

from sim.engine.flight import Flight, ObservedReplica, Observer
from sim.engine.rules import OF_VLLM_0_19, OF_VLLM_0_33, Rules
from sim.validate.schedules.replay import ScheduleReplay
from traces.schema import InputError

NGRAM = {"method": "ngram", "num_speculative_tokens": 3}
EAGLE = {"method": "eagle", "num_speculative_tokens": 3}


def steps(rules: Rules, requests: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    """Blocks and prefix units of 4 tokens, 20 blocks beside the null block, a budget of 16; arrivals in steps."""
    limits = {
        "policy": "fcfs",
        "num_gpu_blocks": 21,
        "block_size": 4,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        "max_model_len": 64,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": False,
        "scheduler_reserve_full_isl": True,
        "long_prefill_token_threshold": 0,
        "async_scheduling": False,
        "speculative": None,
    }
    cost = {"base_ns": 1000, "per_token_ns": 0, "per_context_token_ns": 0}
    rows = [{"id": at, "arrival_step": 0, "accept": [3], "draft": [3], **row} for at, row in enumerate(requests)]
    scenario = {"settings": {**limits, **settings}, "step_time": cost, "prefix_unit_tokens": 4, "requests": rows}
    replay = ScheduleReplay(scenario, rules)
    replay.run()
    return replay.steps


def asked(prompt: int, output: int = 1, at: int = 0, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "output": output, "arrival_step": at, **more}


def both(rule: str, *given: Any, **settings: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(with the one rule alone, without it)."""
    return steps(replace(OF_VLLM_0_19, **{rule: True}), *given, **settings), steps(OF_VLLM_0_19, *given, **settings)


def shares(told: list[dict[str, Any]]) -> list[list[list[int]]]:
    return [step["sched"] for step in told]


def test_a_threshold_does_not_cap_a_lone_request() -> None:
    new, old = both("lone_request_uncapped", [asked(10)], long_prefill_token_threshold=4)
    assert (shares(new), shares(old)) == ([[[0, 10, 0]]], [[[0, 4, 0]], [[0, 4, 4]], [[0, 2, 8]]])
    new, old = both("lone_request_uncapped", [asked(10), asked(4)], long_prefill_token_threshold=4)
    assert new[0]["sched"] == old[0]["sched"] == [[0, 4, 0], [1, 4, 0]]
    assert (new[1]["sched"], old[1]["sched"]) == ([[0, 6, 4]], [[0, 4, 4]])


def test_blocks_without_a_hash_are_taken_next() -> None:
    """The first ends in step 0, the second takes what it gave back: all of it, or the partly filled block alone."""
    rule = "unhashed_blocks_first"
    new, old = both(rule, [asked(6), asked(9, at=1)])
    assert new[0]["blocks"] == old[0]["blocks"] == {"0": [1, 2]}
    assert (new[1]["blocks"], old[1]["blocks"]) == ({"1": [2, 1, 3]}, {"1": [3, 4, 5]})
    new, old = both(rule, [asked(6), asked(9, at=1)], enable_prefix_caching=True)
    assert (new[1]["blocks"], old[1]["blocks"]) == ({"1": [2, 3, 4]}, {"1": [3, 4, 5]})


def test_blocks_with_a_hash_outlive_others() -> None:
    """The first leaves one of two blocks with a hash; of two short requests each takes the other one, or one each."""
    rows = [asked(7, prefix=[[0, 1]]), asked(3, at=1), asked(3, at=2), asked(7, at=3, prefix=[[0, 1]])]
    new, old = both("unhashed_blocks_first", rows, enable_prefix_caching=True, num_gpu_blocks=3)
    assert (new[3].get("hit"), old[3].get("hit")) == ([[3, 4]], None)


def test_who_gives_way_itself_does_not_end_the_scan() -> None:
    """Three blocks: in step 2 the first request needs its second and, having the largest number, gives way."""
    rows = [asked(3, 4, priority=9), asked(8, 2, at=1)]
    new, old = both("scan_outlives_self_preemption", rows, num_gpu_blocks=4, policy="priority")
    assert new[1]["sched"] == old[1]["sched"] == [[0, 1, 3], [1, 8, 0]]
    assert new[2]["preempted"] == old[2]["preempted"] == [0]
    assert (new[2]["sched"], old[2]["sched"]) == ([[1, 1, 8]], [])


def test_an_admission_of_one_token_is_padded_with_placeholders() -> None:
    """The second request hits all but a token of its prompt; three drafts that nobody made are verified, all wrong."""
    rows = [asked(9, 12, accept=[0], prefix=[[0, 2]]), asked(9, 4, at=1, prefix=[[0, 2]])]
    new, old = both("pads_one_token_admissions", rows, speculative=NGRAM, enable_prefix_caching=True)
    assert (new[1]["sched"], old[1]["sched"]) == ([[0, 4, 9], [1, 4, 8]], [[0, 4, 9], [1, 1, 8]])
    assert (new[1]["spec"], old[1]["spec"]) == ([[0, 3, 0], [1, 3, 0]], [[0, 3, 0]])
    assert (new[1]["first"], new[2]["sched"]) == ([1], old[2]["sched"])
    assert new[2]["spec"] == old[2]["spec"] == [[0, 3, 0], [1, 3, 3]]
    tight = both("pads_one_token_admissions", rows, speculative=NGRAM, enable_prefix_caching=True,
                 max_num_scheduled_tokens=7)  # fmt: skip
    assert [[1, 4, 8] in step["sched"] for step in tight[0][1:3]] == [False, False]
    beside_a_prompt = [asked(60, 2), asked(9, 2, at=1, prefix=[[0, 2]]), asked(9, 2, at=6, prefix=[[0, 2]])]
    new, _ = both("pads_one_token_admissions", beside_a_prompt, speculative=NGRAM, enable_prefix_caching=True,
                  max_model_len=128)  # fmt: skip
    assert all(tokens in (1, 4) for step in new for id, tokens, past in step["sched"] if past == 8)


def test_a_drafters_slots_are_taken_at_admission_too() -> None:
    new, old = both("lookahead_at_admission", [asked(4, 6)], speculative=EAGLE)
    assert (new[0]["blocks"], old[0]["blocks"]) == ({"0": [1, 2]}, {"0": [1]})


def test_a_hash_that_looks_ahead_needs_no_block_dropped() -> None:
    """The second request goes on as the first behind both blocks of its prefix, the third parts behind the second."""
    rows = [asked(14, 9, prefix=[[0, 3]]), asked(14, 2, at=1, prefix=[[0, 3]]), asked(14, 2, at=2, prefix=[[0, 2]])]
    settings = {"speculative": EAGLE, "enable_prefix_caching": True, "max_num_batched_tokens": 40}
    new, old = both("hashes_look_ahead", rows, **settings)
    assert (new[1]["hit"], old[1]["hit"]) == ([[1, 8]], [[1, 8]])
    assert (new[2]["hit"], old[2]["hit"]) == ([[2, 4]], [[2, 4]])
    parting = [asked(14, 9, prefix=[[0, 3]]), asked(14, 2, at=1, prefix=[[0, 2], [9, 1]])]
    new, old = both("hashes_look_ahead", parting, **settings)
    assert (new[1]["hit"], old[1]["hit"]) == ([[1, 4]], [[1, 4]])
    whole = [asked(14, 9, prefix=[[0, 4]]), asked(14, 2, at=1, prefix=[[0, 4]])]
    new, old = both("hashes_look_ahead", whole, **settings)
    assert (new[1]["hit"], old[1]["hit"]) == ([[1, 12]], [[1, 8]])


# ---- settings of 0.33 -----------------------------------------------------------------------------------------------


def test_a_watermark_binds_admissions_beside_others_only() -> None:
    """int(0.5 x 9) = 4 of 8 blocks stay free; the first request takes 5 as it is alone, the second waits for it."""
    settings = {"num_gpu_blocks": 9, "watermark": 0.5, "max_num_batched_tokens": 32}
    told = steps(OF_VLLM_0_33, [asked(18, 2), asked(4)], **settings)
    assert shares(told) == [[[0, 18, 0]], [[0, 1, 18]], [[1, 4, 0]]]
    with pytest.raises(InputError, match="needs 9 KV blocks at its longest and the cache has 8"):
        steps(OF_VLLM_0_19, [asked(18, 2)], **settings)


def test_an_adaptive_threshold_is_an_even_share_of_the_budget() -> None:
    rows = [asked(20), asked(20)]
    told = steps(OF_VLLM_0_33, rows, long_prefill_token_threshold=2, long_prefill_token_threshold_adaptive=True)
    assert told[0]["sched"] == [[0, 8, 0], [1, 8, 0]]


def test_prompts_wait_out_the_interval_while_somebody_decodes() -> None:
    """The first prompt is computed in step 0; the second may come in step 3, and leaves nobody waiting."""
    rows = [asked(4, 9), asked(4, 2, at=1), asked(4, 2, at=4)]
    told = steps(OF_VLLM_0_33, rows, prefill_schedule_interval=3)
    assert [step.get("new") for step in told[:8]] == [[0], None, None, [1], None, None, [2], None]


def test_fewer_seats_and_a_smaller_budget() -> None:
    told = steps(OF_VLLM_0_33, [asked(10), asked(4)], max_num_active_seqs=1, max_num_scheduled_tokens=8)
    assert shares(told) == [[[0, 8, 0]], [[0, 2, 8]], [[1, 4, 0]]]


# ---- laws -----------------------------------------------------------------------------------------------------------

RULES = st.builds(Rules, **{rule.name: st.booleans() for rule in fields(Rules)})


@pytest.mark.parametrize("policy", ["chunked", "priority"])
@pytest.mark.parametrize("allocator", ["paged", "prefix"])
def test_spans_change_nothing_by_any_rules(policy: str, allocator: str) -> None:
    @laws
    @given(cases(policy, allocator), RULES)
    def keeps(case: Any, rules: Rules) -> None:
        case = replace(case, setup=replace(case.setup, rules=rules)).admissible()
        if case.rows:
            same_decisions(watched(case), watched(case.without_spans()))

    keeps()


@pytest.mark.parametrize("allocator", ["paged", "prefix"])
@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_drafts_are_served_to_the_end_by_the_rules_of_0_33(allocator: str, lookahead: bool, depth: int) -> None:
    padded = 0
    for seed in range(6):
        case = drafting(pressed(seed, "chunked", allocator), lookahead=lookahead, rules=OF_VLLM_0_33, depth=depth)
        counter = Padded()
        done = run_drafts(case.setup, case.workload(), [counter])
        padded += counter.rows
        assert done.engine.allocator.free_blocks == case.setup.pool.blocks
        assert {req.id for req in done.requests} == set(range(len(case.rows)))
        assert all(req.confirmed == req.output_tokens for req in done.requests)
    assert padded or allocator == "paged"


class Padded(Observer):
    """Counts admissions with placeholders, and sees that none of these is right."""

    rows = 0

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        for sampled, accepted in zip(flight.batch.sampled, flight.outcome.accepted or (), strict=False):
            if not sampled.real:
                assert accepted == 0
                self.rows += 1
