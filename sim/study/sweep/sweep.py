"""Many scenarios that differ in a few settings: each simulated once, one table of them all. It draws nothing."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import tomli_w

from sim.results import files, run_id
from sim.results.folder import PAGE
from sim.results.stability import queue_warning
from sim.results.tables import flat
from sim.scenario import Scenario, build, merge
from sim.serving import run as serving
from sim.serving.hooks import Hooks
from sim.serving.pool import Pool, pools_of
from sim.serving.workload import TraceReading, read_trace, timed
from sim.specs.settings import word
from sim.study.identity import CODE, Made, check_has_files, differing, digests, ingredients
from sim.study.prices import remembered
from sim.study.sweep.grid import Grid, Point
from sim.study.sweep.question import Question
from sim.study.sweep.store import TABLE, PointOutcome, Store
from sim.study.workers.pool import each
from traces.late import pd
from traces.schema import InputError, Trace

TIMINGS = ("simulator.build", "simulator.wall_s", "simulator.cpu_s", "simulator.requests_per_cpu_s")
"""Of the summary, what the machine says and not the scenario: no part of a row."""


def run(
    question: Question,
    *,
    out: Path | None = None,
    workers: int | None = None,
    executor: str = "processes",
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda what: None,
    page: Callable[[Question, pd.DataFrame, str], files.Writer] | None = None,
) -> pd.DataFrame:
    """Simulate every point that `out` does not hold yet, and write the table there, and the page that `page` makes.

    `say` hears in a sentence what runs again, where something that points are made of has changed since.

    Returns the table, one row a point (columns: docs/sweep.md). How often the sweep was interrupted, and what ran
    it, changes no byte of it.

    Raises:
        InputError: see `Store` and `sim.study.workers.pool.each`.
    """
    if out is not None:
        check_has_files(question.ingredients())
    grid, identity = question.grid, question.identity()
    own_code = any(name.partition("=")[0] in CODE for name in identity["made_of"])
    with nullcontext() if out is None else Store(out, identity, question.made_of_point) as store:
        done = dict(store.done) if store else {}
        if store and store.reason:
            say(store.reason)
        missing = [index for index in range(len(grid)) if index not in done]
        if progress is not None:
            progress(len(done), len(grid))
        outcomes = each(
            Simulate(question.base, os.getcwd(), identity["made_of"]),
            map(grid.point, missing),
            workers=workers,
            executor=executor,
            fresh=own_code,  # what this process has imported may be older than the file
            lost=lambda reason: PointOutcome(reason, None, {}, final=False),
        )
        with closing(outcomes):
            for place, outcome in outcomes if missing else ():
                done[missing[place]] = outcome
                if store is not None and outcome.final:
                    store.add(missing[place], outcome)
                if progress is not None:
                    progress(len(done), len(grid))
        table = as_table(grid, done)
        if store is not None:
            pages = {} if page is None else {PAGE: page(question, table, store.mark)}
            files.write_files(store.folder, {TABLE: run_id.table(table, store.mark), **pages})
    return table


@dataclass(frozen=True, slots=True)
class Simulate:
    """A point to its outcome, in whatever process; only the row comes back.

    `folder` is where relative paths begin, and `made_of` what points are made of, so that another machine, or this one
    a while later, simulates the same or says that it cannot.
    """

    base: Mapping[str, Any]
    folder: str
    made_of: Made

    def __call__(self, point: Point) -> PointOutcome:
        try:
            _stand_in(self.folder)
            names = list(ingredients({**flat(self.base), **point.settings}))
            self._check(names)
            outcome = self._outcome(point)
            self._check(names)  # it may have changed before it was read
            return outcome
        except ElsewhereError as error:
            return PointOutcome(str(error), None, {}, final=False)

    def _outcome(self, point: Point) -> PointOutcome:
        try:
            scenario = build(self.base, {**point.settings, "seed": point.seed})
            content = tuple(self.made_of.get(f"workload.trace={scenario.workload.trace}", {}).items())
            trace = timed(_trace(TraceReading.of(scenario.workload), content), scenario.workload, scenario.seed)
            pools = pools_of(scenario)
            result = serving.simulate(scenario, trace=trace, hooks=_hooks(scenario, pools), pools=pools)
            return PointOutcome(None, queue_warning(result.table("requests")) is None, _row(result.summary))
        except InputError as error:
            return PointOutcome(str(error), None, {})
        except Exception as error:
            fault = " ".join(f"{type(error).__name__}: {error}".split())
            return PointOutcome(f"unexpected: {fault}", None, {}, final=False)

    def _check(self, names: Sequence[str]) -> None:
        """Refuse where one of these ingredients is not as it was when the sweep was started."""
        try:
            here = {name: digests(name) for name in names}
        except InputError as error:
            raise ElsewhereError(f"{_here()} {error}") from None
        for some in differing({name: self.made_of.get(name, {}) for name in names}, here).values():
            raise ElsewhereError(f"{some[0]} is not the same for {_here()} as where the sweep was started")


class ElsewhereError(InputError):
    """A worker has not the files that the sweep was started with."""


def _here() -> str:
    return f"the worker on {platform.node()}"


def _stand_in(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError:
        raise ElsewhereError(
            f"{_here()} has no folder {folder}; on a cluster all machines need the same files"
        ) from None


@lru_cache(maxsize=2)
def _trace(reading: TraceReading, content: tuple[tuple[str, str], ...]) -> Trace:
    """Read once in each process for all points of one trace, as long as its file has this content.

    All points share it, so nobody may change it.
    """
    return read_trace(reading)


def _hooks(scenario: Scenario, pools: Sequence[Pool]) -> Hooks:
    """The prices that another point of the same deployment has worked out."""
    return Hooks(cost=None if scenario.pools else remembered(scenario, pools[0].parts.cost))


def _row(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in flat(summary).items()
        if key not in TIMINGS and (value is None or isinstance(value, bool | int | float | str))
    }


def as_table(grid: Grid, outcomes: Mapping[int, PointOutcome]) -> pd.DataFrame:
    """The rows of these points in their order; what a row does not have is null."""
    points = [grid.point(index) for index in sorted(outcomes)]
    rows = [outcomes[point.index] for point in points]
    columns: dict[str, Any] = {
        "point": pd.Series([point.index for point in points], dtype="int64"),
        "seed": pd.Series([point.seed for point in points], dtype="int64"),
        "name": pd.Series([grid.name(point) for point in points], dtype="string"),
    }
    for key in grid.keys:
        columns[key] = _column([point.settings.get(key) for point in points])
    columns["status"] = pd.Series(["ok" if row.reason is None else "failed" for row in rows], dtype="string")
    columns["reason"] = pd.Series([row.reason for row in rows], dtype="string")
    columns["stable"] = pd.Series([row.stable for row in rows], dtype=object)
    for key in dict.fromkeys(key for row in rows for key in row.summary):
        columns[key] = _column([row.summary.get(key) for row in rows])
    return pd.DataFrame(columns)


def _column(values: Sequence[Any]) -> pd.Series[Any]:
    """A column of the type that its values have; numbers that are missing are NaN, values of several types are text."""
    known = [value for value in values if value is not None]
    kinds = {type(value) for value in known}
    if kinds == {bool}:
        return pd.Series(values, dtype=object if len(known) < len(values) else "bool")
    if kinds <= {int, float}:
        if kinds == {int} and len(known) == len(values):
            return pd.Series(values, dtype="int64")
        return pd.Series([math.nan if value is None else float(value) for value in values], dtype="float64")
    return pd.Series([None if value is None else word(value) for value in values], dtype="string")


def axes_of(grid: Grid) -> dict[str, list[Any]]:
    return {key: _column(grid.values(key)).tolist() for key in grid.keys}


def about(question: Question) -> dict[str, Any]:
    tables = flat(question.base)
    fixed = merge({key: value for key, value in tables.items() if key not in question.grid.keys})
    return {
        "version": question.version,
        "scenario": tomli_w.dumps(fixed),
        "points": len(question.grid),
        "seeds": ", ".join(map(str, question.grid.seeds[:10])) + (", ..." if len(question.grid.seeds) > 10 else ""),
    }
