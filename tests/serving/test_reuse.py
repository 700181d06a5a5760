"""What `trace info` says of reuse is what a run finds, of sessions made of real token lists."""

from __future__ import annotations

from itertools import takewhile

import numpy as np
import pandas as pd
import pytest
from engine_kit import Setup, run
from hypothesis import given, settings
from hypothesis import strategies as st
from law_cases import EXAMPLES, laws

from sim.engine.memory import KvPool
from sim.scenario import Scenario
from sim.serving.workload import columns
from traces.reuse import KV_BLOCK_TOKENS, reuse
from traces.rows import from_frame
from traces.schema import Trace
from traces.turns import whole_prompts

SYSTEM = list(range(1000, 1100))
SLOT_S = 1000.0
"""Between two requests: far more than one takes, so that each ends before the next begins."""


class Talk:
    """Requests that follow one another in trees; all of a tree's prompts begin with its part of one system prompt."""

    def __init__(self, rows: list[tuple[int, int, int, int]]) -> None:
        self.after: list[int] = []
        self.prompts: list[list[int]] = []
        self.texts: list[list[int]] = []
        self.new: list[int] = []
        fresh = iter(range(10_000, 10_000_000))
        for row, (parent, system, asked, answered) in enumerate(rows):
            after = parent if parent < row else -1
            said = self.texts[after] if after >= 0 else SYSTEM[:system]
            self.after.append(after)
            self.prompts.append(said + [next(fresh) for _ in range(asked)])
            self.texts.append(self.prompts[-1] + [next(fresh) for _ in range(answered)])
            self.new.append(asked if after >= 0 else system + asked)

    def names(self, unit: int, *, first: bool, started: bool = True) -> pd.Series:
        """A name for each full unit of the prompts, or of the `first` ones alone; `started` names the rest too."""
        names: dict[tuple[int, ...], int] = {}
        rows = []
        for prompt, after in zip(self.prompts, self.after, strict=True):
            last = len(prompt) + (unit if started else 1)
            ends = range(unit, last, unit) if after < 0 or not first else ()
            rows.append(np.array([names.setdefault(tuple(prompt[:end]), len(names)) for end in ends], np.int64))
        return pd.Series(rows, dtype=object)

    def table(self, prompt_tokens: list[int]) -> pd.DataFrame:
        place = np.arange(len(self.after))
        after = np.array(self.after)
        return pd.DataFrame(
            {
                "arrival_s": SLOT_S * place,
                "prompt_tokens": prompt_tokens,
                "output_tokens": [len(text) - len(one) for text, one in zip(self.texts, self.prompts, strict=True)],
                "after": after,
                "think_s": np.where(after >= 0, SLOT_S * (place - after), 0.0),
            }
        )

    def tree(self, row: int) -> int:
        return row if self.after[row] < 0 else self.tree(self.after[row])

    def shared(self, row: int, unit: int, *, last: bool) -> int:
        """Tokens of the row's prompt that an earlier row's text began with; `last` counts an answer's last one too."""
        best = 0
        for other in range(row):
            followed = other in self.after
            text = self.texts[other] if followed else self.prompts[other]
            pairs = zip(self.prompts[row], text if last or not followed else text[:-1], strict=False)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            best = max(best, same if self.tree(row) == self.tree(other) else same // unit * unit)
        return best


def hits(trace: Trace, block_tokens: int) -> list[int]:
    work = columns(trace.requests, Scenario(), block_tokens)
    done = run(Setup(allocator="prefix", pool=KvPool(40_000 // block_tokens, block_tokens)), work)
    found: list[int] = done.column("prefix_hit_tokens").tolist()
    return found


ROWS = st.lists(
    st.tuples(st.integers(-1, 8), st.sampled_from([0, 7, 16, 40, 90]), st.integers(1, 40), st.integers(1, 20)),
    min_size=1,
    max_size=9,
)


@settings(laws, max_examples=EXAMPLES or 60)
@given(rows=ROWS, unit=st.sampled_from([1, 5, 16, 32]), block=st.sampled_from([1, 4, 16]), started=st.booleans())
def test_turns_that_tell_new_text_find_all_before_them(
    rows: list[tuple[int, int, int, int]], unit: int, block: int, started: bool
) -> None:
    talk = Talk(rows)
    names = talk.names(unit, first=True, started=started)
    told = talk.table(talk.new).assign(prefix_blocks=names, prefix_block_tokens=unit)
    trace = from_frame(whole_prompts(told, np.array(talk.after) >= 0))
    assert trace.requests["prompt_tokens"].tolist() == [len(prompt) for prompt in talk.prompts]
    found = reuse(trace.requests)
    assert found is not None
    places = range(len(rows))
    assert found.reused_tokens == sum(talk.shared(row, unit, last=True) for row in places)
    kept = [min(talk.shared(row, unit, last=False), len(talk.prompts[row]) - 1) for row in places]
    assert hits(trace, block) == [tokens // block * block for tokens in kept]
    assert found.kv_reused_tokens == sum(tokens // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS for tokens in kept)


@settings(laws, max_examples=EXAMPLES or 60)
@given(rows=ROWS, unit=st.sampled_from([1, 5, 16, 32, 100]), sessions=st.booleans(), started=st.booleans())
def test_info_and_a_run_count_the_same(
    rows: list[tuple[int, int, int, int]], unit: int, sessions: bool, started: bool
) -> None:
    talk = Talk(rows)
    table = talk.table([len(prompt) for prompt in talk.prompts])
    names = talk.names(unit, first=False, started=started)
    table = table.assign(prefix_blocks=names, prefix_block_tokens=unit)
    trace = from_frame(table if sessions else table.drop(columns=["after", "think_s"]))
    found = reuse(trace.requests)
    assert found is not None
    assert sum(hits(trace, KV_BLOCK_TOKENS)) == found.kv_reused_tokens


@settings(laws, max_examples=EXAMPLES or 40)
@given(prompts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=70), min_size=1, max_size=5))
def test_info_and_a_run_count_the_same_of_token_ids(prompts: list[list[int]]) -> None:
    tokens = [np.array([3] * 30 + prompt, np.int64) for prompt in prompts]
    table = pd.DataFrame({"arrival_s": SLOT_S * np.arange(len(tokens)), "output_tokens": 2})
    table = table.assign(prompt_tokens=[len(one) for one in tokens], token_ids=pd.Series(tokens, dtype=object))
    trace = from_frame(table)
    found = reuse(trace.requests)
    assert found is not None
    assert sum(hits(trace, KV_BLOCK_TOKENS)) == found.kv_reused_tokens


@pytest.mark.parametrize("several", [1, 3])
def test_of_several_answers_info_finds_none(several: int) -> None:
    talk = Talk([(-1, 0, 32, 17), (0, 0, 16, 2)])
    table = talk.table([len(prompt) for prompt in talk.prompts])
    table = table.assign(prefix_blocks=talk.names(16, first=False), prefix_block_tokens=16, samples=[several, 1])
    trace = from_frame(table)
    found = reuse(trace.requests)
    assert found is not None
    assert sum(hits(trace, 16)) == found.kv_reused_tokens == (48 if several == 1 else 32)
