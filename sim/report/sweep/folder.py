"""The page in the folder of a sweep, also of one that is still running."""

from __future__ import annotations

from pathlib import Path

from sim.report.sweep.page import render_sweep
from sim.results import files, run_id
from sim.results.folder import PAGE
from sim.study.sweep.question import Question
from sim.study.sweep.store import QUESTION, TABLE, mark_of
from sim.study.sweep.store import finished as finished_points
from sim.study.sweep.sweep import about, as_table, axes_of
from traces.late import pd
from traces.schema import InputError


def write_page(folder: Path) -> tuple[Question, pd.DataFrame, str]:
    """Write the page of the sweep in a folder again; of one that has not ended, with the points that it has by now.

    Returns what was asked, the rows, and the id of the sweep, "" for one of an earlier version. Raises InputError: it
    cannot be read or written, its table is of another sweep, or it has no point yet.
    """
    question, mark = Question.read(folder), mark_of(folder)
    run_id.agree(folder, {QUESTION: mark, **run_id.marks_of(folder, (TABLE, PAGE))})
    if (folder / TABLE).exists():
        table = files.read_parquet(folder / TABLE)
    else:
        with files.as_written(folder, "sim sweep"):
            table = as_table(question.grid, finished_points(folder))
    if not len(table):
        raise InputError(f"no point of the sweep in {folder} has been simulated yet")
    with files.as_written(folder, "sim sweep"):
        files.write_file(folder / PAGE, page_of(question, table, mark))
    return question, table, mark


def page_of(question: Question, table: pd.DataFrame, mark: str) -> files.Writer:
    """A writer of the page of a sweep with these rows; `mark` is its id."""
    missing = len(question.grid) - len(table)
    notes = [f"Not finished: {missing:,} of {len(question.grid):,} runs are still to come."] if missing else []
    return run_id.page(render_sweep(table, axes_of(question.grid), {**about(question), "notes": notes}), mark)
