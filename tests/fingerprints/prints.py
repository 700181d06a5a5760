"""The print of a table, a tree or a text: small, the same on any machine, and telling where two differ.

Integers, texts and truth values are hashed. Floats are kept as numbers, since another machine's libm moves their last
bits: of a column its sum, and for every few rows a code that holds still when a float moves by 1e-12 of itself.
"""

from __future__ import annotations

import hashlib
import math
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

Print = dict[str, Any]
TOLERANCE = 1e-12
"""Of a float, relative; below 1 absolute, since a difference of two times has the error of the times."""

_GROUPS = 28
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(?:e[+-]?\d+)?(?![\w.])|(?<![\w.])-?\d+e[+-]?\d+(?![\w.])")
_EMPTY = -7.0


def digest(data: bytes, letters: int = 5) -> str:
    """The start of a SHA-256 in base64, six bits a letter."""
    return b64encode(hashlib.sha256(data).digest(), b"-_").decode()[:letters]


def same_float(new: float, old: float, terms: int = 1) -> bool:
    """Are they alike but for the last bits? `terms`: how many numbers they are sums of."""
    if math.isnan(new) or math.isnan(old) or math.isinf(new) or math.isinf(old):
        return repr(new) == repr(old)
    # The record itself is rounded to 14 digits.
    return abs(new - old) <= (TOLERANCE + 1e-13) * max(abs(old), math.sqrt(terms))


def rounded(value: float) -> float:
    return float(f"{value:.14g}")


class Code(str):
    """Four letters for a float, as far as it is told apart: a change by more than 1e-12 shows, its size does not."""

    __slots__ = ()

    @classmethod
    def of(cls, value: float) -> Code:
        number = round(math.asinh(value) / TOLERANCE) % 64**4
        return cls("".join(_LETTERS[number >> shift & 63] for shift in (18, 12, 6, 0)))

    def fits(self, value: float) -> bool:
        """Is it the code of this float, but for the last bits?"""
        apart = (Code.of(value).number - self.number) % 64**4
        return min(apart, 64**4 - apart) <= 2

    @property
    def number(self) -> int:
        return sum(_LETTERS.index(letter) << shift for letter, shift in zip(self, (18, 12, 6, 0), strict=True))


# ---- tables ---------------------------------------------------------------------------------------------------------


def of_table(table: pd.DataFrame, size: int = 0) -> Print:
    """Rows, a digest or the sum of each column, and the trail of the rows, by groups of `size` (0: as many as fit)."""
    exact, floats = _columns(table)
    digests = {name: _digest_of(column) for name, column in exact.items()}
    sums: dict[str, Any] = {}
    for name, column in floats.items():
        empty = int(np.isnan(column).sum())
        total = rounded(float(np.nansum(column)))
        sums[name] = [total, empty] if empty else total
    return {"rows": len(table), "exact": digests, "sums": sums, "trail": _trail(exact, floats, len(table), size)}


def _columns(table: pd.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The exact columns as int64 (others by a number that follows from their text), and the floats."""
    exact, floats = {}, {}
    for name in sorted(map(str, table.columns)):
        column = table[name]
        if pd.api.types.is_float_dtype(column.dtype):
            floats[name] = column.to_numpy(np.float64)
        elif pd.api.types.is_integer_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
            exact[name] = column.to_numpy(np.int64)
        else:
            exact[name] = np.array([_number_of(value) for value in column], np.int64)
    return exact, floats


def _number_of(value: Any) -> int:
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA:
        return -1
    text = repr(list(map(int, value))) if isinstance(value, list | tuple | np.ndarray) else str(value)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")


def _digest_of(column: np.ndarray) -> str:
    """A digest, or the value itself where all rows have the same small one."""
    if len(column) and (column == column[0]).all() and abs(int(column[0])) < 10**7:
        return f"={column[0]}"
    return digest(column.astype("<i8").tobytes())


def _trail(exact: Mapping[str, np.ndarray], floats: Mapping[str, np.ndarray], rows: int, size: int) -> str:
    """Three letters for each group of rows, in order: one for what is exact, two for the floats."""
    size = size or group_size(rows)
    ints = np.column_stack(list(exact.values())).astype("<i8") if exact else np.zeros((rows, 0), "<i8")
    parts = []
    reals = np.zeros(rows)
    for at, column in enumerate(floats.values()):
        numbers = np.where(np.isfinite(column), column, _EMPTY)
        reals += np.arcsinh(numbers) * 1e9 * (2 * at + 1)
    for first in range(0, rows, size):
        some = reals[first : first + size]
        code = int(np.rint((some * (1 + np.arange(len(some)))).sum())) % 4096
        parts.append(digest(ints[first : first + size].tobytes(), 1) + _LETTERS[code // 64] + _LETTERS[code % 64])
    return "".join(parts)


def group_size(rows: int) -> int:
    """Rows that share three letters of a trail."""
    return max(1, -(-rows // _GROUPS))


def trail_differs(new: str, old: str) -> list[int]:
    """The groups in which two trails of equal length differ."""
    found = []
    for at in range(0, len(new), 3):
        codes = [_LETTERS.index(one[at + 1]) * 64 + _LETTERS.index(one[at + 2]) for one in (new, old)]
        apart = (codes[0] - codes[1]) % 4096
        if new[at] != old[at] or min(apart, 4096 - apart) > 2:
            found.append(at // 3)
    return found


# ---- trees and texts ------------------------------------------------------------------------------------------------


def of_tree(tree: Any) -> Print:
    """Every leaf of a document under its dotted key: numbers as they are, long texts as digests."""
    return dict(_leaves(tree, ""))


def _leaves(tree: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for name, inner in tree.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list | tuple):
        if len(tree) > 12 and not any(isinstance(one, Mapping | list | tuple) for one in tree):
            yield key, of_text("\n".join(map(repr, tree)))
        else:
            for at, inner in enumerate(tree):
                yield from _leaves(inner, f"{key}[{at}]")
    elif isinstance(tree, str) and len(tree) > 24:
        yield key, digest(tree.encode())
    elif isinstance(tree, float | np.floating):
        yield key, rounded(float(tree)) if math.isfinite(tree) else str(tree)
    elif isinstance(tree, np.integer):
        yield key, int(tree)
    else:
        yield key, tree


def of_text(text: str) -> str:
    """A digest of a text without its decimal numbers, and the sum of these."""
    numbers = [float(one) for one in _NUMBER.findall(text)]
    return f"{digest(_NUMBER.sub('#', text).encode())} {len(numbers)} {rounded(math.fsum(map(abs, numbers))):.14g}"


def same_leaf(new: Any, old: Any) -> bool:
    """Are two leaves alike but for the last bits of floats?"""
    if isinstance(new, bool) or isinstance(old, bool) or new is None or old is None:
        return new is old
    if isinstance(old, Code):
        return isinstance(new, float) and old.fits(new)
    if isinstance(new, int | float) and isinstance(old, int | float):
        return same_float(float(new), float(old))
    if isinstance(new, str) and isinstance(old, str) and new.count(" ") == 2 and old.count(" ") == 2:
        (text, count, total), (text_before, count_before, total_before) = new.split(), old.split()
        alike = (text, count) == (text_before, count_before)
        return new == old or (alike and same_float(float(total), float(total_before), int(count)))
    return type(new) is type(old) and bool(new == old)


def lines_of(text: str, leave_out: Sequence[str]) -> list[str]:
    """The lines of a printed text without those that begin with one of these words."""
    return [line.rstrip() for line in text.splitlines() if not line.startswith(tuple(leave_out))]
