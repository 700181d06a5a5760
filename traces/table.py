"""Columns by name, as arrays: what a trace and a run's tables are until somebody asks for a DataFrame of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import numpy.typing as npt

from traces.late import pd

Columns: TypeAlias = "ColumnTable | pd.DataFrame"
"""What is read by names of columns alone, so that either will do."""
C = TypeVar("C", "ColumnTable", "pd.DataFrame")


class Folded:
    """A column of so many rows that `unfold` makes anew whenever it is read, out of something smaller."""

    __slots__ = ("_rows", "_unfold")

    def __init__(self, rows: int, unfold: Callable[[], npt.NDArray[Any]]) -> None:
        self._rows = rows
        self._unfold = unfold

    def __len__(self) -> int:
        return self._rows

    def whole(self) -> npt.NDArray[Any]:
        return self._unfold()


def folded(pieces: Sequence[npt.NDArray[Any]], kind: str) -> Folded:
    """A column of this type, (rows,), that is held as such pieces (`smallest`)."""
    return Folded(sum(map(len, pieces)), partial(_joined, pieces, kind))


def _joined(pieces: Sequence[npt.NDArray[Any]], kind: str) -> npt.NDArray[Any]:
    return np.concatenate(pieces, dtype=kind)


def smallest(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy in the smallest type that holds whole numbers as they are, of one value where all are equal."""
    if values.dtype.kind == "f" or not len(values):
        return values.copy()
    low, high = int(values.min()), int(values.max())
    kind = np.min_scalar_type(min(low, -high - 1))
    return np.broadcast_to(np.array(low, kind), values.shape) if low == high else values.astype(kind)


class ColumnTable:
    """Columns of one length, (rows,) each. `len` counts rows; names are what it iterates over, and `in` looks for."""

    __slots__ = ("_columns",)

    def __init__(self, columns: Mapping[str, npt.ArrayLike | Folded]) -> None:
        self._columns = {
            name: values if isinstance(values, Folded) else np.asarray(values) for name, values in columns.items()
        }

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), ()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    @overload
    def __getitem__(self, key: str) -> npt.NDArray[Any]: ...
    @overload
    def __getitem__(self, key: npt.NDArray[Any]) -> ColumnTable: ...
    def __getitem__(self, key: str | npt.NDArray[Any]) -> npt.NDArray[Any] | ColumnTable:
        """A column, or the rows of a mask or of places."""
        if isinstance(key, str):
            return _whole(self._columns[key])
        return ColumnTable({name: _whole(values)[key] for name, values in self._columns.items()})

    def assign(self, **columns: npt.ArrayLike) -> ColumnTable:
        """The table with these columns, in the place of those of their names or behind the others."""
        return ColumnTable({**self._columns, **columns})

    def frame(self) -> pd.DataFrame:
        """The same as a DataFrame with a RangeIndex, on the same memory: what was folded stays whole from then on."""
        for name, values in self._columns.items():
            self._columns[name] = _whole(values)
        return pd.DataFrame(self._columns, copy=False)


def _whole(values: npt.NDArray[Any] | Folded) -> npt.NDArray[Any]:
    return values.whole() if isinstance(values, Folded) else values
