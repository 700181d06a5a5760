"""ShareGPT conversations (JSON array or lines: id, conversations of {from, value}); no times.

Every answer after a question is a request whose prompt is all text before it. vLLM's benchmark keeps the first
exchange alone; `traces.edit.first_turns` does that.
"""

from typing import Any

import pandas as pd

from traces.fields import Text, get
from traces.head import Head
from traces.sessions import THINK_NOTE, Rows, answers
from traces.source import Source
from traces.texts import message_tokens


def detect(head: Head) -> bool:
    talk = head.record.get("conversations")
    return head.shape == "json" and isinstance(talk, list) and all(isinstance(one, dict) for one in talk)


def sharegpt(source: Source) -> pd.DataFrame:
    rows = Rows()

    def add(record: dict[str, Any], row: int) -> None:
        if record.get("conversations") == []:
            source.dropped["conversations without a message"] += 1
            return
        messages = message_tokens(record.get("conversations"), "conversations", source.tokens, "from", "value")
        found = answers(messages)
        if not found:
            source.dropped["conversations without an answer to a question"] += 1
        session = f"{get(record, 'id', Text(optional=True))}#{row}"
        rows.add_turns(found, 0.0, 0.0, source_row=row, session=session)

    source.each(add)
    if not rows.count:
        source.nothing()
    source.has_arrivals = False
    if any(rows.columns["turn"]):
        source.notes.append(THINK_NOTE)
    return rows.table()
