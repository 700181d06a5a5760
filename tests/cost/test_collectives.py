"""Collectives within a node and across several: a group's sums moved for real, and what nobody may ask for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profile_kit import llama_profile

from sim.catalog import load_gpu, load_model
from sim.cost.collectives import Collectives
from sim.cost.efficiency import Efficiency
from sim.cost.profiled import Profiled
from sim.cost.roofline import Roofline
from sim.cost.tables import Table
from sim.engine.batch import Shape
from sim.specs.parallel import Parallel
from traces.schema import InputError

H100, PCIE = load_gpu("h100"), load_gpu("rtx-4090")
FREE = Efficiency.of(
    H100, {"all_reduce_floor_s": 0.0, "network_hop_s": 0.0, "all_reduce_link": 1.0, "network_link": 1.0}
)
RING = Efficiency.of(H100, {"all_reduce_floor_s": 4.3e-6, "all_reduce_link": 0.65})
"""A floor and a rate that somebody gave, in place of what was measured."""
GROUPS = st.tuples(st.integers(1, 8), st.integers(2, 6))
"""(GPUs of a node, nodes)."""


def moved(each: int, nodes: int, gather: bool) -> tuple[int, int, int]:
    """A collective done ring by ring on real numbers, which must come out right on every GPU.

    (elements of the message, most that one GPU sent over its node's link, most over the network).
    """
    gpus = each * nodes
    size = gpus * nodes
    data = np.arange(gpus * size).reshape(gpus, size) ** 2
    held = [row.copy() for row in data]
    sent = np.zeros((2, gpus), int)

    def ring(members: list[int], pieces: list[np.ndarray], kind: int, adds: bool, first: int) -> None:
        """n - 1 rounds in each of which every member hands one piece to the next."""
        count = len(members)
        for step in range(count - 1):
            passed = []
            for place, gpu in enumerate(members):
                piece = pieces[(place + first - step) % count]
                passed.append((members[(place + 1) % count], piece, held[gpu][piece].copy()))
                sent[kind, gpu] += len(piece)
            for gpu, piece, values in passed:
                held[gpu][piece] = held[gpu][piece] + values if adds else values

    whole = np.arange(size)
    node_rings = [[node * each + place for place in range(each)] for node in range(nodes)]
    shards = np.split(whole, each)
    if gather:
        parts = np.split(whole, gpus)
        for place in range(each):
            members = [node * each + place for node in range(nodes)]
            ring(members, [parts[gpu] for gpu in members], 1, adds=False, first=0)
        columns = [np.concatenate([parts[node * each + place] for node in range(nodes)]) for place in range(each)]
        for members in node_rings:
            ring(members, columns, 0, adds=False, first=0)
        wanted = np.concatenate([data[gpu][part] for gpu, part in enumerate(parts)])
    else:
        for members in node_rings:
            ring(members, shards, 0, adds=True, first=0)
        for place in range(each):  # which shard a place has summed: the next one of its ring
            members = [node * each + place for node in range(nodes)]
            pieces = np.split(shards[(place + 1) % each], nodes)
            ring(members, pieces, 1, adds=True, first=0)
            ring(members, pieces, 1, adds=False, first=1)
        for members in node_rings:
            ring(members, shards, 0, adds=False, first=1)
        wanted = data.sum(axis=0)
    for values in held:
        assert np.array_equal(values, wanted)
    return size, int(sent[0].max()), int(sent[1].max())


@given(GROUPS, st.booleans())
def test_the_bytes_are_those_of_a_collective_done_by_hand(group: tuple[int, int], gather: bool) -> None:
    each, nodes = group
    gpu = replace(H100, node_gpus=each)
    size, within, across = moved(each, nodes, gather)
    price = Collectives(gpu, FREE).gather_s if gather else Collectives(gpu, FREE).all_reduce_s
    assert price(size, each * nodes) == pytest.approx(within / 450e9 + across / 50e9)


@given(st.integers(1, 8), st.floats(0, 1e9))
def test_within_a_node_the_price_is_a_ring_s_to_the_bit(gpus: int, message_bytes: float) -> None:
    eff = RING
    link = H100.link_bytes_per_s * eff.all_reduce_link
    collectives = Collectives(H100, eff)
    assert collectives.all_reduce_s(message_bytes, gpus) == 4.3e-6 + 2.0 * (gpus - 1) / gpus * message_bytes / link
    assert collectives.gather_s(message_bytes, gpus) == 4.3e-6 + (gpus - 1) / gpus * message_bytes / link


@given(GROUPS, st.floats(1, 1e9))
def test_a_network_is_never_free(group: tuple[int, int], message_bytes: float) -> None:
    """Dearer than one node of as many GPUs, rising with the message; a hop at least 10 us."""
    each, nodes = group
    eff = RING
    spread, joined = (Collectives(replace(H100, node_gpus=size), eff) for size in (each, each * nodes))
    for name in ("all_reduce_s", "gather_s"):
        seconds = getattr(spread, name)(message_bytes, each * nodes)
        assert seconds > getattr(joined, name)(message_bytes, each * nodes)
        assert getattr(spread, name)(2 * message_bytes, each * nodes) > seconds
    assert spread.all_reduce_s(0, each * nodes) == pytest.approx(4.3e-6 + 20e-6 * np.ceil(np.log2(nodes)))
    assert spread.gather_s(0, each * nodes) == pytest.approx(4.3e-6 + 10e-6 * np.ceil(np.log2(nodes)))


def test_sixteen_h100_pay_for_the_network() -> None:
    """64 tokens of Llama-3.1-70B: 1 MiB, of which 2 x 1/2 x 1/8 crosses 0.85 of 400 Gb/s, 160 times; 20 us each."""
    model, shape = load_model("llama-3.1-70b"), Shape(decodes=64, decode_context=64_000)
    one = Roofline(model, replace(H100, node_gpus=16), parallel=Parallel(16), efficiency=RING).explain(shape)
    two = Roofline(model, H100, parallel=Parallel(16), efficiency=RING).explain(shape)
    assert {name for name in one if one[name] != two[name]} == {"all-reduce", "logits gather"}
    within = 2 * 7 / 8 - 2 * 15 / 16
    more_s = within * 2**20 / (0.65 * 450e9) + 2**20 / 8 / (0.85 * 50e9) + 20e-6
    assert two["all-reduce"].seconds - one["all-reduce"].seconds == pytest.approx(160 * more_s)
    described = {item.name: item for item in Roofline(model, H100, parallel=Parallel(16)).describe()}
    assert (described["nodes"].value, described["network_bytes_per_s"].value) == (2, 50e9)
    assert "ConnectX-7" in described["network_bytes_per_s"].source
    assert "nodes" not in {item.name for item in Roofline(model, H100, parallel=Parallel(8)).describe()}


@pytest.mark.parametrize(
    ("node_gpus", "gpus", "nodes"),
    [(8, 1, 1), (8, 8, 1), (8, 9, 3), (8, 12, 2), (8, 16, 2), (8, 17, 17), (8, 64, 8), (72, 64, 1), (1, 4, 4),
     (0, 16, 2)],
)  # fmt: skip
def test_a_group_spreads_evenly_over_the_fewest_nodes(node_gpus: int, gpus: int, nodes: int) -> None:
    assert replace(H100, node_gpus=node_gpus).nodes(gpus) == nodes


def test_without_a_network_a_node_is_the_most() -> None:
    model = load_model("llama-3.1-70b")
    assert Roofline(model, PCIE, parallel=Parallel(8))
    with pytest.raises(
        InputError, match=r"tp = 16 needs 2 nodes, since a node holds 8, and no network.*'rtx-4090'.*up to 8"
    ):
        Roofline(model, PCIE, parallel=Parallel(16))
    unknown = replace(PCIE, node_gpus=0)
    with pytest.raises(InputError, match=r"a node is assumed to hold 8.*network_bytes_per_s or node_gpus"):
        Roofline(model, unknown, parallel=Parallel(16))
    assert unknown.source_of("node_gpus") == "not in the GPU's file; 8 are assumed"
    assert Roofline(model, replace(unknown, node_gpus=16), parallel=Parallel(16))


def test_the_note_says_what_is_spread_and_what_is_assumed() -> None:
    assert H100.group_note(Parallel(8)) == ""
    assert H100.group_note(Parallel(16)) == (
        "TP 16 spans 2 nodes of 8: what its GPUs sum up crosses the network, at most 50 GB/s for each GPU; NVLink has "
        "450 GB/s."
    )
    assert "2 nodes of 8 (a node is assumed to hold 8 GPUs):" in replace(H100, node_gpus=0).group_note(Parallel(16))
    assert replace(PCIE, network_bytes_per_s=1e9).group_note(Parallel(16)).endswith("PCIe has 32 GB/s.")


def test_a_table_prices_only_groups_of_its_size_and_never_as_measured_across_nodes() -> None:
    model, shape = load_model("llama-3.1-70b"), Shape(decodes=64, decode_context=64_000)

    def term(gpus: int, measured: int) -> tuple[float, str]:
        rows = [{"op": "all_reduce", "gpus": measured, "bytes": 2**20, "us": 500.0}]
        profile = llama_profile()
        profile = replace(profile, tables={**profile.tables, "all_reduce": Table.of("all_reduce", rows)})
        found = Profiled(model, H100, profile, parallel=Parallel(gpus)).explain(shape)["all-reduce"]
        return found.seconds, found.source

    assert term(8, measured=8) == (pytest.approx(160 * 500e-6), "measured")
    assert term(16, measured=16) == (pytest.approx(160 * 500e-6), "extrapolated")
    roof = Roofline(model, H100, parallel=Parallel(16)).explain(shape)["all-reduce"]
    assert term(16, measured=8) == (roof.seconds, "roofline")
