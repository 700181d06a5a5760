"""Constants of the roofline that were fitted to a card's kernel tables: the files beside the GPU catalog, and which of
them a card takes. It knows no formula (`sim.cost.efficiency` says what a constant is).

`calibrate fit-roofline` writes such a file; a card without one takes that of the nearest generation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from sim.specs.gpu import GpuSpec
from traces import documents
from traces.schema import InputError

AUTO = "auto"
FOLDER = Path(__file__).parents[1] / "catalog" / "efficiencies"
NEAREST: Mapping[str, str] = {
    "Volta": "a100-80",
    "Turing": "a100-80",
    "Ampere": "a100-80",
    # Consumer and workstation chips share their SM (100 KiB of shared memory, mma.sync) and GDDR memory with Ada's.
    "Ampere GA10x": "l40s",
    "Ada": "l40s",
    # ECC takes a share of the L40S's memory rate (on by default there), and none of a GeForce card's.
    "Ada GeForce": "h100",
    "Hopper": "h100",
    "Blackwell": "b200",
    "Blackwell RTX": "l40s",
    "CDNA 3": "h100",
}
"""By generation the card whose tables stand in for those of another."""
UNKNOWN = "h100"
"""Where a GPU's file names no generation."""
_OF_LINK: Mapping[bool, str] = {False: "h100", True: "l40s"}
"""By whether GPUs talk over PCIe, the card whose collectives stand in."""
_KEYS = ("gpu", "date", "source", "operations", "all_reduce", "all_to_all", "all_gather", "reduce_scatter")
Curve = tuple[tuple[float, float], ...]
"""(bytes of the message, seconds), both rising."""


@dataclass(frozen=True, slots=True)
class FittedKernel:
    """What one kind of kernel gave: its constants, and how far the fitted form is off `rows` rows of `tables`."""

    name: str
    tables: str
    rows: int
    mean_error: float
    p90_error: float
    constants: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FittedCard:
    """A file's content. `own` says whether it is of the very card that is priced, `why` which rule chose it if not;
    `curves` are all-reduces by number of GPUs, over a fabric or (`over_pcie`) PCIe of `peer_bytes_per_s` one way, and
    `exchanges` all-to-alls (bytes that each GPU sends, its own part included) over the same; `halves` the halves of an
    all-reduce by name (all_gather, reduce_scatter), where they were measured apart."""

    gpu: str
    date: str
    source: str
    operations: tuple[FittedKernel, ...]
    curves: Mapping[int, Curve]
    over_pcie: bool
    peer_bytes_per_s: float = 0.0
    exchanges: Mapping[int, Curve] = field(default_factory=dict)
    halves: Mapping[str, Mapping[int, Curve]] = field(default_factory=dict)
    own: bool = True
    why: str = ""

    @property
    def names(self) -> frozenset[str]:
        """Operations that were fitted."""
        collectives = {"all_reduce": self.curves, "all_to_all": self.exchanges, **self.halves}
        return frozenset(operation.name for operation in self.operations) | {
            name for name, curves in collectives.items() if curves
        }

    def source_of(self, operation: FittedKernel) -> str:
        """Where an operation's constants are from."""
        error = f"{operation.rows:,} rows, mean error {operation.mean_error:.1%}"
        whose = "" if self.own else f"; {self.why}"
        return f"fitted to the {self.gpu}'s {operation.tables} ({error}; {self.source}, {self.date}){whose}"

    @property
    def sentence(self) -> str:
        """What a reader of a result should know; "" where the card has tables of its own."""
        return "" if self.own else f"Efficiencies are fitted to the {self.gpu}'s tables; {self.why}."


def names() -> list[str]:
    """Cards that have a file, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def choose(gpu: GpuSpec, fit: str = AUTO) -> FittedCard:
    """What a GPU is priced by: `fit` is auto (its own file, else its generation's), a card's name, or a file's path.

    Raises:
        InputError: no such file, one that is wrong about itself, a generation that is not known.
    """
    if fit != AUTO:
        if fit in names():
            return _for(gpu, load(FOLDER / f"{fit}.toml"), "chosen by cost.fit")
        if not fit.endswith(".toml"):
            raise InputError(
                f"unknown cost.fit {fit!r}; known are {AUTO}, {', '.join(names())}, or a file's path (.toml)"
            )
        return _for(gpu, load(Path(fit)), "chosen by cost.fit")
    if gpu.name in names():
        return load(FOLDER / f"{gpu.name}.toml")
    if gpu.generation and gpu.generation not in NEAREST:
        raise InputError(f"GPU {gpu.name!r}: unknown generation {gpu.generation!r}; known are {', '.join(NEAREST)}")
    nearest = NEAREST.get(gpu.generation, UNKNOWN)
    why = f"this card has none, and {nearest} is the nearest to generation {gpu.generation} that has"
    if not gpu.generation:
        why = "this card has none, and its file names no generation"
    return _for(gpu, load(FOLDER / f"{nearest}.toml"), why)


def curves_of(gpu: GpuSpec, fit: FittedCard) -> tuple[FittedCard, Mapping[int, Curve]]:
    """All-reduces within one node by number of GPUs, and whose they are: those of `fit` where its cards talk over the
    same kind of link (a fabric or PCIe), else those of a card that stands for the kind.

    Curves of another card are scaled: what a message takes beyond the smallest one goes with the link's rate, and twice
    as long where GPUs have no peer access, since it then crosses PCIe into host memory and out of it (an estimate).
    """
    over_pcie = not gpu.link_bytes_per_s
    if not fit.curves or fit.over_pcie != over_pcie:
        fit = replace(load(FOLDER / f"{_OF_LINK[over_pcie]}.toml"), own=False)
    return fit, fit.curves if fit.own else _scaled(gpu, fit, fit.curves)


def exchanges_of(gpu: GpuSpec, fit: FittedCard) -> tuple[FittedCard, Mapping[int, Curve]]:
    """As `curves_of`, all-to-alls; none where they were measured over no link of that kind."""
    over_pcie = not gpu.link_bytes_per_s
    if not fit.exchanges or fit.over_pcie != over_pcie:
        fit = replace(load(FOLDER / f"{_OF_LINK[over_pcie]}.toml"), own=False)
    return fit, fit.exchanges if fit.own else _scaled(gpu, fit, fit.exchanges)


def halves_of(gpu: GpuSpec, fit: FittedCard) -> Mapping[str, Mapping[int, Curve]]:
    """The halves of an all-reduce as `fit` has them for the kind of link that the GPU has; nobody's stand in for them,
    since an all-reduce tells them too."""
    if fit.over_pcie != (not gpu.link_bytes_per_s):
        return {}
    return {name: curves if fit.own else _scaled(gpu, fit, curves) for name, curves in fit.halves.items()}


def _scaled(gpu: GpuSpec, fit: FittedCard, curves: Mapping[int, Curve]) -> Mapping[int, Curve]:
    slower = fit.peer_bytes_per_s / gpu.peer_bytes_per_s * (1.0 if gpu.peer_access or not fit.over_pcie else 2.0)
    return {
        count: tuple((size, curve[0][1] + slower * (seconds - curve[0][1])) for size, seconds in curve)
        for count, curve in curves.items()
    }


def _for(gpu: GpuSpec, fit: FittedCard, why: str) -> FittedCard:
    return fit if fit.gpu == gpu.name else replace(fit, own=False, why=why)


@lru_cache(maxsize=64)
def load(path: Path) -> FittedCard:
    """A file, checked.

    Raises:
        InputError: it is none, a key or number is missing or impossible, an all-reduce gets faster with its message.
    """
    table = documents.toml(path)
    unknown = sorted(set(table) - set(_KEYS))
    missing = [key for key in _KEYS[:4] if key not in table]
    if unknown or missing:
        raise InputError(
            f"{path}: {'unknown' if unknown else 'missing'} key {(unknown or missing)[0]!r}; a fit has "
            f"{', '.join(_KEYS)}"
        )
    if not all(isinstance(table[key], str) for key in _KEYS[:3]) or not isinstance(table["operations"], dict):
        raise InputError(f"{path}: gpu, date and source must be texts and operations tables by name")
    operations = tuple(_operation(path, name, entry) for name, entry in table["operations"].items())
    links = {name: _links(path, name, table.get(name, {})) for name in _KEYS[4:]}
    found = {name: (over_pcie, rate) for name, (curves, rate, over_pcie) in links.items() if curves}
    if len(set(found.values())) > 1:
        raise InputError(f"{path}: {' and '.join(f'[{name}]' for name in found)} are of different links")
    curves, exchanges, *halves = (links[name][0] for name in _KEYS[4:])
    return FittedCard(
        table["gpu"], table["date"], table["source"], operations, curves, *next(iter(found.values()), (False, 0.0)),
        exchanges, {name: each for name, each in zip(_KEYS[6:], halves, strict=True) if each},
    )  # fmt: skip


def _links(path: Path, name: str, links: Mapping[str, Any]) -> tuple[Mapping[int, Curve], float, bool]:
    """(curves by number of GPUs, the rate of their link, whether it is PCIe) of one collective."""
    curves = {
        int(key.removeprefix("gpus_")): _curve(path, f"{name}.{key}", points)
        for key, points in links.items()
        if re.fullmatch(r"gpus_[1-9]\d{0,4}", key)
    }
    rate = links.get("link_bytes_per_s", 0.0)
    if curves and not (isinstance(rate, int | float) and 1e6 <= rate <= 1e18):
        raise InputError(f"{path}: {name}.link_bytes_per_s = {rate!r} must be the rate of the link that was measured")
    return curves, float(rate), links.get("link") == "PCIe"


def _operation(path: Path, name: str, entry: Any) -> FittedKernel:
    keys = ("tables", "rows", "mean_error", "p90_error", "constants")
    if not isinstance(entry, dict) or set(entry) != set(keys) or not isinstance(entry["constants"], dict):
        raise InputError(f"{path}: [operations.{name}] must have {', '.join(keys)}, and nothing else")
    numbers = {key: entry[key] for key in keys[1:4]} | entry["constants"]
    for key, value in numbers.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e18:
            raise InputError(f"{path}: [operations.{name}] {key} = {value!r} must be a number, not negative")
    return FittedKernel(
        name, str(entry["tables"]), int(entry["rows"]), float(entry["mean_error"]), float(entry["p90_error"]),
        {key: float(value) for key, value in entry["constants"].items()},
    )  # fmt: skip


def _curve(path: Path, key: str, points: Any) -> Curve:
    curve = tuple((float(size), float(seconds)) for size, seconds in points)
    if len(curve) < 2 or any(a[0] >= b[0] or not 0 < a[1] <= b[1] for a, b in pairwise(curve)):
        raise InputError(f"{path}: {key} must be two or more [bytes, seconds], both rising")
    return curve
