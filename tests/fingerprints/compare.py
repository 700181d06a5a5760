"""What differs between two prints of a run, in sentences: table, column, first differing row; key, was and is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from . import prints
from .prints import Print
from .runs import Outcome

LOOSE = {"recorded": 1e-7, "page": 1e-7, "planned": 1e-9, "chosen": 1e-9}
"""Kinds whose floats go through a least-squares fit or special functions: how far they may be off, relative."""
_MOST = 8


def differences(kind: str, new: Outcome, old: Mapping[str, Print]) -> Iterator[str]:
    """A sentence for everything that is not as it was; tables first, since these say where it began."""
    parts = [*old, *(part for part in new.prints if part not in old)]
    for part in sorted(parts, key=lambda part: "trail" not in old.get(part, {})):
        if part not in new.prints:
            yield f"{part}: is gone"
        elif part not in old:
            yield f"{part}: is new"
        elif "trail" in old[part]:
            yield from _of_table(part, new.prints[part], old[part], new.tables[part])
        else:
            yield from _of_tree(part, new.prints[part], old[part], LOOSE.get(kind, 0.0))


def _of_table(part: str, new: Print, old: Print, table: pd.DataFrame) -> Iterator[str]:
    before, after = ({**one["exact"], **one["sums"]} for one in (old, new))
    for name in before:
        if name not in after:
            yield f"{part}: column {name} is gone"
    for name in after:
        if name not in before:
            yield f"{part}: column {name} is new"
    if new["rows"] != old["rows"]:
        yield f"{part}: {new['rows']} rows, were {old['rows']}"
    both = [name for name in before if name in after]
    exact = [name for name in both if isinstance(before[name], str) and before[name] != after[name]]
    floats = [name for name in both if not isinstance(before[name], str)]
    moved = [name for name in floats if not _same_sum(after[name], before[name], old["rows"])]
    where = _where(new, old, table, before.keys() == after.keys())
    if exact:
        yield f"{part}: {where}columns {', '.join(exact)} changed{_shown(table, exact, new, old)}"
    for name in moved:
        yield f"{part}: {where}column {name}: the sum is {_figure(after[name])}, was {_figure(before[name])}"
    if where and not exact and not moved and new["rows"] == old["rows"]:
        yield f"{part}: {where}values changed places"


def _same_sum(new: Any, old: Any, rows: int) -> bool:
    (total, *empty), (total_before, *empty_before) = (one if isinstance(one, list) else [one] for one in (new, old))
    return empty == empty_before and prints.same_float(total, total_before, rows)


def _figure(total: Any) -> str:
    return f"{total[0]!r} with {total[1]} empty" if isinstance(total, list) else repr(total)


def _first(new: Print, old: Print, table: pd.DataFrame) -> tuple[int, int] | None:
    """The first differing rows, from and to."""
    size = prints.group_size(old["rows"])
    trail = new["trail"] if prints.group_size(new["rows"]) == size else prints.of_table(table, size)["trail"]
    length = min(len(trail), len(old["trail"]))
    groups = prints.trail_differs(trail[:length], old["trail"][:length])
    if not groups:
        return None
    return groups[0] * size, min(groups[0] * size + size, max(old["rows"], 1)) - 1


def _where(new: Print, old: Print, table: pd.DataFrame, same_columns: bool) -> str:
    found = _first(new, old, table) if same_columns else None
    if found is None:
        return ""
    first, last = found
    return f"from row {first} on, " if first == last else f"from one of the rows {first} to {last} on, "


def _shown(table: pd.DataFrame, names: list[str], new: Print, old: Print) -> str:
    """What stands there now, in the first differing row."""
    found = _first(new, old, table) if {*new["exact"], *new["sums"]} == {*old["exact"], *old["sums"]} else None
    if found is None or found[0] >= len(table):
        return ""
    values = ", ".join(f"{name}={table[name].iloc[found[0]]}" for name in names[:_MOST])
    return f"; row {found[0]} is now {values}"


def _of_tree(part: str, new: Print, old: Print, loose: float) -> Iterator[str]:
    for key, before in old.items():
        if key not in new:
            yield f"{part}: key {key} is gone (was {before!r})"
        elif not prints.same_leaf(new[key], before) and not _near(new[key], before, loose):
            was = "another float" if isinstance(before, prints.Code) else repr(before)
            yield f"{part}: {key} is {new[key]!r}, was {was}"
    for key in new:
        if key not in old:
            yield f"{part}: key {key} is new ({new[key]!r})"


def _near(new: Any, old: Any, loose: float) -> bool:
    if not loose:
        return False
    if isinstance(new, str) and isinstance(old, str) and new.count(" ") == 2 == old.count(" "):
        return new.split()[:2] == old.split()[:2] and _near(float(new.split()[2]), float(old.split()[2]), loose)
    floats = isinstance(new, float) and isinstance(old, float)
    return floats and abs(new - old) <= loose * max(1.0, abs(old))
