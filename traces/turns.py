"""What a turn's length says, the whole prompt or the new text alone: told from a file, and made whole prompts of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from traces.blocks import NO_IDS, TOKEN_ID_BLOCK, Ids
from traces.late import pd
from traces.names import settled
from traces.rows import Mask, validate
from traces.source import Source

ASKED = {
    "new": "As asked for, the length of a session's later turn is taken as that of its new text: its prompt repeats "
    "prompt and answer before it.",
    "whole": "As asked for, the length of a session's later turn is taken as that of the whole prompt.",
}


def told(table: pd.DataFrame, among: Mask) -> str:
    """whole, new, or "" where the rows do not say for certain.

    Looks at the rows `among` that follow one. Ids that repeat all full blocks of the turn before are of whole prompts.
    Ids that begin with another block, of a turn shorter than the text before it, are of new text.
    """
    if "prefix_blocks" not in table:
        return ""
    after, size = table["after"].tolist(), int(table["prefix_block_tokens"].iloc[0])
    prompts, outputs = table["prompt_tokens"].tolist(), table["output_tokens"].tolist()
    ids = [row.tolist() for row in table["prefix_blocks"]]
    whole = new = 0
    for row in np.flatnonzero(among & (table["after"].to_numpy() >= 0)).tolist():
        parent = after[row]
        full = prompts[parent] // size
        whole += 0 < full <= len(ids[parent]) and ids[row][:full] == ids[parent][:full]
        anew = bool(ids[row] and ids[parent]) and ids[row][0] != ids[parent][0]
        new += anew and prompts[row] < prompts[parent] + outputs[parent]
    return "" if bool(whole) == bool(new) else ("whole" if whole else "new")


def asked(source: Source, table: pd.DataFrame) -> pd.DataFrame:
    """A format's table of whole prompts; where the user says that its turns tell new text alone, made of these."""
    if "after" not in table or not (table["after"] >= 0).any() or source.turns != "new":
        return table
    for column in ("token_ids", "prefix_starts"):
        if column in table:
            source.fail(f"has {column}, which are of whole prompts; leave --turns new out")
    clean, dropped = validate(table, str(source.path), source.skip_bad, source.where)
    source.dropped.update(dropped)
    source.turns_are = "new"
    source.notes.append(ASKED["new"])
    return whole_prompts(clean, np.ones(len(clean), bool))


def whole_prompts(table: pd.DataFrame, new: Mask) -> pd.DataFrame:
    """The table with whole prompts, and prefix blocks that say what they repeat.

    Args:
        table: `after` names an earlier row, or nothing that is followed; its blocks are all of one length.
        new: rows whose prompt_tokens (and prefix_blocks) are of their new text alone. Where they follow a request, they
            repeat its prompt and its answer. Their own blocks say nothing more: they stand behind an answer, which no
            other session has.
    """
    place = np.arange(len(table))
    after = table["after"].to_numpy(np.int64)
    after = np.where((after >= 0) & (after < place), after, -1)
    continued = new & (after >= 0)
    return _renamed(table, after, continued) if continued.any() else table


def with_starts(table: pd.DataFrame) -> pd.DataFrame:
    """The table with prefix_starts; what a prompt's ids leave out at its end has a block of its own."""
    if "prefix_starts" in table:
        return table
    if "prefix_blocks" not in table:
        return table.assign(prefix_starts=pd.Series([NO_IDS] * len(table), dtype=object))
    nothing = np.zeros(len(table), bool)
    return _renamed(table, np.full(len(table), -1), nothing)


def _renamed(table: pd.DataFrame, after: Ids, continued: Mask) -> pd.DataFrame:
    own = [NO_IDS] * len(table)
    if "prefix_blocks" in table:
        rows = zip(table["prefix_blocks"], continued, strict=True)
        own, _ = settled([NO_IDS if repeats else ids for ids, repeats in rows])
    size = int(table["prefix_block_tokens"].iloc[0]) if "prefix_blocks" in table else TOKEN_ID_BLOCK
    texts = _Texts(size, 1 + max((int(ids.max()) for ids in own if len(ids)), default=-1))
    followed = np.zeros(len(table), bool)
    followed[after[continued]] = True
    lengths = zip(table["prompt_tokens"].tolist(), table["output_tokens"].tolist(), strict=True)
    for row, (tokens, output) in enumerate(lengths):
        if continued[row]:
            texts.go_on(int(after[row]), tokens, output)
        else:
            texts.begin(own[row], tokens, output, bool(followed[row]))
    return table.assign(
        prompt_tokens=texts.prompt_tokens,
        prefix_blocks=pd.Series([ids for ids, _ in texts.blocks], dtype=object),
        prefix_starts=pd.Series([starts for _, starts in texts.blocks], dtype=object),
        prefix_block_tokens=size,
    )


Blocks = tuple[Ids, Ids]
"""Ids, and the token at which each begins; the last ends with the prompt."""


@dataclass(slots=True)
class _Texts:
    """Prompts and blocks of rows in order.

    All that follows a session's first prompt is one block that grows with its turns, so that a long session takes no
    more room than a short one; a second turn that goes on from the same request has a block of its own.
    """

    block_tokens: int
    next_id: int
    prompt_tokens: list[int] = field(default_factory=list)
    text_tokens: list[int] = field(default_factory=list)
    blocks: list[Blocks] = field(default_factory=list)
    grows: list[bool] = field(default_factory=list)
    """Whether a row's last block is its session's own, and may grow."""
    onward: dict[int, Blocks] = field(default_factory=dict)
    """By row that was gone on from, the blocks with its answer's."""

    def begin(self, ids: Ids, tokens: int, output: int, followed: bool) -> None:
        """A prompt of its own, whose ids may leave its end out."""
        starts = np.arange(len(ids), dtype=np.int64) * self.block_tokens
        blocks, rest = (ids, starts), len(ids) * self.block_tokens
        grows = rest < tokens and (followed or len(ids) > 0)
        self._add(tokens, output, self._longer(blocks, rest) if grows else blocks, grows)

    def go_on(self, parent: int, tokens: int, output: int) -> None:
        """A prompt that repeats prompt and answer of its parent."""
        before = self.text_tokens[parent]
        if parent in self.onward:
            blocks = self._longer(self.onward[parent], before)
        else:
            grown = self.blocks[parent]
            blocks = grown if self.grows[parent] else self._longer(grown, self.prompt_tokens[parent])
            self.onward[parent] = blocks
        self._add(before + tokens, output, blocks, True)

    def _longer(self, blocks: Blocks, start: int) -> Blocks:
        ids, starts = blocks
        self.next_id += 1
        return np.append(ids, self.next_id - 1), np.append(starts, start)

    def _add(self, prompt: int, output: int, blocks: Blocks, grows: bool) -> None:
        self.prompt_tokens.append(prompt)
        self.text_tokens.append(prompt + output)
        self.blocks.append(blocks)
        self.grows.append(grows)
