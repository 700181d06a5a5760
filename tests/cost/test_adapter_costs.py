"""What adapters take: bytes by hand, seconds that add up and only grow, and nothing where there are none."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.catalog import load_gpu, load_model
from sim.cost.adapters import Adapted, AdapterShape
from sim.cost.capacity import kv_capacity
from sim.cost.profile import find
from sim.cost.profiled import Profiled
from sim.cost.roofline import Roofline
from sim.cost.step import advanced, device_seconds
from sim.engine.batch import AdapterWork, Shape
from sim.specs.lora import LoraSettings
from sim.specs.parallel import SINGLE, Parallel
from traces.schema import InputError

LLAMA, H100 = load_model("llama-3.1-8b"), load_gpu("h100")
PREFILL = Shape(((700, 0), (90, 16)), 20, 20_000)
DECODE = Shape((), 24, 24_000)
SHAPES = (DECODE, PREFILL, Shape((), 1, 5), Shape(((3000, 0),)))


@cache
def cost(tp: int = 1, *, graphs: bool = True, measured: bool = False, **settings: Any) -> Adapted:
    shared: dict[str, Any] = {"parallel": Parallel(tp), "cuda_graphs": graphs}
    if measured:
        profile = find("h200-llama-3.1-8b")
        base: Roofline = Profiled(LLAMA, load_gpu(profile.meta.gpu), profile, **shared)
    else:
        base = Roofline(LLAMA, H100, **shared)
    return Adapted(base, AdapterShape(LoraSettings(**{"max_loras": 8} | settings), LLAMA))


def with_work(shape: Shape, *work: Any) -> Shape:
    return shape._replace(adapters=AdapterWork(*work))


def seconds(shape: Shape, *work: Any, **made: Any) -> float:
    return cost(**made).span_s(with_work(shape, *work), 1)[0][0]


def test_parameters_of_adapters_are_those_that_peft_counts() -> None:
    # peft, print_trainable_parameters: 41,943,040 of Llama-3-8B in rank 16 for all linear layers, 3,407,872 in rank 8
    # for q_proj and v_proj.
    assert 16 * AdapterShape(LoraSettings(1), LLAMA).rank_bytes(SINGLE) == 2 * 41_943_040
    some = AdapterShape(LoraSettings(1, modules="q_proj+v_proj"), LLAMA)
    assert 8 * some.rank_bytes(SINGLE) == 2 * 3_407_872
    assert some.modules == 64


def test_gpus_share_one_side_of_each_matrix() -> None:
    shape = AdapterShape(LoraSettings(1, modules="o_proj+up_proj"), LLAMA)
    out_of, up = 4096 // 4 + 4096, 4096 + 14336 // 4
    assert shape.rank_bytes(Parallel(4)) == 2 * 32 * (out_of + up)


def test_slots_come_out_of_the_cache() -> None:
    shape = AdapterShape(LoraSettings(8, max_lora_rank=64), LLAMA)
    linear, ends = 2 * 41_943_040 // 16, 2 * 2 * (128_256 + 4096)
    assert shape.slot_bytes(SINGLE) == 8 * 64 * (linear + ends)
    plain, less = kv_capacity(LLAMA, H100), kv_capacity(LLAMA, H100, adapters=shape)
    assert plain.blocks - less.blocks == pytest.approx(shape.slot_bytes(SINGLE) / plain.block_bytes, abs=1)
    huge = AdapterShape(LoraSettings(300, max_lora_rank=64), LLAMA)
    with pytest.raises(InputError, match=r"slots for adapters: 103\.2 GiB.*the smallest tp that fits is 4"):
        kv_capacity(LLAMA, H100, adapters=huge)


@pytest.mark.parametrize("made", [{}, {"graphs": False}, {"tp": 4}, {"measured": True}])
@pytest.mark.parametrize("shape", SHAPES)
def test_terms_add_up_and_a_step_without_adapters_costs_what_it_did(shape: Shape, made: dict[str, Any]) -> None:
    adapted = cost(**made)
    base = adapted._plain
    assert adapted.span_s(shape, 3) == base.span_s(shape, 3)
    assert adapted.explain(shape) == base.explain(shape)
    some = with_work(shape, min(5, shape.decodes or 9), 3, ((16, True), (8, False)))
    terms = adapted.explain(some)
    device, host_s = adapted.span_s(some, 4)
    assert device_seconds(terms.values()) == pytest.approx(device[0], rel=1e-12)
    assert host_s == base.span_s(shape, 1)[1]
    for at, step_s in enumerate(device):
        assert adapted.span_s(advanced(some, at), 1)[0] == [step_s]
    assert terms["adapter load"].seconds == adapted.load_s(16, disk=True) + adapted.load_s(8, disk=False)
    assert {term.source for name, term in terms.items() if name.startswith("adapter ")} == {"roofline"}


WORK = st.tuples(st.integers(1, 800), st.integers(1, 8))


@given(st.sampled_from(SHAPES), WORK, WORK, st.booleans())
def test_more_tokens_or_adapters_never_cost_less(
    shape: Shape, one: tuple[int, int], other: tuple[int, int], graphs: bool
) -> None:
    less, more = (tuple(map(end, one, other)) for end in (min, max))
    assert seconds(shape, *less, graphs=graphs) <= seconds(shape, *more, graphs=graphs)
    assert seconds(shape, graphs=graphs) < seconds(shape, *less, graphs=graphs)


def test_a_higher_rank_costs_more_and_loads_longer() -> None:
    ranks = (1, 8, 16, 32, 64, 128, 256)
    for shape in SHAPES:
        times = [seconds(shape, 9, 4, max_lora_rank=rank) for rank in ranks]
        assert times == sorted(times)
        assert times[0] < times[-1]
    loads = [cost().load_s(rank, disk=True) for rank in ranks]
    assert loads == sorted(set(loads))
    assert cost(disk_gb_per_s=float("inf")).load_s(64, disk=True) == cost().load_s(64, disk=False)
    assert cost(disk_latency_s=0.5).load_s(64, disk=True) == pytest.approx(cost().load_s(64, disk=True) + 0.5)


def test_launching_counts_where_no_graph_has_the_kernels() -> None:
    """An eager decode step is as long as its launches take, of which each linear product of a layer has two more."""
    eager, work = Shape((), 4, 400), (4, 1)
    more = 2 * 32 * 4 * cost(graphs=False)._plain.efficiency.launch_s
    assert seconds(eager, *work, graphs=False) == pytest.approx(seconds(eager, graphs=False) + more)
    assert seconds(eager, *work) - seconds(eager) < 0.5 * more


def test_models_whose_adapters_are_not_modelled_are_refused() -> None:
    for name, sentence in (("deepseek-v3", "latent attention"), ("qwen3-next-80b-a3b", "layers of several kinds")):
        with pytest.raises(InputError, match=sentence):
            AdapterShape(LoraSettings(1), load_model(name))
    mixture = load_model("qwen3-30b-a3b")
    assert {width for pair in AdapterShape(LoraSettings(1), mixture).pairs(SINGLE) for width in pair.outputs} == {
        4096, 512, 2048,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"names up_proj, which qwen3-30b-a3b has not.*routed experts"):
        AdapterShape(LoraSettings(1, modules="q_proj+up_proj"), mixture)


def test_ranks_are_of_adapters_by_name() -> None:
    settings = LoraSettings(2, max_lora_rank=64, rank=16, ranks={"sql": 64})
    assert [settings.rank_of(name) for name in ("sql", "other")] == [64, 16]
    assert replace(settings, rank=0).rank_of("other") == 64
