"""From a name to a Trace: find the file, recognise its format, read it, check it. Knows no format itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from traces import files, formats
from traces.choices import TIME_UNITS, TURNS
from traces.head import head_of, json_files
from traces.late import pd
from traces.names import settled
from traces.rows import in_order, keep_rows, validate
from traces.schema import MAX_TIME_S, MAX_TOKENS, InputError, Trace
from traces.sessions import by_session, followed
from traces.source import SIDES, Options, Source
from traces.table import C, ColumnTable

DATA = Path(__file__).parent / "data"
_PACKED = (".gz", ".xz")
_RESULTS = frozenset(("ttfts", "itls", "benchmarks"))
"""Keys of what benchmarks of servers write (vLLM's, SGLang's, GuideLLM)."""
FLAGS = {
    "tokenizer": "--tokenizer",
    "side": "--side",
    "turns": "--turns",
    "time_unit": "--time-unit",
    "block_tokens": "--trace-block-tokens",
}
"""By option of `read` its name on the command line."""
SYNTHETIC_NOTE = "Synthetic: made by a generator, not recorded from users."


def read(
    path_or_name: str | Path,
    *,
    format: str | formats.Format | None = None,
    tokenizer: str | Path | None = None,
    skip_bad: bool = False,
    limit: int | None = None,
    side: str = "both",
    whole_sessions: bool = False,
    turns: str = "auto",
    time_unit: str = "auto",
    block_tokens: int = 0,
) -> Trace:
    """Reads a trace: a file (or a folder of WEKA sessions), else a bundled trace of that name.

    `format` names the reader (or is one) instead of detecting it; `tokenizer` is a local tokenizer.json for files that
    hold text; `skip_bad` drops and counts bad rows; `limit` keeps the first requests by arrival, with `whole_sessions`
    the requests of the first sessions by start; `side` picks one side of a two-sided conversation. `turns` says what
    the length of a session's later turn is, the whole prompt or the new text alone, `time_unit` in what times are (s,
    ms, us, ns), `block_tokens` the size of the blocks that hash ids name, where a format's files differ in these; auto
    and 0 leave it to the format and to what the file shows for certain. Raises InputError for anything that the user
    can mend.
    """
    for what, value, known in (("side", side, SIDES), ("turns", turns, TURNS), ("time unit", time_unit, TIME_UNITS)):
        if value not in known:
            raise InputError(f"unknown {what} {value!r}; known are {', '.join(known)}")
    if not 0 <= block_tokens <= MAX_TOKENS:
        raise InputError(f"block_tokens is {block_tokens}; it must be from 1 to {MAX_TOKENS:,}, or 0 for the format's")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it must be at least 1")
    path = locate(path_or_name)
    if isinstance(format, str):
        format = formats.load(format)
    reader = format or recognise(path, skip_bad)
    source = Source(path, Options(tokenizer, skip_bad, side, turns, time_unit, block_tokens))
    try:
        table = reader.read(source)
    except MemoryError:
        raise InputError(f"{files.named(path)} takes more memory than there is; read less of it") from None
    if not isinstance(table, ColumnTable) and not isinstance(table, pd.DataFrame):
        raise InputError(f"trace format {reader.name!r} returned a {type(table).__name__}, not a DataFrame")
    if "source_row" not in table:
        source.where = "row"
    _refuse_unused(source, reader.name)
    if isinstance(table, ColumnTable):  # each cell was looked at, but not what is made of several
        if (table["arrival_s"] <= MAX_TIME_S).all():
            return _finished(table, source, reader.name, limit, whole_sessions)
        table = table.frame()
    return _finished(_checked(table, source), source, reader.name, limit, whole_sessions)


def _refuse_unused(source: Source, kind: str) -> None:
    """Raises InputError for an option that this file has no use for."""
    options = source.options
    why = {
        "tokenizer": (options.tokenizer is not None, f"needs no tokenizer ({kind} gives token counts)"),
        "side": (options.side != "both", f"has no sides ({kind})"),
        "turns": (options.turns != "auto", f"has no turns whose length could be another than it is ({kind})"),
        "time_unit": (options.time_unit != "auto", f"has times in the unit of its format alone ({kind})"),
        "block_tokens": (options.block_tokens != 0, f"has no hash ids of blocks of another size ({kind})"),
    }
    for name, (given, reason) in why.items():
        if given and name not in source.used:
            raise InputError(f"{source.path} {reason}; leave {FLAGS[name]} out")


def locate(path_or_name: str | Path) -> Path:
    """The path if it exists, else the bundled trace of that name, with or without its endings."""
    path = Path(path_or_name)
    if files.exists(path):
        return path
    for name, bundled_path in bundled().items():
        if str(path_or_name) in (name, bundled_path.name, name.split(".", 1)[0]):
            return bundled_path
    known = ", ".join(bundled())
    raise InputError(f"{files.named(path)} does not exist, and no bundled trace has that name; bundled are {known}")


def bundled() -> dict[str, Path]:
    """Bundled traces: name without .gz or .xz -> file."""
    found = sorted(item for item in DATA.iterdir() if not item.name.endswith((".md", ".py")) and item.is_file())
    return {item.name if item.suffix not in _PACKED else item.stem: item for item in found}


def recognise(path: Path, skip_bad: bool = False) -> formats.Format:
    """The one format whose header or keys the file has. Raises InputError where there is not exactly one."""
    head = head_of(path, skip_bad)
    found = formats.detect(head)
    if len(found) == 1:
        return found[0]
    if found:
        could = " or ".join(one.name for one in found)
        raise InputError(f"{path} could be {could} by its {head}; name it with --format")
    from traces.mapping.hint import import_hint  # noqa: PLC0415 - for the sentence alone

    if _RESULTS.intersection(head.keys):
        raise InputError(
            f"{path} is no trace by its {head}: these are a benchmark's results, with which `sim validate --against` "
            "compares a simulation"
        )
    known = ", ".join(formats.names())
    hint = import_hint(path, skip_bad)
    whose = f"the first file in it, {json_files(path)[0].name}, with its" if head.folder else "its"
    raise InputError(f"{path} is in no known format by {whose} {head}; known are {known} (--format names one){hint}")


def _name(path: Path) -> str:
    return path.stem if path.parent == DATA and path.suffix in _PACKED else path.name


def _sessions_in_order(table: pd.DataFrame) -> bool:
    """Whether requests that follow none stand in order of time; later turns naturally mingle with others."""
    starts = table["arrival_s"] if "after" not in table else table["arrival_s"][table["after"] < 0]
    return bool(starts.is_monotonic_increasing)


def _first(ordered: C, limit: int, whole_sessions: bool, notes: list[str]) -> C:
    if not (whole_sessions and "after" in ordered):
        notes.append(f"Only the first {limit:,} of {len(ordered):,} requests are kept.")
        return keep_rows(ordered, np.arange(len(ordered)) < limit)
    kept = np.zeros(len(ordered), bool)
    kept[by_session(followed(ordered))[:limit]] = True
    table = keep_rows(ordered, kept)
    sessions = int((table["after"] < 0).sum())
    notes.append(
        f"Only the {limit:,} requests of the first {sessions:,} sessions are kept, of {len(ordered):,} in all: whole "
        "sessions in order of their starts, of the last as many turns as still fit."
    )
    return table


def _checked(table: pd.DataFrame, source: Source) -> pd.DataFrame:
    """The rows that can be used, in order of arrival."""
    clean, bad = validate(table, str(source.path), source.skip_bad, source.where)
    source.dropped.update(bad)
    if "prefix_blocks" in clean:
        rows = [np.asarray(ids, np.int64) for ids in clean["prefix_blocks"]]
        names, renamed = settled(rows)
        clean["prefix_blocks"] = pd.Series(names, dtype=object)
        if renamed:
            source.notes.append(
                f"Ids of blocks that stand behind different ones: {renamed:,}. A block is taken as the same only where "
                "everything before it is the same too."
            )
    if not source.has_arrivals:
        source.notes.append("The file has no arrival times: they have to come from a rate or a number of clients.")
    elif not _sessions_in_order(clean):
        source.notes.append("Requests are sorted by arrival time; equal times keep the file's order.")
    return in_order(clean)


def _finished(ordered: C, source: Source, kind: str, limit: int | None, whole_sessions: bool) -> Trace:
    if limit is not None and limit < len(ordered):
        ordered = _first(ordered, limit, whole_sessions, source.notes)
    for reason, count in source.dropped.items():
        source.notes.append(f"Dropped {count:,}: {reason}.")
    if source.synthetic:
        source.notes.insert(0, SYNTHETIC_NOTE)
    return Trace(
        requests=ordered,  # type: ignore[arg-type]
        name=_name(source.path),
        kind=kind,
        synthetic=source.synthetic,
        notes=tuple(source.notes),
        path=str(source.path),
        has_arrivals=source.has_arrivals,
        dropped=sum(source.dropped.values()),
        dropped_reasons=dict(source.dropped),
        turns=source.turns_are if (followed(ordered) >= 0).any() else "",
    )
