"""LMSYS-Chat-1M conversations (JSON Lines or array: conversation_id, model, conversation of {role, content}); no times.

Source: huggingface.co/datasets/lmsys/lmsys-chat-1m, as `datasets` writes it with to_json. Its times were deleted before
release. Every answer after a question is a request whose prompt is all text before it.
"""

from __future__ import annotations

from traces.formats.sharegpt import Keys, answered
from traces.head import Head
from traces.late import pd
from traces.source import Source

KEYS = Keys("conversation_id", "conversation", "role", "content", "model")


def detect(head: Head) -> bool:
    return head.shape == "json" and head.has(KEYS.id, KEYS.talk) and isinstance(head.record.get(KEYS.talk), list)


def lmsys_chat(source: Source) -> pd.DataFrame:
    return answered(source, KEYS)
