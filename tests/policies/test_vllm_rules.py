"""Rules of vLLM 0.19's V1 scheduler where its switches meet, each in a schedule small enough to follow by hand.

What is expected here is what vLLM's own scheduler did with these very requests; blocks of 4 tokens, steps of 1,000 ns.
"""

from __future__ import annotations

from typing import Any

import pytest

from sim.allocators.prefix import Prefix
from sim.engine.memory import KvPool
from sim.engine.queues import KeyedQueue
from sim.engine.request import Request, Seat
from sim.policies.priority import Priority
from sim.validate.schedules.replay import ScheduleReplay

SETTINGS: dict[str, Any] = {
    "block_size": 4,
    "num_gpu_blocks": 9,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 16,
    "max_model_len": 64,
    "enable_chunked_prefill": True,
    "long_prefill_token_threshold": 0,
    "enable_prefix_caching": False,
    "scheduler_reserve_full_isl": True,
    "policy": "fcfs",
    "async_scheduling": False,
    "speculative": None,
}


def request(prompt: int, output: int, **more: Any) -> dict[str, Any]:
    return {"arrival_step": 0, "prompt": prompt, "output": output, **more}


def scenario(requests: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    return {
        "settings": SETTINGS | settings,
        "step_time": {"base_ns": 1000, "per_token_ns": 0, "per_context_token_ns": 0},
        "prefix_unit_tokens": 4,
        "requests": [{"id": at, **one} for at, one in enumerate(requests)],
    }


def steps(requests: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    """The steps of our engine, in the record's form."""
    recorder = ScheduleReplay(scenario(requests, **settings))
    recorder.run()
    return recorder.steps


def told(found: list[dict[str, Any]], *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(step.get(key) for key in keys) for step in found]


def eagle(drafts: int) -> dict[str, Any]:
    return {"method": "eagle", "num_speculative_tokens": drafts}


# Request 0 asks for a third block, and as the one of lowest priority gives way to itself: step 2 computes nothing.
HEAD_GIVES_WAY = [request(7, 3, priority=3), request(8, 3, priority=0, arrival_step=1)]


def test_a_synchronous_loop_takes_an_empty_step_in_before_the_next() -> None:
    found = steps(HEAD_GIVES_WAY, policy="priority", num_gpu_blocks=5)
    assert told(found, "t_sched", "t1", "free", "queues")[2:4] == [
        (2000, 2000, [2, 2], [[1, 1], [1, 1]]),
        (2000, 3000, [1, 1], [[1, 1], [1, 1]]),
    ]


def test_an_asynchronous_loop_takes_an_empty_step_in_after_the_next_was_scheduled() -> None:
    found = steps(HEAD_GIVES_WAY, policy="priority", num_gpu_blocks=5, async_scheduling=True)
    assert told(found, "sched", "t_sched", "t1", "free", "queues")[2:5] == [
        ([], 1000, 2000, [2, 1], [[1, 1], [1, 1]]),
        ([[1, 1, 8]], 2000, 3000, [1, 1], [[1, 1], [1, 1]]),
        ([[1, 1, 9]], 2000, 4000, [1, 4], [[1, 1], [0, 1]]),
    ]


def test_an_empty_step_at_the_end_is_taken_in_before_the_engine_idles() -> None:
    # Request 1 comes long after 0 has ended; the empty step 2 is seen to its end with request 0.
    found = steps([request(4, 2), request(4, 2, arrival_step=50)], async_scheduling=True)
    assert told(found, "i", "sched", "free", "queues")[2:4] == [
        (2, [], [6, 8], [[1, 0], [0, 0]]),
        (50, [[1, 4, 0]], [7, 6], [[1, 0], [1, 0]]),
    ]


def test_equal_priority_and_arrival_go_by_the_id_as_text() -> None:
    found = steps([request(1, 1)] * 12, policy="priority", max_num_seqs=1)
    assert [step["sched"][0][0] for step in found] == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]


def test_without_recorded_names_equals_go_in_the_order_of_the_trace() -> None:
    queue = KeyedQueue(Priority().queue_key)
    for number in (10, 2, 11, 1):
        queue.add(Request(number, 0.0, 4, 1))
    assert [req.id for req in queue] == [1, 2, 10, 11]


def test_arrivals_told_in_steps_keep_their_order_where_two_steps_are_planned_at_once() -> None:
    # Steps 0 and 1 are planned at the same moment; request 0 comes with the second of them.
    found = steps(
        [request(1, 2, arrival_step=1), request(1, 2), request(1, 2)],
        policy="priority",
        max_num_seqs=1,
        async_scheduling=True,
    )
    assert told(found, "t_sched", "waiting")[:2] == [(0, [2]), (0, [2, 0])]
    assert [step["new"] for step in found if "new" in step] == [[1], [2], [0]]


def test_right_drafts_are_findable_when_they_are_known_where_outputs_are_late() -> None:
    # At step 2 request 1 has three blocks filled by tokens that are known; EAGLE drops the last of them at step 4.
    found = steps(
        [request(5, 6, accept=[1], draft=[1]), request(10, 15, accept=[1], draft=[1])],
        num_gpu_blocks=8,
        enable_prefix_caching=True,
        async_scheduling=True,
        speculative=eagle(1),
    )
    assert told(found, "preempted", "resumed", "hit", "sched")[3:5] == [
        ([1], None, None, [[0, 2, 9]]),
        (None, [1], [[1, 8]], [[1, 7, 8]]),
    ]


def test_a_victim_that_was_served_in_the_step_has_named_the_block_it_filled() -> None:
    # Request 0 filled its second block in step 1, and got a third in step 2 before it gave way to request 1.
    found = steps(
        [request(7, 8), request(12, 2)],
        num_gpu_blocks=7,
        enable_prefix_caching=True,
        policy="priority",
        async_scheduling=True,
    )
    assert told(found, "preempted", "resumed", "hit", "sched")[2:5] == [
        ([0], None, None, [[1, 1, 12]]),
        (None, None, None, []),
        (None, [0], [[0, 8]], [[0, 1, 8]]),
    ]


def test_the_same_for_one_that_decodes_in_lockstep() -> None:
    # Request 0 takes its third block with the step that then takes all of them for request 1's prompt.
    found = steps(
        [request(7, 8), request(21, 2)],
        max_num_batched_tokens=10,
        enable_prefix_caching=True,
        policy="priority",
        async_scheduling=True,
    )
    assert told(found, "preempted", "hit", "sched")[2:6] == [
        ([0], None, [[1, 9, 12]]),
        (None, None, [[1, 1, 21]]),
        (None, None, []),
        (None, [[0, 8]], [[0, 1, 8]]),
    ]


@pytest.mark.parametrize(("early", "resumed", "hit"), [(False, 4, [[1, 8]]), (True, 5, [[1, 4]])])
def test_a_block_filled_in_the_last_step_is_named_once_its_last_token_is_known(
    early: bool, resumed: int, hit: list[list[int]]
) -> None:
    # Request 1 gives way to itself with two full blocks; where its last step is still under way, only one has a name.
    found = steps([request(4, 4), request(7, 8)], num_gpu_blocks=5, enable_prefix_caching=True, async_scheduling=early)
    assert told(found, "preempted", "sched")[2] == ([1], [[0, 1, 5]])
    assert told(found, "resumed", "hit")[resumed] == ([1], hit)


@pytest.mark.parametrize(
    ("decoding", "in_flight", "withdrawn", "keep", "hit"),
    [
        (8, 0, 0, False, 8),
        (8, 1, 0, False, 4),  # the token that fills the block is still to be sampled
        (9, 1, 0, False, 8),
        (8, 1, 1, False, 8),  # memory was given again since, when that token was known
        (7, 0, 1, True, 8),  # vLLM 0.19 finds a block whose last token was never computed
        (7, 0, 1, False, 4),
    ],
)
def test_what_a_preempted_request_finds_again(
    decoding: int, in_flight: int, withdrawn: int, keep: bool, hit: int
) -> None:
    prefix = Prefix(KvPool(8, 4), keep_uncomputed=keep)
    req = Request(0, 0.0, 5, 10)
    assert prefix.admit(req, 5)
    req.seat, req.computed, req.known = Seat(), 5, 6
    while req.computed < decoding:
        assert prefix.grow(req, 1)
        req.computed, req.known = req.computed + 1, req.known + 1
    if withdrawn:
        assert prefix.grow(req, 1)
    req.seat.in_flight, req.seat.withdrawn_tokens = in_flight, withdrawn
    prefix.release(req)
    req.computed, req.known = 0, 12
    assert prefix.match(req) == hit


def test_slots_ahead_of_a_drafter_end_with_the_longest_context() -> None:
    # 12 + 4 tokens are all that max_model_len allows: four blocks of the eight, and no fifth for EAGLE's three slots.
    found = steps([request(12, 4, accept=[0], draft=[3])], max_model_len=16, speculative=eagle(3))
    assert told(found, "free", "spec") == [
        ([5, 5], None),
        ([4, 4], [[0, 2, 0]]),
        ([4, 4], [[0, 1, 0]]),
        ([4, 8], None),
    ]


def test_a_pool_as_large_as_the_longest_context_serves_a_drafter() -> None:
    found = steps([request(12, 4, accept=[0], draft=[3])], max_model_len=16, num_gpu_blocks=5, speculative=eagle(3))
    assert [step["free"][0] for step in found] == [1, 0, 0, 0]


def test_nothing_is_scheduled_while_only_superfluous_drafts_are_under_way() -> None:
    # Step 1 gives both drafts right and the request its end; step 2, planned before that was known, is thrown away.
    found = steps([request(4, 3, accept=[2], draft=[2])], async_scheduling=True, speculative=eagle(2))
    assert told(found, "sched", "finished", "t1") == [
        ([[0, 4, 0]], None, 1000),
        ([[0, 3, 4]], [0], 2000),
        ([[0, 3, 7]], None, 3000),
    ]


def test_a_request_that_comes_meanwhile_is_scheduled_when_they_are_through() -> None:
    rows = [request(4, 3, accept=[2], draft=[2]), request(4, 1, accept=[2], draft=[2])]
    for row, arrival in zip(rows, (0, 2500), strict=True):
        row["arrival_ns"] = arrival
        del row["arrival_step"]
    found = steps(rows, async_scheduling=True, speculative=eagle(2))
    assert told(found, "t_sched", "arrived", "sched")[2:4] == [
        (1000, None, [[0, 3, 7]]),
        (3000, [1], [[1, 4, 0]]),
    ]


def test_a_victim_ahead_without_a_share_costs_the_next_its_turn() -> None:
    # At step 2 request 0 has its last token under way and gives way to request 1; vLLM 0.19 then passes over request 2.
    found = steps(
        [request(3, 2), request(7, 4), request(5, 4)], policy="priority", num_gpu_blocks=6, async_scheduling=True
    )
    assert told(found, "preempted", "sched")[2:4] == [
        ([0], [[1, 1, 8]]),
        (None, [[1, 1, 9], [2, 1, 6]]),
    ]


def test_it_costs_one_request_its_turn_and_no_more() -> None:
    found = steps(
        [request(3, 2), request(7, 4), request(5, 4), request(5, 4)],
        max_num_batched_tokens=32,
        policy="priority",
        num_gpu_blocks=8,
        async_scheduling=True,
    )
    assert told(found, "preempted", "sched")[2] == ([0], [[1, 1, 8], [3, 1, 6]])


def test_a_victim_that_had_its_share_costs_nobody_a_turn() -> None:
    found = steps([request(7, 8), request(12, 2), request(5, 8)], policy="priority", async_scheduling=True)
    assert told(found, "preempted", "sched")[2] == ([0], [[1, 1, 12], [2, 1, 5]])


def test_what_was_withdrawn_is_forgotten_after_the_preemption() -> None:
    recorder = ScheduleReplay(scenario([request(7, 8), request(12, 2)], policy="priority", num_gpu_blocks=7))
    recorder.run()
    assert any(req.preemptions for req in recorder.requests)
    assert {req.seat.withdrawn_tokens for req in recorder.requests} == {0}
