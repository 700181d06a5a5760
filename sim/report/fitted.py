"""Views that know the width of the terminal only when they are drawn, so that no number loses its unit or its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table


@dataclass(frozen=True, slots=True)
class FittedTable:
    """A view made for a number of columns of text."""

    make: Callable[[int], RenderableType]

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        yield self.make(options.max_width)


def in_parts(heads: Sequence[str], rows: Iterable[Sequence[str]], gap: int = 2) -> FittedTable:
    """A table of numbers with names in its first column; what is too wide goes below, with the names again."""
    cells = [list(row) for row in rows]
    return FittedTable(lambda width: _stacked(heads, cells, gap, width))


def _stacked(heads: Sequence[str], rows: Sequence[Sequence[str]], gap: int, width: int) -> RenderableType:
    wide = [max(map(len, [head, *(row[at] for row in rows)])) + gap for at, head in enumerate(heads)]
    parts: list[list[int]] = [[]]
    for at in range(1, len(heads)):
        if parts[-1] and wide[0] - gap + sum(wide[place] for place in (*parts[-1], at)) > width:
            parts.append([])
        parts[-1].append(at)
    whole = Table.grid()
    for number, places in enumerate(parts):
        if number:
            whole.add_row("")
        whole.add_row(_table(heads, rows, [0, *places], gap))
    return whole


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], places: Sequence[int], gap: int) -> Table:
    table = Table(box=None, padding=(0, 0, 0, gap), pad_edge=False)
    for at in places:
        table.add_column(heads[at], justify="right" if at else "left", style="" if at else "bold", no_wrap=True)
    for row in rows:
        table.add_row(*(row[at] for at in places))
    return table
