"""Bytes of a trace file: gzip and xz are read as if they were plain. Knows nothing of formats or requests."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from traces.schema import InputError

MAX_LINE_BYTES = 64 * 2**20
MAX_FILE_BYTES = 8 * 2**30
BOM = b"\xef\xbb\xbf"
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed where its first bytes say gzip or xz (the name does not matter).

    Raises InputError for a missing, unreadable, empty or damaged file, also while it is being read.
    """
    packing = ""
    try:
        with path.open("rb") as raw:
            magic = raw.read(6)
            raw.seek(0)
            if not magic:
                raise InputError(f"{path} is empty")
            if magic[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise InputError(f"{path} is UTF-16 text; save it as UTF-8")
            if magic[:2] == b"\x1f\x8b":
                packing = "gzip"
                with gzip.open(raw) as stream:
                    yield cast("BinaryIO", stream)
            elif magic == b"\xfd7zXZ\x00":
                packing = "xz"
                with lzma.open(raw) as stream:
                    yield cast("BinaryIO", stream)
            else:
                yield raw
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; only the format weka reads a folder") from None
    except _DAMAGED as error:
        raise InputError(f"{path} is cut off or damaged: its {packing} data end wrongly ({error})") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def whole(path: Path) -> bytes:
    """All bytes of the file, decompressed, without a byte order mark."""
    with opened(path) as stream:
        data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{path} is more than {MAX_FILE_BYTES >> 30} GiB; split it")
    if not data.strip():
        raise InputError(f"{path} is empty")
    return data.removeprefix(BOM)


def start(path: Path, size: int = 1 << 16) -> bytes:
    """The first `size` bytes, decompressed, without a byte order mark."""
    with opened(path) as stream:
        return stream.read(size).removeprefix(BOM)


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(1-based line number, bytes without the line end), blank lines left out.

    A line above MAX_LINE_BYTES comes cut to one byte more than that, so that the caller can refuse it.
    """
    with opened(path) as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            whole_line = line.endswith(b"\n")
            while not whole_line and (rest := stream.readline(MAX_LINE_BYTES)):
                whole_line = rest.endswith(b"\n")
            if number == 1:
                line = line.removeprefix(BOM)
            if stripped := line.strip():
                yield number, stripped
