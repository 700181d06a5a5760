"""Qwen-Bailian traces (JSON Lines: chat_id, parent_chat_id, timestamp in seconds, lengths, hash_ids of 16 tokens).

Source: github.com/alibaba-edu/qwen-bailian-usagetraces-anon. A turn follows its parent_chat_id; think tokens are
stripped before the next turn, and a padded last block may change its id.
"""

from __future__ import annotations

from typing import Any

from traces.fields import BadRow, Count, Text, Time, get
from traces.head import Head
from traces.late import pd
from traces.names import BlockNames
from traces.sessions import Rows
from traces.source import Source

BLOCK_TOKENS = 16
NO_PARENT = "-1"


def detect(head: Head) -> bool:
    return head.shape == "json" and head.has("chat_id", "parent_chat_id", "input_length", "output_length")


def bailian(source: Source) -> pd.DataFrame:
    rows = Rows()
    place: dict[str, int] = {}
    orphans = 0

    def add(record: dict[str, Any], line: int) -> None:
        nonlocal orphans
        prompt = get(record, "input_length", Count())
        ids = get(record, "hash_ids", BlockNames(optional=True))
        if len(ids) > -(-prompt // BLOCK_TOKENS):
            reason = f"more blocks than a prompt of {prompt:,} tokens has of {BLOCK_TOKENS}"
            raise BadRow(f"hash_ids names {len(ids):,} blocks; {reason}", "hash_ids: more blocks than the prompt has")
        chat, parent_chat = get(record, "chat_id", Text()), get(record, "parent_chat_id", Text())
        arrival = get(record, "timestamp", Time("s"))
        output = get(record, "output_length", Count())
        parent = place.get(parent_chat, -1)
        if chat in place:
            raise BadRow(f"chat_id {chat} stands twice", "chat_id stands twice")
        if parent >= 0 and arrival < (before := rows.columns["arrival_s"][parent]):
            raise BadRow(f"timestamp is {arrival}; that of its parent_chat_id is {before}", "earlier than its parent")
        orphans += parent < 0 and parent_chat != NO_PARENT
        place[chat] = rows.add(
            arrival_s=arrival,
            prompt_tokens=prompt,
            output_tokens=output,
            source_row=line,
            session=rows.columns["session"][parent] if parent >= 0 else chat,
            turn=rows.columns["turn"][parent] + 1 if parent >= 0 else 0,
            after=parent,
            think_s=arrival - before if parent >= 0 else 0.0,
            prefix_blocks=ids,
            prefix_block_tokens=BLOCK_TOKENS,
        )

    source.each(add)
    if orphans:
        source.notes.append(f"{orphans:,} requests name a parent that does not stand before them; they start sessions.")
    source.notes.append("Think time is the gap between arrivals: it holds the service time of the turn before.")
    return source.clock(rows.table(), "timestamp", ordered=False)
