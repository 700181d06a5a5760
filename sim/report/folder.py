"""The folder of a run: scenario, tables, summary, page and trace, written together or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sim.report import files
from sim.report.charts import Run
from sim.report.page import render_page
from sim.report.perfetto import Window, trace_json


def write_run(
    run: Run, folder: Path, *, scenario: str, notes: Iterable[str] = (), window: Window | None = None
) -> list[Path]:
    """Write scenario.toml, requests.parquet, steps.parquet, summary.json, report.html and trace.perfetto.json.

    scenario: the resolved scenario as TOML. notes: more sentences for the page. window: (start_s, end_s) that
    the trace is cut to; the other files hold the whole run. Returns the paths; raises InputError where the
    operating system refuses, and then leaves the folder as it was.
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
        },
    )
