"""A run as its folder keeps it: tables that make its page, written and read again. It draws nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim.results import files, run_id
from sim.results.kv import with_kv_means
from sim.results.percentiles import Itl
from sim.results.result import Run
from sim.results.steps import EARLIER_STEP_COLUMNS
from sim.results.terms import term_table
from sim.results.transaction import settle
from traces import files as inputs
from traces.late import pd

SCENARIO, SUMMARY, PERFETTO = "scenario.toml", "summary.json", "trace.perfetto.json"
REQUESTS, STEPS, GAPS, PREEMPTED, TERMS, TRANSFERS, EVENTS, ADAPTER_LOADS = (
    f"{name}.parquet"
    for name in ("requests", "steps", "gaps", "preempted", "terms", "transfers", "events", "adapter_loads")
)
SUMMARY_KEYS = (
    "requests",
    "duration_s",
    "throughput",
    "ttft_s",
    "tpot_s",
    "itl_s",
    "e2e_s",
    "queue_s",
    "kv",
    "cost_sources",
    "simulator",
    "inputs",
)
REQUEST_COLUMNS = (
    "request", "arrival_s", "status", "replica", "first_scheduled_s", "first_token_s", "finish_s", "queue_s", "ttft_s",
    "tpot_s", "e2e_s", "preemptions",
)  # fmt: skip
RUN_FILES = (SUMMARY, SCENARIO, REQUESTS, STEPS, GAPS, PREEMPTED, TERMS, TRANSFERS, EVENTS, ADAPTER_LOADS,
             "answers.parquet", "report.html", PERFETTO)  # fmt: skip
"""All that a run may write."""
PREEMPTED_COLUMNS = ("request", "sequence", "start_s", "end_s")

UNMARKED = ("simulator", "verdict", "bound", "band")
"""Parts of a summary that its id does not tell: how fast it was made, words that name the command that asked, and how
far off it may be, which is no part of what was simulated."""
ESTIMATED = ("capacity_low_tokens", "capacity_high_tokens", "capacity_source")
"""Of `kv`, how its size is known: a written scenario has the size, and is the same run."""


@dataclass(frozen=True, slots=True)
class RunTables:
    """What the page of a run is made of (a `sim.report.run.charts.Run`), and the scenario as TOML.

    `preempted` and `term_table` are None where a run did not record them, as a live one does not its terms. `mark` is
    the run's id, "" of a folder that an earlier version wrote.
    """

    summary: Mapping[str, Any]
    requests: pd.DataFrame
    steps: pd.DataFrame
    itl: Itl
    preempted: pd.DataFrame | None
    term_table: pd.DataFrame | None
    scenario: str = ""
    mark: str = ""
    transfers: pd.DataFrame | None = None
    """KV sent between pools; None where none sends any."""
    events: pd.DataFrame | None = None
    """What became of replicas; None where all served all the time."""
    adapter_loads: pd.DataFrame | None = None
    """Adapters put into slots; None without LoRA."""

    @classmethod
    def of(cls, run: Run, scenario: str, answers: pd.DataFrame | None = None) -> RunTables:
        """What is kept of a run; `answers` are of a live one, and only its id has them."""
        gaps_s, counts = run.itl
        counted = counts > 0
        itl = gaps_s[counted], counts[counted].astype(np.int64)
        preempted, terms = getattr(run, "preempted", None), term_table(run)
        timeless = {key: value for key, value in run.summary.items() if key not in UNMARKED}
        timeless["kv"] = {key: value for key, value in run.summary["kv"].items() if key not in ESTIMATED}
        transfers, events, loads = (getattr(run, name, None) for name in ("transfers", "events", "adapter_loads"))
        tables = [run.requests, run.steps, _gaps(itl), preempted, terms, answers]
        tables += [table for table in (transfers, events, loads) if table is not None]
        mark = run_id.digest(scenario, timeless, *("" if table is None else table for table in tables))
        return cls(
            run.summary, run.requests, run.steps, itl, preempted, terms, scenario, mark, transfers, events, loads
        )

    def writers(self) -> dict[str, files.Writer]:
        """By name the files; those of tables that were not recorded are not among them."""
        tables = {
            REQUESTS: self.requests,
            STEPS: self.steps,
            GAPS: _gaps(self.itl),
            PREEMPTED: self.preempted,
            TERMS: self.term_table,
            TRANSFERS: self.transfers,
            EVENTS: self.events,
            ADAPTER_LOADS: self.adapter_loads,
        }
        return {
            SCENARIO: run_id.toml(self.scenario, self.mark),
            SUMMARY: run_id.document(self.summary, self.mark),
            **{name: run_id.table(table, self.mark) for name, table in tables.items() if table is not None},
        }

    @classmethod
    def read(cls, folder: Path) -> RunTables:
        """The run in a folder that `writers` filled.

        Raises:
            InputError: a file is missing, damaged, or lacks a column, or two are of different runs.
        """
        settle(folder)
        scenario = inputs.text(folder / SCENARIO)
        gaps = files.read_parquet(folder / GAPS, ("gap_s", "count"))
        optional = (PREEMPTED, TERMS, TRANSFERS, EVENTS, ADAPTER_LOADS)
        preempted, terms, transfers, events, loads = (folder / name for name in optional)
        summary = files.read_json(folder / SUMMARY, SUMMARY_KEYS)
        summary.pop(run_id.KEY, None)
        return cls(
            summary,
            files.read_parquet(folder / REQUESTS, REQUEST_COLUMNS),
            with_kv_means(files.read_parquet(folder / STEPS, EARLIER_STEP_COLUMNS), folder / STEPS),
            (gaps["gap_s"].to_numpy(np.float64), gaps["count"].to_numpy(np.int64)),
            files.read_parquet(preempted, PREEMPTED_COLUMNS) if inputs.exists(preempted) else None,
            files.read_parquet(terms, ("row",)) if inputs.exists(terms) else None,
            run_id.without_comment(scenario),
            run_id.check_one(folder, RUN_FILES),
            files.read_parquet(transfers, ("request", "source", "target")) if inputs.exists(transfers) else None,
            files.read_parquet(events, ("time_s", "replica", "event")) if inputs.exists(events) else None,
            files.read_parquet(loads, ("replica", "time_s", "load_s", "adapter")) if inputs.exists(loads) else None,
        )


def _gaps(itl: Itl) -> pd.DataFrame:
    return pd.DataFrame({"gap_s": itl[0], "count": itl[1]}, copy=False)


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flattened: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            flattened |= flat(value, f"{prefix}{key}.")
        else:
            flattened[prefix + key] = value
    return flattened
