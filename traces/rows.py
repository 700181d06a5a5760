"""The rows of a trace (contract: `schema`): what makes one unusable, which are kept, and in which order they stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from traces.late import pd
from traces.schema import DTYPES, MAX_TIME_S, MAX_TOKENS, REQUIRED, InputError, Trace
from traces.table import C, ColumnTable

Mask = npt.NDArray[np.bool_]


def from_frame(table: pd.DataFrame, *, name: str = "table", kind: str = "table", synthetic: bool = False) -> Trace:
    """A trace from a table with the contract's columns, sorted by arrival. Raises InputError."""
    clean, _ = validate(table, name)
    return Trace(in_order(clean), name=name, kind=kind, synthetic=synthetic)


def validate(
    table: pd.DataFrame, path: str, skip_bad: bool = False, where: str = "line"
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The table with the contract's dtypes, and how many rows were dropped for which reason.

    Raises InputError naming `path` and the `source_row` of the first bad row; with `skip_bad` such rows are
    dropped instead, and a request that followed one of them follows the nearest kept one before it.
    """
    _check_columns(table, path)
    table = table.reset_index(drop=True)
    if "source_row" not in table:
        table = table.assign(source_row=np.arange(1, len(table) + 1))
    if "after" in table and "think_s" not in table:
        table = table.assign(think_s=0.0)
    kept: Mask = np.ones(len(table), dtype=bool)
    reasons: Counter[str] = Counter()
    for bad, column, rule in _problems(table):
        fresh = bad & kept
        if column == "after" and skip_bad:  # such a row is dropped below, and leads nowhere
            table = table.assign(after=table["after"].mask(bad, -1))
        if not fresh.any():
            continue
        if not skip_bad:
            row = int(np.flatnonzero(fresh)[0])
            shown = _shown(table[column].iloc[row])
            raise InputError(f"{path} {where} {table['source_row'].iloc[row]}: {column} is {shown}; {rule}")
        kept &= ~bad
        reasons[f"{column}: {rule}"] += int(fresh.sum())
    if not kept.all():
        table = keep_rows(table, kept)
    if table.empty:
        raise InputError(f"{path} holds no usable request" + (f" ({sum(reasons.values())} bad)" if reasons else ""))
    return table[[name for name in DTYPES if name in table]].astype(
        {name: DTYPES[name] for name in table.columns}
    ), dict(reasons)


def keep_rows(table: C, kept: Mask) -> C:
    """The rows in the mask; `after` is renumbered, past dropped rows to the nearest kept one before them."""
    if isinstance(table, ColumnTable):
        return table[kept]
    out = table.loc[kept].reset_index(drop=True)
    if "after" in table:
        parent = table["after"].to_numpy(dtype=np.int64, copy=True)
        while (lost := (parent >= 0) & ~kept[parent]).any():
            parent[lost] = parent[parent[lost]]
        out["after"] = _renumbered(parent[kept], np.cumsum(kept) - 1)
    return out


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The rows in order of arrival, equal times in their present order, `after` renumbered."""
    times = table["arrival_s"].to_numpy()
    if (np.diff(times) >= 0).all():
        return table.reset_index(drop=True)
    order = np.argsort(times, kind="stable")
    out = table.iloc[order].reset_index(drop=True)
    if "after" in table:
        place = np.empty(len(table), dtype=np.int64)
        place[order] = np.arange(len(table))
        out["after"] = _renumbered(table["after"].to_numpy()[order], place)
    return out


def _renumbered(parent: npt.NDArray[np.int64], place: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.where(parent >= 0, place[parent], -1)


def _check_columns(table: pd.DataFrame, path: str) -> None:
    names = [str(name) for name in table.columns]
    if missing := [name for name in REQUIRED if name not in names]:
        raise InputError(f"{path} lacks {', '.join(missing)}; it has {', '.join(names) or 'no columns'}")
    if unknown := [name for name in names if name not in DTYPES]:
        raise InputError(f"{path} has unknown columns {', '.join(unknown)}; known are {', '.join(DTYPES)}")
    if "prefix_blocks" in names and "prefix_block_tokens" not in names:
        raise InputError(f"{path} has prefix_blocks but no prefix_block_tokens")
    if "prefix_starts" in names and "prefix_blocks" not in names:
        raise InputError(f"{path} has prefix_starts but no prefix_blocks")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path} has the column {twice[0]} twice")


def _problems(table: pd.DataFrame) -> Iterator[tuple[Mask, str, str]]:
    """(rows, column, rule they break), cheapest and most basic first."""
    for column in ("prompt_tokens", "output_tokens"):
        yield from _count_problems(table, column, 1, MAX_TOKENS)
    for column, least in (("turn", 0), ("samples", 1), ("prefix_block_tokens", 1), ("priority", -MAX_TOKENS)):
        if column in table:
            yield from _count_problems(table, column, least, MAX_TOKENS)
    for column in ("arrival_s", "think_s"):
        if column in table:
            yield from _time_problems(table, column)
    if "acceptance" in table:
        values = _numbers(table["acceptance"])
        outside = ~((values >= 0) & (values <= 1)) & ~np.isnan(values)
        yield outside, "acceptance", "it must be a probability from 0 to 1, or nothing"
    if "prefix_blocks" in table:
        yield from _block_problems(table)
    for column, count in (("token_ids", "prompt_tokens"), ("output_token_ids", "output_tokens")):
        if column in table:
            length = _lengths(table[column])
            wrong = (length > 0) & (length != _numbers(table[count]))
            yield wrong, column, f"it must hold {count} ids or none"
    if "after" in table:
        yield from _after_problems(table)


def _count_problems(table: pd.DataFrame, column: str, least: int, most: int) -> Iterator[tuple[Mask, str, str]]:
    values = _numbers(table[column])
    whole = (values >= least) & (values == np.floor(values))
    yield ~whole, column, f"it must be a whole number of at least {least}"
    yield values > most, column, f"more than {most:,} is taken for a mistake"


def _time_problems(table: pd.DataFrame, column: str) -> Iterator[tuple[Mask, str, str]]:
    values = _numbers(table[column])
    yield ~np.isfinite(values) | (values < 0), column, "it must be a finite number of seconds, 0 or more"
    yield values > MAX_TIME_S, column, "more than 100 years is taken for another unit (seconds are expected)"


def _block_problems(table: pd.DataFrame) -> Iterator[tuple[Mask, str, str]]:
    size = _numbers(table["prefix_block_tokens"])
    yield size != size[0], "prefix_block_tokens", "it must be the same in every row"
    if "prefix_starts" in table:
        yield _unlike_starts(table), "prefix_starts", "it must rise from 0, below the prompt's end, one for each block"
        return
    most = np.ceil(_numbers(table["prompt_tokens"]) / size)
    yield _lengths(table["prefix_blocks"]) > most, "prefix_blocks", "it names more blocks than the prompt has"


def _unlike_starts(table: pd.DataFrame) -> Mask:
    starts, prompts = table["prefix_starts"], _numbers(table["prompt_tokens"])
    rising = np.array(
        [
            not len(row) or (row[0] == 0 and row[-1] < prompt and bool((np.diff(row) > 0).all()))
            for row, prompt in zip(starts, prompts, strict=True)
        ],
        dtype=bool,
    )
    uneven: Mask = _lengths(starts) != _lengths(table["prefix_blocks"])
    return ~rising | uneven


def _after_problems(table: pd.DataFrame) -> Iterator[tuple[Mask, str, str]]:
    parent = _numbers(table["after"])
    place = np.arange(len(table))
    valid = (parent == np.floor(parent)) & (parent >= -1) & (parent < len(table)) & (parent != place)
    yield ~valid, "after", "it must be -1 or the index of another request"
    arrival = _numbers(table["arrival_s"])
    before = np.where(valid & (parent >= 0), parent, place).astype(np.int64)
    earlier = (arrival[before] < arrival) | ((arrival[before] == arrival) & (before <= place))
    yield ~earlier, "after", "it must name a request that comes before this one"


def _numbers(column: pd.Series) -> npt.NDArray[np.float64]:
    """As floats; what is no number becomes NaN, true and false included."""
    if pd.api.types.is_bool_dtype(column.dtype) or not pd.api.types.is_numeric_dtype(column.dtype):
        column = column.astype(object).map(lambda value: np.nan if isinstance(value, (bool, str)) else value)
    values: npt.NDArray[np.float64] = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    return values


def _lengths(column: pd.Series) -> npt.NDArray[np.int64]:
    return np.fromiter((len(value) for value in column), dtype=np.int64, count=len(column))


def _shown(value: object) -> str:
    text = f"{len(value)} ids" if isinstance(value, (np.ndarray, list, tuple)) else repr(value)
    if isinstance(value, np.generic):
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
