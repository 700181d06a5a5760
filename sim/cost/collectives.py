"""Seconds of collectives of a group of GPUs, within a node and across several. It knows no model.

Across nodes a collective is hierarchical, one phase for each kind of link (Jia et al. 2018, arXiv 1807.11205;
BlueConnect, Cho et al. 2019): every GPU has a network adapter of its own and exchanges its shard with the GPUs of
the same place in the other nodes. Phases do not overlap, and the network is not shared with other groups.
"""

from __future__ import annotations

from sim.cost.efficiency import Efficiency
from sim.specs.gpu import GpuSpec


class Collectives:
    """Prices among GPUs of one kind; whether a group is allowed to be so large is `GpuSpec.check_group`'s affair."""

    __slots__ = ("_eff", "_gpu", "_link_bytes_per_s", "_network_bytes_per_s")

    def __init__(self, gpu: GpuSpec, eff: Efficiency) -> None:
        self._gpu, self._eff = gpu, eff
        self._link_bytes_per_s = gpu.peer_bytes_per_s * eff.all_reduce_link
        self._network_bytes_per_s = gpu.network_bytes_per_s * eff.network_link

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
        nodes = self._nodes(gpus)
        each = gpus // nodes
        within_s = self._eff.all_reduce_floor_s + (each - 1) / each * message_bytes / self._link_bytes_per_s
        if nodes == 1:
            return within_s
        return within_s + self._across_s((nodes - 1) / gpus * message_bytes, (nodes - 1).bit_length())

    def _nodes(self, gpus: int) -> int:
        # Of a measured table's rows, whose nodes nobody knows, only ratios are wanted: without a network, one node's.
        return self._gpu.nodes(gpus) if self._network_bytes_per_s else 1

    def _within_s(self, message_bytes: float, gpus: int) -> float:
        sent_bytes = 2.0 * (gpus - 1) / gpus * message_bytes
        return self._eff.all_reduce_floor_s + sent_bytes / self._link_bytes_per_s

    def _across_s(self, sent_bytes: float, hops: int) -> float:
        return hops * self._eff.network_hop_s + sent_bytes / self._network_bytes_per_s
