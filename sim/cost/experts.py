"""Seconds of routed experts: how many tokens each gets, how many are touched, one launch over all of them.

A launch pads each expert's rows to tiles, of which the best of a few heights is taken; while its tiles do not fill the
SMs once, it takes as long as one. It knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sim.cost.gemm import overlapped
from traces.schema import InputError

UNIFORM, BALANCED, POWER_LAW = "uniform", "balanced", "power-law"
TOLD = "told"
"""In tables: how many experts were touched is told, and how tokens spread over them is not."""
TILE_ROWS = (16, 64, 128)
"""Heights of tiles that vLLM's fused_moe is tuned over."""
_TILE_COLUMNS = 128
_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """What a step asks of the experts of a layer: `rows` (tokens times experts that each visits), how many experts are
    `touched`, and how many tiles of each of `TILE_ROWS` their rows fill."""

    rows: float
    touched: float
    tiles: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Routing:
    """How tokens spread over experts: `uniform` (each token at random), `balanced` (as evenly as can be), `power-law:A`
    (expected loads fall as quantiles of a power law with exponent -A, as AIConfigurator's tables are measured), or
    each expert's share of the tokens, separated by commas.

    Raises InputError for another name, and for shares that do not sum to one.
    """

    text: str = UNIFORM
    exponent: float = field(default=0.0, init=False)
    shares: tuple[float, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        if self.text in (UNIFORM, BALANCED):
            return
        if self.text.startswith(f"{POWER_LAW}:"):
            object.__setattr__(self, "exponent", self._number(self.text.partition(":")[2]))
            if not 0 < self.exponent <= 10 or self.exponent == 1:
                raise InputError(f"routing {self.text!r}: the exponent must lie above 0, be at most 10 and not be 1")
            return
        if "," not in self.text:
            raise InputError(
                f"unknown routing {self.text!r}; known are {UNIFORM}, {BALANCED}, {POWER_LAW}:1.2, or each expert's "
                "share of the tokens, separated by commas"
            )
        shares = tuple(self._number(part) for part in self.text.split(","))
        if min(shares) < 0 or abs(math.fsum(shares) - 1.0) > _SUM_TOLERANCE:
            raise InputError(
                f"routing has shares of {len(shares)} experts that sum to {math.fsum(shares):.6g}; they must not be "
                "negative and sum to 1"
            )
        object.__setattr__(self, "shares", shares)

    def _number(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"routing {self.text[:60]!r}: {text.strip()!r} is not a number")
        return value

    def check(self, experts: int) -> None:
        """Raise InputError unless the shares, where they are told, are those of so many experts."""
        if self.shares and len(self.shares) != experts:
            raise InputError(f"routing has shares of {len(self.shares)} experts, and the model's layers have {experts}")

    def load(self, tokens: float, experts: int, visited: int) -> ExpertLoad:
        """What `tokens` tokens ask of `experts` experts of which each visits `visited`."""
        rows = tokens * visited
        if self.text == UNIFORM:
            return even_load(rows, experts * (1.0 - (1.0 - visited / experts) ** tokens))
        if self.text == BALANCED:
            return even_load(rows, min(float(experts), rows))
        loads, chances = self.spread(tokens, experts, visited)
        return load_of(loads, chances, rows)

    def spread(self, tokens: float, experts: int, visited: int) -> tuple[list[float], list[float]]:
        """Each expert's expected rows, and how likely it is touched; of experts that are not alike."""
        rows = tokens * visited
        loads = [rows * share for share in (self.shares or _power_law(self.exponent, tokens, experts, visited))]
        if self.shares:
            return loads, [1.0 - (1.0 - min(1.0, visited * share)) ** tokens for share in self.shares]
        return loads, [min(1.0, load) for load in loads]  # the tables' loads are rounded expectations


def load_of(loads: Sequence[float], chances: Sequence[float], rows: float | None = None) -> ExpertLoad:
    """Of experts with so many rows each that are touched so likely; `rows` is their sum where it is known exactly."""
    tiles = tuple(
        sum(_tiles(load, chance, tall) for load, chance in zip(loads, chances, strict=True)) for tall in TILE_ROWS
    )
    return ExpertLoad(math.fsum(loads) if rows is None else rows, sum(chances), tiles)


def even_load(rows: float, touched: float) -> ExpertLoad:
    """Rows that are spread evenly over the experts that they touch."""
    return ExpertLoad(rows, touched, tuple(_tiles(rows, touched, tall) for tall in TILE_ROWS))


def _tiles(rows: float, touched: float, tall: int) -> float:
    """Tiles of `tall` rows that so many rows of so many experts fill: half of each expert's last one is padding."""
    return max(touched, rows / tall + 0.5 * touched)


def _power_law(exponent: float, tokens: float, experts: int, visited: int) -> Sequence[float]:
    """Shares of experts: quantiles of a power law over 1 to 0.8 of the tokens, of few tokens over 0.01 to 2
    (ai-dynamo/aiconfigurator, collector/helper.py, sample_power_law)."""
    low, high = (1.0, max(1.5, 0.8 * tokens)) if tokens * visited > experts else (0.01, 2.0)
    power = 1.0 - exponent
    ends = low**power, high**power
    drawn = [((ends[1] - ends[0]) * (at + 0.5) / experts + ends[0]) ** (1.0 / power) for at in range(experts)]
    total = math.fsum(drawn)
    return [value / total for value in drawn]


@dataclass(frozen=True, slots=True)
class Grouped:
    """One product of all experts in a launch: FLOP/s and bytes/s that it reaches, SM time to start and end a tile."""

    flops_per_s: float
    memory_bytes_per_s: float
    sms: int
    floor_s: float
    tile_s: float
    exposed: float

    def seconds(self, load: ExpertLoad, k: int, n: int, matrix_bytes: float, row_bytes: float) -> float:
        """[rows, k] times each touched expert's [k, n] of `matrix_bytes`; `row_bytes` move for each row."""
        if not load.rows:
            return 0.0
        memory_s = (load.touched * matrix_bytes + load.rows * row_bytes) / self.memory_bytes_per_s
        columns = -(-n // _TILE_COLUMNS)
        cell_s = 2.0 * _TILE_COLUMNS * k * self.sms / self.flops_per_s
        arithmetic_s = min(
            max(1.0, tiles * columns / self.sms) * (tall * cell_s + self.tile_s)
            for tall, tiles in zip(TILE_ROWS, load.tiles, strict=True)
        )
        return self.floor_s + overlapped(arithmetic_s, memory_s, self.exposed)
