"""Makes a case that breaks a law smaller: fewer requests, fewer settings, plainer numbers, while it still breaks it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from .case import Case, Row, Steps

Breaks = Callable[[Case], bool]


def minimise(case: Case, breaks: Breaks, *, seconds: float = 60.0) -> Case:
    """The smallest case found that still breaks; what it takes apart first is what makes a case hard to read."""
    until = time.monotonic() + seconds
    shrunk = True
    while shrunk and time.monotonic() < until:
        shrunk = False
        for step in (_fewer_rows, _fewer_settings, _plainer_case, _plainer_rows, _plainer_numbers):
            smaller = _first(step(case), breaks, until)
            while smaller is not None:
                case, shrunk = smaller, True
                smaller = _first(step(case), breaks, until)
    return case


def _first(candidates: Iterator[Case], breaks: Breaks, until: float) -> Case | None:
    for one in candidates:
        if time.monotonic() > until:
            return None
        if breaks(one):
            return one
    return None


def without(rows: tuple[Row, ...], drop: set[int]) -> tuple[Row, ...]:
    """The other rows; who followed one that goes follows the one before that."""
    place: dict[int, int] = {-1: -1}
    kept: list[Row] = []
    for at, row in enumerate(rows):
        if at in drop:
            place[at] = place[row.after]
        else:
            place[at] = len(kept)
            kept.append(row._replace(after=place[row.after]))
    return tuple(kept)


def _fewer_rows(case: Case) -> Iterator[Case]:
    count = size = len(case.rows)
    while size > 1:
        size = -(-size // 2)
        for start in range(0, count, size):
            drop = set(range(start, min(count, start + size)))
            if len(drop) < count:
                yield replace(case, rows=without(case.rows, drop))
        if size == 1:
            return


def _fewer_settings(case: Case) -> Iterator[Case]:
    sections = {key.split(".")[0] for key in case.settings if "." in key} | set(case.settings)
    for name in sorted(sections, key=len):
        kept = {key: value for key, value in case.settings.items() if key != name and not key.startswith(f"{name}.")}
        if len(kept) < len(case.settings):
            yield replace(case, settings=kept)
    for key in case.settings:
        yield replace(case, settings={other: value for other, value in case.settings.items() if other != key})


def _plainer_case(case: Case) -> Iterator[Case]:
    plain = Case()
    if case.cost != Steps():
        yield replace(case, cost=Steps())
    for name in ("token_ids", "timeless", "unit_tokens"):
        if getattr(case, name) != getattr(plain, name):
            yield replace(case, **{name: getattr(plain, name)})
    if case.settings.get("model", "tiny-llama") != "tiny-llama":
        yield replace(case, settings={**case.settings, "model": "tiny-llama"})


def _plainer_rows(case: Case) -> Iterator[Case]:
    plain = Row(0.0, 1, 1)
    for name in Row._fields:
        rows = tuple(row._replace(**{name: getattr(plain, name)}) for row in case.rows)
        if rows != case.rows:
            yield replace(case, rows=rows)
    for at, row in enumerate(case.rows):
        for name in Row._fields:
            value = getattr(row, name)
            smaller = [getattr(plain, name)]
            if name in ("prompt_tokens", "output_tokens", "samples"):
                smaller += [value // 2, value - 1]
            for one in smaller:
                if one != value and (not isinstance(one, int) or name == "after" or one >= getattr(plain, name)):
                    yield replace(case, rows=(*case.rows[:at], row._replace(**{name: one}), *case.rows[at + 1 :]))


def _plainer_numbers(case: Case) -> Iterator[Case]:
    for key, value in case.settings.items():
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        for one in (1, 2, value // 2, value - 1):
            if 0 < one < value:
                yield replace(case, settings={**case.settings, key: one})
