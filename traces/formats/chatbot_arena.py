"""Chatbot Arena conversations (JSON Lines or array: question_id, model_a/b, conversation_a/b, tstamp of the vote).

Source: huggingface.co/datasets/lmsys/chatbot_arena_conversations, and its cousins as far as they have the same names.
One row is a battle: both sides answer each turn at once, so it gives 2 x turns requests. No times within a battle
and no token counts are recorded.
"""

from __future__ import annotations

import math
from typing import Any

from traces.fields import Text, Time, get
from traces.head import Head
from traces.late import pd
from traces.moments import stamped
from traces.sessions import ASSUMED_THINK_S, THINK_NOTE, Rows, answers
from traces.source import Source
from traces.texts import message_tokens

ARRIVAL_NOTE = (
    "Arrivals are derived: a battle's tstamp (the vote, after its last answers) is taken as the arrival of its first "
    "turn, which keeps the rate and the daily shape."
)
TURN_NOTE = "Later turns follow the answer before them on their own side."


def detect(head: Head) -> bool:
    return head.shape == "json" and head.has("conversation_a", "conversation_b")


def chatbot_arena(source: Source) -> pd.DataFrame:
    battles = _Battles(source)
    source.each(battles.add)
    if not battles.rows.count:
        source.nothing()
    shown = "both sides of each battle" if source.side == "both" else f"side {source.side} of each battle"
    source.notes.append(f"Requests are the answers of {shown}; a prompt is all of its side's messages before it.")
    table = battles.rows.table()
    table = stamped(source, table, "tstamp", table["arrival_s"].notna().to_numpy())
    if table["turn"].any():
        source.notes += [TURN_NOTE, THINK_NOTE]
    if not source.has_arrivals:
        return table
    source.notes.append(ARRIVAL_NOTE)
    return source.clock(table, "tstamp", ordered=False)


class _Battles:
    """Turns records into rows; a battle without a time arrives at NaN."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.rows = Rows()
        self.sides = ("a", "b") if source.side == "both" else (source.side,)
        self.seen: set[str] = set()

    def add(self, record: dict[str, Any], row: int) -> None:
        if any(record.get(f"conversation_{side}") in (None, []) for side in self.sides):
            self.source.dropped["battles whose conversation is None or empty"] += 1
            return
        arrival = get(record, "tstamp", Time("s")) if "tstamp" in record else math.nan
        found = {}
        for side in self.sides:
            key = f"conversation_{side}"
            model = get(record, f"model_{side}", Text(optional=True))
            found[side] = model, answers(message_tokens(record[key], key, self.source.tokens))
        name = get(record, "question_id", Text(optional=True))
        if not name or name in self.seen:
            name = f"{name}#{row}"
        self.seen.add(name)
        if not any(turns for _, turns in found.values()):
            self.source.dropped["battles without an answer to a question"] += 1
        for side, (model, turns) in found.items():
            self.rows.add_turns(turns, arrival, ASSUMED_THINK_S, source_row=row, session=f"{name}/{side}", model=model)
