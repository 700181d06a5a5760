"""ShareGPT conversations (JSON array or lines: id, conversations of {from, value}); no times.

Every answer after a question is a request whose prompt is all text before it. vLLM's benchmark keeps the first
exchange alone; `traces.edit.first_turns` does that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from traces.fields import Text, get
from traces.head import Head
from traces.late import pd
from traces.sessions import THINK_NOTE, Rows, answers
from traces.source import Source
from traces.texts import message_tokens


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of a conversation's id, of the list of its messages, and of a message's speaker and text.

    `model` names who answers; "" where the file does not tell.
    """

    id: str
    talk: str
    role: str
    text: str
    model: str = ""


KEYS = Keys("id", "conversations", "from", "value")


def detect(head: Head) -> bool:
    talk = head.record.get("conversations")
    return head.shape == "json" and isinstance(talk, list) and all(isinstance(one, dict) for one in talk)


def sharegpt(source: Source) -> pd.DataFrame:
    return answered(source, KEYS)


def answered(source: Source, keys: Keys) -> pd.DataFrame:
    """A request for every answer of every conversation, without times."""
    rows = Rows()

    def add(record: dict[str, Any], row: int) -> None:
        if record.get(keys.talk) == []:
            source.dropped["conversations without a message"] += 1
            return
        found = answers(message_tokens(record.get(keys.talk), keys.talk, source.tokens, keys.role, keys.text))
        if not found:
            source.dropped["conversations without an answer to a question"] += 1
        named = {"session": f"{get(record, keys.id, Text(optional=True))}#{row}"}
        if keys.model:
            named["model"] = get(record, keys.model, Text(optional=True))
        rows.add_turns(found, 0.0, 0.0, source_row=row, **named)

    source.each(add)
    if not rows.count:
        source.nothing()
    source.has_arrivals = False
    source.notes.append("Requests are the answers of each conversation; a prompt is all of its messages before it.")
    if any(rows.columns["turn"]):
        source.notes.append(THINK_NOTE)
    return rows.table()
