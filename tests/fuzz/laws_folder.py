"""The law of a run's folder: what is written is what the run gave, and the page and the trace can be made of it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from sim import scenario
from sim.report.folder import write_page, write_run
from sim.report.terminal import render, summary_view
from sim.results.folder import PAGE

from .case import Run
from .laws import Law


def folder(run: Run) -> Iterator[str]:
    """The files hold the tables and the summary; the page made again from them is the same page."""
    with tempfile.TemporaryDirectory() as path:
        out = Path(path, "out")
        write_run(run.result, out, scenario=scenario.dump(run.result.scenario), perfetto=True)
        kept = {"requests": run.requests, "steps": run.steps, "preempted": run.result.preempted}
        for name, table in kept.items():
            if table is not None and not pd.read_parquet(out / f"{name}.parquet").equals(table):
                yield f"{name}.parquet is not the table"
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"), parse_constant=_refused)
        if {key: summary.get(key) for key in run.summary} != run.summary:  # it has its run's id beside them
            yield "summary.json is not the summary"
        trace = json.loads((out / "trace.perfetto.json").read_text(encoding="utf-8"), parse_constant=_refused)
        if not trace["traceEvents"] or any(event.get("dur", 0) < 0 for event in trace["traceEvents"]):
            yield "the trace is empty, or has an event of less than no time"
        page = (out / PAGE).read_text(encoding="utf-8")
        write_page(out)
        if (out / PAGE).read_text(encoding="utf-8") != page:
            yield "the page made from the folder is another"
        if any(text in page for text in (">NaN", ">nan", "[NaN", ",NaN", ":NaN")):
            yield "the page shows a number that is none"
    if re.search(r"\bnan\b", render(summary_view(run.summary))):  # a model's name may have "nano" in it
        yield "the terminal shows a number that is none"


def _refused(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


LAWS: dict[str, Law] = {"folder": folder}
