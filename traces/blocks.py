"""Prefix blocks: ids that name a block of tokens and everything before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.fields import BadRow
from traces.schema import MAX_TOKENS
from traces.source import Source

Ids = npt.NDArray[np.int64]
NO_IDS: Ids = np.empty(0, dtype=np.int64)
TOKEN_ID_BLOCK = 16


def started(ids: Ids, prompt_tokens: int, block_tokens: int, key: str, hint: str = "") -> Ids:
    """The ids, if there is one for each started block of the prompt (the last may be partial); else BadRow."""
    return _exactly(ids, -(-prompt_tokens // block_tokens), prompt_tokens, block_tokens, key, hint)


def full(ids: Ids, prompt_tokens: int, block_tokens: int, key: str) -> Ids:
    """The ids, if there is one for each full block of the prompt; else BadRow."""
    return _exactly(ids, prompt_tokens // block_tokens, prompt_tokens, block_tokens, key, "")


def block_size(source: Source, prompt_tokens: Ids, counts: Ids, usual: int) -> int:
    """The tokens of a block, of prompts whose `counts` of ids are one for each started block.

    The `usual` size where it fits every row, or none does (then a row is at fault); else the only size that does, which
    becomes a note. Fails, with the option that says it, where several fit.
    """
    some = counts > 0
    least = int((-(-prompt_tokens[some] // counts[some])).max(initial=1))
    several = counts > 1
    most = int(((prompt_tokens[several] - 1) // (counts[several] - 1)).min(initial=MAX_TOKENS))
    if least <= usual <= most or least > most:
        return usual
    if least < most:
        source.fail(
            f"has hash_ids of blocks of {least:,} to {most:,} tokens by their numbers, and not of {usual}; say which "
            "with --trace-block-tokens N"
        )
    source.notes.append(f"hash_ids name blocks of {least:,} tokens: no other size fits every row.")
    return least


def _exactly(ids: Ids, expected: int, prompt_tokens: int, block_tokens: int, key: str, hint: str) -> Ids:
    if len(ids) != expected:
        raise BadRow(
            f"{key} names {len(ids):,} blocks; a prompt of {prompt_tokens:,} tokens has {expected:,} "
            f"of {block_tokens}{hint}",
            f"{key}: wrong number of blocks",
        )
    return ids


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


class Reblocked(Sequence[int]):
    """Blocks of unequal length as ids of equal blocks of `block_tokens`, one for each full one of the prompt.

    Such a block is told by the block of the file that its last token lies in, and by its place. The ids are made when
    they are asked for: a long session's are many times what its file says.

    Args:
        ids: of the file's blocks, [blocks].
        starts: the token at which each begins, the first at 0, [blocks].
        tokens: of the prompt, at which the last block ends.
    """

    __slots__ = ("_block_tokens", "_ids", "_length", "_starts")
    _PLACE_BITS = 24

    def __init__(self, ids: Ids, starts: Ids, tokens: int, block_tokens: int) -> None:
        self._ids, self._starts, self._block_tokens = ids, starts, block_tokens
        self._length = tokens // block_tokens if len(ids) else 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return iter(self._names(range(self._length)))

    def __eq__(self, other: object) -> bool:
        """Whether both have the same blocks of the file up to the same length."""
        if not isinstance(other, Reblocked) or (self._block_tokens, len(self)) != (other._block_tokens, len(other)):
            return False
        last = len(self) * self._block_tokens - 1
        mine, theirs = (int(np.searchsorted(one._starts, last, side="right")) for one in (self, other))
        return (
            mine == theirs
            and np.array_equal(self._ids[:mine], other._ids[:mine])
            and np.array_equal(self._starts[:mine], other._starts[:mine])
        )

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, place: int | slice) -> Any:
        """An id, or those of a slice, which from the start on are as small as these."""
        if not isinstance(place, slice):
            return self._names(range(self._length)[place : place + 1 or None])[0]
        places = range(self._length)[place]
        if places.start == 0 and places.step == 1:
            return Reblocked(self._ids, self._starts, len(places) * self._block_tokens, self._block_tokens)
        return self._names(places)

    def _names(self, places: range) -> list[int]:
        at = np.array(places, dtype=np.int64)
        last = (at + 1) * self._block_tokens - 1
        names = self._ids[np.searchsorted(self._starts, last, side="right") - 1]
        return [(name << self._PLACE_BITS) + one for name, one in zip(names.tolist(), places, strict=True)]
