"""Claims in the terminal: each with what was published, what came out here, under which setting, and why."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from sim.report.claims.words import STYLES, figures, ours
from sim.study.claims import ClaimRow


def row_view(row: ClaimRow, *, first: bool = True) -> RenderableType:
    """One row; `first`: the claim's first situation, which says what was published."""
    return Group(*_lines(row, first))


def _lines(row: ClaimRow, first: bool) -> Iterator[RenderableType]:
    if first:
        yield Text(row.claim.title, style="bold").append(f"  ({row.name})", style="dim")
        yield _indented(f"published: {row.claim.published} [{row.claim.source}]")
    found = f"{ours(row)}, {row.verdict}" if row.situation else row.verdict
    yield _indented(Text("ours: ").append(found, STYLES[row.verdict]).append(f": {figures(row)}"))
    if row.situation:
        about = f"{row.claim.measured}; {row.situation.text}"
        yield _indented(about)
        for run, reason in zip(row.situation.runs, row.reasons, strict=True):
            if reason:
                yield _indented(f"{run.name} cannot run: {reason}")
    if first:
        yield _indented(Text(row.claim.why, style="dim"))
    yield Text("")


def _indented(what: str | Text) -> Padding:
    return Padding(Text(what) if isinstance(what, str) else what, (0, 0, 0, 2))
