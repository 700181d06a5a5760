"""The folder of a run or of a comparison: its files are written together or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sim.report import files
from sim.report.charts import Run
from sim.report.compare_page import render_comparison, summaries_of
from sim.report.page import render_page
from sim.report.perfetto import Window, trace_json
from sim.report.variant import Row, flat


def write_run(
    run: Run,
    folder: Path,
    *,
    scenario: str,
    notes: Iterable[str] = (),
    window: Window | None = None,
    answers: pd.DataFrame | None = None,
) -> list[Path]:
    """Write scenario.toml, requests.parquet, steps.parquet, summary.json, report.html, trace.perfetto.json.

    scenario: the resolved scenario as TOML. notes: more sentences for the page. window: (start_s, end_s) that
    the trace is cut to; the other files hold the whole run. answers: of a live run, for answers.parquet.
    Returns the paths; raises InputError where the operating system refuses, and then leaves the folder as it was.
    """
    return files.write_files(
        folder,
        {
            "scenario.toml": files.text(scenario),
            "requests.parquet": files.parquet(run.requests),
            "steps.parquet": files.parquet(run.steps),
            "summary.json": files.as_json(dict(run.summary)),
            "report.html": files.text(render_page(run, notes=notes, scenario=scenario)),
            "trace.perfetto.json": files.text(trace_json(run, window=window)),
            **({} if answers is None else {"answers.parquet": files.parquet(answers)}),
        },
    )


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
