"""Seconds of collectives of a group of GPUs, within a node and across several. It knows no model.

Across nodes a collective is hierarchical, one phase for each kind of link (Jia et al. 2018, arXiv 1807.11205;
BlueConnect, Cho et al. 2019): every GPU has a network adapter of its own and exchanges its shard with the GPUs of
the same place in the other nodes. Phases do not overlap, and the network is not shared with other groups. Within a node
measured collectives come first (`sim.cost.fits`); a rate and a floor that somebody gave replace them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from math import exp, log

from sim.cost.efficiency import Efficiency
from sim.cost.fits import Curve, curves_of, exchanges_of, halves_of
from sim.cost.step import Constant
from sim.specs.gpu import GpuSpec

_OVERRIDES = ("all_reduce_link", "all_reduce_floor_s")


class Collectives:
    """Prices among GPUs of one kind; whether a group is allowed to be so large is `GpuSpec.check_group`'s affair."""

    __slots__ = (
        "_curves", "_eff", "_exchanges", "_gpu", "_halves", "_link_bytes_per_s", "_network_bytes_per_s", "_whose",
    )  # fmt: skip

    def __init__(self, gpu: GpuSpec, eff: Efficiency) -> None:
        self._gpu, self._eff = gpu, eff
        self._link_bytes_per_s = gpu.peer_bytes_per_s * eff.all_reduce_link
        self._network_bytes_per_s = gpu.network_bytes_per_s * eff.network_link
        self._curves: Mapping[int, Curve] = {}
        self._exchanges: Mapping[int, Curve] = {}
        self._halves: Mapping[str, Mapping[int, Curve]] = {}
        self._whose = ""
        if eff.fit is not None and not set(_OVERRIDES) & set(dict(eff.origins)):
            _, self._exchanges = exchanges_of(gpu, eff.fit)
            self._halves = halves_of(gpu, eff.fit)
            fit, self._curves = curves_of(gpu, eff.fit)
            self._whose = f"all-reduces measured on the {fit.gpu} ({fit.source}, {fit.date})"

    def all_reduce_s(self, message_bytes: float, gpus: int) -> float:
        """Sum over `gpus` GPUs: each sends 2 (gpus - 1) / gpus of the message (ring), but at least one latency.

        On n nodes of g GPUs: reduce-scatter and all-gather within the node move 2 (g - 1) / g of the message over its
        link, the all-reduce of a shard between them moves 2 (n - 1) / n of the message's g-th part over the network, in
        2 ceil(log2 n) hops (up and down a tree).
        """
        nodes = self._nodes(gpus)
        if nodes == 1:
            return self._within_s(message_bytes, gpus)
        each = gpus // nodes
        sent_bytes = 2.0 * (nodes - 1) / nodes * message_bytes / each
        return self._within_s(message_bytes, each) + self._across_s(sent_bytes, 2 * (nodes - 1).bit_length())

    def gather_s(self, message_bytes: float, gpus: int) -> float:
        """All-gather of a message of which every GPU has an equal part.

        On n nodes of g GPUs: each first gets n - 1 parts over the network, in ceil(log2 n) hops, then (g - 1) / g of
        the message over its node's link.
        """
        return self._half_s("all_gather", message_bytes, gpus)

    def scatter_s(self, message_bytes: float, gpus: int) -> float:
        """Reduce-scatter of a message of which every GPU keeps an equal part, summed: a gather's way back."""
        return self._half_s("reduce_scatter", message_bytes, gpus)

    def _half_s(self, name: str, message_bytes: float, gpus: int) -> float:
        nodes = self._nodes(gpus)
        each = gpus // nodes
        within_s = self._half_within_s(name, message_bytes, each)
        if nodes == 1:
            return within_s
        return within_s + self._across_s((nodes - 1) / gpus * message_bytes, (nodes - 1).bit_length())

    def _exchange_s(self, message_bytes: float, gpus: int) -> float:
        """Within a node, each GPU having so many bytes for all of them, an equal part for itself."""
        if gpus > 1 and self._exchanges:
            return _at(_nearest(self._exchanges, gpus), message_bytes)
        return self._eff.all_reduce_floor_s + message_bytes * (gpus - 1) / gpus / self._link_bytes_per_s

    def send_s(self, message_bytes: float, *, across: bool) -> float:
        """From one GPU to another, of the same node or of another."""
        if across and self._network_bytes_per_s:
            return self._across_s(message_bytes, 1)
        return self._eff.all_reduce_floor_s + message_bytes / self._link_bytes_per_s

    def all_to_all_s(self, sent_bytes: float, gpus: int, reached_gpus: float, reached_nodes: float) -> float:
        """Each of `gpus` GPUs sends every one of its tokens, of `sent_bytes` all together, to so many of them.

        To another node a token is sent once, by the sender's own adapter, and handed on there (DeepEP's kernels for
        throughput): n - 1 of n nodes are others, and g - 1 of a node's g GPUs are not where it arrives.
        """
        nodes = self._nodes(gpus)
        each = gpus // nodes
        seconds = self._exchange_s(sent_bytes * reached_gpus, each)
        if nodes == 1:
            return seconds
        return seconds + self._across_s(sent_bytes * reached_nodes * (nodes - 1) / nodes, 1)

    def _nodes(self, gpus: int) -> int:
        # Of a measured table's rows, whose nodes nobody knows, only ratios are wanted: without a network, one node's.
        return self._gpu.nodes(gpus) if self._network_bytes_per_s else 1

    def describe(self, gpus: int) -> list[Constant]:
        """The rate at which a GPU sends in the largest all-reduce that was measured, and where it is from."""
        if not self._curves or gpus < 2:
            return []
        each = max(2, gpus // self._nodes(gpus))
        size, _ = self._curve(each)[-1]
        rate = 2.0 * (each - 1) / each * size / self._within_s(size, each)
        return [Constant("all_reduce_bytes_per_s", rate, self._whose)]

    def _curve(self, gpus: int) -> Curve:
        """That of so many GPUs, else of the next more, else of the most."""
        return _nearest(self._curves, gpus)

    def _half_within_s(self, name: str, message_bytes: float, gpus: int) -> float:
        """One half of an all-reduce over a ring: as it was measured, else half of what that takes beyond its least."""
        if gpus > 1 and (own := self._halves.get(name)):
            return _at(_nearest(own, gpus), message_bytes)
        if gpus > 1 and self._curves:
            least_s = self._curve(gpus)[0][1]
            return least_s + 0.5 * (self._within_s(message_bytes, gpus) - least_s)
        return self._eff.all_reduce_floor_s + (gpus - 1) / gpus * message_bytes / self._link_bytes_per_s

    def _within_s(self, message_bytes: float, gpus: int) -> float:
        if gpus > 1 and self._curves:
            more = (gpus - 1) / gpus * (top := max(self._curves)) / (top - 1) if gpus > max(self._curves) else 1.0
            return _at(self._curve(gpus), message_bytes * more)
        sent_bytes = 2.0 * (gpus - 1) / gpus * message_bytes
        return self._eff.all_reduce_floor_s + sent_bytes / self._link_bytes_per_s

    def _across_s(self, sent_bytes: float, hops: int) -> float:
        return hops * self._eff.network_hop_s + sent_bytes / self._network_bytes_per_s


def _nearest(curves: Mapping[int, Curve], gpus: int) -> Curve:
    return curves[min((count for count in curves if count >= gpus), default=max(curves))]


def _at(curve: Curve, message_bytes: float) -> float:
    """Seconds of a message: straight between logarithms; the first's below, the last's rate beyond."""
    at = bisect_right(curve, message_bytes, key=lambda point: point[0])
    if at == 0:
        return curve[0][1]
    size, seconds = curve[at - 1]
    if at == len(curve):
        return seconds * message_bytes / size
    larger, longer = curve[at]
    share = log(message_bytes / size) / log(larger / size)
    return seconds * exp(share * log(longer / seconds))
