"""Seconds of one matrix product: tiles, waves of them over the SMs, split-K, the memory's rate. It knows no model.

The kernel library is taken to choose the best of a few tiles and splits (what cuBLAS's heuristics are for). A tile is
as fast as the tensor cores, or as the L2 cache feeds it; all SMs work through waves of tiles; operands and result cross
the memory bus once. Of arithmetic and memory traffic the shorter hides behind the longer but for a share. Under long
products a card lowers its clocks, so that the rate falls from its peak towards a sustained share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sim.cost.step import MEMO_SIZE
from sim.cost.tables import Floats, Ints

TILES = ((64, 64), (64, 128), (64, 256), (128, 64), (128, 128), (128, 256), (256, 64), (256, 128))
"""Rows and columns of the result that one thread block makes: those of CUTLASS's default tile shapes."""
SPLITS = (1, 2, 4, 8)
"""Thread blocks that may share one tile's inner dimension; each writes its part, and a second pass adds them up."""
_LEAST_ROWS = min(rows for rows, _ in TILES)
"""Of a tile; those of the others are multiples of it."""
_PART_BYTES = 8.0
"""A part is written and read once more, as fp32."""


@dataclass(frozen=True, slots=True)
class ProductRates:
    """What a card reaches: FLOP/s at its peak clocks, bytes/s of memory, bytes/s at which L2 feeds all tiles together.

    `sustained` is the share of the peak that products much longer than `sustained_after_s` keep; `exposed` that of the
    shorter of arithmetic and memory traffic that is not hidden. `tile_s` starts and ends a tile, `split_s` the pass
    that adds parts up.
    """

    flops_per_s: float
    memory_bytes_per_s: float
    feed_bytes_per_s: float
    sms: int
    floor_s: float
    tile_s: float
    split_s: float
    exposed: float
    sustained: float
    sustained_after_s: float

    def sustain_s(self, burst_s: float) -> float:
        """Seconds of arithmetic that takes `burst_s` at peak clocks."""
        return burst_s * (1.0 + (1.0 / self.sustained - 1.0) * burst_s / (burst_s + self.sustained_after_s))


class _Way(NamedTuple):
    """One tile and split for a matrix: rows of a tile, thread blocks for each row of tiles, seconds of a block, and
    those of adding parts up, fixed and for each row of the result."""

    rows: int
    blocks: int
    block_s: float
    add_s: float
    add_row_s: float


class Product:
    """[m, k] times one matrix [k, n] of `matrix_bytes`, inputs and outputs of so many bytes an element.

    `quantise_s` is what it takes to make a row of the input, where a kernel before this one narrows it.
    """

    __slots__ = ("_matrix_s", "_memo", "_rates", "_row_s", "_ways", "quantise_s")

    def __init__(
        self,
        rates: ProductRates,
        k: int,
        n: int,
        matrix_bytes: float,
        input_bytes: int,
        output_bytes: int,
        quantise_s: float = 0.0,
    ) -> None:
        self._rates = rates
        self.quantise_s = quantise_s
        self._matrix_s = matrix_bytes / rates.memory_bytes_per_s
        self._row_s = (input_bytes * k + output_bytes * n) / rates.memory_bytes_per_s
        self._ways = [
            _way(rates, k, n, rows, columns, split, input_bytes) for rows, columns in TILES for split in SPLITS
        ]
        self._memo: dict[float, list[tuple[float, float, float]]] = {}

    def ways_s(self, m: float) -> list[float]:
        """Seconds of the tensor cores at peak clocks for `m` rows, by each tile and split."""
        sms = self._rates.sms
        return [
            -(-(-(-m // rows) * blocks) // sms) * block_s + add_s + add_row_s * m
            for rows, blocks, block_s, add_s, add_row_s in self._ways
        ]

    def arithmetic_s(self, m: float) -> float:
        """Seconds of the tensor cores for `m` rows, by the best tile and split."""
        tiles = -(-m // _LEAST_ROWS)
        splits = self._memo.get(tiles) or self._splits(tiles)
        return self._rates.sustain_s(min([blocks_s + add_s + add_row_s * m for blocks_s, add_s, add_row_s in splits]))

    def _splits(self, tiles: float) -> list[tuple[float, float, float]]:
        """Of each split: seconds of all blocks by its best tile, and as `_Way` has them, those of adding parts up.

        How many blocks there are depends on the rows by the smallest tiles that hold them.
        """
        sms, best = self._rates.sms, dict[tuple[float, float], float]()
        for rows, blocks, block_s, *adds in self._ways:
            blocks_s = -(-(-(-tiles * _LEAST_ROWS // rows) * blocks) // sms) * block_s
            add_s, add_row_s = adds
            best[add_s, add_row_s] = min(blocks_s, best.get((add_s, add_row_s), blocks_s))
        splits = [(blocks_s, *adds) for adds, blocks_s in best.items()]
        if len(self._memo) < MEMO_SIZE:
            self._memo[tiles] = splits
        return splits

    def memory_s(self, m: float) -> float:
        """Seconds in which operands and result cross the memory bus."""
        return self._matrix_s + self._row_s * m

    def seconds(self, m: float) -> float:
        """One launch with `m` rows, that of quantising them included."""
        launch_s = self._rates.floor_s + overlapped(self.arithmetic_s(m), self.memory_s(m), self._rates.exposed)
        return launch_s + self.quantise_s * m

    def each_s(self, sizes: Ints) -> Floats:
        """`seconds` of so many rows each, to the bit: what hundreds of sizes take at once, six take one by one."""
        rates = self._rates
        tiles, at = np.unique(-(-sizes // _LEAST_ROWS), return_inverse=True)
        splits = np.array([self._memo.get(count) or self._splits(count) for count in tiles.tolist()])[at]
        burst_s = (splits[:, :, 0] + splits[:, :, 1] + splits[:, :, 2] * sizes[:, None]).min(axis=1)
        slowed = 1.0 + (1.0 / rates.sustained - 1.0) * burst_s / (burst_s + rates.sustained_after_s)
        one_s, other_s = burst_s * slowed, self._matrix_s + self._row_s * sizes
        longer_s, shorter_s = np.maximum(one_s, other_s), np.minimum(one_s, other_s)
        seconds: Floats = rates.floor_s + (longer_s + rates.exposed * shorter_s) + self.quantise_s * sizes
        return seconds


def overlapped(one_s: float, other_s: float, exposed: float) -> float:
    """The longer of two, and of the shorter the share that is not hidden behind it."""
    return one_s + exposed * other_s if one_s > other_s else other_s + exposed * one_s


def _way(rates: ProductRates, k: int, n: int, rows: int, columns: int, split: int, input_bytes: int) -> _Way:
    sms = rates.sms
    cores_s = 2.0 * rows * columns * sms / rates.flops_per_s
    feed_s = (rows + columns) * input_bytes * sms / rates.feed_bytes_per_s
    block_s = max(cores_s, feed_s) * k / split + rates.tile_s
    parts_s = _PART_BYTES * split * n / rates.feed_bytes_per_s if split > 1 else 0.0
    return _Way(rows, -(-n // columns) * split, block_s, rates.split_s if split > 1 else 0.0, parts_s)
