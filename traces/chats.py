"""Tokens of what OpenAI's and like interfaces exchange: messages, prompts, answers, in the shapes that logs keep.

Shapes: platform.openai.com/docs/api-reference (chat/completions, completions, responses). Unlike `traces.texts`,
roles do not matter here: all that was sent is the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from traces.fields import BadRow, Count, shown

Counter = Callable[[str], int]
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
INPUT_COUNTS = ("prompt_tokens", "input_tokens")
OUTPUT_COUNTS = ("completion_tokens", "output_tokens")
APART = ("cache_read_input_tokens", "cache_creation_input_tokens")
"""Tokens of a prompt that Anthropic's `input_tokens` leaves out (docs.anthropic.com, prompt caching)."""
LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
"""What bounds an answer, the newer names first."""


def content_tokens(content: Any, count: Counter, what: str) -> int:
    """Tokens of a text, of the text parts of a list, of token ids, or of messages; raises BadRow for anything else."""
    if isinstance(content, str):
        return count(content) if content else 0
    if isinstance(content, list) and content:
        if all(isinstance(one, int) and not isinstance(one, bool) for one in content):
            return len(content)
        if all(isinstance(one, dict) for one in content):
            return sum(_item_tokens(one, count, f"{what}: item {place}") for place, one in enumerate(content, start=1))
    rule = "it must be a text, messages or token ids"
    raise BadRow(f"{what} is {shown(content)}; {rule}", f"{what}: {rule}")


def _item_tokens(item: Mapping[str, Any], count: Counter, what: str) -> int:
    """Tokens of a message or of a part of one; images and sounds have none that are known here."""
    total = 0
    if item.get("tool_calls"):
        total += count(json.dumps(item["tool_calls"], ensure_ascii=False))
    if isinstance(item.get("text"), str) and item.get("type", "text") in TEXT_PARTS:
        total += content_tokens(item["text"], count, what)
    if item.get("content") is not None:
        total += content_tokens(item["content"], count, what) if item["content"] != [] else 0
    return total


def usage_of(body: Mapping[str, Any]) -> tuple[int, int] | None:
    """(prompt, output) tokens of an answer's `usage`, None where it has none. Raises BadRow where one is no count."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, output = (_first(usage, names) for names in (INPUT_COUNTS, OUTPUT_COUNTS))
    if prompt is None or output is None:
        return None
    cached = sum(_counted(name, usage, 0) for name in APART if usage.get(name) is not None)
    return _counted(prompt, usage, 0 if cached else 1) + cached, _counted(output, usage)


def prompt_tokens(body: Mapping[str, Any], count: Counter) -> int:
    """Tokens of what a request's body sends; raises BadRow where it sends nothing that can be counted."""
    key = _first(body, ("messages", "prompt", "input"))
    if key is None:
        raise BadRow("has neither messages, prompt nor input", "no prompt")
    total = content_tokens(body[key], count, key)
    if isinstance(body.get("instructions"), str):
        total += content_tokens(body["instructions"], count, "instructions")
    if total < 1:
        raise BadRow(f"{key} holds no text", f"{key}: no text")
    return total


def limit_of(body: Mapping[str, Any]) -> int | None:
    """The most tokens that an answer may have by a request's body, None where it does not say."""
    key = _first(body, LIMITS)
    return None if key is None else _counted(key, body)


def answer_tokens(body: Mapping[str, Any], count: Counter) -> int:
    """Tokens of the texts of an answer without `usage`; raises BadRow where there is none."""
    total = 0
    choices = body.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            if isinstance(choice.get("text"), str):
                total += content_tokens(choice["text"], count, "choices: text")
            if isinstance(choice.get("message"), dict):
                total += _item_tokens(choice["message"], count, "choices: message")
    if isinstance(body.get("output"), list):
        total += sum(_item_tokens(one, count, "output") for one in body["output"] if isinstance(one, dict))
    if total < 1:
        raise BadRow("has neither usage nor the text of an answer", "no answer")
    return total


def _first(body: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if body.get(name) is not None), None)


def _counted(key: str, body: Mapping[str, Any], least: int = 1) -> int:
    try:
        return Count(least).parse(body[key])
    except BadRow as rule:
        raise BadRow(f"{key} is {shown(body[key])}; {rule}", f"{key}: {rule}") from None
