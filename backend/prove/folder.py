"""The seven files that leave the machine, each rewritten by rename: at any moment of a kill they are whole.

It knows no stage: it copies, packs and bounds.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from backend.atomic import replace_file
from traces.schema import InputError

FILES = (
    "summary.json", "prove.log", "tests.xml", "bench.json", "journal.jsonl", "profile.tgz", "validate.tgz",
)  # fmt: skip
MOST_BYTES = 4_000_000
"""Of each file: what remote machines give back is bounded."""


class ProveFolder:
    """The folder of results. Nothing else stands in it, and nothing in folders below."""

    def __init__(self, path: Path) -> None:
        """Make the folder where it is absent.

        Raises:
            InputError: it cannot be made or written to, or holds results already.
        """
        self.path = path
        self.left_out: dict[str, str] = {}
        self._written: dict[str, object] = {}
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".{uuid4().hex}.part"
            probe.write_bytes(b"")
            probe.unlink()
            there = sorted(name.name for name in path.iterdir() if name.name in FILES)
        except OSError as error:
            raise InputError(f"cannot write to the folder {path}: {error.strerror or error}") from None
        if there:
            raise InputError(f"{path} holds {there[0]} of another run; give another --out, or remove it")

    def put(self, name: str, content: bytes) -> None:
        """Replace a file at once; one that is too large is left out, and the reason kept. Raises InputError."""
        assert name in FILES
        if len(content) > MOST_BYTES:
            self.left_out[name] = f"{len(content):,} bytes, more than {MOST_BYTES:,}"
            return
        replace_file(self.path / name, content)
        self.left_out.pop(name, None)

    def copy(self, source: Path, name: str) -> None:
        """Replace a file by a working file, where that has changed; by its first whole lines where it is too long."""
        if not self._changed(name, [source]):
            return
        with source.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            if not name.endswith(".jsonl"):
                self.left_out[name] = f"more than {MOST_BYTES:,} bytes"
                return
            content = content[: content.rindex(b"\n", 0, MOST_BYTES) + 1]
            self.put(name, content)
            self.left_out[name] = f"its lines behind the first {len(content):,} bytes"
            return
        self.put(name, content)

    def pack(self, folder: Path, name: str, first: Sequence[str] = ()) -> None:
        """Replace an archive by the folder's files, where they have changed: those of `first`, then while it has room.

        Files that found no room are told.
        """
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        if not files or not self._changed(name, files):
            return
        files.sort(key=lambda path: (path.name not in first, path.stat().st_size))
        room, chosen, without = MOST_BYTES - 100_000, [], []
        for path in files:
            packed = len(gzip.compress(path.read_bytes(), 6))
            if packed <= room:
                room -= packed + 1024
                chosen.append(path)
            else:
                without.append(path.name)
        held = io.BytesIO()
        with tarfile.open(fileobj=held, mode="w:gz") as archive:
            for path in chosen:
                archive.add(path, arcname=f"{folder.name}/{path.relative_to(folder).as_posix()}")
        self.put(name, held.getvalue())
        if without:
            self.left_out[name] = f"without {', '.join(without)}, for want of room"

    def _changed(self, name: str, sources: Sequence[Path]) -> bool:
        try:
            state = [(str(path), (status := path.stat()).st_mtime_ns, status.st_size) for path in sources]
        except OSError:
            return False  # not there yet, or gone within this moment
        if self._written.get(name) == state:
            return False
        self._written[name] = state
        return True
