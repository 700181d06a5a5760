"""What a real server did with each request, from the result files of benchmark tools: one file here, one format.

A reader turns the parsed document into rows (`Row`); which one may is told by the document's keys, never by a guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from sim.results.percentiles import Itl
from sim.validate.retime import Latencies
from traces import documents, files
from traces.schema import MAX_TIME_S, MAX_TOKENS, InputError, Trace, from_frame

FORMATS = ("llmservingsim", "vllm_bench", "guidellm", "aiperf")


@dataclass(frozen=True, slots=True)
class Row:
    """One request as the server's clock had it, in seconds; NaN for what the file does not tell.

    `where` names the request in the file; `failed` says why it has no answer, "" where it has one. `gaps_s` are those
    between the pieces that came, which are tokens only where there is one piece for each.
    """

    where: str
    start_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    e2e_s: float
    queue_s: float = math.nan
    gaps_s: Sequence[float] = field(default=())
    failed: str = ""


class Reader(Protocol):
    """A module of this package."""

    ABOUT: str

    def detect(self, document: Any) -> bool: ...

    def rows(self, document: Any) -> Iterator[Row]: ...


@dataclass(frozen=True, slots=True)
class Served:
    """The requests that a server answered, in order of arrival: as a trace, and as what they saw."""

    trace: Trace
    latencies: Latencies
    notes: tuple[str, ...]


def read(path: Path) -> Served:
    """The results in a file of any known format.

    Raises:
        InputError: no such file, an unknown format, a clock that runs backwards, nothing answered.
    """
    document = _document(path)
    readers: list[Any] = [import_module(f"{__name__}.{name}") for name in FORMATS]
    known = [reader for reader in readers if reader.detect(document)]
    if len(known) != 1:
        raise InputError(f"{path}: not the per-request results of a known tool; known: {', '.join(FORMATS)}")
    reader: Reader = known[0]
    try:
        rows = list(reader.rows(document))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path}: not as {reader.ABOUT} writes it: {type(error).__name__}: {error}") from None
    failed = [row for row in rows if row.failed]
    answered = sorted((row for row in rows if not row.failed), key=lambda row: row.start_s)
    if not answered:
        why = f"; the first failed because: {failed[0].failed}" if failed else ""
        raise InputError(f"{path}: no request was answered{why}")
    for row in answered:
        _check(row, path)
    notes = [f"Read as {reader.ABOUT}."]
    if failed:
        notes.append(f"{len(failed)} of {len(rows)} requests failed at the server and are left out on both sides.")
    if any(row.gaps_s for row in answered) and (
        uneven := sum(len(row.gaps_s) != row.output_tokens - 1 for row in answered)
    ):
        notes.append(
            f"In {uneven} of {len(answered)} answers several tokens came at once, so that gaps are not between tokens: "
            "ITL is not compared."
        )
        answered = [replace(row, gaps_s=()) for row in answered]
    return _served(answered, path, notes)


def _document(path: Path) -> Any:
    """One JSON value, or a list of those that stand on a line each."""
    text = files.text(path, files.MAX_RESULT_BYTES)
    try:
        return documents.loads(text)
    except documents.TooDeepError as error:
        raise InputError(f"{path} is no file of results: {error}") from None
    except ValueError:
        pass
    lines = text.splitlines()
    return [documents.json_of(line, f"{path} line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _check(row: Row, path: Path) -> None:
    for name in ("start_s", "ttft_s", "e2e_s"):
        if not math.isfinite(getattr(row, name)):
            raise InputError(f"{path}: {row.where} has no {name.removesuffix('_s')}")
    if row.ttft_s < 0 or row.e2e_s < row.ttft_s or row.queue_s < 0:
        span = f"first token after {row.ttft_s:.6f} s, last after {row.e2e_s:.6f} s"
        raise InputError(f"{path}: the clock runs backwards in {row.where}: {span}")
    if max(abs(row.start_s), row.e2e_s) > MAX_TIME_S:
        raise InputError(f"{path}: {row.where} is at {row.start_s:.3g} s and took {row.e2e_s:.3g} s; expected seconds")
    if not all(1 <= count <= MAX_TOKENS for count in (row.prompt_tokens, row.output_tokens)):
        raise InputError(f"{path}: {row.where} has {row.prompt_tokens} prompt and {row.output_tokens} output tokens")


def _served(rows: Sequence[Row], path: Path, notes: Sequence[str]) -> Served:
    def column(name: str) -> np.ndarray:
        return np.array([getattr(row, name) for row in rows], np.float64)

    start_s = column("start_s") - rows[0].start_s
    prompt, output = (column(name).astype(np.int64) for name in ("prompt_tokens", "output_tokens"))
    ttft_s, e2e_s, queue_s = (column(name) for name in ("ttft_s", "e2e_s", "queue_s"))
    lengths = pd.DataFrame({"arrival_s": start_s, "prompt_tokens": prompt, "output_tokens": output})
    requests = lengths.assign(
        request=np.arange(len(rows)),
        status="completed",
        first_scheduled_s=start_s + queue_s,
        first_token_s=start_s + ttft_s,
        finish_s=start_s + e2e_s,
        queue_s=queue_s,
        ttft_s=ttft_s,
        tpot_s=np.where(output > 1, (e2e_s - ttft_s) / np.maximum(output - 1, 1), np.nan),
        e2e_s=e2e_s,
        samples=1,
    )
    gaps_s = np.array([gap for row in rows for gap in row.gaps_s], np.float64)
    itl: Itl = (gaps_s, np.ones(len(gaps_s), np.int64))
    steps = pd.DataFrame({"end_s": [float((start_s + e2e_s).max())]})
    trace = from_frame(lengths, name=path.name, kind="results")
    return Served(trace, Latencies(requests, steps, itl), tuple(notes))
