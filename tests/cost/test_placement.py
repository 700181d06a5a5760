"""Experts over several GPUs: what each holds, what the busiest computes, how tokens come to them, what that takes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sim.catalog import load_gpu, load_model
from sim.cost.collectives import Collectives
from sim.cost.efficiency import Efficiency
from sim.cost.experts import Routing
from sim.cost.layers import Ranks
from sim.cost.placement import ExpertPlacement, largest_of
from sim.cost.ranks import RankedRoofline
from sim.cost.roofline import Roofline
from sim.engine.batch import Shape
from sim.specs.parallel import SINGLE, Parallel

H100 = load_gpu("h100")
PUBLISHED = {
    # total and active parameters in 1e9 as their makers publish them, without modules that predict further tokens
    "mixtral-8x7b": (46.7, 12.9),
    "qwen3-30b-a3b": (30.5, 3.3),
    "qwen3-235b-a22b": (235, 22),
    "gpt-oss-20b": (20.9, 3.6),
    "gpt-oss-120b": (116.8, 5.1),
    "deepseek-v3": (671, 37),
    "kimi-k2": (1040, 32),
}
_UNEMBEDDED = {"gpt-oss-20b", "gpt-oss-120b"}
"""Their model card counts no embedding among active parameters."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_published(name: str) -> None:
    model = load_model(name)
    total, active = PUBLISHED[name]
    counted = model.active_parameters - (model.vocab * model.hidden if name in _UNEMBEDDED else 0)
    assert model.parameters / 1e9 == pytest.approx(total, rel=0.015)
    assert counted / 1e9 == pytest.approx(active, rel=0.03)


def ep(gpus: int, tp: int = 1, redundant: int = 0) -> Parallel:
    return Parallel(tp, 1, gpus // tp, gpus, redundant)


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "deepseek-v3", "gpt-oss-120b"])
@pytest.mark.parametrize("gpus", [8, 16, 32])
def test_experts_are_shared_out_and_everything_else_is_repeated(name: str, gpus: int) -> None:
    model = load_model(name)
    spread, alone = model.gpu_parameters(ep(gpus)), model.parameters
    routed = model.experts * sum(
        gemm.k * gemm.n for gemm in model.expert_gemms(SINGLE)
    ) * model.expert_layers if not model.blocks else sum(
        block.layers * matrix.parameters(SINGLE) for block in model.blocks for matrix in block.matrices
        if matrix.is_routed
    )  # fmt: skip
    assert spread == alone - routed + routed // gpus
    assert model.gpu_weight_bytes(ep(gpus)) < model.weight_bytes
    # Cut experts take as much of each GPU as whole ones, where they divide.
    cut = Parallel(1, 1, gpus)
    if model.divides(cut) and not model.blocks:
        assert model.gpu_parameters(cut) == spread


def test_a_copy_takes_its_place_on_the_fullest_gpu_and_kv_follows_tp_alone() -> None:
    model = load_model("deepseek-v3")
    assert ep(32, redundant=32).held(256) == 9
    assert ep(48).held(256) == 6
    one = sum(gemm.k * gemm.n for gemm in model.expert_gemms(ep(32)))
    grown = model.gpu_parameters(ep(32, redundant=32)) - model.gpu_parameters(ep(32))
    assert grown == one * model.expert_layers
    for split in (ep(32), ep(32, 4), Parallel(4)):
        assert model.gpu_kv_bytes_per_token(split) == model.gpu_kv_bytes_per_token(Parallel(split.tp))


def test_the_largest_of_normal_numbers() -> None:
    assert [largest_of(count) for count in (1, 2, 3)] == pytest.approx(
        [0.0, 1 / math.sqrt(math.pi), 1.5 / math.sqrt(math.pi)], abs=1e-6
    )


@pytest.mark.parametrize(("tokens", "gpus"), [(256, 8), (2048, 32), (8192, 64)])
def test_random_choices_load_the_busiest_gpu_as_draws_do(tokens: int, gpus: int) -> None:
    rng = np.random.default_rng(5)
    placement = ExpertPlacement(256, 8, ep(gpus))
    most = []
    for _ in range(12):
        chosen = np.argpartition(rng.random((tokens, 256)), 8, axis=1)[:, :8]
        most.append(np.bincount(chosen.ravel() // (256 // gpus), minlength=gpus).max())
    assert placement.load(Routing(), tokens).rows == pytest.approx(np.mean(most), rel=0.02)


def test_copies_level_a_skewed_load_and_told_shares_stand_in_their_order() -> None:
    skewed = Routing("power-law:1.2")
    plain, with_copies = (ExpertPlacement(256, 8, ep(32, redundant=copies)) for copies in (0, 32))
    assert 1.0 < with_copies.excess(skewed, 8192) < plain.excess(skewed, 8192)
    assert plain.excess(Routing("balanced"), 8192) == 1.0
    loads, chances = skewed.spread(8192, 256, 8)
    for placement in (plain, with_copies):
        slots = placement.slots(loads, chances, in_order=False)
        assert sum(map(len, slots)) == 256 + placement.parallel.redundant
        assert max(map(len, slots)) <= placement.held
        assert math.fsum(load for own in slots for load, _ in own) == pytest.approx(8 * 8192)
    shares = Routing(",".join(["0.3", "0.2"] + ["0.0625"] * 8))
    ordered = ExpertPlacement(10, 2, ep(5))
    assert ordered.load(shares, 100).rows == pytest.approx(100)  # the first two: half of 200 rows
    assert ExpertPlacement(10, 2, ep(2)).load(shares, 100).rows == pytest.approx(200 * (0.5 + 3 * 0.0625))


def test_a_token_reaches_as_many_gpus_as_its_experts_are_on() -> None:
    placement = ExpertPlacement(16, 2, ep(8))
    # Both experts on one GPU: 1 of 15 other experts is beside the first.
    assert placement.reached(8) == pytest.approx(2 - 1 / 15)
    assert placement.reached(1) == 1.0
    assert ExpertPlacement(64, 8, ep(64)).reached(64) == pytest.approx(8)


def test_an_exchange_by_hand() -> None:
    """8 GPUs of one node, then 16 of two: 0.65 of 450 GB/s within, 0.85 of 50 GB/s across."""
    ring = Collectives(H100, replace(Efficiency(), all_reduce_link=0.65, all_reduce_floor_s=4e-6))
    assert ring.all_to_all_s(1e6, 8, 6.0, 1.0) == pytest.approx(4e-6 + 1e6 * 6 * 7 / 8 / (0.65 * 450e9))
    across_s = 10e-6 + 1e6 * 1.8 / 2 / (0.85 * 50e9)
    assert ring.all_to_all_s(1e6, 16, 7.0, 1.8) == pytest.approx(4e-6 + 1e6 * 7 * 7 / 8 / (0.65 * 450e9) + across_s)


def _terms(parallel: Parallel, ranks: tuple[int, int], routing: str = "balanced") -> dict[str, float]:
    cost = RankedRoofline(Roofline(load_model("qwen3-30b-a3b"), H100, parallel=parallel, routing=Routing(routing)))
    shape = Shape(decodes=64, decode_context=64_000, ranks=ranks)
    terms = {name: term.seconds for name, term in cost.explain(shape).items() if not term.on_host}
    assert sum(terms.values()) == pytest.approx(cost.span_s(shape, 1)[0][0])
    return terms


def test_experts_depend_on_all_ranks_and_attention_on_ones_own() -> None:
    split = ep(8)
    alike, told, lonely = (_terms(split, ranks) for ranks in ((0, 0), (64, 512), (64, 71)))
    assert alike == told
    # In a CUDA graph the others are padded to as many tokens, whatever they compute.
    assert lonely == told
    eager, quiet = (_terms(split, (600, total)) for total in (4800, 1200))
    # Outside of one the experts see what there is, and the fullest rank sends as much either way.
    del eager["launch gaps"], quiet["launch gaps"]
    own = {"expert up", "expert activation", "expert down", "expert combine"}
    assert {name for name in eager if eager[name] != quiet[name]} == own
    assert all(eager[name] > quiet[name] for name in own)


def test_one_rank_exchanges_nothing_and_whole_experts_make_wider_products() -> None:
    cut, whole = (_terms(parallel, (0, 0)) for parallel in (Parallel(4), Parallel(4, ep=4)))
    assert "expert dispatch" not in cut
    assert "expert dispatch" not in whole
    assert {name for name in cut if cut[name] != whole[name]} <= {
        "expert up", "expert activation", "expert down", "expert combine", "router"
    }  # fmt: skip
    # 64 tokens are 8 rows for each of 128 experts: reading them binds, a quarter of all either way.
    assert whole["expert up"] == pytest.approx(cut["expert up"], rel=0.1)


def test_skew_never_makes_a_step_shorter_and_more_ranks_need_more_of_the_network() -> None:
    even, skewed = (sum(_terms(ep(8), (64, 512), each).values()) for each in ("balanced", "power-law:1.2"))
    assert skewed > even
    exchanged = [_terms(ep(gpus), (64, 64 * gpus))["expert dispatch"] for gpus in (4, 8, 16, 32)]
    assert exchanged == sorted(exchanged)
    assert exchanged[2] > 2 * exchanged[1], "the network between nodes is slower than a node's fabric"


def test_ranks_of_nothing_are_all_alike() -> None:
    assert Ranks(0, 0) == Ranks(*Shape().ranks)
