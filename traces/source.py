"""A trace file while a reader reads it: records, tables, bad rows, notes. Knows nothing of any one format."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from traces import documents, files, tables
from traces.choices import UNITS
from traces.fields import BadRow, Kind, looks_like
from traces.head import Head, head_of
from traces.late import pd
from traces.rows import keep_rows
from traces.schema import InputError
from traces.table import C
from traces.tokens import counter

T = TypeVar("T")
SIDES = ("both", "a", "b")


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may ask of a reader. An option that a format has no use for is an error."""

    tokenizer: str | Path | None = None
    skip_bad: bool = False
    side: str = "both"
    turns: str = "auto"
    time_unit: str = "auto"
    block_tokens: int = 0


class Source(os.PathLike[str]):
    """What a format's function gets: a path (any library opens it as one) with help around it.

    `notes`, `dropped` (rows by reason), `synthetic`, `has_arrivals` and `turns_are` (what a later turn's length in the
    file is, whole or new) end up in the Trace; `rejected` are the rows that skip_bad let go.
    """

    def __init__(self, path: Path, options: Options = Options()) -> None:
        self.path = path
        self.notes: list[str] = []
        self.dropped: Counter[str] = Counter()
        self.rejected: list[int] = []
        self.synthetic = False
        self.has_arrivals = True
        self.turns_are = "whole"
        self.where = "line"
        self.used: set[str] = set()
        self.options = options
        self._count: Callable[[str], int] | None = None

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def skip_bad(self) -> bool:
        return self.options.skip_bad

    @property
    def side(self) -> str:
        """Which side of a two-sided conversation is asked for: both, a or b."""
        self.used.add("side")
        return self.options.side

    @property
    def turns(self) -> str:
        """What the user says that a later turn's length is: whole, new, or auto for what the file shows."""
        self.used.add("turns")
        return self.options.turns

    @property
    def time_unit(self) -> str:
        """The unit of its times that the user names; auto for the format's."""
        self.used.add("time_unit")
        return self.options.time_unit

    @property
    def block_tokens(self) -> int:
        """Tokens of a block of hash ids that the user names; 0 for what the format says or the file shows."""
        self.used.add("block_tokens")
        return self.options.block_tokens

    def tokens(self, text: str) -> int:
        """Tokens of a text, by the tokenizer given or by the stated rule, which becomes a note."""
        if self._count is None:
            self.used.add("tokenizer")
            self._count, rule = counter(self.options.tokenizer)
            self.notes.append(rule)
        return self._count(text)

    def sibling(self, path: Path) -> Source:
        """Another file of the same trace, read under the same options; `adopt` it when read."""
        return Source(path, self.options)

    def adopt(self, other: Source) -> None:
        """Take over what was noted and dropped while another file of the trace was read."""
        self.notes += [note for note in other.notes if note not in self.notes]
        self.dropped += other.dropped
        self.rejected += other.rejected
        self.used |= other.used
        self.synthetic |= other.synthetic

    def reject(self, row: int, why: BadRow) -> None:
        """A row that cannot be used: InputError naming it, or one more dropped row under skip_bad."""
        if not self.skip_bad:
            raise InputError(f"{self.path} {self.where} {row}: {why}")
        self.dropped[why.rule] += 1
        self.rejected.append(row)

    def fail(self, reason: str) -> NoReturn:
        raise InputError(f"{self.path} {reason}")

    def nothing(self) -> NoReturn:
        """The file holds no request that can be used."""
        self.fail("holds no usable request" + (f" ({len(self.rejected)} bad)" if self.rejected else ""))

    def document(self) -> Any:
        try:
            return _json(files.whole(self.path))
        except BadRow as why:
            self.fail(str(why))

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line, object) of JSON Lines, or (record number, object) of a JSON array; bad ones are rejected."""
        if files.start(self.path).lstrip()[:1] == b"[":
            self.where = "record"
            rows: Iterator[tuple[int, Any]] = enumerate(self.document(), start=1)
        else:
            rows = files.lines(self.path)
        for row, found in rows:
            try:
                record = _json(found) if isinstance(found, bytes) else found
                if not isinstance(record, dict):
                    raise BadRow("is not a JSON object")
            except BadRow as why:
                self.reject(row, why)
                continue
            self.synthetic |= record.get("synthetic") is True
            yield row, record

    def each(self, parse: Callable[[dict[str, Any], int], T]) -> list[T]:
        """parse(record, row) of every record; one that raises BadRow is rejected."""
        out = []
        for row, record in self.records():
            try:
                out.append(parse(record, row))
            except BadRow as why:
                self.reject(row, why)
        if not out:
            self.nothing()
        return out

    @property
    def head(self) -> Head:
        """The header, or the keys of the first record."""
        return head_of(self.path, self.skip_bad)

    def columns(self) -> list[str]:
        return tables.header_of(files.start(self.path, 1 << 20).split(b"\n", 1)[0], self.path)

    def table(self, columns: Mapping[str, Kind]) -> pd.DataFrame:
        """Columns of a CSV file with a header, checked by kind, and `source_row`."""
        table = tables.read_csv(self.path, columns, self.reject)
        if table.empty:
            self.nothing()
        return table

    def clock(
        self, table: C, key: str, unit: str = "s", *, ordered: bool, shift: bool = True, epoch: bool = False
    ) -> C:
        """Checks `arrival_s` (already in seconds) against what the format says, and lets the first be 0.

        With `ordered`, a row earlier than one before it is bad. `key` and `unit` are the file's own; `epoch` where
        dates have been looked for.
        """
        if not len(table):
            self.nothing()
        times = np.asarray(table["arrival_s"], np.float64)
        name, per_second = UNITS[unit]
        first = float(times.min()) * per_second
        if (unit == "ms" or not shift) and not epoch and (hint := looks_like(first, name if shift else "")):
            self.fail(f"has no {key} below {first:.0f}; the format counts {name} from the start{hint}")
        if ordered and (late := times < np.maximum.accumulate(times)).any():
            raw = times * per_second
            for place in np.flatnonzero(late):
                why = f"{key} goes back to {raw[place]:.9g} after {raw[:place].max():.9g}"
                bad = BadRow(f"{why}; rows must be in order of time", f"{key} goes back")
                self.reject(int(np.asarray(table["source_row"])[place]), bad)
            table = keep_rows(table, ~late)
        if shift and times.min() > 0:
            stood = float(times.min())
            when = f"{pd.Timestamp(stood, unit='s'):%Y-%m-%d %H:%M:%S} UTC" if stood >= 1e9 else f"{stood:.9g} s"
            self.notes.append(f"Times are shifted so that the first request arrives at 0; its {key} is {when}.")
            table = table.assign(arrival_s=table["arrival_s"] - times.min())
        return table


def _json(data: bytes) -> Any:
    """One JSON value; a key that stands twice is refused. Raises BadRow."""
    if len(data) > files.MAX_LINE_BYTES and b"\n" not in data:
        raise BadRow(f"is longer than {files.MAX_LINE_BYTES >> 20} MiB", "overlong")
    try:
        found = _DECODER.decode(data.decode("utf-8"))
        if data.count(b"[") + data.count(b"{") > documents.MAX_DEPTH:
            documents.check_depth(found)
        return found
    except UnicodeDecodeError as error:
        raise BadRow(f"is not valid UTF-8 (byte {error.start + 1})", "is not valid UTF-8") from None
    except (RecursionError, documents.TooDeepError):
        raise BadRow("is nested too deeply") from None
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise BadRow(f"is cut off or not valid JSON ({error.msg} at {at})", "is not valid JSON") from None
    except ValueError as error:
        raise BadRow(f"is not valid JSON ({documents.reason(error)})", "is not valid JSON") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise BadRow(f"has the key {twice!r} twice", "has a key twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)
