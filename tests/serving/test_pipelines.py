"""Pipelines: stages of layers, several batches under way, bubbles, and what each stage holds and takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from engine_kit import Setup, Watch, run, workload
from hypothesis import given
from law_cases import Case, cases, laws

from sim import api
from sim.catalog import load_gpu, load_model
from sim.cost.capacity import kv_capacity, memory_plan
from sim.cost.fixed import FixedCost
from sim.cost.pipeline import HAND_OVER, Pipeline
from sim.cost.roofline import Roofline
from sim.cost.step import StepCost, device_seconds
from sim.engine.batch import Limits, Shape
from sim.engine.request import Request
from sim.engine.staged import StagedEngine
from sim.engine.wiring import wire
from sim.load import build
from sim.serving.clock import Clock
from sim.serving.executor import Pipelined
from sim.serving.replica import Replica
from sim.serving.source import RequestSource, Workload
from sim.specs.parallel import Parallel
from traces.schema import InputError

H100 = load_gpu("h100")
LOAD: dict[str, Any] = {"workload.trace": "chatbot_arena.jsonl", "workload.limit": 40, "workload.rate": 20.0}


@dataclass(frozen=True)
class Stages:
    """Costs of stages: so many times a step of `cost` each, handing over in no time unless told."""

    cost: StepCost
    factors: tuple[float, ...]
    sent_s: float = 0.0
    host_s: float = 0.0

    def stages_s(self, shape: Shape) -> tuple[list[tuple[float, float]], float]:
        device_s = self.cost.span_s(shape, 1)[0][0]
        last = len(self.factors) - 1
        return [
            (factor * device_s, self.sent_s if at < last else 0.0) for at, factor in enumerate(self.factors)
        ], self.host_s


def staged(setup: Setup) -> StagedEngine:
    engine = wire(
        build("sim.policies", setup.policy, setup.policy_parameters),  # type: ignore[arg-type]
        build("sim.allocators", setup.allocator, setup.allocator_parameters, setup.pool),
        setup.limits,
        host_blocks=setup.host_blocks,
        staged=True,
    )
    assert isinstance(engine, StagedEngine)
    return engine


def serve(setup: Setup, stages: Stages, work: Workload) -> tuple[list[Request], Watch]:
    clock, watch = Clock(), Watch(1, [])
    engine = staged(setup)
    done: dict[int, Request] = {}

    def finished(req: Request) -> None:
        assert req.id not in done, f"{req} was answered twice"
        done[req.id] = req
        source.finished(req)

    depth = len(stages.factors)
    replica = Replica(clock, engine, Pipelined(stages), depth=depth, on_finish=finished, observer=watch)
    source = RequestSource(clock, work, replica.submit, concurrency=setup.concurrency)
    source.start()
    clock.run_out()
    assert sorted(done) == list(range(len(work))), "somebody was never answered"
    engine.roster.check()
    assert engine.allocator.free_blocks == engine.allocator.pool.blocks
    return [done[at] for at in sorted(done)], watch


@pytest.mark.parametrize("batches", [1, 2, 5, 16])
@pytest.mark.parametrize("stages", [1, 2, 4, 7])
def test_equal_stages_take_as_long_as_the_bubble_formula_says(batches: int, stages: int) -> None:
    """m batches through p stages: (m + p - 1) / m of the time of a full pipeline (GPipe, arXiv 1811.06965)."""
    setup = Setup(limits=Limits(max_num_seqs=64, max_num_batched_tokens=10))
    equal = Stages(FixedCost(1.0), (1 / stages,) * stages)
    requests, _ = serve(setup, equal, workload([(0.0, 10, 1)] * batches))
    full_s = batches * 1.0 / stages
    bubble = (batches + stages - 1) / batches
    assert max(req.finish_s for req in requests) == pytest.approx(full_s * bubble)


def test_the_slowest_stage_sets_the_pace() -> None:
    """Batches alike through stages of 1, 3 and 2 s, each handed over in 0.5: the first takes 7, and each other 3."""
    setup = Setup(limits=Limits(max_num_seqs=64, max_num_batched_tokens=10))
    requests, _ = serve(setup, Stages(FixedCost(1.0), (1.0, 3.0, 2.0), 0.5), workload([(0.0, 10, 1)] * 6))
    assert [req.finish_s for req in requests] == pytest.approx([7.0 + 3.0 * at for at in range(6)])


def test_the_host_plans_while_stages_are_at_others_and_an_output_waits_for_every_stage() -> None:
    one, _ = serve(Setup(), Stages(FixedCost(1.0), (1.0, 1.0), 0.25, host_s=0.5), workload([(0.0, 4, 3)]))
    # 0.5 planned, 2.25 through both stages, three times over.
    assert (one[0].first_token_s, one[0].finish_s) == pytest.approx((2.75, 8.25))
    two, _ = serve(
        Setup(limits=Limits(max_num_seqs=8, max_num_batched_tokens=4)),
        Stages(FixedCost(1.0), (1.0, 1.0), 0.25, host_s=0.5),
        workload([(0.0, 4, 1), (0.0, 4, 1)]),
    )
    assert [req.finish_s for req in two] == pytest.approx([2.75, 3.75])


def test_who_awaits_a_token_is_in_no_other_batch_and_two_groups_take_turns() -> None:
    setup = Setup(limits=Limits(max_num_seqs=8, max_num_batched_tokens=8))
    rows = [(0.0, 8, 4), (0.0, 8, 4)]
    requests, watch = serve(setup, Stages(FixedCost(1.0), (0.5, 0.5)), workload(rows))
    assert [[(req, tokens) for req, tokens, _ in step] for step in watch.steps[0]] == [
        [(0, 8)], [(1, 8)], *[[(0, 1)], [(1, 1)]] * 3
    ]  # fmt: skip
    assert [req.finish_s for req in requests] == pytest.approx([4.0, 4.5])


@laws
@given(cases("chunked", "prefix"))
def test_everybody_is_answered_by_a_pipeline_under_pressure(case: Case) -> None:
    case = case.admissible()
    if not case.rows:
        return
    requests, watch = serve(case.setup, Stages(case.setup.cost, (0.2, 0.5, 0.3)), case.workload())
    for req in requests:
        assert req.generated == req.output_tokens
        assert req.arrival_s <= req.first_token_s <= req.finish_s
    ends = list(watch.step_end_s[0])
    assert ends == sorted(ends)


@laws
@given(cases("chunked", "paged", 3))
def test_a_pipeline_of_one_stage_is_no_pipeline(case: Case) -> None:
    case = replace(case, setup=replace(case.setup, depth=1, spans=False, host_blocks=0)).admissible()
    if case.rows:
        piped, watch = serve(case.setup, Stages(case.setup.cost, (1.0,)), case.workload())
        plain = run(case.setup, case.workload())
        np.testing.assert_allclose([req.finish_s for req in piped], plain.column("finish_s"), rtol=1e-12)
        assert watch.steps[0] == plain.steps


@pytest.mark.parametrize(
    ("name", "pp", "layers"),
    [("llama-3.1-70b", 4, [20, 20, 20, 20]), ("deepseek-v3", 4, [15, 15, 16, 15]), ("llama-3.2-1b", 3, [5, 6, 5])],
)
def test_stages_share_out_the_layers_as_vllm_does(name: str, pp: int, layers: list[int]) -> None:
    model = load_model(name)
    stages = model.stages(Parallel(pp=pp))
    assert [stage.layers for stage in stages] == layers
    assert [(stage.has_embedding, stage.has_head) for stage in (stages[0], stages[-1])] == [
        (True, False),
        (False, True),
    ]
    assert not any(stage.has_embedding or stage.has_head for stage in stages[1:-1])
    assert sum(stage.leading_dense_layers for stage in stages) == model.leading_dense_layers
    twice = model.vocab * model.hidden if model.tied_embeddings else 0
    assert sum(stage.parameters for stage in stages) == model.parameters + twice
    assert model.gpu_parameters(Parallel(pp=pp)) == max(stage.parameters for stage in stages)
    assert model.gpu_kv_bytes_per_token(Parallel(pp=pp)) == max(layers) * model.layer_kv_bytes_per_token(Parallel())


def test_the_fullest_stage_decides_how_much_kv_there_is() -> None:
    model, split = load_model("llama-3.1-70b"), Parallel(2, 3)
    planned = memory_plan(model, H100, parallel=split)
    each = [memory_plan(stage, H100, parallel=Parallel(2)) for stage in model.stages(split)]
    assert planned.blocks == min(one.blocks for one in each)
    assert len({one.blocks for one in each}) > 1
    with pytest.raises(InputError, match=r"with tp = 1, pp = 2: .* the fewest GPUs that fit are tp = 2, pp = 2$"):
        kv_capacity(model, load_gpu("a100-40"), parallel=Parallel(1, 2))


@pytest.mark.parametrize("name", ["llama-3.1-70b", "deepseek-v3", "qwen3-235b-a22b"])
def test_a_step_through_all_stages_is_a_step_and_what_is_handed_over(name: str) -> None:
    model, split = load_model(name), Parallel(8, 4)
    piped = Pipeline(model, H100, parallel=split, window=None)
    whole = Roofline(model, H100, parallel=Parallel(8), window=None)
    for shape in (Shape(decodes=32, decode_context=40_000), Shape(((700, 0), (64, 900)), 100, 90_000)):
        terms, plain = piped.explain(shape), whole.explain(shape)
        sent = terms.pop(HAND_OVER)
        assert sent.seconds > 0
        assert set(terms) == set(plain)
        for term, expected in plain.items():
            assert terms[term].seconds == pytest.approx(expected.seconds, rel=1e-9), term
            assert terms[term].source == expected.source
        assert piped.span_s(shape, 1)[0][0] == pytest.approx(device_seconds([*terms.values(), sent]))
        stages, host_s = piped.stages_s(shape)
        assert sum(map(sum, stages)) == pytest.approx(piped.span_s(shape, 1)[0][0])
        assert host_s == whole.span_s(shape, 1)[1]
        spans = piped.span_s(Shape(decodes=3, decode_context=3000), 5)[0]
        assert spans[2] == pytest.approx(piped.span_s(Shape(decodes=3, decode_context=3006), 1)[0][0])


def test_what_is_handed_over_between_nodes_takes_the_network() -> None:
    """64 tokens x 8192 x 2 tensors x 2 B = 2 MiB, an eighth from each GPU: 0.85 of 50 GB/s and a hop; then gathered."""
    model = load_model("llama-3.1-70b")
    within, across = (Pipeline(model, H100, parallel=Parallel(tp, 2), window=None) for tp in (4, 8))
    shape = Shape(decodes=64, decode_context=64_000)
    collectives = across.stages[0].kernels.collectives
    for piped, tp, sent_s in (
        (within, 4, collectives.send_s(2**21 / 4, across=False)),
        (across, 8, 10e-6 + 2**21 / 8 / (0.85 * 50e9)),
    ):
        gathered_s = collectives.gather_s(2**21, tp)
        assert piped.stages_s(shape)[0][0].hand_over_s == pytest.approx(sent_s + gathered_s)
        assert piped.stages_s(shape)[0][1].hand_over_s == 0.0


def test_a_run_tells_its_stages_and_keeps_every_gpu_in_the_bill() -> None:
    hurried = {**LOAD, "workload.rate": 500.0, "engine.max_num_batched_tokens": 512, "engine.max_num_seqs": 32}
    result = api.run(**hurried, model="llama-3.1-70b", tp=4, pp=2)
    summary = result.summary
    assert (summary["inputs"]["pp"], summary["bill"]["gpus"]) == (2, 8)
    assert (result.requests["status"] == "completed").all()
    assert "stage hand-over" in summary["cost_terms"]
    starts, ends = (result.steps[name].to_numpy() for name in ("start_s", "end_s"))
    assert (starts[1:] < ends[:-1]).any(), "no two batches were under way"
    assert (result.steps["repeats"] == 1).all()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"pp": 40}, r"^pp is 40, and model 'llama-3.1-8b' has 32 layers$"),
        (
            {"pp": 2, "model": "gpt-oss-20b"},
            r"^pp is 2, and which layer of model 'gpt-oss-20b' is of which kind is not",
        ),
        ({"pp": 2, "policy.name": "speculative"}, r"^policy.name is speculative and pp is 2: drafts behind stages"),
        ({"pp": 2, "engine.async_scheduling": True}, r"^engine.async_scheduling is true and pp is 2: a pipeline has 2"),
        (
            {"pp": 2, "kv.swap_gib": 4.0, "allocator.name": "paged"},
            r"^kv.swap_gib is set and pp is 2: swapping between",
        ),
        ({"pp": 2, "offload.kv_layers": 4}, r"^offload.\* is set and pp is 2: layers in host memory"),
        ({"pp": 2, "dp": 2, "model": "qwen3-30b-a3b"}, r"^dp is 2 and pp is 2: ranks that share experts are not"),
        (
            {"pp": 2, "gpu": "h200", "cost.profile": "h200-llama-3.1-8b"},
            r"^cost.profile is .* the replica has tp = 1, p",
        ),
        ({"pp": 0}, r"^pp is 0; it must be at least 1 and at most 64$"),
    ],
)
def test_what_cannot_be_is_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        api.run(**{**LOAD, **settings})
