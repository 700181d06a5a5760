"""What uneven decode rows cost by the rule of FlashAttention-2: its own cut, and the idle memory at the end."""

from __future__ import annotations

from dataclasses import replace
from heapq import heapify, heappop, heapreplace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profile_kit import GPU, MODEL, llama_profile

from sim.cost.contexts import ContextCost
from sim.cost.interpolation import MEASURED, Line, Price
from sim.cost.profiled import Profiled
from sim.cost.splits import FLASH_ATTENTION_2, SATURATING, Cut, Tail, keys_of, parts, two_lengths
from sim.cost.step import advanced
from sim.engine.batch import Shape
from sim.engine.lockstep import Lengths, Lockstep
from sim.engine.request import Request, Seat
from traces.schema import InputError

PLAIN = llama_profile(1.3)
RULED = replace(PLAIN, meta=replace(PLAIN.meta, decode_splits=FLASH_ATTENTION_2))
CONTEXTS = st.lists(st.integers(1, 20_000), min_size=1, max_size=80)


def grouped(contexts: list[int]) -> Lengths:
    """As `Lockstep.lengths` has them."""
    rest, groups, size = sorted(contexts, reverse=True), [], 1
    while rest:
        groups.append((len(rest[:size]), sum(rest[:size])))
        rest, size = rest[size:], sum(rows for rows, _ in groups)
    return tuple(number for group in groups for number in group)


@given(CONTEXTS, st.integers(0, 50))
def test_requests_in_lockstep_are_grouped_so(contexts: list[int], tick: int) -> None:
    lockstep = Lockstep(ranks=True)
    for number, context in enumerate(contexts):
        req = Request(number, 0.0, context + 50, 100)
        req.computed, req.known, req.seat = context, context + 1, Seat()
        req.seat.seq = number
        lockstep.join(req)
    lockstep.tick += tick
    assert lockstep.lengths() == grouped([context + tick for context in contexts])


def scheduled_tokens(contexts: list[int], heads: int, processors: int) -> float:
    """Rows of one part each, started in order (rows within heads), that share the memory's rate evenly, none more than
    `SATURATING` times its share: token times of one row until the last has ended, beyond those of all tokens."""
    works = [float(context) for _ in range(heads) for context in contexts]
    running, waiting = works[:processors], works[processors:]
    heapify(running)
    done = spent = 0.0
    while running:
        each = min(SATURATING / processors, 1.0 / len(running))
        spent += (running[0] - done) / each
        done = running[0]
        heapreplace(running, done + waiting.pop(0)) if waiting else heappop(running)
    return spent / heads - sum(contexts)


@pytest.mark.parametrize(
    ("programs", "processors", "blocks", "expected"),
    [
        (256, 128, 256, 1),  # 32 rows of 8 heads fill an RTX 4090: 256 of 2 x 128 places
        (192, 128, 256, 4),  # 24 do not: 1, 2 and 3 parts leave a quarter idle, 4 are three full waves
        (128, 128, 12, 2),
        (256, 188, 256, 4),  # and 32 leave a third of an RTX PRO 6000 idle
        (304, 188, 256, 1),
        (8, 128, 1, 1),  # one block of keys cannot be cut
        (8, 128, 256, 29),  # ceil(256 / 29) = 9 blocks a part; 28 parts have 10, as 26 and 27 do
    ],
)
def test_the_cut_of_flash_attention_2(programs: int, processors: int, blocks: int, expected: int) -> None:
    assert parts(programs, processors, blocks) == expected


@given(st.integers(1, 4096), st.integers(1, 200), st.integers(1, 1024))
def test_no_part_is_for_nobody(programs: int, processors: int, blocks: int) -> None:
    count = parts(programs, processors, blocks)
    assert 1 <= count <= min(128, 2 * processors, blocks) or count == 1
    assert programs < 0.8 * 2 * processors or count == 1


@given(CONTEXTS, st.integers(1, 16), st.integers(1, 200), st.integers(0, 300), st.sampled_from([0, 256]))
def test_one_step_and_a_span_give_the_same_bits(
    contexts: list[int], heads: int, processors: int, step: int, most_blocks: int
) -> None:
    cut, lengths = Cut(len(contexts), heads, processors, 128, most_blocks), grouped(contexts)
    idle = cut.idle_tokens(lengths, step)
    assert idle >= 0.0
    later = advanced(Shape(decode_lengths=lengths), step).decode_lengths
    assert later == grouped([context + step for context in contexts])
    assert cut.idle_tokens(later, 0) == idle
    span = cut.idle_each(lengths, 0, 40)
    assert span == [cut.idle_tokens(lengths, each) for each in range(40)]


@given(CONTEXTS, st.integers(1, 16), st.integers(1, 200), st.sampled_from([0, 256]))
def test_it_is_the_integral(contexts: list[int], heads: int, processors: int, most_blocks: int) -> None:
    """Of K - N(y), by pieces between the groups' means, N straight in each, from where N is K to where it is a half."""
    cut, lengths = Cut(len(contexts), heads, processors, 128, most_blocks), grouped(contexts)
    number = cut.parts(max(contexts))
    slots, knee, total = min(processors, len(contexts) * heads * number), processors / SATURATING, sum(contexts)
    groups, members, above, idle = list(zip(lengths[::2], lengths[1::2], strict=True)), 0, 0, 0.0
    means = [tokens / rows for rows, tokens in groups]
    for (rows, tokens), top, bottom in zip(groups, means, [*means[1:], 0.0], strict=True):
        members, above = members + rows, above + tokens
        low = max(bottom, (above - knee * total / slots) / members)
        high = min(top, (above - 0.5 * total / slots) / members)
        if high > low:
            idle += (high - low) * (knee - slots * (above - members * (low + high) / 2) / total)
    assert cut.idle_tokens(lengths, 0) == pytest.approx(idle / number / heads, rel=1e-9, abs=1e-9 * total)


@given(CONTEXTS, st.integers(1, 16), st.integers(1, 200))
def test_the_longest_and_the_mean_say_what_idles_at_most(contexts: list[int], heads: int, processors: int) -> None:
    cut, mean = Cut(len(contexts), heads, processors, 128, 256), sum(contexts) / len(contexts)
    beyond, each = cut.most_idle()
    assert cut.idle_tokens(grouped(contexts), 0) <= (beyond * (max(contexts) - mean) + each * mean) * (1 + 1e-9)


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=80),
    st.integers(1, 16),
    st.integers(1, 200),
    st.integers(1, 60),
    st.floats(0.0, 3.0),
    st.floats(0.0, 1.2),
)
def test_what_is_left_out_of_a_span_is_hidden(
    contexts: list[int], heads: int, processors: int, repeats: int, offset: float, slope: float
) -> None:
    """Whether a span looks at each row or sees that none matters, its steps take what each takes by itself."""
    rows, context, longest = len(contexts), sum(contexts), max(contexts)
    line = Line([(0.0, Price(1.0 + offset * context, MEASURED))], slope)
    cost = ContextCost(line, tail=Tail(1.0, 1.0, Cut(rows, heads, processors, 128, 256)))
    lengths = grouped(contexts)
    shape = Shape(decodes=rows, decode_context=context, decode_longest=longest, decode_lengths=lengths)
    steps = [cost.at(context + i * rows, (longest + i) * rows, lengths, i) for i in range(repeats)]
    assert cost.span_s(shape, repeats, 0.0, 0.0) == steps


@given(st.integers(20, 80), st.integers(200, 3000), st.floats(2.0, 5.0), st.integers(0, 2**32 - 1))
def test_it_is_about_what_scheduling_gives(rows: int, mean: int, times: float, seed: int) -> None:
    """A list schedule of the same programs, its rows in any order: within a seventh of the whole time."""
    heads, processors = 8, 4 * rows
    rng = np.random.default_rng(seed)
    contexts = rng.integers(mean // 2, 3 * mean // 2, rows).tolist()
    contexts[int(rng.integers(rows))] = int(times * mean)
    idle = Cut(rows, heads, processors, 128).idle_tokens(grouped(contexts), 0)
    assert parts(rows * heads, processors, -(-max(contexts) // 128)) == 1
    assert idle == pytest.approx(scheduled_tokens(contexts, heads, processors), abs=0.15 * sum(contexts))


def seconds(contexts: list[int], found: Profiled, *, lengths: bool = True) -> float:
    shape = Shape(decodes=len(contexts), decode_context=sum(contexts), decode_longest=max(contexts))
    shape = shape._replace(decode_lengths=grouped(contexts)) if lengths else shape
    return found.explain(shape)["decode attention"].seconds


COST, EVEN = Profiled(MODEL, GPU, RULED), Profiled(MODEL, GPU, PLAIN)


@given(CONTEXTS)
def test_uneven_rows_take_no_less_than_even_ones(contexts: list[int]) -> None:
    assert seconds(contexts, COST) >= seconds(contexts, EVEN)
    same = [contexts[0]] * len(contexts)
    assert seconds(same, COST) == seconds(same, EVEN)


def test_whole_rows_wait_for_the_longest_and_cut_ones_hardly() -> None:
    """32 rows of 8 heads are not cut on an H100's 132 processors, 24 rows are."""
    assert COST.needs_longest
    assert COST.needs_lengths == "always"
    assert not EVEN.needs_longest
    assert EVEN.needs_lengths == "never"
    whole, cut = ([1000] * (rows - 1) + [4000] for rows in (32, 24))
    assert seconds(whole, COST) > 1.2 * seconds(whole, EVEN)
    assert seconds(cut, COST) < 1.1 * seconds(cut, EVEN)


def test_one_launch_with_prompts_asks_for_no_lengths() -> None:
    """Such a step's price does not depend on them, so that the engine need not tell them; without prompts it does."""
    mixed = llama_profile(1.3, mixed=True)
    cost = Profiled(MODEL, GPU, replace(mixed, meta=RULED.meta))
    assert cost.needs_lengths == "alone"
    rows = [8000] * 4 + [467] * 60
    shape = Shape((), 64, sum(rows), decode_longest=8000)
    told = shape._replace(decode_lengths=grouped(rows))
    assert cost.span_s(shape, 2) != cost.span_s(told, 2)
    beside = ((512, 0),)
    assert cost.span_s(shape._replace(prefills=beside), 2) == cost.span_s(told._replace(prefills=beside), 2)


def test_of_two_lengths_the_sum_and_the_longest_say_all() -> None:
    """What was measured, or made by hand, tells no more; a distribution of the same two numbers costs less or more."""
    two = [8000, *[1000] * 63]
    assert seconds(two, COST, lengths=False) == seconds(two, COST)
    assert two_lengths(64, sum(two), 8000) == (1, 8000, 63, 63_000)
    assert two_lengths(3, 10, 30) == (3, 10)
    assert seconds([8000] * 4 + [467] * 60, COST) != seconds(two, COST)


def test_blocks_of_keys_and_rows_beside_a_prompt() -> None:
    assert keys_of(64) == 256
    assert keys_of(128) == 128
    assert keys_of(256) == 64
    prompt = Shape(((512, 0),), 64, 71_000, decode_longest=8000)
    assert COST.explain(prompt)["decode attention"].seconds > EVEN.explain(prompt)["decode attention"].seconds


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="decode_splits 'mine' is none of flash-attention-2"):
        replace(PLAIN.meta, decode_splits="mine")
