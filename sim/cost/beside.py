"""What a step takes beside its model's operations, from a profile's tables: launching, the host's work, moved blocks.

None is what the tables lack. It knows no model but its number of layers.
"""

from __future__ import annotations

from typing import NamedTuple

from sim.cost.interpolate import Price
from sim.cost.lookup import Kernel, Tables
from sim.cost.measured import total

_MEMO_SIZE = 65_536
_PARTS = ("prefill", "decode", "mixed")


class Size(NamedTuple):
    """What launching and the host's work depend on: `parts` as in the tables, by CUDA graph (1) or not, rows of logits,
    new tokens of prompts."""

    parts: str
    graph: int
    rows: int
    prefill_tokens: int


class Beside:
    """Prices of everything that is no operation of the model."""

    def __init__(self, layers: int, tables: Tables) -> None:
        self._layers = layers
        kinds = [(parts, graph) for parts in _PARTS for graph in (0, 1)]
        self._launches = {(parts, graph): tables.kernel("launch", parts=parts, graph=graph) for parts, graph in kinds}
        self._hosts = {(parts, graph): tables.kernel("host", parts=parts, graph=graph) for parts, graph in kinds}
        self._copy = tables.kernel("copy")
        self._swaps = [tables.kernel("swap", direction=way) for way in ("out", "in")]
        self._launch_memo: dict[Size, Price] = {}
        self._host_memo: dict[Size, Price] = {}

    def launch(self, size: Size) -> Price | None:
        """The host's time to launch the step; on a synchronous device all that it does beside its operations."""
        return _kept(self._launch_memo, size, self._launches[size[:2]], (self._layers, *size[2:]))

    def captures(self, parts: str) -> bool:
        """Whether steps with such parts may be CUDA graphs: not where only launching each kernel was measured.

        An engine that captures decode steps alone (as this project's does) launches all others eagerly; of an engine
        whose launches nobody measured it is not known.
        """
        return self._launches[parts, 1] is not None or self._launches[parts, 0] is None

    def host(self, size: Size) -> Price | None:
        """Packing the step and handling what it sampled."""
        return _kept(self._host_memo, size, self._hosts[size[:2]], size[2:])

    def copies(self, copied_bytes: int) -> Price | None:
        """Copies from block to block: one launch a layer."""
        return self._moved([self._copy], copied_bytes)

    def swaps(self, swapped_bytes: int) -> Price | None:
        """Swaps, one launch a layer; which way is not told, so that both count half."""
        return self._moved(self._swaps, swapped_bytes)

    def _moved(self, kernels: list[Kernel | None], moved_bytes: int) -> Price | None:
        known = [kernel.at(moved_bytes / self._layers) for kernel in kernels if kernel is not None]
        if len(known) < len(kernels):
            return None
        added = total(known)
        return Price(self._layers * added.seconds / len(known), added.rank)


def _kept(memo: dict[Size, Price], size: Size, kernel: Kernel | None, point: tuple[float, ...]) -> Price | None:
    if kernel is None:
        return None
    found = memo.get(size)
    if found is None:
        found = kernel.at(*point)
        if len(memo) < _MEMO_SIZE:
            memo[size] = found
    return found
