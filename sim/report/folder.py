"""The folder of a run or of a comparison: its files are written together or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sim.report import files
from sim.report.charts import Run
from sim.report.compare_page import render_comparison, summaries_of
from sim.report.kept import PREEMPTED, SUMMARY, TERMS, Kept
from sim.report.page import render_page
from sim.report.perfetto import Window, trace_json
from sim.report.variant import Row, flat
from traces import files as inputs
from traces.schema import InputError

PAGE, ANSWERS = "report.html", "answers.parquet"
KINDS = {SUMMARY: "run", "sweep.toml": "sweep", "plan.json": "plan", "about.json": "validation"}
"""By the file that it is known by, what a folder holds."""


def held(folder: Path) -> list[str]:
    """What a folder holds, of `KINDS`."""
    return [kind for name, kind in KINDS.items() if inputs.exists(folder / name)]


def check_free(folder: Path, kind: str) -> None:
    """Refuse a folder that holds a result of another kind, whose page would be lost; raises InputError."""
    for other in held(folder):
        if other != kind:
            raise InputError(f"{folder} holds a {other}; give another --out, or delete that folder")


def write_run(
    run: Run, folder: Path, *, scenario: str, window: Window | None = None, answers: pd.DataFrame | None = None
) -> list[Path]:
    """Write the tables of a run, its page and its trace (docs/metrics.md); nothing of an earlier run stays.

    scenario: the resolved scenario as TOML. window: (start_s, end_s) that the trace is cut to; the other files hold
    the whole run. answers: of a live run, for answers.parquet. Returns the paths; raises InputError where the folder
    holds something else or the operating system refuses, and then leaves it as it was.
    """
    check_free(folder, "run")
    kept = Kept.of(run, scenario)
    return files.write_files(
        folder,
        {
            **kept.writers(),
            PAGE: _page(kept),
            "trace.perfetto.json": files.text(trace_json(run, window=window)),
            **({} if answers is None else {ANSWERS: files.parquet(answers)}),
        },
        stale=(PREEMPTED, TERMS, ANSWERS),
    )


def write_page(folder: Path) -> Kept:
    """Write the page of the run in a folder again, from its tables; returns the run. Raises InputError."""
    kept = Kept.read(folder)
    with files.as_written(folder, "sim run"):
        files.write_file(folder / PAGE, _page(kept))
    return kept


def _page(kept: Kept) -> files.Writer:
    return files.text(render_page(kept, scenario=kept.scenario))


def write_comparison(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write compare.html, compare.json and compare.parquet, of which the last has a row for each variant.

    Its columns are `variant`, `error` (empty where it ran) and every number and text of the summary by dotted key.
    rows: as for `render_comparison`. Returns the paths; raises InputError where the operating system refuses, and
    then leaves the folder as it was.
    """
    summaries = summaries_of(rows)
    return files.write_files(
        folder,
        {
            "compare.html": files.text(render_comparison(rows)),
            "compare.json": files.as_json(summaries),
            "compare.parquet": files.parquet(_flat_table(summaries)),
        },
    )


def _flat_table(summaries: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    rows = []
    for name, summary in summaries.items():
        plain = {key: value for key, value in flat(summary).items() if not isinstance(value, list)}
        rows.append({"variant": name, "error": plain.pop("error", ""), **plain})
    return pd.DataFrame(rows)
