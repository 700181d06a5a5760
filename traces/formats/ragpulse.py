"""RAGPulse (JSON Lines: timestamp as a text of seconds, lengths, session_id, hash_ids of five kinds of prompt part).

Source: github.com/flashserve/RAGPulse. The token length of each part stands in files beside the trace; where they
are present, the parts in order become prefix blocks of 16 tokens. The source's file is several weeks joined, each
starting again at 0: a fall from the last day of a week to the first begins a new week, 604,800 s later; any other
step back in time is a bad row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from traces.blocks import NO_IDS
from traces.blocks import Ids as IdArray
from traces.fields import BadRow, Count, Ids, Text, Time, broken, get, number_of
from traces.head import Head
from traces.late import pd
from traces.sessions import linked
from traces.source import Source

BLOCK_TOKENS = 16
WEEK_S, DAY_S = 604_800.0, 86_400.0
PARTS = {
    "sys_prompt": ("1_sys_prompt.jsonl", "sys_prompt_id"),
    "passages_ids": ("2_passages.jsonl", "passage_id"),
    "history": ("3_history.jsonl", "history_id"),
    "web_search": ("5_web_search.jsonl", "web_search_id"),
    "user_input": ("4_user_input.jsonl", "user_input_id"),
}


def detect(head: Head) -> bool:
    return (
        head.shape == "json" and head.has("timestamp", "input_length") and isinstance(head.record.get("hash_ids"), dict)
    )


def ragpulse(source: Source) -> pd.DataFrame:
    lengths = _part_lengths(source)
    week = _Weeks()
    chain = _Chain()

    def row(record: dict[str, Any], line: int) -> dict[str, Any]:
        prompt = get(record, "input_length", Count())
        found = {
            "prompt_tokens": prompt,
            "output_tokens": get(record, "output_length", Count()),
            "source_row": line,
            "session": get(record, "session_id", Text()),
            "prefix_blocks": chain.blocks(_parts(record, lengths), prompt) if lengths else NO_IDS,
        }
        return {"arrival_s": week.seconds(record), **found}

    table = pd.DataFrame(source.each(row))
    if week.offset_s:
        weeks = int(week.offset_s / WEEK_S) + 1
        source.notes.append(
            f"The file is {weeks} weeks joined, each starting again at 0; each is put 7 days after the one before."
        )
    if lengths:
        table["prefix_block_tokens"] = BLOCK_TOKENS
        source.notes.append(
            "Prompt parts in the order of the row become prefix blocks of 16 tokens; template tokens are put last."
        )
    else:
        table = table.drop(columns="prefix_blocks")
        source.notes.append(
            "The files with the token lengths of prompt parts are not beside the trace: no prefix blocks."
        )
    source.notes.append(
        "Think time is the gap between a session's arrivals: it holds the service time of the turn before."
    )
    return source.clock(linked(table), "timestamp", ordered=True)


class _Weeks:
    """Seconds since the first week's start."""

    def __init__(self) -> None:
        self.offset_s = 0.0
        self.last_s = 0.0

    def seconds(self, record: dict[str, Any]) -> float:
        given = record.get("timestamp")
        if not isinstance(given, str):
            raise broken("timestamp", given, "it must be a text that holds whole seconds")
        now: float = get({"timestamp": number_of(given)}, "timestamp", Time("s", whole=True))
        if now < self.last_s:
            if not (now < DAY_S and WEEK_S - DAY_S <= self.last_s < WEEK_S):
                rule = "rows must be in order of time, or start a new week"
                raise BadRow(f"timestamp goes back to {now:.0f} after {self.last_s:.0f}; {rule}", "timestamp goes back")
            self.offset_s += WEEK_S
        self.last_s = now
        return self.offset_s + now


class _Chain:
    """Numbers blocks of 16 tokens so that equal ids mean equal parts up to there."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, str, int], tuple[int, int, IdArray]] = {}
        self.next_id = 0

    def blocks(self, parts: list[tuple[str, int, int]], prompt_tokens: int) -> IdArray:
        """Ids of the full blocks of (kind, id, tokens) in order."""
        state, tokens = -1, 0
        found: list[IdArray] = []
        for kind, name, length in parts:
            key = (state, kind, name)
            if key not in self.known:
                ids = np.arange(self.next_id, self.next_id + (tokens % BLOCK_TOKENS + length) // BLOCK_TOKENS)
                self.next_id += len(ids)
                self.known[key] = len(self.known), tokens + length, ids
            state, tokens, ids = self.known[key]
            found.append(ids)
        if tokens > prompt_tokens:
            raise BadRow(
                f"input_length is {prompt_tokens}; its parts have {tokens} tokens", "input_length below its parts"
            )
        return np.concatenate(found) if found else NO_IDS


def _parts(record: dict[str, Any], lengths: dict[str, dict[int, int]]) -> list[tuple[str, int, int]]:
    given = record.get("hash_ids")
    if not isinstance(given, dict):
        raise broken("hash_ids", given, "it must be an object of id lists")
    parts = []
    for kind in PARTS:
        for name in get(given, kind, Ids(optional=True)).tolist():
            if name not in lengths[kind]:
                raise BadRow(f"hash_ids: {PARTS[kind][0]} has no {PARTS[kind][1]} {name}", "hash_ids: unknown part")
            parts.append((kind, name, lengths[kind][name]))
    return parts


def _part_lengths(source: Source) -> dict[str, dict[int, int]]:
    """Token length of each part by kind and id; empty where the five files are not all there."""
    folder = Path(source).parent
    if not all((folder / name).is_file() for name, _ in PARTS.values()):
        return {}
    found = {}
    for kind, (name, key) in PARTS.items():
        side_file = source.sibling(folder / name)

        def part(record: dict[str, Any], _: int, key: str = key) -> tuple[int, int]:
            return get(record, key, Count(least=0)), get(record, "token_length", Count(least=0))

        found[kind] = dict(side_file.each(part))
        source.adopt(side_file)
    return found
