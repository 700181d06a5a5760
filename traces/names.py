"""Names of prefix blocks: how files write them, and what the contract makes of them.

In a file a name is a whole number below 2^64, or a text. In a trace it is a small int64 that names a block *and
everything before it*; a file whose names speak of their own block alone is renamed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from traces.fields import MAX_TEXT, BadRow, Ids

Names = npt.NDArray[np.int64]
LARGEST = 1 << 40
"""Names above are numbered anew, so that arithmetic on them cannot run over."""


@dataclass(frozen=True, slots=True)
class BlockNames(Ids):
    """A list of names of blocks; in a CSV cell they stand with blanks between them.

    Its value is int64: numbers from 2^63 on as their bit pattern, texts as 64 bits of their BLAKE2 digest. `settled`
    makes small numbers of them.
    """

    def parse(self, value: object) -> Names:
        try:
            return Ids.parse(self, value)
        except BadRow:
            if not isinstance(value, list):
                raise BadRow(_RULE) from None
        if all(type(name) is int and 0 <= name < 1 << 64 for name in value):
            return np.array(value, dtype=np.uint64).view(np.int64)
        if all(isinstance(name, str) and 0 < len(name) <= MAX_TEXT for name in value):
            digests = b"".join(blake2b(_bytes(name), digest_size=8).digest() for name in value)
            return np.frombuffer(digests, dtype="<i8").astype(np.int64)
        raise BadRow(_RULE)


_RULE = "it must be a list of whole numbers from 0 to 2^64 - 1, or of texts"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


def settled(rows: list[Names]) -> tuple[list[Names], int]:
    """Names from 0 to LARGEST that each tell everything before them, and how many had to be renamed for that.

    A name that always stands behind the same one (or always first) tells all before it, and stays. Where one stands
    behind several, a block is taken as the same only where everything before it is the same too, as a KV cache does.
    """
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    if not lengths.sum():
        return rows, 0
    flat = np.concatenate(rows).astype(np.int64, copy=False)
    if flat.min() < 0 or flat.max() > LARGEST:
        flat = np.unique(flat, return_inverse=True)[1].astype(np.int64)
        rows = np.split(flat, np.cumsum(lengths)[:-1])
    before = np.concatenate([[-1], flat[:-1]])
    before[(np.cumsum(lengths) - lengths)[lengths > 0]] = -1
    order = np.argsort(flat, kind="stable")
    ordered, behind = flat[order], before[order]
    differing = (ordered[1:] == ordered[:-1]) & (behind[1:] != behind[:-1])
    if not differing.any():
        return rows, 0
    return _chained(rows), len(np.unique(ordered[1:][differing]))


def _chained(rows: list[Names]) -> list[Names]:
    known: dict[tuple[int, int], int] = {}
    out = []
    for row in rows:
        last, names = -1, []
        for name in row.tolist():
            last = known.setdefault((last, name), len(known))
            names.append(last)
        out.append(np.array(names, dtype=np.int64))
    return out
