"""The one door for files that users name: each is read here, within bounds, or refused in a sentence.

Only regular files are opened, a packed one may not grow out of all proportion, and nothing is taken in that is longer
or nested more deeply than what it should be can be. It knows no format of traces, no setting and no request.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from traces.schema import InputError

MAX_FILE_BYTES = 8 * 2**30
"""Of a trace or a table, unpacked."""
MAX_LINE_BYTES = 64 * 2**20
MAX_RESULT_BYTES = 2 * 2**30
"""Of JSON that programs write: a server's results, a journal."""
MAX_TEXT_BYTES = 64 * 2**20
"""Of what people or their tools describe: a model, a run, a tokenizer."""
MAX_GROWTH = 100
"""An unpacked byte for a packed one, beyond the first `FREE_BYTES`. Real traces reach 10 to 40."""
FREE_BYTES = 64 * 2**20
BOM = b"\xef\xbb\xbf"
_CHUNK = 1 << 20
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
_OPENERS: Mapping[str, Any] = {"gzip": gzip.open, "xz": lzma.open, "bzip2": bz2.open}
_OTHER = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def named(path: str | os.PathLike[str]) -> str:
    """The path as a sentence names it: its middle left out where it is very long, and always on one line."""
    text = str(path)
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= 250 else f"{text[:120]}...{text[-120:]}"


def status(path: Path) -> os.stat_result | None:
    """What the system says of a path, links followed; None where nothing is there.

    Raises InputError for a path that cannot be one (too long, links in a circle) or may not be looked at.
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{named(path)} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a zero byte in it
        raise InputError(f"{named(path)} is no path: {error}") from None


def exists(path: Path) -> bool:
    """Whether anything is there; raises InputError as `status`."""
    return status(path) is not None


def is_file(path: Path) -> bool:
    """Whether a regular file is there; raises InputError as `status`."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_dir(path: Path) -> bool:
    """Whether a folder is there; raises InputError as `status`."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def check(path: Path, hint: str = "") -> int:
    """The bytes of a regular file; raises InputError for everything else, before anything of it is opened."""
    found = status(path)
    if found is None:
        raise InputError(f"{named(path)} does not exist")
    for of_kind, kind in _OTHER.items():
        if of_kind(found.st_mode):
            raise InputError(f"{named(path)} is {kind}, not a file{hint}")
    return found.st_size


@contextmanager
def plain(path: Path, hint: str = "") -> Iterator[tuple[io.BufferedReader, int]]:
    """(the file's bytes as they are, how many there should be)."""
    check(path, hint)
    try:
        # Without waiting: what was a file a moment ago may be a pipe now.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(number, "rb") as raw:
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{named(path)} is not a file any more")
            yield raw, found.st_size
    except FileNotFoundError:
        raise InputError(f"{named(path)} does not exist") from None
    except OSError as error:
        raise InputError(f"{named(path)} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise InputError(f"{named(path)} takes more memory than there is") from None


class _Unpacked(io.RawIOBase):
    """What a packed file holds, for as long as it is not out of proportion to what was read of it."""

    def __init__(self, inner: BinaryIO, packed: BinaryIO, path: Path) -> None:
        self._inner, self._packed, self._path = inner, packed, path
        self._given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = cast("io.BufferedIOBase", self._inner).readinto(buffer)
        self._given += count
        if self._given > FREE_BYTES + MAX_GROWTH * self._packed.tell():
            raise InputError(
                f"{named(self._path)} unpacks to more than {MAX_GROWTH} times its size, as no trace does; if it is "
                "what it should be, give it unpacked"
            )
        return count


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where its first bytes say gzip, xz or bzip2 (the name does not matter).

    Raises InputError for what is no regular file, unreadable, empty, damaged or a bomb, also while it is being read.
    """
    with plain(path, "; only the format weka reads a folder" if is_dir(path) else "") as (raw, _):
        magic = raw.read(10)
        raw.seek(0)
        if not magic:
            raise InputError(f"{named(path)} is empty")
        if magic[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{named(path)} is UTF-16 text; save it as UTF-8")
        packing = _packing(magic)
        if not packing:
            yield raw
            return
        inner: Any = _OPENERS[packing](raw)
        try:
            with inner, io.BufferedReader(_Unpacked(inner, raw, path), _CHUNK) as stream:
                yield cast("BinaryIO", stream)
        except (*_DAMAGED, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise InputError(f"{named(path)} is cut off or damaged: its {packing} data end wrongly ({error})") from None


def _packing(magic: bytes) -> str:
    if magic[:2] == b"\x1f\x8b":
        return "gzip"
    if magic[:6] == b"\xfd7zXZ\x00":
        return "xz"
    return "bzip2" if magic[:3] == b"BZh" and magic[4:] == b"1AY&SY" else ""


def _taken(stream: BinaryIO, path: Path, most: int, first: int = _CHUNK) -> bytes:
    """All that is left of a stream, `first` bytes at once; raises InputError beyond `most`."""
    parts: list[bytes] = []
    total = 0
    size = min(first, most) + 1
    while part := stream.read(size):
        parts.append(part)
        total += len(part)
        if total > most:
            raise InputError(f"{named(path)} is more than {size_words(most)}; split it")
        size = _CHUNK
    return parts[0] if len(parts) == 1 else b"".join(parts)


def size_words(count: int) -> str:
    return f"{count >> 30} GiB" if count >= 2**30 else f"{count >> 20} MiB" if count >= 2**20 else f"{count:,} bytes"


def whole(path: Path) -> bytes:
    """All bytes of the file, unpacked, without a byte order mark."""
    size = check(path)
    if size > MAX_FILE_BYTES:
        raise InputError(f"{named(path)} is more than {size_words(MAX_FILE_BYTES)}; split it")
    with opened(path) as stream:
        data = _taken(stream, path, MAX_FILE_BYTES, size)
    if not data[:1000].strip() and not data.strip():
        raise InputError(f"{named(path)} is empty")
    return data.removeprefix(BOM)


def start(path: Path, size: int = 1 << 16) -> bytes:
    """The first `size` bytes, unpacked, without a byte order mark."""
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


def content(path: Path, most: int = MAX_TEXT_BYTES) -> bytes:
    """The file's bytes as they are; raises InputError for more than `most` of them."""
    with plain(path) as (raw, size):
        if size > most:
            raise InputError(f"{named(path)} is {size:,} bytes; such a file has at most {size_words(most)}")
        return _taken(raw, path, most, size)


def text(path: Path, most: int = MAX_TEXT_BYTES) -> str:
    """A file of UTF-8 text, which may be empty; lines end in a line feed. Raises InputError."""
    data = content(path, most)
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{named(path)} is not UTF-8 text (byte {error.start + 1})") from None


def digest(path: Path) -> bytes:
    """The SHA-256 of a file's bytes, read a piece at a time; raises InputError."""
    with plain(path) as (raw, _):
        return hashlib.file_digest(raw, "sha256").digest()


def members(path: Path, most: int) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files in a tar archive, packed or not; raises InputError for one of more than `most`."""
    try:
        with opened(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                inner = archive.extractfile(member) if member.isfile() else None
                if inner is not None:
                    if member.size > most:
                        raise InputError(f"{named(path)}: {named(member.name)} is larger than {size_words(most)}")
                    yield Path(member.name).name, inner.read()
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{named(path)} is cut off, damaged or not a tar file ({error})") from None
