"""What a sweep is asked: axes, a list of points and seeds become numbered points. It runs nothing."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sim import scenario
from sim.specs.bounds import MAX_SEED
from sim.specs.settings import word
from traces import documents, files
from traces.schema import InputError

MOST_VALUES = 10_000_000
"""Of one axis; more than anyone can run, and still few enough to count them in a list."""

_RANGE = re.compile(r"[^:\s]+:[^:\s]+:[^:\s]+")


@dataclass(frozen=True, slots=True)
class Point:
    """One simulation of a sweep: what varies in it, by dotted key."""

    index: int
    seed: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """Every point of `listed`, with every combination of the axes' values, with every seed, in this order.

    Keys are dotted and in full. `listed` is one empty point where no list was given.
    """

    axes: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    listed: tuple[Mapping[str, Any], ...] = ({},)
    seeds: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return len(self.listed) * math.prod(map(len, self.axes.values())) * len(self.seeds)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*itertools.chain(*self.listed), *self.axes]))

    def point(self, index: int) -> Point:
        rest, seed = divmod(index, len(self.seeds))
        chosen: dict[str, Any] = {}
        for key in reversed(self.axes):
            rest, place = divmod(rest, len(self.axes[key]))
            chosen[key] = self.axes[key][place]
        return Point(index, self.seeds[seed], {**self.listed[rest], **chosen})

    def name(self, point: Point) -> str:
        """The point's varied values; "-" where a point of a list leaves one to the base."""
        return " ".join(word(point.settings.get(key, "-")) for key in self.keys) or "run"

    def values(self, key: str) -> list[Any]:
        """The values that a key takes, in the order in which they come."""
        given = self.axes.get(key) or [point[key] for point in self.listed if key in point]
        return list({word(value): value for value in given}.values())


def of_settings(
    settings: Mapping[str, Any], *, listed: Sequence[Mapping[str, Any]] = ()
) -> tuple[dict[str, Any], Grid]:
    """(the settings that stay, the grid of those whose value is a list, tuple or array).

    Raises:
        InputError: an axis without values or with one twice, a key given twice, or what no sweep varies.
    """
    fixed: dict[str, Any] = {}
    axes: dict[str, tuple[Any, ...]] = {}
    for short, value in settings.items():
        key = scenario.full_key(short)
        if key in fixed or key in axes:
            raise InputError(f"{key} is given twice; give all its values at once: {key}=first,second")
        if isinstance(value, list | tuple | np.ndarray) and not isinstance(_defaults().get(key), list | tuple):
            axes[key] = tuple(_as_setting(key, item) for item in _checked(key, value))
        else:
            fixed[key] = value
    points = [{key: _as_setting(key, value) for key, value in point.items()} for point in listed]
    grid = Grid(axes, tuple(points) or ({},))
    for key in grid.keys:
        if key in ("seed", "executor", "device"):
            why = "vary it with --seeds" if key == "seed" else "a sweep simulates, and does so alike everywhere"
            raise InputError(f"{key} is no axis of a sweep: {why}")
        if key in axes and any(key in point for point in grid.listed):
            raise InputError(f"{key} is given twice: as an axis and in the list of points")
    return fixed, grid


def check_keys(base: Mapping[str, Any], grid: Grid) -> None:
    """Refuse keys that no scenario has; a value that one cannot have fails its point alone.

    Raises:
        InputError: an unknown key; the sentence lists the known ones.
    """
    for settings in [{}, *({key: grid.values(key)[0]} for key in grid.keys)]:
        try:
            scenario.build(base, settings)
        except scenario.UnknownSettingError:
            raise
        except InputError:
            continue


def parse_values(text: str) -> tuple[str, Any]:
    """`section.key=value` as (key, value), where several values are a list.

    Several are written `5,10,20`, as a range with both ends `5:50:5`, as both, or as a TOML array. Quotes keep a
    comma within a value, and `slo`, which has commas of its own, is one value unless it is an array.

    Raises:
        InputError: there is no `=` or no key, a value is empty, or a range leads nowhere.
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key:
        raise InputError(f"--set {text!r}: expected section.key=value or section.key=first,second")
    literal = scenario.literal(value)
    if literal is not None:
        return key, literal
    if key == "slo" or not ("," in value or _RANGE.fullmatch(value)):
        return key, value
    return key, [item for part in value.split(",") for item in _values(key, part.strip())]


def parse_seeds(text: str, first: int) -> tuple[int, ...]:
    """`3` as three seeds from `first` on, `1,2,3` or `1:10:1` as those.

    Raises:
        InputError: it is neither.
    """
    seeds = parse_values(f"seeds={text}")[1]
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        return count_seeds(seeds, first)
    if not isinstance(seeds, list):
        raise InputError(f"--seeds {text!r}: expected a number of seeds, or seeds such as 1,2,3")
    return check_seeds(seeds)


def count_seeds(count: int, first: int) -> tuple[int, ...]:
    if not 1 <= count <= MOST_VALUES:
        raise InputError(f"{count:,} seeds; there must be at least 1 and at most {MOST_VALUES:,}")
    return tuple(range(first, first + count))


def read_points(path: str | Path, *, allow_code: bool = False) -> list[dict[str, Any]]:
    """The points of a CSV file (a column for each key; an empty cell leaves the base's value) or of the `[[point]]`
    tables of a TOML file, by dotted key in full.

    Raises:
        InputError: it cannot be read, is empty, has a point twice, or names code that is not allowed; the sentence
            names the line or the table.
    """
    name = Path(path)
    readers = {".csv": _csv_points, ".toml": _toml_points}
    if name.suffix.lower() not in readers:
        raise InputError(f"points {path}: the name must end in {' or '.join(readers)}")
    try:
        points = list(readers[name.suffix.lower()](name))
    except csv.Error as error:
        raise InputError(f"points {path} cannot be read: {error}") from None
    if not points:
        raise InputError(f"points {path}: there is no point in it")
    places: dict[tuple[tuple[str, str], ...], str] = {}
    for where, point in points:
        first = places.setdefault(tuple(sorted((key, word(value)) for key, value in point.items())), where)
        if first != where:
            raise InputError(f"points {path} {where}: the same point as {first}")
        if not allow_code:
            scenario.refuse_code(point, f"points {path} {where}")
    return [point for _, point in points]


def _csv_points(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = csv.reader(io.StringIO(files.text(path)), strict=True)
    keys = [scenario.full_key(key.strip()) for key in next(rows, [])]
    if len(set(keys)) < len(keys) or not all(keys):
        raise InputError(f"points {path} line 1: a key is empty or stands there twice")
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(keys):
            raise InputError(f"points {path} line {rows.line_num}: {len(row)} values under {len(keys)} keys")
        given = {key: cell.strip() for key, cell in zip(keys, row, strict=True) if cell.strip()}
        yield f"line {rows.line_num}", {key: _scalar(cell) for key, cell in given.items()}


def _toml_points(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    tables = documents.toml(path)
    points = tables.pop("point", [])
    if tables or not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        raise InputError(f"points {path}: expected [[point]] tables alone")
    for place, point in enumerate(points, 1):
        flat = dict(_flat(point, ""))
        for key, value in flat.items():
            if not isinstance(value, bool | int | float | str):
                raise InputError(f"points {path} [[point]] {place}: {key} is {value!r}; it must be one value")
        yield f"[[point]] {place}", flat


def _flat(tables: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield scenario.full_key(prefix + key), value


def _scalar(text: str) -> Any:
    literal = scenario.literal(text)
    return text if literal is None else literal


def _values(key: str, text: str) -> Iterable[Any]:
    if not text:
        raise InputError(f"--set {key}: there is an empty value between its commas")
    return _range(key, text) if _RANGE.fullmatch(text) else [_scalar(text)]


def _range(key: str, text: str) -> Iterable[Any]:
    """first:last:step, both ends included; counted in decimals, so that 0.1:0.5:0.1 has five values."""
    try:
        first, last, step = map(Decimal, text.split(":"))
    except InvalidOperation:
        return [text]  # some other text with colons, such as a path
    whole = all(re.fullmatch(r"[+-]?\d+", part) for part in text.split(":"))
    if not all(number.is_finite() for number in (first, last, step)) or not step or (last - first) / step < 0:
        raise InputError(f"--set {key}={text}: a range is first:last:step, and this one never gets to its last value")
    steps = (last - first) / step
    if steps >= MOST_VALUES:
        raise InputError(f"--set {key}={text}: {int(steps) + 1:,} values, and an axis has at most {MOST_VALUES:,}")
    made = (first + step * place for place in range(int(steps) + 1))
    return [int(value) for value in made] if whole else [float(value) for value in made]


def _as_setting(key: str, value: Any) -> Any:
    """A whole number as a float where the setting is one, as a scenario takes it."""
    return float(value) if type(value) is int and isinstance(_defaults().get(key), float) else value


@cache
def _defaults() -> dict[str, Any]:
    return dict(_flat(scenario.as_tables(scenario.Scenario()), ""))


def _checked(key: str, given: Iterable[Any]) -> tuple[Any, ...]:
    values = tuple(value.item() if isinstance(value, np.generic) else value for value in given)
    if not values:
        raise InputError(f"{key} has no values")
    words = set()
    for value in values:
        if not isinstance(value, bool | int | float | str):
            raise InputError(f"{key} has {value!r} among its values; each must be a number, a text, true or false")
        if word(value) in words:
            raise InputError(f"{key} has {word(value)} twice among its values")
        words.add(word(value))
    return values


def check_seeds(given: Iterable[Any]) -> tuple[int, ...]:
    """The seeds, once they are known to be such and each there once; raises InputError."""
    seeds = _checked("seeds", given)
    wrong = next((seed for seed in seeds if type(seed) is not int or not 0 <= seed <= MAX_SEED), None)
    if wrong is not None:
        raise InputError(f"seeds has {wrong!r} among its values; each must be a whole number from 0 to {MAX_SEED}")
    return seeds
