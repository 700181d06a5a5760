"""What of a trace's prompts a cache without bounds would find: by the trace's own blocks, and as an engine counts.

Both are of requests served one after the other, in order of the rows, each ended before the next begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from traces.blocks import TOKEN_ID_BLOCK, chained
from traces.late import pd
from traces.sessions import followed

KV_BLOCK_TOKENS = 16
_PLACE_BITS = 24


@dataclass(frozen=True, slots=True)
class Reuse:
    """What was seen before, as an unbroken prefix.

    `block_tokens` is None where blocks differ in length. `reused_tokens` counts a partial last block with the tokens
    that it holds; `kv_reused_tokens` are those in full KV blocks of KV_BLOCK_TOKENS, all of a prompt but its last
    token at most, and without the last token of an answer, which no engine computes: what `allocator=prefix` finds.
    """

    block_tokens: int | None
    blocks: int
    reused_blocks: int
    tokens: int
    reused_tokens: int
    covered_prompts: int
    kv_reused_tokens: int


@dataclass(frozen=True, slots=True)
class _Text:
    """Named blocks of a text of `tokens`; each begins at its start, and ends where the next begins."""

    names: Sequence[int]
    starts: Sequence[int]
    tokens: int

    def ends(self) -> list[int]:
        """Of each block, within the text."""
        return [*(min(end, self.tokens) for end in self.starts[1 : len(self.names)]), self.tokens][: len(self.names)]


def reuse(requests: pd.DataFrame) -> Reuse | None:
    """Prefix reuse by prefix_blocks, else by full blocks of 16 token ids; None where a trace has neither.

    A turn finds the answer before it too, where its ids say that its prompt repeats it.
    """
    equal = "prefix_starts" not in requests
    if "prefix_blocks" in requests:
        rows = [np.asarray(ids).tolist() for ids in requests["prefix_blocks"]]
        size = int(requests["prefix_block_tokens"].iloc[0])
    elif "token_ids" in requests:
        rows, size = [ids.tolist() for ids in chained(list(requests["token_ids"]), TOKEN_ID_BLOCK)], TOKEN_ID_BLOCK
    else:
        return None
    prompts = requests["prompt_tokens"].tolist()
    if equal:
        grid = range(0, (2 + max(map(len, rows), default=0)) * size, size)
        asked = [_Text(ids, grid, min(len(ids) * size, prompt)) for ids, prompt in zip(rows, prompts, strict=True)]
        told = _answered_equally(requests, rows, grid)
    else:
        starts = [np.asarray(one).tolist() for one in requests["prefix_starts"]]
        asked = [_Text(*row) for row in zip(rows, starts, prompts, strict=True)]
        told = _answered(requests, asked)
    left = [(two,) if one.names is two.names else (one, two) for one, two in zip(asked, told, strict=True)]
    hits, reused = _found(asked, left)
    outputs = requests["output_tokens"].tolist()
    kept = [
        _Text(one.names, one.starts, min(one.tokens, prompt + output - 1))
        for one, prompt, output in zip(told, prompts, outputs, strict=True)
    ]
    looked_up = [
        _Text(one.names, one.starts, min(one.tokens, prompt - 1)) for one, prompt in zip(told, prompts, strict=True)
    ]
    _, found = _found(looked_up, [(one,) for one in kept])
    return Reuse(
        size if equal else None,
        sum(map(len, rows)),
        int(hits.sum()),
        sum(prompts),
        int(reused.sum()),
        int((reused >= np.array(prompts)).sum()),
        int((found // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS).sum()),
    )


def _found(
    asked: list[_Text], left: Sequence[tuple[_Text, ...]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(blocks, tokens) of each text that earlier rows left, as an unbroken prefix."""
    reach: dict[int, int] = {}
    hits, tokens = np.zeros(len(asked), np.int64), np.zeros(len(asked), np.int64)
    for row, (text, leaves) in enumerate(zip(asked, left, strict=True)):
        for place, (name, start, end) in enumerate(zip(text.names, text.starts, text.ends(), strict=False)):
            known = reach.get((name << _PLACE_BITS) + place, 0)
            if known <= start or end <= start:
                break
            tokens[row] = min(end, known)
            if known < end:
                break
            hits[row] += 1
        for one in leaves:
            for place, (name, end) in enumerate(zip(one.names, one.ends(), strict=True)):
                key = (name << _PLACE_BITS) + place
                if reach.get(key, 0) < end:
                    reach[key] = end
    return hits, tokens


def _answered_equally(requests: pd.DataFrame, rows: list[list[int]], grid: Sequence[int]) -> list[_Text]:
    """The texts with the answers that later turns repeat, of equal blocks."""
    prompts, size = requests["prompt_tokens"].tolist(), grid[1]
    ids: list[Sequence[int]] = list(rows)
    known = prompts
    if "after" in requests:
        known = name_answers(ids, size, prompts, requests["output_tokens"].tolist(), requests["after"].tolist())
    return [
        _Text(names, grid, min(len(names) * size, prompt if alone else tokens))
        for names, prompt, tokens, alone in zip(ids, prompts, known, _several(requests), strict=True)
    ]


def _answered(requests: pd.DataFrame, asked: list[_Text]) -> list[_Text]:
    """The same of blocks of unequal length, which tell where an answer ends."""
    told = list(asked)
    outputs, several = requests["output_tokens"].tolist(), _several(requests)
    for row, parent in enumerate(followed(requests).tolist()):
        if parent < 0 or told[parent].tokens > asked[parent].tokens or several[parent]:
            continue
        text, before = asked[parent].tokens + outputs[parent], asked[parent]
        count = len(before.names)
        if asked[row].tokens >= text and asked[row].names[:count] == before.names:
            told[parent] = _Text(asked[row].names, asked[row].starts, text)
    return told


def _several(requests: pd.DataFrame) -> list[bool]:
    """Whether a request asks for several answers: nobody says which one the next turn goes on from."""
    return (requests["samples"] > 1).tolist() if "samples" in requests else [False] * len(requests)


def name_answers(
    ids: list[Sequence[int]],
    unit_tokens: int,
    prompt_tokens: Sequence[int],
    output_tokens: Sequence[int],
    after: Sequence[int],
) -> list[int]:
    """Extend each request's ids over its answer where the next turn's prompt repeats it; returns the tokens named.

    The next turn repeats prompt and answer if its own prompt is at least as long as both and its ids begin with the
    ids of the prompt's full units. The last unit may be longer in the next turn, and then has another name there.
    """
    known = list(prompt_tokens)
    for row, parent in enumerate(after):
        if parent < 0 or known[parent] > prompt_tokens[parent]:
            continue
        text, units = prompt_tokens[parent] + output_tokens[parent], prompt_tokens[parent] // unit_tokens
        if prompt_tokens[row] >= text and ids[row][:units] == ids[parent][:units]:
            named = text // unit_tokens
            if named > units:
                ids[parent] = ids[row][:named]
                known[parent] = named * unit_tokens
    return known
