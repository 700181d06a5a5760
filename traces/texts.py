"""Messages of a conversation as (role, tokens). Knows the shapes that chat logs give them, not any one format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from traces.fields import BadRow, Count, get, shown

ASKING = ("user", "human", "system", "tool", "function", "developer")
ANSWERING = ("assistant", "gpt", "chatgpt", "bing", "bard", "model")


def message_tokens(
    messages: Any, key: str, count: Callable[[str], int], role_key: str = "role", text_key: str = "content"
) -> list[tuple[bool, int]]:
    """(is an answer, tokens) of each message; `num_tokens` inside a message is taken before counting its text.

    Raises BadRow where `messages` is not a list of {role, content}, or a role is unknown.
    """
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"{key} must be a list of messages, not {shown(messages)}", f"{key}: not a list of messages")
    found = []
    for place, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise BadRow(f"{key}: message {place} is not an object", f"{key}: a message is not an object")
        role = message.get(role_key)
        if role not in ASKING and role not in ANSWERING:
            known = ", ".join((*ASKING, *ANSWERING))
            raise BadRow(f"{key}: message {place} has {role_key} {role!r}; known are {known}", f"{key}: unknown role")
        if message.get("num_tokens") is not None:
            tokens = int(get(message, "num_tokens", Count(least=0)))
        else:
            tokens = count(_text(message.get(text_key), f"{key}: {text_key} of message {place}"))
        found.append((role in ANSWERING, tokens))
    return found


def _text(content: object, what: str) -> str:
    """A message's text: a string, or the text parts of a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        parts = [part.get("text", "") for part in content if part.get("type", "text") == "text"]
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
    raise BadRow(f"{what} is {shown(content)}; it must be a text", "a message without text")
