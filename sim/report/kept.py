"""A run as its folder keeps it: tables that make its page, written and read again. It draws nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim.metrics import Itl
from sim.record import STEP_COLUMNS
from sim.report import files
from sim.report.charts import Run
from sim.report.term_charts import term_table
from sim.report.words import LATENCIES
from traces import files as inputs

SCENARIO, SUMMARY = "scenario.toml", "summary.json"
REQUESTS, STEPS, GAPS, PREEMPTED, TERMS = (
    f"{name}.parquet" for name in ("requests", "steps", "gaps", "preempted", "terms")
)
SUMMARY_KEYS = ("requests", "duration_s", "throughput", *LATENCIES, "kv", "cost_sources", "simulator", "inputs")
REQUEST_COLUMNS = (
    "request", "arrival_s", "status", "replica", "first_scheduled_s", "first_token_s", "finish_s", "queue_s", "ttft_s",
    "tpot_s", "e2e_s", "preemptions",
)  # fmt: skip
PREEMPTED_COLUMNS = ("request", "sequence", "start_s", "end_s")


@dataclass(frozen=True, slots=True)
class Kept:
    """What the page of a run is made of (a `sim.report.charts.Run`), and the scenario as TOML.

    `preempted` and `term_table` are None where a run did not record them, as a live one does not its terms.
    """

    summary: Mapping[str, Any]
    requests: pd.DataFrame
    steps: pd.DataFrame
    itl: Itl
    preempted: pd.DataFrame | None
    term_table: pd.DataFrame | None
    scenario: str = ""

    @classmethod
    def of(cls, run: Run, scenario: str) -> Kept:
        """What is kept of a run."""
        gaps_s, counts = run.itl
        seen = counts > 0
        itl = gaps_s[seen], counts[seen].astype(np.int64)
        return cls(
            run.summary, run.requests, run.steps, itl, getattr(run, "preempted", None), term_table(run), scenario
        )

    def writers(self) -> dict[str, files.Writer]:
        """By name the files; those of tables that were not recorded are not among them."""
        gaps = pd.DataFrame({"gap_s": self.itl[0], "count": self.itl[1]}, copy=False)
        tables = {
            REQUESTS: self.requests,
            STEPS: self.steps,
            GAPS: gaps,
            PREEMPTED: self.preempted,
            TERMS: self.term_table,
        }
        return {
            SCENARIO: files.text(self.scenario),
            SUMMARY: files.as_json(dict(self.summary)),
            **{name: files.parquet(table) for name, table in tables.items() if table is not None},
        }

    @classmethod
    def read(cls, folder: Path) -> Kept:
        """The run in a folder that `writers` filled.

        Raises:
            InputError: a file is missing, damaged, or lacks a column.
        """
        scenario = inputs.text(folder / SCENARIO)
        gaps = files.read_parquet(folder / GAPS, ("gap_s", "count"))
        preempted, terms = folder / PREEMPTED, folder / TERMS
        return cls(
            files.read_json(folder / SUMMARY, SUMMARY_KEYS),
            files.read_parquet(folder / REQUESTS, REQUEST_COLUMNS),
            files.read_parquet(folder / STEPS, STEP_COLUMNS),
            (gaps["gap_s"].to_numpy(np.float64), gaps["count"].to_numpy(np.int64)),
            files.read_parquet(preempted, PREEMPTED_COLUMNS) if inputs.exists(preempted) else None,
            files.read_parquet(terms, ("row",)) if inputs.exists(terms) else None,
            scenario,
        )
