"""The size of a KV cache out of what a server wrote at its start. It knows no model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from traces import files
from traces.schema import InputError

_NUMBER = r"(\d[\d,]*(?:\.\d+)?)"
_FORMS = (
    (rf"GPU KV cache size: {_NUMBER} tokens", "tokens", 1),
    (rf"max_total_num_tokens={_NUMBER}", "tokens", 0),
    (rf"# (?:GPU|cuda) blocks: {_NUMBER}", "blocks", 0),
    (rf"num_gpu_blocks\"?(?: is)?[:=]? ?{_NUMBER}", "blocks", 1),
    (rf"Available KV cache memory: {_NUMBER} GiB", "GiB", 1),
)
"""Patterns, what their number counts, and how many blocks of that are no request's (vLLM's null block, since its V1
engine); the first pattern that a text has is taken."""
KNOWN = (
    "vLLM's 'GPU KV cache size: 1,234,567 tokens', '# GPU blocks: 12345' and 'Available KV cache memory: 12.3 GiB', "
    "and SGLang's 'max_total_num_tokens=123456'"
)
SHOWN = 80
LONGEST_PATH, LONGEST_NAME = 4096, 256


class LoggedRoom(NamedTuple):
    """So many tokens, blocks or GiB of one replica's GPU, as a line has it; `null_blocks` of it are no request's."""

    amount: float
    unit: str
    null_blocks: int
    line: str


def logged_room(told: str) -> LoggedRoom:
    """What a pasted line says, or the last such line of a file.

    Raises InputError, in a sentence with the forms that are known, where none says it or it cannot be.
    """
    if (room := _room(told)) is not None:
        return room
    path = _path(told)
    if path is None:
        raise InputError(f"kv.from_log: {_short(told)!r} is no file, and says no size of a KV cache; known are {KNOWN}")
    if (room := _room(files.text(path, files.MAX_RESULT_BYTES))) is None:
        raise InputError(f"kv.from_log: {files.named(path)} has no size of a KV cache; known are {KNOWN}")
    return room


def log_file(told: str) -> Path | None:
    """The file that `kv.from_log` names; None for a pasted line."""
    return None if _room(told) is not None else _path(told)


def _path(told: str) -> Path | None:
    """The file of that name, if there is one; no text of several lines, and none with a part longer than names are."""
    path = Path(told)
    named = told.isprintable() and len(told) < LONGEST_PATH and max(map(len, path.parts), default=0) < LONGEST_NAME
    return path if named and files.is_file(path) else None


def _room(text: str) -> LoggedRoom | None:
    """What the last line of the first form says, that the text has; InputError for a size that cannot be."""
    for pattern, unit, null_blocks in _FORMS:
        if found := list(re.finditer(pattern, text)):
            line, amount = found[-1][0], float(found[-1][1].replace(",", ""))
            if not 0 < amount < 10**12 or (unit != "GiB" and amount != int(amount)):
                raise InputError(
                    f"kv.from_log: {_short(line)!r} is no size of a KV cache; it must be above 0"
                    f"{'' if unit == 'GiB' else ', whole'} and below 10**12"
                )
            return LoggedRoom(amount, unit, null_blocks, line)
    return None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."
