"""One run of a result file as a trace and as tables: what is compared, and what was left out, with its reasons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sim.results.percentiles import Itl, distribution
from sim.validate.against.rows import (
    Key,
    MeasuredAt,
    Omitted,
    RandomLengths,
    Reader,
    Row,
    SentLoad,
    StatedValue,
    ToolRun,
    Why,
    one_line,
)
from sim.validate.retime import Latencies
from traces.late import pd
from traces.rows import from_frame
from traces.schema import InputError, Trace

NAMED = 3
LATENCIES = ("ttft_s", "tpot_s", "e2e_s", "queue_s")
REASONS: Mapping[Why, str] = {
    "failed": "were not answered",
    "empty": "had an answer of no tokens",
    "phase": "came in another phase than the measured one",
    "bad": "had a record that cannot be used",
}


@dataclass(frozen=True, slots=True)
class Served:
    """The requests that a server answered, in order of arrival: as a trace, and as what they saw.

    Args:
        label: names the run among those of its file.
        trace: the requests that the file holds; None where it holds statistics alone.
        latencies: what each of them saw.
        load: how they were sent; None where their arrival times are the recorded ones.
        measured_at: whose clock these are of.
        omitted: how many requests of the file are in none of these.
        sampled: they are some of `answered` requests only.
        stated, answered, mean_tokens, lengths, more: as of `ToolRun`.
    """

    label: str
    name: str
    trace: Trace | None
    latencies: Latencies | None
    load: SentLoad | None
    measured_at: MeasuredAt
    omitted: int
    sampled: bool
    stated: Mapping[Key, StatedValue]
    answered: int
    mean_tokens: tuple[float, float]
    lengths: RandomLengths | None
    more: str
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every request that was answered is known by itself."""
        return self.trace is not None and not self.sampled

    def measures(self) -> dict[str, dict[str, float | None]]:
        """Latencies by statistic, throughput and duration, from the requests where all are there, else as stated."""
        own = self._own()
        told: dict[str, dict[str, float | None]] = {key: dict(row) for key, row in own.items()}
        for (key, statistic), value in self.stated.items():
            row = told.setdefault(key, {})
            if not self.complete or row.get(statistic) is None:
                row[statistic] = value.value
        return told

    def _own(self) -> Mapping[str, Mapping[str, float | None]]:
        if self.latencies is None:
            return {}
        if self.load is None:
            return self.latencies.measures()
        requests = self.latencies.requests
        return {key: distribution(requests[key]) for key in LATENCIES} | {"itl_s": distribution(*self.latencies.itl)}


def served(run: ToolRun, path: Path, reader: Reader, *, skip_bad: bool = False) -> Served:
    """A run as it is compared.

    Raises:
        InputError: it holds nothing to compare, or more records that cannot be used than others.
    """
    about = reader.ABOUT
    answered = [row for row in run.rows if isinstance(row, Row)]
    omitted = [row for row in run.rows if isinstance(row, Omitted)]
    if run.rows:
        _check(answered, omitted, path, about, skip_bad=skip_bad)
    elif not any(key in ("ttft_s", "tpot_s", "itl_s", "e2e_s") for key, _ in run.stated):
        raise InputError(f"{path}: {one_line(run.label)} holds no latency, neither of a request nor of all")
    if run.load is None:
        answered.sort(key=lambda row: row.start_s)
    notes = [f"Read as {about}.", *_omissions(omitted, len(run.rows)), *run.notes]
    gaps, gap_note = _gaps(answered)
    notes += [note for note in (_no_first_token(answered), gap_note) if note]
    if not run.rows:
        notes.append(f"Statistics alone are compared{f': {run.more}' if run.more else ', of no request by itself'}.")
    trace, latencies = _tables(answered, gaps, path, timed=run.load is None) if answered else (None, None)
    return Served(
        one_line(run.label),
        path.name,
        trace,
        latencies,
        run.load,
        reader.MEASURED_AT,
        len(omitted),
        run.sampled,
        run.stated,
        run.answered or len(answered),
        run.mean_tokens,
        run.lengths,
        run.more,
        tuple(notes),
    )


def _check(answered: Sequence[Row], omitted: Sequence[Omitted], path: Path, about: str, *, skip_bad: bool) -> None:
    bad = [row for row in omitted if row.why == "bad"]
    if bad and len(bad) > len(answered) and (not skip_bad or not answered):
        others = f" ({len(bad)} of {len(answered) + len(omitted)} records cannot be used)" if len(bad) > 1 else ""
        hint = "; --skip-bad leaves such records out" if answered else ""
        raise InputError(f"{path}, read as {about}, {bad[0]}{others}{hint}")
    if not answered:
        failed = [row for row in omitted if row.why == "failed"]
        first = (failed or omitted)[0]
        what = "says" if failed else REASONS[first.why]
        raise InputError(f"{path}: no request was answered; the first ({first.where}) {what}: {one_line(first.reason)}")


def _omissions(omitted: Sequence[Omitted], total: int) -> list[str]:
    """A sentence for each reason for which requests are left out, with the first of them."""
    notes = []
    for why, words in REASONS.items():
        rows = [row for row in omitted if row.why == why]
        if rows:
            named = "; ".join(map(str, rows[:NAMED]))
            more = f"; and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
            notes.append(f"{len(rows)} of {total} requests {words}, left out on both sides ({named}{more}).")
    return notes


def _no_first_token(answered: Sequence[Row]) -> str:
    without = [row.where for row in answered if math.isnan(row.ttft_s)]
    if not without:
        return ""
    if len(without) == len(answered):
        return "No answer tells when its first token came: TTFT and TPOT are not compared."
    more = f" and {len(without) - NAMED} more" if len(without) > NAMED else ""
    return (
        f"Without the time of a first token: {len(without)} of {len(answered)} answers ({', '.join(without[:NAMED])}"
        f"{more}), which TTFT and TPOT leave out on both sides."
    )


def _gaps(answered: Sequence[Row]) -> tuple[list[float], str]:
    """(the gaps between tokens, why they are not compared): a gap may stand between two pieces of several tokens."""
    told = [row for row in answered if row.gaps_s is not None]
    if not told or not any(row.gaps_s for row in told):
        return [], ""
    if silent := sum(row.gaps_s is None and row.output_tokens > 1 for row in answered):
        return [], f"Without gaps between tokens: {silent} of {len(answered)} answers, so that ITL is not compared."
    if uneven := sum(len(row.gaps_s or ()) != row.output_tokens - 1 for row in told):
        return [], (
            f"In {uneven} of {len(answered)} answers the pieces that came are not one for each token, so that gaps are "
            "not between tokens: ITL is not compared."
        )
    return [gap for row in told for gap in row.gaps_s or ()], ""


def _tables(rows: Sequence[Row], gaps: Sequence[float], path: Path, *, timed: bool) -> tuple[Trace, Latencies]:
    def column(name: str) -> np.ndarray:
        return np.array([getattr(row, name) for row in rows], np.float64)

    start_s = column("start_s") - rows[0].start_s if timed else np.zeros(len(rows))
    prompt, output = (column(name).astype(np.int64) for name in ("prompt_tokens", "output_tokens"))
    ttft_s, e2e_s, queue_s = (column(name) for name in ("ttft_s", "e2e_s", "queue_s"))
    lengths = pd.DataFrame({"arrival_s": start_s, "prompt_tokens": prompt, "output_tokens": output})
    if not timed:
        start_s = np.full(len(rows), np.nan)
    requests = lengths.assign(
        arrival_s=start_s,
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
    gaps_s = np.array(gaps, np.float64)
    itl: Itl = (gaps_s, np.ones(len(gaps_s), np.int64))
    steps = pd.DataFrame({"end_s": [float((start_s + e2e_s).max())]})
    trace = from_frame(lengths, name=path.name, kind="results")
    if not timed:
        trace = replace(trace, has_arrivals=False)
    return trace, Latencies(requests, steps, itl)
