"""What a real server did, from the result files of benchmark tools: one file here, one format.

A reader turns the parsed file into runs (`ToolRun`); which one may is told by the file's keys, never by a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from sim.validate.against.rows import NotJson, Reader, ResultFile, ToolRun, one_line
from sim.validate.against.tables import Served, served
from traces import documents, files, tokens
from traces.fields import BadRow
from traces.schema import InputError

FORMATS = (
    "llmservingsim",
    "vllm_bench",
    "sglang_bench",
    "guidellm",
    "aiperf",
    "genai_perf",
    "perf_summary",
    "inference_perf",
    "prometheus",
)
ALL = "all"
SHOWN_RUNS = 12


def read(path: Path, run: str = "", *, skip_bad: bool = False, tokenizer: str = "") -> Served:
    """One run of a file: the only one, or the one that `run` names by number (from 1) or label.

    Args:
        skip_bad: also where records that cannot be used are more than those that can.
        tokenizer: counts the tokens of texts where the file does not.

    Raises:
        InputError: no such file or run, several runs and none named, an unknown format, nothing answered.
    """
    known, reader = _runs(path, tokenizer)
    return served(_chosen(known, run, path), path, reader, skip_bad=skip_bad)


def read_all(path: Path, *, skip_bad: bool = False, tokenizer: str = "") -> dict[str, Served | InputError]:
    """Every run of a file by number and label, or why one cannot be compared.

    Raises:
        InputError: no such file, an unknown format, no run that can be compared.
    """
    known, reader = _runs(path, tokenizer)
    found: dict[str, Served | InputError] = {}
    for number, one in enumerate(known, 1):
        try:
            found[f"{number} {one_line(one.label)}"] = served(one, path, reader, skip_bad=skip_bad)
        except InputError as error:
            found[f"{number} {one_line(one.label)}"] = error
    if all(isinstance(one, InputError) for one in found.values()):
        raise next(error for error in found.values() if isinstance(error, InputError))
    return found


def _chosen(known: Sequence[ToolRun], run: str, path: Path) -> ToolRun:
    labels = [f"{number} ({one_line(one.label)})" for number, one in enumerate(known, 1)]
    listed = ", ".join(labels[:SHOWN_RUNS]) + (f" and {more} more" if (more := len(labels) - SHOWN_RUNS) > 0 else "")
    if not run:
        if len(known) == 1:
            return known[0]
        raise InputError(
            f"{path} holds {len(known)} runs: {listed}; choose one by its number (--run 1), or --run {ALL} for a table"
        )
    named = [one for number, one in enumerate(known, 1) if run in (str(number), one_line(one.label))]
    if len(named) != 1:
        raise InputError(f"--run {run}: {path} has {'no such run' if not named else 'several such runs'}: {listed}")
    return named[0]


def _runs(path: Path, tokenizer: str) -> tuple[list[ToolRun], Reader]:
    """(the runs of a file, who read it)."""
    file = _parsed(path, tokens.counter(tokenizer)[0] if tokenizer else None)
    readers: list[Reader] = [_reader(name) for name in FORMATS]
    known = [reader for reader in readers if reader.detect(file)]
    if len(known) != 1:
        raise InputError(f"{path}: {_unknown(file)}; known: {', '.join(FORMATS)}")
    try:
        runs = known[0].runs(file)
    except BadRow as bad:
        raise InputError(f"{path}, read as {known[0].ABOUT}: {one_line(bad)}") from None
    if not runs:
        raise InputError(f"{path}, read as {known[0].ABOUT}: it holds no run")
    return runs, known[0]


def _reader(name: str) -> Any:
    return import_module(f"{__name__}.{name}")


def _unknown(file: ResultFile) -> str:
    """Why no reader, or more than one, takes the file."""
    for where, record in file.records:
        if isinstance(record, NotJson):
            return f"{where} is not JSON ({one_line(record.reason)}), nor is it the results of a known tool"
    keys = next((list(record) for record in file.sample()), [])
    told = f" (its keys: {one_line(', '.join(keys[:8]))}{', ...' if len(keys) > 8 else ''})" if keys else ""
    return f"not the results of a known tool{told}"


def _parsed(path: Path, count: Callable[[str], int] | None) -> ResultFile:
    """The file as one JSON value, as values that stand on a line each, or as text."""
    text = files.text(path, files.MAX_RESULT_BYTES)
    if not text.lstrip().startswith(("{", "[")):
        return ResultFile(text, None, (), count)
    try:
        value = documents.loads(text)
    except documents.TooDeepError as error:
        raise InputError(f"{path} is no file of results: {error}") from None
    except ValueError:
        return ResultFile("", None, _lines(text), count)
    if isinstance(value, list):
        return ResultFile("", value, [(f"record {number}", one) for number, one in enumerate(value, 1)], count)
    return ResultFile("", value, [("the file" if "\n" in text.strip() else "line 1", value)], count)


def _lines(text: str) -> list[tuple[str, Any]]:
    records: list[tuple[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                records.append((f"line {number}", documents.loads(line)))
            except ValueError as error:
                records.append((f"line {number}", NotJson(documents.reason(error))))
    return records
