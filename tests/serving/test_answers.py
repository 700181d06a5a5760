"""What a trace says of answers and of several answers: the next turn finds them, samples and beams are as asked for.

A conversation is made of real token lists here; the simulator is given nothing but ids of its units and must find as
many tokens as comparing the lists does.
"""

from __future__ import annotations

from itertools import takewhile

import pandas as pd
import pytest
from engine_kit import Setup, run
from hypothesis import given, settings
from hypothesis import strategies as st
from law_cases import EXAMPLES, laws

from sim.engine.memory import KvPool
from sim.serving.source import Workload
from sim.serving.workload import beam_draws, name_answers, samples
from sim.specs.workload import WorkloadSettings

SYSTEM = list(range(1000, 1040))


class Talk:
    """Conversations one after another, each turn repeating all before it; some begin with the same system prompt."""

    def __init__(self, sessions: list[tuple[int, list[tuple[int, int]]]]) -> None:
        self.prompts: list[list[int]] = []
        self.texts: list[list[int]] = []
        """Of each turn: prompt and answer."""
        self.after: list[int] = []
        fresh = iter(range(10_000, 1_000_000))
        for system, turns in sessions:
            said = SYSTEM[:system]
            for number, (asked, answered) in enumerate(turns):
                self.after.append(len(self.after) - 1 if number else -1)
                self.prompts.append(said + [next(fresh) for _ in range(asked)])
                said = self.prompts[-1] + [next(fresh) for _ in range(answered)]
                self.texts.append(said)

    def ids(self, unit: int, *, started: bool) -> list[list[int]]:
        """A name for each unit and all before it; `started` names a last, partly filled one too."""
        names: dict[tuple[int, ...], int] = {}
        rows = []
        for prompt in self.prompts:
            ends = range(unit, len(prompt) + (unit if started else 1), unit)
            rows.append([names.setdefault(tuple(prompt[:end]), len(names)) for end in ends])
        return rows

    def found(self, row: int, unit: int, block: int) -> int:
        """Tokens that the row finds in whole blocks: those that one before it had, as far as ids can tell."""
        best = 0
        for other in range(row):
            text, followed = self.texts[other], other in self.after
            pairs = zip(self.prompts[row], text, strict=False)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            told = len(text if followed else self.prompts[other]) // unit * unit
            best = max(best, min(same // unit * unit, told, len(text) - 1, len(self.prompts[row]) - 1) // block * block)
        return best


TURNS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=4)
SESSIONS = st.lists(st.tuples(st.sampled_from([0, 7, 16, 40]), TURNS), min_size=1, max_size=4)


@settings(laws, max_examples=EXAMPLES or 80)
@given(
    sessions=SESSIONS,
    unit=st.sampled_from([1, 3, 4, 8, 16]),
    block=st.sampled_from([1, 2, 4, 16]),
    started=st.booleans(),
    depth=st.integers(1, 2),
)
def test_the_next_turn_finds_prompt_and_answer(
    sessions: list[tuple[int, list[tuple[int, int]]]], unit: int, block: int, started: bool, depth: int
) -> None:
    talk = Talk(sessions)
    ids = talk.ids(unit, started=started)
    prompt = [len(one) for one in talk.prompts]
    output = [len(text) - len(one) for text, one in zip(talk.texts, talk.prompts, strict=True)]
    known = name_answers(ids, unit, prompt, output, talk.after)  # type: ignore[arg-type]
    work = Workload([0.0] * len(prompt), prompt, output, None, ids, unit, known, talk.after, [0.0] * len(prompt))
    setup = Setup(allocator="prefix", pool=KvPool(4000, block), concurrency=1, depth=depth)
    done = run(setup, work)
    assert done.column("prefix_hit_tokens").tolist() == [talk.found(row, unit, block) for row in range(len(prompt))]


def test_an_answer_that_is_not_repeated_keeps_no_name() -> None:
    # Units of 4: the next prompt begins otherwise, is too short, or comes after a turn that has been followed already.
    assert name_answers([[1, 2], [9, 2, 3]], 4, [8, 12], [4, 1], [-1, 0]) == [8, 12]
    assert name_answers([[1, 2], [1, 2, 3]], 4, [8, 11], [4, 1], [-1, 0]) == [8, 11]
    ids: list[list[int]] = [[1, 2], [1, 2, 3], [1, 2, 4]]
    assert name_answers(ids, 4, [8, 12, 12], [4, 1, 1], [-1, 0, 0]) == [12, 12, 12]  # type: ignore[arg-type]
    assert ids[0] == [1, 2, 3]


@pytest.mark.parametrize("several", [1, 3])
def test_of_several_answers_none_is_found_by_the_next_turn(several: int) -> None:
    work = Workload(
        [0.0, 0.0], [8, 24], [9, 2], None, [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6]], 4, [16, 24], [-1, 0], [0.0, 0.0],
        samples=[several, 1],
    )  # fmt: skip
    done = run(Setup(allocator="prefix", pool=KvPool(100, 4)), work)
    assert done.column("prefix_hit_tokens").tolist() == [0, 16 if several == 1 else 8]


# ---- how many answers -----------------------------------------------------------------------------------------------


def test_samples_come_from_the_settings_or_the_trace() -> None:
    plain = pd.DataFrame({"prompt_tokens": [1, 2, 3]})
    told = plain.assign(samples=[1, 4, 2])
    assert samples(plain, WorkloadSettings()) is None
    assert samples(told, WorkloadSettings()) == [1, 4, 2]
    assert samples(told, WorkloadSettings(samples=3)) == [3, 3, 3]
    assert samples(told, WorkloadSettings(samples=1)) is None


@given(seed=st.integers(0, 10), index=st.integers(0, 100), beams=st.integers(1, 8), churn=st.floats(0, 1))
@settings(laws, max_examples=50)
def test_draws_count_the_places_of_a_beam(seed: int, index: int, beams: int, churn: float) -> None:
    draw, again = beam_draws(seed, churn, index), beam_draws(seed, churn, index)
    for _ in range(5):
        counts = draw(beams)
        assert list(again(beams)) == list(counts)
        assert len(counts) == beams == sum(counts)
        assert min(counts) >= 0
    assert list(beam_draws(seed, 0.0, index)(beams)) == [1] * beams


def test_beams_fall_out_as_often_as_asked() -> None:
    """A place goes on from itself but with probability c - c/n, and from any given other one with c/n."""
    beams, churn, draws = 4, 0.3, 4000
    draw = beam_draws(0, churn, 0)
    fallen = sum(list(draw(beams)).count(0) for _ in range(draws)) / (draws * beams)
    expected = (churn - churn / beams) * (1 - churn / beams) ** (beams - 1)
    assert fallen == pytest.approx(expected, rel=0.05)


def test_each_request_has_draws_of_its_own() -> None:
    first, second = (beam_draws(0, 1.0, index) for index in (0, 1))
    assert [list(first(8)) for _ in range(4)] != [list(second(8)) for _ in range(4)]
