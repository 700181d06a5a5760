"""The folder of a run, a comparison or a plan: its files are written together or not at all, the page among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.report.claims.page import render_claims
from sim.report.claims.words import as_document
from sim.report.compare.page import render_comparison, summaries_of
from sim.report.compare.variant import Row
from sim.report.plan.page import render_plan
from sim.report.run.page import render_page
from sim.report.run.pools import replica_names
from sim.results import files, run_id
from sim.results.folder import ANSWERS, PAGE, PLAN, check_free
from sim.results.result import Run
from sim.results.tables import EVENTS, PERFETTO, PREEMPTED, SUMMARY, TERMS, TRANSFERS, RunTables, flat
from sim.results.transaction import Claim
from sim.study.claims import ClaimRow
from traces.late import pd
from traces.version import product_version

if TYPE_CHECKING:
    from sim.report.run.perfetto import Window

PLAN_KEYS = ("capacity", "best", "candidates", "rates", "slo", "rate", "inputs", "notes")


def write_run(
    run: Run,
    folder: Path,
    *,
    scenario: str,
    perfetto: bool = False,
    window: Window | None = None,
    answers: pd.DataFrame | None = None,
    claim: Claim | None = None,
) -> list[Path]:
    """Write the tables of a run and its page (docs/metrics.md); nothing of an earlier run stays.

    scenario: the resolved scenario as TOML. perfetto: also a trace for ui.perfetto.dev, some kilobytes a request.
    window: (start_s, end_s) that this trace is cut to; the other files hold the whole run. answers: of a live run, for
    answers.parquet. claim: of the folder, where it has been taken. Returns the paths; raises InputError where the
    folder holds something else or the operating system refuses, and then leaves it as it was.
    """
    check_free(folder, "run")
    tables = RunTables.of(run, scenario, answers)
    return files.write_files(
        folder,
        {
            **tables.writers(),
            PAGE: _page(tables),
            **(_lanes(run, window, tables.mark) if perfetto else {}),
            **({} if answers is None else {ANSWERS: run_id.table(answers, tables.mark)}),
        },
        stale=_of_run(folder, (PREEMPTED, TERMS, TRANSFERS, EVENTS, ANSWERS, PERFETTO)),
        claim=claim,
    )


def _lanes(run: Run, window: Window | None, mark: str) -> dict[str, files.Writer]:
    from sim.report.run.perfetto import trace_json  # noqa: PLC0415 - most runs do not ask for it

    return {PERFETTO: files.text(trace_json(run, window=window, names=replica_names(run.summary), mark=mark))}


def _of_run(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of these files that are the run's in the folder, and not the user's own under such a name."""
    summary = folder / SUMMARY
    if not summary.exists() or not run_id.mark_of(summary):
        return list(names)
    return [name for name in names if (folder / name).exists() and run_id.mark_of(folder / name)]


def write_page(folder: Path) -> RunTables:
    """Write the page of the run in a folder again, from its tables; returns the run. Raises InputError."""
    with Claim(folder) as claim:
        tables = RunTables.read(folder)
        with files.as_written(folder, "sim run"):
            claim.write({PAGE: _page(tables)})
    return tables


def _page(tables: RunTables) -> files.Writer:
    return run_id.page(render_page(tables, scenario=tables.scenario), tables.mark)


def write_comparison(rows: Sequence[Row], folder: Path, *, claim: Claim | None = None) -> list[Path]:
    """Write compare.html, compare.json and compare.parquet, of which the last has a row for each variant.

    Its columns are `variant`, `error` (empty where it ran) and every number and text of the summary by dotted key.
    rows: as for `render_comparison`. Returns the paths; raises InputError where the operating system refuses, and
    then leaves the folder as it was.
    """
    summaries = summaries_of(rows)
    timeless = {
        name: {key: value for key, value in summary.items() if key != "simulator"}
        for name, summary in summaries.items()
    }
    mark = run_id.digest(timeless)
    return files.write_files(
        folder,
        {
            "compare.html": run_id.page(render_comparison(rows), mark),
            "compare.json": files.as_json({name: {run_id.KEY: mark, **summary} for name, summary in summaries.items()}),
            "compare.parquet": run_id.table(_flat_table(summaries), mark),
        },
        claim=claim,
    )


def write_claims(
    rows: Sequence[ClaimRow], settings: dict[str, Any], folder: Path, *, claim: Claim | None = None
) -> list[Path]:
    """Write claims.json and claims.html; returns the paths. Raises InputError as `write_comparison`."""
    document = as_document(rows, settings)
    mark = run_id.digest(document)
    page = run_id.page(render_claims(rows, settings, product_version()), mark)
    return files.write_files(folder, {"claims.json": run_id.document(document, mark), "claims.html": page}, claim=claim)


def write_plan(document: Mapping[str, Any], claim: Claim) -> list[Path]:
    """Write plan.json and its page (docs/plan.md) into the folder that was taken; returns the paths."""
    mark = run_id.digest(document)
    page = run_id.page(render_plan(document), mark)
    return claim.write({PLAN: run_id.document(document, mark), PAGE: page})


def rewrite_plan(folder: Path) -> tuple[dict[str, Any], str]:
    """Write the page of the plan in a folder again; returns its document and its id. Raises InputError."""
    with Claim(folder) as claim:
        document = files.read_json(folder / PLAN, PLAN_KEYS)
        document.pop(run_id.KEY, None)
        mark = run_id.check_one(folder, (PLAN, PAGE))
        claim.write({PAGE: run_id.page(render_plan(document), mark)})
    return document, mark


def _flat_table(summaries: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    rows = []
    for name, summary in summaries.items():
        plain = {key: value for key, value in flat(summary).items() if not isinstance(value, list)}
        rows.append({"variant": name, "error": plain.pop("error", ""), **plain})
    return pd.DataFrame(rows)
