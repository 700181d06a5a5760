"""The sources of the running Python's standard library as text: which files, and which are held out of training.

They are read where Python was installed and never shipped. It knows no model.
"""

from __future__ import annotations

import os
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from traces.schema import InputError

BOS, EOS, VOCAB = 256, 257, 264
"""A file is BOS, its bytes, EOS; ids from 258 on fill the table to a multiple of 8, which GPUs multiply faster."""

HELD_OUT_OF = 16
"""One file in so many is held out: those whose name's CRC-32 is a multiple."""

_SKIPPED = {"__pycache__", "dist-packages", "encodings", "idle_test", "lib-dynload", "site-packages", "test", "tests"}
"""Folders that are no library sources, are left out of many installations, or hold tables (encodings)."""


def held_out(name: str) -> bool:
    """Whether the file of this name (relative, with "/") is kept from training, in every Python the same."""
    return zlib.crc32(name.encode()) % HELD_OUT_OF == 0


def sources(*, held: bool) -> dict[str, bytes]:
    """The held-out files, or all others: names relative to the library's folder, sorted, and contents.

    Raises InputError where this Python has no readable sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = {path.relative_to(root).as_posix(): path for path in _python_files(root)}
    texts = {name: paths[name].read_bytes() for name in sorted(paths) if held_out(name) == held}
    if not any(texts.values()):
        raise InputError(f"{root}: this Python has no sources of its standard library to read")
    return texts


def document(text: bytes) -> npt.NDArray[np.int64]:
    return np.concatenate([[BOS], np.frombuffer(text, np.uint8), [EOS]]).astype(np.int64)


def as_text(tokens: npt.ArrayLike) -> str:
    """What tokens say: their bytes as UTF-8, the replacement character for what is none, nothing for special tokens."""
    ids = np.asarray(tokens, np.int64)
    return ids[ids < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")


def _python_files(root: Path) -> Iterator[Path]:
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in _SKIPPED]
        yield from (Path(folder, name) for name in files if name.endswith(".py"))
