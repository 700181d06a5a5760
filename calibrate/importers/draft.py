"""What an importer has read: rows of a profile's tables, rows left out and why. It knows no format and no chip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from calibrate.importers.sheet import TABLE_NAMES, Place, Unusable
from sim.catalog import load_gpu
from sim.cost.tables import Value
from sim.specs.gpu import GpuSpec
from traces.schema import InputError


@dataclass(frozen=True, slots=True)
class ImportedRow:
    """One measured row, where it stands and, of a whole step, the least that the chip needs for it."""

    row: dict[str, Value]
    place: Place
    least_us: float = 0.0


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows of a table that are not in the profile for one reason; `example` is the first of them."""

    table: str
    reason: str
    rows: int
    example: str

    def __str__(self) -> str:
        return f"{self.table}: {self.rows} rows left out, {self.reason} ({self.example})"


@dataclass(slots=True)
class Draft:
    """Grows while files are read. `facts` end up in the profile's software; `notes`, `included` and `decode_splits` as
    they are."""

    source: str
    unit: str = "us"
    device: str = ""
    date: str = "not stated by the source"
    entries: dict[str, list[ImportedRow]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    included: dict[str, str] = field(default_factory=dict)
    decode_splits: str = ""
    _left: dict[tuple[str, str], list[Place]] = field(default_factory=dict)

    def add(self, table: str, place: Place, **row: Value) -> None:
        """One row of a profile's table, complete, times in microseconds."""
        self.entries.setdefault(table, []).append(ImportedRow(row, place))

    def add_step(self, place: Place, row: dict[str, Value], least_us: float) -> None:
        """A whole step, and the least time that the chip needs for it."""
        self.entries.setdefault("steps", []).append(ImportedRow(row, place, least_us))

    def leave_out(self, table: str, place: Place, reason: str) -> None:
        """One row that the profile cannot or must not have."""
        self._left.setdefault((table, reason), []).append(place)

    @contextmanager
    def reading(self, table: str, place: Place) -> Iterator[None]:
        """Leaves a row out where reading it raises Unusable."""
        try:
            yield
        except Unusable as why:
            self.leave_out(table, place, str(why))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def left_out(self) -> list[LeftOut]:
        """What was left out, in the order in which each reason came up."""
        return [LeftOut(table, reason, len(places), str(places[0])) for (table, reason), places in self._left.items()]


class ImportOptions:
    """What the user said beside the files. An option that a format has no use for is refused (`check_used`).

    exchanges: also keep collectives that the roofline has measured prices of and profiles have not (all-to-alls,
    reduce-scatters).
    """

    def __init__(
        self,
        gpu: GpuSpec,
        *,
        dtype: str | None = None,
        model: str | None = None,
        tp: int | None = None,
        exchanges: bool = False,
    ) -> None:
        self.gpu, self.exchanges = gpu, exchanges
        self._given: dict[str, str | int | None] = {"dtype": dtype, "model": model, "tp": tp}
        self._used: set[str] = set()

    def dtype(self) -> str | None:
        return self._text("dtype")

    def model(self) -> str | None:
        return self._text("model")

    def tp(self) -> int | None:
        self._used.add("tp")
        tp = self._given["tp"]
        return None if tp is None else int(tp)

    def check_gpu(self, place: Place, name: str) -> None:
        """Raise InputError where a row was measured on another GPU; a name that no catalog knows says nothing."""
        try:
            other = load_gpu(name).name
        except InputError:
            return
        if other != self.gpu.name:
            raise InputError(f"{place.path}:{place.number}: measured on {name} ({other}), and --gpu is {self.gpu.name}")

    def check_used(self, format_name: str) -> None:
        """Raise InputError for an option given and never asked for."""
        for name, value in self._given.items():
            if value is not None and name not in self._used:
                raise InputError(f"--{name}: the files of format {format_name} say it themselves; leave --{name} out")

    def _text(self, name: str) -> str | None:
        self._used.add(name)
        text = self._given[name]
        return None if text is None else str(text)


def named_in(path: Path, choices: tuple[str, ...]) -> str | None:
    """The one of `choices` that the file's name ends in, as `gemm_bf16.csv` and `gemm_0.24_bf16.csv.xz` do."""
    name = path.name.lower()
    stem = name.removesuffix(next((end for end in TABLE_NAMES if name.endswith(end)), path.suffix))
    return next((choice for choice in choices if stem.endswith(f"_{choice}")), None)
