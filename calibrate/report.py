"""What a calibration came to, as rows: errors by operation and kind of step, worst cases, where the grid ends.

The terminal and the page show the same rows. It measures and fits nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from calibrate.evaluate import Checked
from sim.cost.profile import Accuracy, Profile
from sim.cost.tables import Table

WORST = 8
_LACKING = {
    "routed experts": ("expert_layer", "expert_gemm"),
    "collectives over several GPUs": ("all_reduce",),
    "latent attention": ("latent_decode_attention", "latent_prefill_attention"),
}


class ErrorRow(NamedTuple):
    """One line of errors; all but the name and the count are percentages in words."""

    name: str
    points: str
    mean: str
    p90: str
    worst: str
    bias: str
    repeat: str
    how: str


ERROR_HEADINGS = ErrorRow("", "points", "mean", "90 %", "worst", "bias", "repeated", "held out")


def error_rows(profile: Profile) -> list[ErrorRow]:
    meta = profile.meta
    rows = [_row(name, meta.accuracy.get(name)) for name in profile.tables if name != "steps"]
    return [*rows, *(_row(f"steps: {kind}", error) for kind, error in meta.step_accuracy.items())]


def _row(name: str, error: Accuracy | None) -> ErrorRow:
    if error is None:
        return ErrorRow(name, "0", "not measured", "", "", "", "", "")
    mean, p90, most = (f"{share:.1%}" for share in (error.mean, error.p90, error.max))
    again = "not measured" if error.repeat_mean is None else f"{error.repeat_mean:.1%}"
    how = f"{error.how}; {error.form}" if error.form else error.how
    return ErrorRow(name, f"{error.points}", mean, p90, most, f"{error.bias:+.1%}", again, how)


def worst(checked: Iterable[Checked], count: int = WORST) -> list[Checked]:
    return sorted(checked, key=lambda one: -abs(one.error))[:count]


def reach(table: Table) -> str:
    ends = [(column.name, table.numbers(column.name)) for column in table.spec.axes]
    return ", ".join(f"{name} {values.min():,.0f} to {values.max():,.0f}" for name, values in ends)


def notes(profile: Profile) -> list[str]:
    meta = profile.meta
    texts = list(meta.notes)
    if meta.synchronous:
        texts.append(
            "Measured on a CPU, in seconds in which its one thread ran. A live run counts all seconds: where other "
            "processes compute too it takes longer, and the profile cannot know by how much."
            + (" Collectives are by the clock on the wall." if "all_reduce" in profile.tables else "")
        )
    uneven = [error for kind, error in meta.step_accuracy.items() if kind.startswith("uneven")]
    if uneven:
        texts.append(
            f"Decode batches of uneven contexts are priced by their mean and longest; they came out "
            f"{uneven[0].bias:+.0%} on average."
        )
    lacking = [what for what, tables in _LACKING.items() if not any(table in profile.tables for table in tables)]
    if lacking:
        texts.append(f"Not measured, and priced by the roofline: {', '.join(lacking)}.")
    if "latent attention" not in lacking and meta.kind == "measured":
        texts.append(
            "Latent attention was measured by itself, as torch's scaled_dot_product_attention of latents gathered from "
            "their pages: an engine's own kernel reads them once."
        )
    if meta.kind == "derived":
        texts.append("Derived from another GPU's measurements by data-sheet ratios: nothing here was measured on it.")
    return texts


def show(profile: Profile, console: Console, checked: Sequence[Checked] = ()) -> None:
    """Print the profile on one screen, with the worst of `checked`."""
    meta = profile.meta
    console.print(f"[bold]{escape(meta.name)}[/bold]: {escape(meta.device)}, {meta.kind}, {escape(meta.date)}")
    console.print(escape(meta.source), style="dim", highlight=False)
    grid = Grid("table", "rows", "where the grid ends", box=None, pad_edge=False)
    for name, table in profile.tables.items():
        grid.add_row(name, f"{len(table):,}", reach(table))
    console.print(grid)
    errors = Grid(*ERROR_HEADINGS[:-1], box=None, pad_edge=False)
    for row in error_rows(profile):
        errors.add_row(*row[:-1])
    console.print(errors, highlight=False)
    if checked:
        console.print("furthest off:", highlight=False)
        for one in worst(checked):
            error = f"{one.error:+.0%}  {one.predicted_us:,.0f} us, measured {one.measured_us:,.0f}"
            console.print(escape(f"  {error}: {one.group}, {one.what} ({one.source})"), highlight=False)
    for note in notes(profile):
        console.print(escape(note), highlight=False, style="dim")
