"""Mooncake traces and AIPerf's extension of them (JSON Lines: timestamp in ms, input_length, output_length, hash_ids).

Sources: github.com/kvcache-ai/Mooncake FAST25-release; ai-dynamo/aiperf docs/benchmark-modes/trace-replay.md.
hash_ids are prefix-chained blocks of 512 tokens, one for each started block. AIPerf adds session_id, delay (ms after
the turn before), and text_input or messages instead of input_length. Files of other tools have the same keys with
seconds or dates, with other blocks, and with later turns that tell their new text alone: what a file does not show for
certain is asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from traces import turns
from traces.blocks import block_size, started
from traces.fields import BadRow, Count, Record, Text, Time, get
from traces.head import Head
from traces.late import pd
from traces.moments import Moment, other_unit, stamped
from traces.names import BlockNames
from traces.rows import Mask, keep_rows
from traces.sessions import Rows
from traces.source import Source
from traces.texts import message_tokens


@dataclass(frozen=True, slots=True)
class Usual:
    """What the tool that writes such files has by default."""

    time_unit: str
    block_tokens: int


USUAL = Usual("ms", 512)


def detect(head: Head) -> bool:
    asks = any(head.has(name) for name in ("input_length", "text_input", "messages"))
    chained = not isinstance(head.record.get("hash_ids"), dict)
    return head.shape == "json" and asks and head.has("output_length") and chained and not head.has("chat_id")


def mooncake(source: Source) -> pd.DataFrame:
    return read(source, USUAL)


def read(source: Source, usual: Usual) -> pd.DataFrame:
    """Rows with Mooncake's keys; `source` may say another unit of time, block and meaning of a turn's length."""
    reader = _Reader(source, usual.time_unit if source.time_unit == "auto" else source.time_unit)
    source.each(reader.add)
    table = _with_blocks(source, reader.rows.table(), usual.block_tokens)
    table = stamped(source, table, "timestamp", table["timed"].to_numpy(bool))
    open_unit = source.time_unit == "auto" and source.has_arrivals and not reader.dated
    if open_unit and (why := other_unit(table["arrival_s"].tolist(), usual.time_unit)):
        source.fail(why)
    if (table["after"] >= 0).any():
        table = _whole(source, table)
    table = table.drop(columns=["timed", "turns"])
    if not reader.sessions:
        table = table.drop(columns=["session", "turn", "after", "think_s"])
    if not source.has_arrivals:
        return table
    times = table["arrival_s"]
    if times.nunique() < len(table) / 2:
        source.notes.append(
            f"{len(table):,} requests share {times.nunique():,} arrival times; requests of one time are served in the "
            "file's order (`sim trace convert --spread` puts them inside their slot)."
        )
    return source.clock(table, "timestamp", reader.unit, ordered=not reader.sessions, epoch=True)


def _with_blocks(source: Source, table: pd.DataFrame, usual: int) -> pd.DataFrame:
    """The table with the size of its blocks; rows whose ids do not fit it are rejected."""
    given = table["hashed"].to_numpy(bool)
    table = table.drop(columns="hashed")
    if not given.any():
        return table.drop(columns="prefix_blocks")
    prompts, counts = table["prompt_tokens"].to_numpy(), table["prefix_blocks"].map(len).to_numpy()
    size = source.block_tokens or block_size(source, prompts[given], counts[given], usual)
    kept = np.ones(len(table), bool)
    hint = " tokens; blocks of another size are read with --trace-block-tokens N"
    for row in np.flatnonzero(given & (counts != -(-prompts // size))).tolist():
        try:
            started(table["prefix_blocks"].iloc[row], int(prompts[row]), size, "hash_ids", hint)
        except BadRow as why:
            source.reject(int(table["source_row"].iloc[row]), why)
            kept[row] = False
    if not kept.any():
        source.nothing()
    return keep_rows(table.assign(prefix_block_tokens=size), kept)


def _whole(source: Source, table: pd.DataFrame) -> pd.DataFrame:
    """The table with whole prompts; who says what a turn's length is: the row, the user, or the ids."""
    open_rows: Mask = ((table["turns"] == "") & (table["after"] >= 0)).to_numpy()
    new: Mask = (table["turns"] == "new").to_numpy()
    if open_rows.any():
        asked = source.turns
        found = turns.told(table, open_rows) if asked == "auto" else asked
        if not found:
            source.fail(
                "does not show for certain whether the input_length of a session's later turn is the whole prompt or "
                "its new text alone; say so with --turns whole or --turns new"
            )
        source.notes.append(_WHY[found] if asked == "auto" else turns.ASKED[found])
        source.turns_are = found
        new = new | (open_rows & (found == "new"))
    return turns.whole_prompts(table, new)


_WHY = {
    "new": "The length of a session's later turn is that of its new text, since its hash_ids begin anew: its prompt "
    "repeats prompt and answer before it (--turns whole reads it as the whole prompt).",
    "whole": "The length of a session's later turn is that of the whole prompt, since its hash_ids repeat those of "
    "the turn before (--turns new reads it as new text).",
}


class _Reader:
    """Turns records into rows; remembers the last turn of each session. A time that is not known is NaN."""

    def __init__(self, source: Source, unit: str) -> None:
        self.source = source
        self.unit = unit
        self.rows = Rows()
        self.sessions: dict[str, int] = {}
        self.dated = False

    def add(self, record: dict[str, Any], line: int) -> None:
        session = get(record, "session_id", Text(optional=True))
        last = self.sessions.get(session, -1) if session else -1
        output = get(record, "output_length", Count())
        prompt, says = self._prompt(record)
        ids = get(record, "hash_ids", BlockNames(optional=True))
        arrival, think = self._times(record, last)
        index = self.rows.add(
            arrival_s=arrival,
            prompt_tokens=prompt,
            output_tokens=output,
            source_row=line,
            session=session,
            turn=self.rows.columns["turn"][last] + 1 if last >= 0 else 0,
            after=last,
            think_s=think,
            prefix_blocks=ids,
            hashed=record.get("hash_ids") is not None,
            timed="timestamp" in record,
            turns=says,
        )
        if session:
            self.sessions[session] = index

    def _times(self, record: Record, last: int) -> tuple[float, float]:
        """(arrival, think time) in seconds."""
        before = self.rows.columns["arrival_s"][last] if last >= 0 else 0.0
        if "delay" in record and last >= 0:
            delay = float(get(record, "delay", Time(self.unit)))
            return before + delay, delay
        if "timestamp" not in record:
            return math.nan, 0.0
        self.dated |= isinstance(record["timestamp"], str)
        arrival = float(get(record, "timestamp", Moment(self.unit)))
        if arrival < before:
            raise BadRow("timestamp is earlier than that of the session's turn before")
        return arrival, arrival - before if last >= 0 and not math.isnan(before) else 0.0

    def _prompt(self, record: Record) -> tuple[int, str]:
        """Tokens, and what they are of where the record says it: whole or new."""
        if "input_length" in record:
            return int(get(record, "input_length", Count())), ""
        if "text_input" in record:
            if not isinstance(record["text_input"], str):
                raise BadRow("text_input must be a text")
            return self.source.tokens(record["text_input"]), ""
        if "messages" not in record:
            raise BadRow("input_length is missing")
        tokens = sum(count for _, count in message_tokens(record["messages"], "messages", self.source.tokens))
        mode = record.get("message_mode", "history")
        if mode not in ("history", "delta"):
            raise BadRow(f"message_mode is {mode!r}; it must be history or delta")
        return tokens, "whole" if mode == "history" else "new"
