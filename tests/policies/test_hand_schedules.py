"""Schedules worked out by hand, a comment for each step; every step takes one second unless said otherwise.

A step is written as [(request, tokens, tokens computed before), ...] in admission order.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
from engine_kit import Run, Setup, Sliver, run, workload

from sim.cost.fixed import FixedCost
from sim.engine.batch import Batch, Limits
from sim.engine.flight import Observer
from sim.engine.memory import KvPool
from sim.engine.request import Request
from sim.engine.step import Step
from sim.serving.replica import Replica
from sim.serving.source import Workload

SECOND = FixedCost(base_s=1.0)
Timed = list[tuple[float, list[Sliver]]]


class Tables(Observer):
    """The block table of every running request after each planning."""

    def __init__(self) -> None:
        self.after_step: list[dict[int, list[int]]] = []

    def planned(self, replica: Replica, batch: Batch) -> None:
        if not batch.empty:
            engine = replica.engine
            self.after_step.append({req.id: list(engine.allocator.table(req)) for req in engine.running})


def timed_steps(done: Run) -> Timed:
    """(end, who computed what) of each single step."""
    return list(zip(done.ends_s.tolist(), done.steps, strict=True))


def check(setup: Setup, work: Workload, expected: Timed, finish_s: list[float], *watchers: Observer) -> Run:
    """Both one step at a time and in spans, the schedule is the expected one."""
    single = run(Setup(**{**vars(setup), "spans": False}), work)
    assert timed_steps(single) == expected
    done = run(setup, work, watchers)
    assert timed_steps(done) == expected
    assert done.column("finish_s").tolist() == finish_s
    return done


# ---- static ---------------------------------------------------------------------------------------------------------


def test_static() -> None:
    setup = Setup("static", policy_parameters={"batch_size": 3, "timeout_s": 10.0}, cost=SECOND)
    rows = [
        (0.0, 4, 2),
        (1.0, 6, 5),
        (3.0, 2, 3),
        (4.0, 5, 2),
        (4.5, 3, 4),
        (20.0, 8, 1),
        (20.0, 8, 1),
        (20.0, 8, 1),
        (20.0, 1, 1),
    ]
    expected: Timed = [
        # At 3.0 the third request comes and the batch starts: three rows, padded to 6 tokens.
        (4.0, [(0, 4, 0), (1, 6, 0), (2, 2, 0)]),
        # 0 makes its 2nd and last token; its row is computed on.
        (5.0, [(0, 1, 4), (1, 1, 6), (2, 1, 2)]),
        # 2 makes its 3rd and last.
        (6.0, [(1, 1, 7), (2, 1, 3)]),
        (7.0, [(1, 1, 8)]),
        # 1 makes its 5th: the batch ends at 8.
        (8.0, [(1, 1, 9)]),
        # Only 3 and 4 wait, so the next batch starts when 3 has waited for 10 s, at 14.
        (15.0, [(3, 5, 0), (4, 3, 0)]),
        (16.0, [(3, 1, 5), (4, 1, 3)]),
        (17.0, [(4, 1, 4)]),
        (18.0, [(4, 1, 5)]),
        # At 20 four come at once: three start, 8 waits out its 10 s alone.
        (21.0, [(5, 8, 0), (6, 8, 0), (7, 8, 0)]),
        (31.0, [(8, 1, 0)]),
    ]
    done = check(setup, workload(rows), expected, [5.0, 8.0, 6.0, 16.0, 18.0, 21.0, 21.0, 21.0, 31.0])

    single = run(Setup(**{**vars(setup), "spans": False}), workload(rows)).table
    # Rows times the longest prompt, less the tokens asked for: 18 - 12; then one idle row, then two.
    assert single["padding_tokens"].tolist() == [6, 0, 1, 2, 2, 2, 0, 1, 1, 0, 0]
    # Every row attends as far as the longest, whose length grows by one: 3 x 7, 8, 9, 10; then 2 x 6, 7, 8.
    assert single["decode_context_tokens"].tolist() == [0, 21, 24, 27, 30, 0, 12, 14, 16, 0, 1]
    assert single["prefill_tokens"].tolist() == [18, 0, 0, 0, 0, 10, 0, 0, 0, 24, 0]
    # The finished keep their KV while the batch runs: in step 3 it is 5 + 9 + 4 tokens.
    assert single["kv_used_tokens"].tolist()[3] == 18
    assert done.table["repeats"].tolist() == [1, 1, 1, 2, 1, 1, 2, 1, 1]


# ---- continuous -----------------------------------------------------------------------------------------------------

CONTINUOUS = workload([(0.0, 6, 4), (0.0, 3, 3), (0.0, 4, 2), (2.5, 5, 2), (3.0, 12, 2), (10.0, 2, 3), (10.5, 2, 2)])
THREE_SEATS = Limits(max_num_seqs=3, max_num_batched_tokens=10)


def test_continuous_prefill_first() -> None:
    setup = Setup("continuous", policy_parameters={"order": "prefill-first"}, limits=THREE_SEATS, cost=SECOND)
    expected: Timed = [
        # 6 + 3 tokens; the 4 of request 2 would exceed the budget of 10, and a prompt is not cut.
        (1.0, [(0, 6, 0), (1, 3, 0)]),
        # Prompts go first: 0 and 1 wait.
        (2.0, [(2, 4, 0)]),
        # Nobody waits: all decode; 2 has its 2nd and last token.
        (3.0, [(0, 1, 6), (1, 1, 3), (2, 1, 4)]),
        # 3 (2.5) and 4 (3.0, just in time) wait; one seat is free.
        (4.0, [(3, 5, 0)]),
        # 4 finds no seat, so all decode; 1 and 3 end.
        (5.0, [(0, 1, 7), (1, 1, 4), (3, 1, 5)]),
        # 4's prompt of 12 alone exceeds the budget and is cut, being the first of the step.
        (6.0, [(4, 10, 0)]),
        # A prompt under way is no reason to admit: it goes on beside the decoding of 0, which ends.
        (7.0, [(0, 1, 8), (4, 2, 10)]),
        (8.0, [(4, 1, 12)]),
        # Idle until 10; 6 comes at 10.5 and goes before the decoding of 5.
        (11.0, [(5, 2, 0)]),
        (12.0, [(6, 2, 0)]),
        (13.0, [(5, 1, 2), (6, 1, 2)]),
        (14.0, [(5, 1, 3)]),
    ]
    check(setup, CONTINUOUS, expected, [7.0, 5.0, 3.0, 5.0, 8.0, 14.0, 13.0])


def test_continuous_decode_first() -> None:
    setup = Setup("continuous", policy_parameters={"order": "decode-first"}, limits=THREE_SEATS, cost=SECOND)
    expected: Timed = [
        (1.0, [(0, 6, 0), (1, 3, 0)]),
        # Both decode; 8 tokens of budget are left for 2's prompt of 4.
        (2.0, [(0, 1, 6), (1, 1, 3), (2, 4, 0)]),
        # 1 and 2 end.
        (3.0, [(0, 1, 7), (1, 1, 4), (2, 1, 4)]),
        # 0 ends; 3 fits beside it, 4's prompt of 12 does not.
        (4.0, [(0, 1, 8), (3, 5, 0)]),
        # 4 would have to be cut, which only the first of a step may be.
        (5.0, [(3, 1, 5)]),
        (6.0, [(4, 10, 0)]),
        (7.0, [(4, 2, 10)]),
        (8.0, [(4, 1, 12)]),
        (11.0, [(5, 2, 0)]),
        (12.0, [(5, 1, 2), (6, 2, 0)]),
        (13.0, [(5, 1, 3), (6, 1, 2)]),
    ]
    check(setup, CONTINUOUS, expected, [4.0, 3.0, 3.0, 5.0, 8.0, 13.0, 13.0])


def test_continuous_prefill_first_ends_a_cut_prompt_before_it_admits() -> None:
    setup = Setup("continuous", limits=THREE_SEATS, cost=SECOND)
    expected: Timed = [
        # A prompt of 14 under a budget of 10 is cut; 1, which comes meanwhile, would fit but waits for its end.
        (1.0, [(0, 10, 0)]),
        (2.0, [(0, 4, 10)]),
        (3.0, [(1, 5, 0)]),
        (4.0, [(0, 1, 14), (1, 1, 5)]),
    ]
    check(setup, workload([(0.0, 14, 2), (0.5, 5, 2)]), expected, [4.0, 4.0])


# ---- chunked --------------------------------------------------------------------------------------------------------


def test_chunked_with_a_preemption() -> None:
    # 6 blocks of 4 tokens. At their longest 0 needs 4 blocks, 1 needs 3, 2 needs 1, 3 needs 3.
    setup = Setup("chunked", pool=KvPool(6, 4), limits=Limits(max_num_seqs=3, max_num_batched_tokens=8), cost=SECOND)
    rows = [(0.0, 11, 4), (0.0, 6, 5), (0.0, 3, 2), (4.5, 9, 3), (20.0, 4, 1)]
    expected: Timed = [
        # 0 takes the whole budget of 8.
        (1.0, [(0, 8, 0)]),
        # Its other 3 tokens, and 5 of the 6 of 1.
        (2.0, [(0, 3, 8), (1, 5, 0)]),
        # 1's last prompt token; 2 takes the last free block.
        (3.0, [(0, 1, 11), (1, 1, 5), (2, 3, 0)]),
        # 0's 13th token needs a 4th block: the newest, 2, gives way, and nobody is admitted in this step.
        (4.0, [(0, 1, 12), (1, 1, 6)]),
        # 2 needs a block for its 3 + 1 known tokens, and none is free. 0 ends and frees 6, 3, 2, 1, last block first.
        (5.0, [(0, 1, 13), (1, 1, 7)]),
        # 1 takes block 6, 2 recomputes its 4 tokens in block 3 and ends; 3 needs 3 blocks and 2 are free.
        (6.0, [(1, 1, 8), (2, 4, 0)]),
        # 1 ends; 3's 9 tokens find 3 blocks; the budget leaves 7 tokens for it.
        (7.0, [(1, 1, 9), (3, 7, 0)]),
        (8.0, [(3, 2, 7)]),
        (9.0, [(3, 1, 9)]),
        (10.0, [(3, 1, 10)]),
        (21.0, [(4, 4, 0)]),
    ]
    tables = Tables()
    done = check(setup, workload(rows), expected, [5.0, 7.0, 6.0, 10.0, 21.0], tables)
    assert done.watch.evicted == [[(3, [2])]]
    assert done.column("preemptions").tolist() == [0, 0, 1, 0, 0]
    one_by_one = Tables()
    shapes = run(Setup(**{**vars(setup), "spans": False}), workload(rows), [one_by_one]).table
    assert shapes["prefill_requests"].tolist() == [1, 2, 1, 0, 0, 1, 1, 1, 0, 0, 1]
    assert shapes["prefill_tokens"].tolist() == [8, 8, 3, 0, 0, 4, 7, 2, 0, 0, 4]
    assert shapes["prefill_past_tokens"].tolist() == [0, 8, 0, 0, 0, 0, 0, 7, 0, 0, 0]
    # A prompt's last token by itself is a row like those that decode.
    assert shapes["decode_requests"].tolist() == [0, 0, 2, 2, 2, 1, 1, 0, 1, 1, 0]
    assert shapes["decode_context_tokens"].tolist() == [0, 0, 18, 20, 22, 9, 10, 0, 10, 11, 0]
    assert shapes["waiting"].tolist() == [2, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert shapes["running"].tolist() == [1, 2, 3, 2, 2, 2, 2, 1, 1, 1, 1]
    assert shapes["preempted"].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert one_by_one.after_step == [
        {0: [1, 2]},
        {0: [1, 2, 3], 1: [4, 5]},
        {0: [1, 2, 3], 1: [4, 5], 2: [6]},
        {0: [1, 2, 3, 6], 1: [4, 5]},
        {0: [1, 2, 3, 6], 1: [4, 5]},
        {1: [4, 5, 6], 2: [3]},
        # Free were 2, 1 and, from 2's end, 3.
        {1: [4, 5, 6], 3: [2, 1]},
        # 1's end appended 6, 5, 4.
        {3: [2, 1, 3]},
        {3: [2, 1, 3]},
        {3: [2, 1, 3]},
        # The queue is 6, 5, 4 and then 3's blocks, last first.
        {4: [6]},
    ]


def test_chunked_puts_whom_it_preempts_at_the_head_of_the_queue() -> None:
    # 4 blocks of 2.
    setup = Setup("chunked", pool=KvPool(4, 2), limits=Limits(4, 8), cost=SECOND)
    expected: Timed = [
        (1.0, [(0, 2, 0), (1, 3, 0)]),
        (2.0, [(0, 1, 2), (1, 1, 3)]),
        # 1 asks for a block, is the newest and gives way.
        (3.0, [(0, 1, 3)]),
        # 1 needs three blocks for its 3 + 2 known tokens; 2, which would fit, stands behind it.
        (4.0, [(0, 1, 4)]),
        (5.0, [(0, 1, 5)]),
        (6.0, [(1, 5, 0), (2, 1, 0)]),
    ]
    check(setup, workload([(0.0, 2, 5), (0.0, 3, 3), (1.5, 1, 1)]), expected, [5.0, 6.0, 6.0])


def test_chunked_without_chunks() -> None:
    setup = Setup("chunked", limits=Limits(4, 8, chunked_prefill=False), cost=SECOND)
    expected: Timed = [
        # Three tokens of budget are left, and 1's prompt of 6 is not cut.
        (1.0, [(0, 5, 0)]),
        (2.0, [(0, 1, 5), (1, 6, 0)]),
        (3.0, [(1, 1, 6)]),
    ]
    check(setup, workload([(0.0, 5, 2), (0.0, 6, 2)]), expected, [2.0, 3.0])
    refusal = setup.engine().refusal(Request(0, 0.0, 8, 2))
    assert refusal is not None
    assert "without chunked prefill its 9 tokens" in refusal


def test_chunked_serves_the_running_list_in_order_of_admission() -> None:
    # At most 2 tokens of a request in a step. A prompt under way goes before a younger request that decodes.
    setup = Setup(
        "chunked",
        policy_parameters={"long_prefill_token_threshold": 2},
        pool=KvPool(8, 2),
        limits=Limits(4, 4),
        cost=SECOND,
    )
    expected: Timed = [
        (1.0, [(0, 2, 0), (1, 2, 0)]),
        (2.0, [(0, 2, 2), (1, 1, 2)]),
        (3.0, [(0, 2, 4), (1, 1, 3)]),
        (4.0, [(0, 1, 6)]),
    ]
    tables = Tables()
    check(setup, workload([(0.0, 6, 2), (0.0, 2, 3)]), expected, [4.0, 3.0], tables)
    assert tables.after_step == [
        {0: [1], 1: [2]},
        {0: [1, 3], 1: [2, 4]},
        {0: [1, 3, 5], 1: [2, 4]},
        {0: [1, 3, 5, 6]},
    ]


def test_blocks_come_back_in_the_order_of_admission() -> None:
    # 0 makes its last token by decoding in the very step in which 1, admitted later, makes its only one.
    setup = Setup("chunked", pool=KvPool(8, 4), limits=Limits(2, 16), cost=SECOND)
    expected: Timed = [
        (1.0, [(0, 5, 0)]),
        (2.0, [(0, 1, 5), (1, 6, 0)]),
        # Free were 5 to 8; then came 0's blocks 2, 1 and 1's blocks 4, 3.
        (3.0, [(2, 16, 0)]),
        (4.0, [(2, 4, 16), (3, 12, 0)]),
    ]
    tables = Tables()
    rows = [(0.0, 5, 2), (0.5, 6, 1), (1.5, 20, 1), (2.5, 12, 1)]
    check(setup, workload(rows), expected, [2.0, 2.0, 4.0, 4.0], tables)
    assert tables.after_step[1:] == [
        {0: [1, 2], 1: [3, 4]},
        {2: [5, 6, 7, 8]},
        {2: [5, 6, 7, 8, 2], 3: [1, 4, 3]},
    ]


def test_blocks_of_those_that_decode_to_their_end_together_come_back_in_the_same_order() -> None:
    setup = Setup("chunked", pool=KvPool(8, 4), limits=Limits(2, 64), cost=SECOND)
    expected: Timed = [(1.0, [(0, 5, 0), (1, 6, 0)]), (2.0, [(0, 1, 5), (1, 1, 6)]), (3.0, [(2, 32, 0)])]
    tables = Tables()
    check(setup, workload([(0.0, 5, 2), (0.0, 6, 2), (1.5, 32, 1)]), expected, [2.0, 2.0, 3.0], tables)
    assert tables.after_step[-1] == {2: [5, 6, 7, 8, 2, 1, 4, 3]}


def test_chunked_planned_one_step_ahead() -> None:
    # Two seats; each step is planned when the one before it starts, so seats come back one step late.
    setup = Setup("chunked", limits=Limits(max_num_seqs=2), cost=SECOND, depth=2)
    rows = [(0.0, 2, 3), (0.5, 4, 2), (0.5, 5, 6)]
    expected: Timed = [
        (1.0, [(0, 2, 0)]),
        # Planned at 0.0, before anybody else had come.
        (2.0, [(0, 1, 2)]),
        # Planned at 1.0: 1 takes the second seat; 0's 3rd and last token.
        (3.0, [(0, 1, 3), (1, 4, 0)]),
        # Planned at 2.0: 0 has nothing to do, yet keeps its seat till 3.0; 1's 2nd and last token.
        (4.0, [(1, 1, 4)]),
        # Planned at 3.0: 0 is gone, 2 sits down. Planned at 4.0 and later: 2 alone.
        (5.0, [(2, 5, 0)]),
        (6.0, [(2, 1, 5)]),
        (7.0, [(2, 1, 6)]),
        (8.0, [(2, 1, 7)]),
        (9.0, [(2, 1, 8)]),
        (10.0, [(2, 1, 9)]),
    ]
    done = check(setup, workload(rows), expected, [3.0, 4.0, 10.0])
    assert done.column("first_scheduled_s").tolist() == [0.0, 1.0, 3.0]
    assert done.column("first_token_s").tolist() == [1.0, 3.0, 5.0]


def test_a_full_engine_planned_ahead_stands_still_for_no_time() -> None:
    # One seat: at 2.0 the plan is empty, at 3.0 the seat is back and the next request starts at once.
    setup = Setup("chunked", limits=Limits(max_num_seqs=1), cost=SECOND, depth=2)
    expected: Timed = [
        (1.0, [(0, 2, 0)]),
        (2.0, [(0, 1, 2)]),
        (3.0, [(0, 1, 3)]),
        (4.0, [(1, 2, 0)]),
        (5.0, [(1, 1, 2)]),
    ]
    check(setup, workload([(0.0, 2, 3), (0.0, 2, 2)]), expected, [3.0, 5.0])


# ---- shortest job first ---------------------------------------------------------------------------------------------


def test_sjf() -> None:
    setup = Setup("sjf", limits=Limits(max_num_seqs=2, max_num_batched_tokens=16), cost=SECOND)
    rows = [
        (0.0, 9, 3),
        (0.0, 2, 4),
        (0.0, 5, 2),
        (0.5, 1, 2),
        (1.0, 5, 1),
        (2.0, 1, 3),
        (6.5, 3, 2),
        (6.5, 2, 2),
        (11.0, 2, 1),
        (11.0, 1, 1),
    ]
    expected: Timed = [
        # Two seats for the prompts of 2 and 5; 9 waits.
        (1.0, [(1, 2, 0), (2, 5, 0)]),
        # 3, the shortest of all, preempts nobody. 2 ends.
        (2.0, [(1, 1, 2), (2, 1, 5)]),
        # 3 and 5 are equally short; 3 came first.
        (3.0, [(1, 1, 3), (3, 1, 0)]),
        # 1 and 3 end.
        (4.0, [(1, 1, 4), (3, 1, 1)]),
        # Then 5 and 4; 4 ends with its first token.
        (5.0, [(5, 1, 0), (4, 5, 0)]),
        # At last the long one.
        (6.0, [(5, 1, 1), (0, 9, 0)]),
        (7.0, [(5, 1, 2), (0, 1, 9)]),
        # 7 is shorter than 6, which came at the same time.
        (8.0, [(0, 1, 10), (7, 2, 0)]),
        (9.0, [(7, 1, 2), (6, 3, 0)]),
        (10.0, [(6, 1, 3)]),
        (12.0, [(9, 1, 0), (8, 2, 0)]),
    ]
    done = check(setup, workload(rows), expected, [8.0, 4.0, 2.0, 4.0, 5.0, 7.0, 10.0, 9.0, 12.0, 12.0])
    # A prompt of one token is a prompt all the same.
    assert done.table["prefill_requests"].tolist() == [2, 0, 1, 0, 2, 1, 0, 1, 1, 0, 2]


def test_sjf_admits_nobody_in_a_step_that_preempts() -> None:
    # 4 blocks of 2.
    setup = Setup("sjf", pool=KvPool(4, 2), limits=Limits(4, 8), cost=SECOND)
    expected: Timed = [
        (1.0, [(0, 2, 0), (1, 3, 0)]),
        # 0 takes the last block.
        (2.0, [(0, 1, 2), (1, 1, 3)]),
        # 1 asks for a block, is the newest and gives way. 2 would fit now, but must wait for a step.
        (3.0, [(0, 1, 3)]),
        # 0 and 2 take the two free blocks; 2, shorter than 1, goes before it.
        (4.0, [(0, 1, 4), (2, 1, 0)]),
        (5.0, [(0, 1, 5)]),
        (6.0, [(1, 5, 0)]),
    ]
    done = check(setup, workload([(0.0, 2, 5), (0.0, 3, 3), (1.5, 1, 1)]), expected, [5.0, 6.0, 4.0])
    assert done.watch.evicted == [[(2, [1])]]


@pytest.mark.parametrize(("by", "order"), [("prompt", [0, 1, 2]), ("output", [2, 1, 0]), ("total", [1, 0, 2])])
def test_sjf_orders_by_what_it_is_told(by: str, order: list[int]) -> None:
    # Prompts 1, 2, 9, outputs 8, 4, 3, totals 9, 6, 12.
    setup = Setup("sjf", policy_parameters={"by": by}, limits=Limits(max_num_seqs=1), cost=SECOND)
    done = run(setup, workload([(0.0, 1, 8), (0.0, 2, 4), (0.0, 9, 3)]))
    assert sorted(range(3), key=lambda at: done.requests[at].first_scheduled_s) == order


# ---- priority -------------------------------------------------------------------------------------------------------


def test_priority() -> None:
    # 6 blocks of 2 tokens; the smaller number goes first.
    setup = Setup("priority", pool=KvPool(6, 2), limits=Limits(max_num_seqs=3, max_num_batched_tokens=6), cost=SECOND)
    rows = [(0.0, 4, 5), (0.0, 2, 3), (2.0, 3, 3), (3.5, 2, 2), (4.0, 5, 5), (6.5, 3, 4)]
    priorities = [2, 1, 0, 0, 3, 0]
    expected: Timed = [
        # 1 before 0: block 1, and blocks 2 and 3.
        (1.0, [(1, 2, 0), (0, 4, 0)]),
        # Each opens a block, in admission order: 4 and 5.
        (2.0, [(1, 1, 2), (0, 1, 4)]),
        # 2 has come; it needs 2 blocks and one is free. A newcomer preempts nobody. 1 ends and frees 4, 1.
        (3.0, [(1, 1, 3), (0, 1, 5)]),
        # 0 takes block 6, the first of the queue; 2 gets 4 and 1.
        (4.0, [(0, 1, 6), (2, 3, 0)]),
        # 3 needs a block and none is free. 0 ends and frees 6, 5, 3, 2.
        (5.0, [(0, 1, 7), (2, 1, 3)]),
        # 2 takes 6 and ends; 3 gets 5, before 4, whose number is larger and who needs 3 of 2 free blocks.
        (6.0, [(2, 1, 4), (3, 2, 0)]),
        # 3 takes block 3 and ends; 4 gets 2, 6 and 1.
        (7.0, [(3, 1, 2), (4, 5, 0)]),
        # 5 gets 4 and 3.
        (8.0, [(4, 1, 5), (5, 3, 0)]),
        # 4 takes the last block, 5.
        (9.0, [(4, 1, 6), (5, 1, 3)]),
        # 4 has its token of this step already when 5 asks for a block: 4, with the largest number, is taken out again.
        (10.0, [(5, 1, 4)]),
        # 4 needs 4 blocks for its 5 + 3 known tokens, and 3 are free. 5 ends.
        (11.0, [(5, 1, 5)]),
        # Recomputation in chunks, under the budget of 6, then the two tokens left.
        (12.0, [(4, 6, 0)]),
        (13.0, [(4, 2, 6)]),
        (14.0, [(4, 1, 8)]),
    ]
    work = workload(rows, priority=priorities)
    done = check(setup, work, expected, [5.0, 3.0, 6.0, 7.0, 14.0, 11.0])
    assert done.watch.evicted == [[(9, [4])]]
    tables = Tables()
    run(Setup(**{**vars(setup), "spans": False}), work, [tables])
    assert [table.get(4) for table in tables.after_step[6:]] == [
        [2, 6, 1],
        [2, 6, 1],
        [2, 6, 1, 5],
        None,
        None,
        # Freed at the preemption: 5, which 5 took, then 1, 6, 2.
        [1, 6, 2],
        [1, 6, 2, 5],
        [1, 6, 2, 5, 3],
    ]


def test_of_equal_priorities_the_later_arrival_gives_way() -> None:
    # 4 blocks of 2.
    setup = Setup("priority", pool=KvPool(4, 2), limits=Limits(4, 8), cost=SECOND)
    expected: Timed = [
        (1.0, [(0, 2, 0)]),
        (2.0, [(0, 1, 2), (1, 2, 0)]),
        # 1 takes the last block.
        (3.0, [(0, 1, 3), (1, 1, 2)]),
        # 0 asks for one, and 1 came later.
        (4.0, [(0, 1, 4)]),
        # 1 needs two blocks for its 2 + 2 known tokens.
        (5.0, [(0, 1, 5)]),
        (6.0, [(0, 1, 6)]),
        (7.0, [(1, 4, 0)]),
    ]
    done = check(setup, workload([(0.0, 2, 6), (0.5, 2, 3)], priority=[1, 1]), expected, [6.0, 7.0])
    assert done.watch.evicted == [[(3, [1])]]


def test_a_request_taken_out_of_a_step_gives_its_tokens_back_to_the_budget() -> None:
    # 4 blocks of 2 tokens, a budget of 3; admission asks for the first chunk's blocks only.
    setup = Setup(
        "priority",
        allocator_parameters={"reserve_full_prompt": False},
        pool=KvPool(4, 2),
        limits=Limits(max_num_seqs=3, max_num_batched_tokens=3),
        cost=SECOND,
    )
    work = workload([(0.0, 1, 5), (1.0, 1, 4), (1.0, 6, 2)], priority=[9, 0, 1])
    expected: Timed = [
        (1.0, [(0, 1, 0)]),
        # Each of three gets one token; for 2 that is one of its six.
        (2.0, [(0, 1, 1), (1, 1, 0), (2, 1, 0)]),
        # 0 takes the last block.
        (3.0, [(0, 1, 2), (1, 1, 1), (2, 1, 1)]),
        # 0 has its token when 1 asks for a block: 0 is taken out, and of its blocks and its token 2 gets one each.
        (4.0, [(1, 1, 2), (2, 2, 2)]),
        # 2 asks for a third block and is itself the victim, having the larger number of the two. 1 ends.
        (5.0, [(1, 1, 3)]),
        (6.0, [(2, 3, 0)]),
        (7.0, [(2, 3, 3)]),
        # 2 takes the last block, so 0 must wait on.
        (8.0, [(2, 1, 6)]),
        # 0 computes its prompt and its three tokens anew: 3 + 1.
        (9.0, [(0, 3, 0)]),
        (10.0, [(0, 1, 3)]),
        (11.0, [(0, 1, 4)]),
    ]
    done = check(setup, work, expected, [11.0, 5.0, 8.0])
    assert done.watch.evicted == [[(3, [0]), (4, [2])]]


# ---- contiguous memory ----------------------------------------------------------------------------------------------

# 20 blocks of 2 tokens; a request takes half of prompt + output - 1, rounded up, and ends `output` seconds later.
HOLES = workload(
    [
        (0.0, 7, 2),  # 4 blocks, till 2
        (0.0, 3, 6),  # 4 blocks, till 6
        (0.0, 10, 3),  # 6 blocks, till 3
        (0.0, 2, 7),  # 4 blocks, till 7
        (2.0, 3, 4),  # 3 blocks, till 6
        (3.0, 2, 3),  # 2 blocks, till 6
        (4.0, 8, 3),  # 5 blocks
        (7.0, 1, 3),  # 2 blocks, till 10
        (8.0, 4, 2),  # 3 blocks, till 10
        (9.0, 6, 1),  # 3 blocks, till 10
    ]
)


def run_of(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


@pytest.mark.parametrize("fit", ["first", "best"])
def test_contiguous_holes(fit: str) -> None:
    # One to four side by side, two blocks left: 0 [1-4], 1 [5-8], 2 [9-14], 3 [15-18], free 19-20.
    # At 2: 0 leaves 1-4; 4 takes [1-3], since 19-20 is too small. At 3: 2 leaves 9-14.
    # At 3: 5 needs 2 of the holes 4, 9-14, 19-20: the first that fits is 9-10, the best 19-20.
    at: dict[str, dict[int, list[int]]] = {
        "first": {
            5: run_of(9, 10),
            # At 4: 6 needs 5, and the holes are 4, 11-14, 19-20: it waits until at 6 1, 4 and 5 leave 1-14.
            6: run_of(1, 5),
            # At 7: 3 has left, and the only hole is 6-20.
            7: run_of(6, 7),
            8: run_of(8, 10),
            # At 9: 6 has left 1-5.
            9: run_of(1, 3),
        },
        "best": {
            5: run_of(19, 20),
            # At 4: the hole 9-14 is whole.
            6: run_of(9, 13),
            # At 7 nobody is left: all is one hole again.
            7: run_of(1, 2),
            8: run_of(3, 5),
            9: run_of(6, 8),
        },
    }
    expected = {0: run_of(1, 4), 1: run_of(5, 8), 2: run_of(9, 14), 3: run_of(15, 18), 4: run_of(1, 3), **at[fit]}
    setup = Setup(
        "chunked", "contiguous-oracle", allocator_parameters={"fit": fit}, pool=KvPool(20, 2), cost=SECOND, spans=False
    )
    tables = Tables()
    done = run(setup, HOLES, [tables])
    seen: dict[int, list[int]] = {}
    for table in tables.after_step:
        for req, blocks in table.items():
            assert seen.setdefault(req, blocks) == blocks, "a reservation moved"
    assert seen == expected
    starts = [0.0, 0.0, 0.0, 0.0, 2.0, 3.0, 6.0 if fit == "first" else 4.0, 7.0, 8.0, 9.0]
    assert done.column("first_scheduled_s").tolist() == starts
    # While 6 waits under first fit, the 7 free blocks are of no use to it: 14 tokens of external waste for two steps.
    external = done.table["kv_external_tokens"].tolist()
    assert external == ([0, 0, 0, 0, 14, 14, 0, 0, 0, 0] if fit == "first" else [0] * 10)
    # All blocks are in one hole at the end: the largest request of all fits.
    assert done.engine.allocator.admit(Request(99, 0.0, 40, 1), 40)


@pytest.mark.parametrize(
    ("allocator", "blocks"), [("contiguous-max", 10), ("contiguous-pow2", 6), ("contiguous-oracle", 4)]
)
def test_contiguous_reservations(allocator: str, blocks: int) -> None:
    # Prompt 3, output 5 in blocks of 2: the longest request of all, 20; 3 + 8; 3 + 5 - 1 tokens.
    tables = Tables()
    run(Setup("chunked", allocator, pool=KvPool(20, 2, 20), cost=SECOND), workload([(0.0, 3, 5)]), [tables])
    assert tables.after_step[0] == {0: run_of(1, blocks)}


# ---- a policy's verbs -----------------------------------------------------------------------------------------------


class TakeBack:
    """In the third step it grants all, takes request 0 out again and looks at what is left of the budget."""

    every_step = True

    def __init__(self) -> None:
        self.calls = 0
        self.left: list[int] = []

    def __call__(self, step: Step) -> None:
        self.calls += 1
        step.advance_running()
        for req in step.waiting:
            step.grant(req)
        if self.calls == 3:
            self.left.append(step.tokens_left)
            # Whoever has had its share of the step gets no second one,
            step.advance_running()
            assert [step.grant(req) for req in step.running] == [0, 0]
            victim = first(step.running)
            step.evict(victim)
            self.left.append(step.tokens_left)
            # nor does whoever was taken out of it; and only who runs can be.
            assert step.grant(victim) == 0
            with pytest.raises(ValueError, match="not running"):
                step.evict(victim)
            assert list(step.waiting) == [victim]
            assert (len(step.running), step.seats_left) == (1, 3)


def first(running: Collection[Request]) -> Request:
    return next(iter(running))


@pytest.mark.parametrize("allocator", ["paged", "prefix", "contiguous-oracle"])
def test_an_eviction_gives_the_tokens_of_the_step_back(allocator: str) -> None:
    policy: Any = TakeBack()
    setup = Setup(policy, allocator, limits=Limits(max_num_seqs=4, max_num_batched_tokens=10), cost=SECOND)
    done = run(setup, workload([(0.0, 3, 4), (0.0, 2, 4)]))
    assert policy.left == [8, 9]
    assert timed_steps(done) == [
        (1.0, [(0, 3, 0), (1, 2, 0)]),
        (2.0, [(0, 1, 3), (1, 1, 2)]),
        (3.0, [(1, 1, 3)]),
        # 0 starts anew with its prompt and the two tokens it had.
        (4.0, [(1, 1, 4), (0, 5, 0)]),
        (5.0, [(0, 1, 5)]),
    ]
