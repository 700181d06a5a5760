"""Prefix blocks: ids that name a block of tokens and everything before it, and what an unbounded cache would reuse."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from traces.fields import BadRow

Ids = npt.NDArray[np.int64]
NO_IDS: Ids = np.empty(0, dtype=np.int64)
TOKEN_ID_BLOCK = 16


def started(ids: Ids, prompt_tokens: int, block_tokens: int, key: str, hint: str = "") -> Ids:
    """The ids, if there is one for each started block of the prompt (the last may be partial); else BadRow."""
    return _exactly(ids, -(-prompt_tokens // block_tokens), prompt_tokens, block_tokens, key, hint)


def full(ids: Ids, prompt_tokens: int, block_tokens: int, key: str) -> Ids:
    """The ids, if there is one for each full block of the prompt; else BadRow."""
    return _exactly(ids, prompt_tokens // block_tokens, prompt_tokens, block_tokens, key, "")


def _exactly(ids: Ids, expected: int, prompt_tokens: int, block_tokens: int, key: str, hint: str) -> Ids:
    if len(ids) != expected:
        raise BadRow(
            f"{key} names {len(ids):,} blocks; a prompt of {prompt_tokens:,} tokens has {expected:,} "
            f"of {block_tokens}{hint}",
            f"{key}: wrong number of blocks",
        )
    return ids


@dataclass(frozen=True, slots=True)
class Reuse:
    """What was seen before, as an unbroken prefix, in an unbounded cache fed in order of the rows."""

    block_tokens: int
    blocks: int
    reused_blocks: int
    tokens: int
    reused_tokens: int
    covered_prompts: int


def reuse(requests: pd.DataFrame) -> Reuse | None:
    """Prefix reuse by prefix_blocks, else by full blocks of 16 token ids; None where a trace has neither.

    A partial last block counts with the tokens that it holds.
    """
    if "prefix_blocks" in requests:
        rows: list[Ids] = list(requests["prefix_blocks"])
        size = int(requests["prefix_block_tokens"].iloc[0])
    elif "token_ids" in requests:
        rows, size = chained(list(requests["token_ids"]), TOKEN_ID_BLOCK), TOKEN_ID_BLOCK
    else:
        return None
    seen: set[int] = set()
    blocks = reused_blocks = reused_tokens = covered = 0
    prompts = requests["prompt_tokens"].to_numpy()
    for ids, prompt in zip(rows, prompts, strict=True):
        names = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        hits = 0
        for name in names:
            if name not in seen:
                break
            hits += 1
        seen.update(names)
        blocks += len(names)
        reused_blocks += hits
        reused_tokens += min(hits * size, int(prompt))
        covered += int(hits * size >= prompt)
    return Reuse(size, blocks, reused_blocks, int(prompts.sum()), reused_tokens, covered)


def chained(token_ids: list[Ids], block_tokens: int) -> list[Ids]:
    """Ids of the full blocks of each prompt, equal where the tokens up to the block's end are equal."""
    known: dict[tuple[int, bytes], int] = {}
    out = []
    for tokens in token_ids:
        parent, names = -1, []
        for begin in range(0, len(tokens) - block_tokens + 1, block_tokens):
            key = (parent, np.asarray(tokens[begin : begin + block_tokens], dtype=np.int64).tobytes())
            parent = known.setdefault(key, len(known))
            names.append(parent)
        out.append(np.array(names, dtype=np.int64))
    return out


def of_sessions(
    after: Ids, prompt_tokens: Ids, output_tokens: Ids, block_tokens: int, heads: list[Ids] | None = None
) -> list[Ids]:
    """Ids of the full prompt blocks of requests whose prompt repeats prompt and answer of the one they follow.

    `after` names an earlier row or -1. A prompt shorter than the text before it (a history cut off) shares nothing.
    `heads` are ids that open the prompt of a request which follows none: a prefix shared between sessions.
    """
    next_id = 1 + max((int(head.max()) for head in heads or [] if len(head)), default=-1)
    texts: list[Ids] = []
    for row, (parent, prompt, output) in enumerate(
        zip(after.tolist(), prompt_tokens.tolist(), output_tokens.tolist(), strict=True)
    ):
        known = heads[row] if heads else NO_IDS
        if parent >= 0 and prompt >= prompt_tokens[parent] + output_tokens[parent]:
            known = texts[parent]
        fresh = max(0, (prompt + output) // block_tokens - len(known))
        texts.append(np.concatenate([known, np.arange(next_id, next_id + fresh)]))
        next_id += fresh
    return [text[: int(prompt) // block_tokens] for text, prompt in zip(texts, prompt_tokens, strict=True)]
