"""Names of modules as quantisers write them, and which modules of a layer they mean. It knows no method."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

from traces.schema import InputError

_PREFIXES = (
    "model.", "", "model.language_model.", "language_model.model.", "backbone.", "language_model.", "transformer.",
)  # fmt: skip
_TWICE = re.compile(r"\)[*+{]")
_MOST_PATTERN = 500


class Patterns:
    """Names of modules as quantisers write them: whole names, parts of names, globs, and `re:` regular expressions."""

    def __init__(self, where: str, texts: Iterable[object]) -> None:
        self._parts: set[str] = set()
        expressions: list[str] = []
        for text in texts:
            if not isinstance(text, str) or len(text) > _MOST_PATTERN:
                raise InputError(f"{where} must be a list of names of modules of at most {_MOST_PATTERN} characters")
            if text.startswith("re:"):
                expressions.append(_expression(where, text[3:]))
            elif any(sign in text for sign in "*?["):
                expressions += [translate(text), translate(f"{text}.*")]
            else:
                self._parts.add(_within_layers(text))
        self._expressions = [re.compile("|".join(f"(?:{each})" for each in some)) for some in _chunks(expressions)]

    def __bool__(self) -> bool:
        return bool(self._parts or self._expressions)

    def match(self, layer: int, module: str) -> bool:
        """Does one of them name `module` of the so many-th layer, or something that it is part of?"""
        name = f"layers.{layer}.{module}"
        words = name.split(".")
        if any(
            ".".join(words[start:end]) in self._parts
            for start in range(len(words))
            for end in range(start + 1, len(words) + 1)
        ):
            return True
        return any(each.match(prefix + name) for each in self._expressions for prefix in _PREFIXES)


def _chunks(texts: list[str]) -> Iterable[list[str]]:
    return (texts[start : start + 200] for start in range(0, len(texts), 200))


def _within_layers(text: str) -> str:
    """A name without what stands before `layers.`, which every family calls otherwise."""
    _, found, rest = text.rpartition("layers.")
    return f"layers.{rest}".strip(".") if found else text.strip(".")


def _expression(where: str, text: str) -> str:
    """A regular expression that costs no more than its length; nested repeats could take for ever."""
    if _TWICE.search(text):
        raise InputError(f"{where} has the expression {text!r}, which repeats a group; that is not read")
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        raise InputError(f"{where} has {text!r}, which is no regular expression") from None
    return text
