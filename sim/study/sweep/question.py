"""What a sweep is asked, checked and spelled out, and what its folder is recognised by. It runs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim import scenario
from sim.catalog import presets
from sim.results import metrics
from sim.results.tables import flat
from sim.scenario import Scenario
from sim.study.identity import CODE, FILES, ingredients, made_of
from sim.study.sweep import grid as grids
from sim.study.sweep.grid import Grid
from sim.study.sweep.store import QUESTION, question_of
from traces.schema import InputError
from traces.version import product_version

MOST_POINTS = 10_000
"""More than these have to be asked for twice."""


@dataclass(frozen=True, slots=True)
class Question:
    """A sweep before it runs: what stays (nested tables, every setting spelled out) and what varies."""

    base: Mapping[str, Any]
    grid: Grid
    version: str = field(default_factory=product_version)

    @classmethod
    def of(
        cls,
        base: Scenario | str | Path | None,
        settings: Mapping[str, Any],
        *,
        points: str | Path | Sequence[Mapping[str, Any]] | None = None,
        seeds: int | str | Sequence[int] = 1,
        most_points: int | None = MOST_POINTS,
        allow_code: bool = False,
    ) -> Question:
        """Check what a user asks for.

        Args:
            base: as for `sim.api.run`.
            settings: on top of it; those whose value is a list are axes, like lists in the file.
            points: a file for `grid.read_points`, or what it would return.
            seeds: how many from the scenario's own on, or which; text is read as `grid.parse_seeds` does.
            most_points: refuse more than these; None for any number.
            allow_code: let files name code to import, as `sim.scenario.read`.

        Raises:
            InputError: an unknown key, too many points, what no sweep varies; one sentence.
        """
        given, lists = _lists_of(scenario.tables_of(base, settings, allow_code=allow_code), settings)
        fixed, grid = grids.of_settings({**lists, **settings}, listed=_listed(points, allow_code))
        tables = scenario.merge(_spelled_out(scenario.merge(given, fixed), grid), given, fixed)
        grid = Grid(grid.axes, grid.listed, _seeds(seeds, tables["seed"]))
        if tables["executor"] != "predicted":
            raise InputError(f"executor is {tables['executor']!r}, and a sweep only simulates (executor predicted)")
        grids.check_keys(tables, grid)
        if isinstance(tables["slo"], str) and tables["slo"] and "slo" not in grid.keys:
            metrics.parse_slo(tables["slo"])  # a mistake in what all points share is no reason to make a folder
        if len(grid) > grids.MOST_VALUES:
            raise InputError(f"these are {len(grid):,} points; a sweep has at most {grids.MOST_VALUES:,}")
        if most_points is not None and len(grid) > most_points:
            raise InputError(f"these are {len(grid):,} points; more than {most_points:,} run only with --yes")
        scenario.refuse_unread(_scenarios(tables, grid))
        return cls(tables, grid)

    @classmethod
    def read(cls, folder: Path) -> Question:
        """What the sweep in a folder was asked, of whatever version; raises InputError."""
        question = question_of(folder)
        try:
            axes = {key: tuple(values) for key, values in question.get("axes", {}).items()}
            grid = Grid(axes, tuple(question["listed"]) or ({},), tuple(question["seeds"]))
            return cls(question["base"], grid, question["version"])
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / QUESTION} is not what a sweep writes: {error!r}") from None

    def identity(self) -> dict[str, Any]:
        """All that the rows depend on, in TOML's types: what a folder is recognised by, and what it is made of."""
        grid = self.grid
        return {
            "version": self.version,
            "points": len(grid),
            "seeds": list(grid.seeds),
            "axes": {key: list(some) for key, some in grid.axes.items()},
            "listed": [dict(point) for point in grid.listed] if grid.listed != ({},) else [],
            "base": dict(self.base),
            "made_of": made_of(self.ingredients()),
        }

    def ingredients(self) -> set[str]:
        grid, fixed = self.grid, flat(self.base)
        return {
            name
            for key in (*FILES, *CODE)
            for value in (*(grid.values(key) if key in grid.keys else ()), fixed.get(key))
            for name in ingredients({key: value})
        }

    def made_of_point(self, point: int) -> set[str]:
        """What a point is made of (`sim.study.identity`), by its number."""
        return set(ingredients({**flat(self.base), **self.grid.point(point).settings}))


def _spelled_out(tables: Mapping[str, Any], grid: Grid) -> dict[str, Any]:
    """Every setting's default, but for what an engine sets for the GPU of a point."""
    engine = tables.get("engine")
    named = {engine.get("preset")} if isinstance(engine, Mapping) else {None}
    named |= set(grid.values("engine.preset")) if "engine.preset" in grid.keys else set()
    own = {key for name in named if name and isinstance(name, str) for key in presets.load(name).keys}
    if None in named:  # each point finds the default one, and what it may run
        own |= {*scenario.ENGINE_KEYS, "engine.preset", "engine.allow_mix", "kv.allow_short"}
    defaults = scenario.as_tables(Scenario())
    # What a front end costs is its engine's fact, whichever point names it.
    defaults["front_end"] = {"name": defaults["front_end"]["name"]}
    for key in own:
        section, _, name = key.partition(".")
        defaults[section].pop(name, None)
    if "pools" in tables or any(key.startswith("pools.") for key in grid.keys):
        del defaults["replicas"]  # each pool says its own number
    return defaults


def _scenarios(tables: Mapping[str, Any], grid: Grid) -> Iterator[Scenario]:
    """Those of the points that have one, for one seed."""
    for index in range(0, len(grid), len(grid.seeds)):
        with suppress(InputError):
            yield scenario.build(tables, grid.point(index).settings)


def _lists_of(given: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the scenario without its lists, the lists by dotted key but for those that `settings` overrule)."""
    values = flat(given)
    overruled = {scenario.full_key(key) for key in settings}
    lists = {key: value for key, value in values.items() if isinstance(value, list)}
    fixed = scenario.merge({key: value for key, value in values.items() if key not in lists})
    return fixed, {key: value for key, value in lists.items() if scenario.full_key(key) not in overruled}


def _listed(points: str | Path | Sequence[Mapping[str, Any]] | None, allow_code: bool) -> Sequence[Mapping[str, Any]]:
    if points is None:
        return ()
    if isinstance(points, str | Path):
        return grids.read_points(points, allow_code=allow_code)
    return [{scenario.full_key(key): value for key, value in point.items()} for point in points]


def _seeds(seeds: int | str | Sequence[int], first: Any) -> tuple[int, ...]:
    first = first if isinstance(first, int) else 0  # another one fails every point, with the reason
    if isinstance(seeds, str):
        return grids.parse_seeds(seeds, first)
    return grids.count_seeds(seeds, first) if isinstance(seeds, int) else grids.check_seeds(seeds)
