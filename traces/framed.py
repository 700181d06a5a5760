"""Fields that hold a table and give a DataFrame, which is made when it is first asked for. It imports no numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pandas as pd

    from traces.table import ColumnTable

T = TypeVar("T")


def framed(*names: str) -> Callable[[type[T]], type[T]]:
    """Of a frozen dataclass without slots: these fields take tables, and give DataFrames of them."""

    def dressed(kind: type[T]) -> type[T]:
        for name in names:
            setattr(kind, name, _Framed(name))
        return kind

    return dressed


def held(instance: object, name: str) -> Any:
    """What a field of that name holds, as it is: a ColumnTable, a DataFrame or None."""
    return instance.__dict__[f"_{name}"]


class _Framed:
    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> pd.DataFrame | None:
        if instance is None:
            raise AttributeError(self._name)
        table = held(instance, self._name)
        if table is not None and hasattr(table, "frame"):
            table = table.frame()
            self.__set__(instance, table)
        return table  # type: ignore[no-any-return]

    def __set__(self, instance: object, value: ColumnTable | pd.DataFrame | None) -> None:
        instance.__dict__[f"_{self._name}"] = value
