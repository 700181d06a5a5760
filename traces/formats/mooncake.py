"""Mooncake traces and AIPerf's extension of them (JSON Lines: timestamp in ms, input_length, output_length, hash_ids).

Sources: github.com/kvcache-ai/Mooncake FAST25-release; ai-dynamo/aiperf docs/benchmark-modes/trace-replay.md.
hash_ids are prefix-chained blocks of 512 tokens, one for each started block. AIPerf adds session_id, delay (ms after
the turn before), and text_input or messages instead of input_length.
"""

from typing import Any

import pandas as pd

from traces.blocks import started
from traces.fields import BadRow, Count, Ids, Record, Text, Time, get
from traces.head import Head
from traces.sessions import Rows
from traces.source import Source
from traces.texts import message_tokens

BLOCK_TOKENS = 512
VLLM_HINT = " tokens; a vLLM timed trace (blocks of 16, seconds) is read with --format vllm_timed"


def detect(head: Head) -> bool:
    asks = any(head.has(name) for name in ("input_length", "text_input", "messages"))
    chained = not isinstance(head.record.get("hash_ids"), dict)
    return head.shape == "json" and asks and head.has("output_length") and chained and not head.has("chat_id")


def mooncake(source: Source) -> pd.DataFrame:
    reader = _Reader(source)
    source.each(reader.add)
    table = reader.rows.table()
    if not reader.sessions:
        table = table.drop(columns=["session", "turn", "after", "think_s"])
    if reader.hashed:
        table["prefix_block_tokens"] = BLOCK_TOKENS
    else:
        table = table.drop(columns="prefix_blocks")
    source.has_arrivals = bool(reader.timed)
    if not reader.timed:
        return table
    times = table["arrival_s"]
    if times.nunique() < len(table) / 2:
        source.notes.append(
            f"{len(table):,} requests share {times.nunique():,} arrival times; requests of one time are served in the "
            "file's order (`sim trace convert --spread` puts them inside their slot)."
        )
    return source.clock(table, "timestamp", "ms", ordered=not reader.sessions)


class _Reader:
    """Turns records into rows; remembers the last turn of each session."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.rows = Rows()
        self.sessions: dict[str, int] = {}
        self.timed: bool | None = None
        self.hashed = False

    def add(self, record: dict[str, Any], line: int) -> None:
        session = get(record, "session_id", Text(optional=True))
        last = self.sessions.get(session, -1) if session else -1
        output = get(record, "output_length", Count())
        prompt = self._prompt(record, last)
        ids = get(record, "hash_ids", Ids(optional=True))
        if "hash_ids" in record:
            started(ids, prompt, BLOCK_TOKENS, "hash_ids", VLLM_HINT)
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
        )
        self.hashed |= len(ids) > 0
        if session:
            self.sessions[session] = index

    def _times(self, record: Record, last: int) -> tuple[float, float]:
        """(arrival, think time) in seconds. The first record decides whether the file has a schedule."""
        if self.timed is None:
            self.timed = "timestamp" in record
        before = self.rows.columns["arrival_s"][last] if last >= 0 else 0.0
        if "delay" in record and last >= 0:
            delay = float(get(record, "delay", Time("ms")))
            return before + delay if self.timed else 0.0, delay
        if not self.timed:
            return 0.0, 0.0
        arrival = float(get(record, "timestamp", Time("ms", whole=True)))
        if arrival < before:
            raise BadRow("timestamp is earlier than that of the session's turn before")
        return arrival, arrival - before if last >= 0 else 0.0

    def _prompt(self, record: Record, last: int) -> int:
        if "input_length" in record:
            return int(get(record, "input_length", Count()))
        if "text_input" in record:
            if not isinstance(record["text_input"], str):
                raise BadRow("text_input must be a text")
            return self.source.tokens(record["text_input"])
        if "messages" not in record:
            raise BadRow("input_length is missing")
        tokens = sum(count for _, count in message_tokens(record["messages"], "messages", self.source.tokens))
        mode = record.get("message_mode", "history")
        if mode not in ("history", "delta"):
            raise BadRow(f"message_mode is {mode!r}; it must be history or delta")
        if mode == "history" or last < 0:
            return tokens
        columns = self.rows.columns
        return int(columns["prompt_tokens"][last]) + int(columns["output_tokens"][last]) + tokens
