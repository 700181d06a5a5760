"""From records of live runs to the whole comparison: twin check, steps, requests, attribution, verdict.

It runs nothing live; what it needs was recorded, so that anyone can compute it again without the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sim.cost.step import StepCost, Term
from sim.engine.batch import Shape
from sim.engine.protocol import ServingEngine
from sim.results.metrics import plain, source_shares
from sim.results.terms import StepTerms
from sim.scenario import Scenario
from sim.serving import run as serving
from sim.serving.assemble import assemble
from sim.serving.executor import Executor, Predicted
from sim.serving.hooks import Hooks
from sim.validate import attribution, fitted
from sim.validate.drafts import Drafts, measured
from sim.validate.live import LiveRuns, Ranked
from sim.validate.livelike import Adjusted, Corrections, LiveLike
from sim.validate.requests import Measures, compare, paired
from sim.validate.retime import Latencies, as_recorded, retimed
from sim.validate.steps import step_report, step_rows, timed_terms
from sim.validate.twin import ReplaySession, Twin, check_twin
from sim.validate.verdict import Bounds, judge
from traces.late import pd
from traces.schema import InputError


@dataclass(frozen=True, slots=True)
class Validation:
    """A comparison: `document` is what `--json` prints, the rest is what the page draws.

    `rows` are the predicted steps, calibration left out; `live` has one entry for each repeat.
    """

    document: dict[str, Any]
    rows: pd.DataFrame | None
    live: Sequence[Latencies]
    predicted: Latencies


@dataclass(frozen=True, slots=True)
class Pricing:
    """What prices the steps, and by which name; `fitted` to every other step of the records, or from elsewhere."""

    cost: StepCost
    name: str
    fitted: bool = False

    @classmethod
    def of_profile(cls, runs: LiveRuns) -> Pricing:
        return cls(assemble(runs.scenario).cost, runs.scenario.cost.profile)

    @classmethod
    def fitted_to(cls, runs: LiveRuns) -> Pricing:
        """A model fitted to every other step of the records, by term where operations were timed.

        Raises:
            InputError: there are too few steps.
        """
        shapes = runs.shapes()
        if len(shapes) < 2 * len(fitted.COUNTS):
            raise InputError(
                f"the live run has {len(shapes)} steps, too few to fit a cost model to; "
                "take more requests, or give a calibrated --profile"
            )
        rows = step_rows(runs.records, None)
        timed = {name: rows[f"{name}_s"].to_numpy() for name in timed_terms(rows)}
        device_s = timed or {fitted.WHOLE: rows["device_s"].to_numpy()}
        return cls(fitted.fit(shapes, device_s, rows["host_s"].to_numpy()), fitted.NAME, fitted=True)


class ModelSession(ReplaySession):
    """Prices the batches of a live scenario: the same work (answers are what the model says), predicted seconds."""

    device_name = "a cost model"

    def __init__(self, cost: StepCost, drafts: Drafts | None = None, seed: int = 0) -> None:
        super().__init__(())
        self._cost, self._drafts, self._seed = cost, drafts, seed

    def executor(self, engine: ServingEngine) -> Executor:
        """One that asks the model; a live run has one batch in flight, so that nothing hides the host's seconds."""
        predicted = Predicted(self._cost, overlap_host=False)
        return predicted if self._drafts is None else self._drafts.accepting(predicted, self._seed)


@dataclass(frozen=True, slots=True)
class WithoutHost(Adjusted):
    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        return self.inner.span_s(shape, repeats)[0], 0.0

    def explain(self, shape: Shape) -> dict[str, Term]:
        return {name: term for name, term in self.inner.explain(shape).items() if not term.on_host}


def validate(runs: LiveRuns, bounds: Bounds, pricing: Pricing, *, own_capacity: bool = False) -> Validation:
    """Compare the records with what the simulator makes of the same scenario.

    Args:
        own_capacity: let the simulator derive the KV blocks from the scenario's GPU, instead of the live number.
    """
    cost, block_tokens = pricing.cost, assemble(runs.scenario).pool.block_tokens
    priced = step_rows(runs.records, cost)
    unseen = priced[~fitted.is_calibration(len(priced))].reset_index(drop=True) if pricing.fitted else priced
    twins = [check_twin(runs.scenario, runs.trace, record) for record in runs.records]
    live = [as_recorded(record, block_tokens) for record in runs.records]
    lives = [latencies.measures() for latencies in live]
    own = _predicted(runs, cost)
    last = _predicted(runs, cost, blocks=0) if own_capacity else own
    stages = _engine_stage(live, twins) | _stages(runs, cost, priced)
    stages |= {"host": own.measures(), "capacity": last.measures()}
    parts = attribution.split(lives, stages)
    twin_part = _twin_part(twins)
    steps_part = step_report(unseen) | _model_part(runs, pricing)
    requests_part = compare(lives, stages["capacity"])
    verdict = judge(twin_part, steps_part, requests_part, parts, bounds)
    without_host = _predicted(runs, WithoutHost(cost)).measures()
    document = {
        "twin": twin_part,
        "steps": steps_part,
        "requests": requests_part | {"paired": paired(live[0].requests, last.requests)},
        "attribution": parts
        | {
            "live_decisions": compare(lives, _mean(_live_decisions(runs, priced, block_tokens))),
            "without_host": compare(lives, without_host),
            "kv_blocks": {"live": runs.scenario.kv.blocks, "matched": not own_capacity},
        },
        "verdict": {"good": verdict.good, "reason": verdict.reason, "out": list(verdict.out)},
        "lives": len(runs.records),
        "died": [record.died for record in runs.records if record.died],
        "inputs": _inputs(runs, pricing),
    }
    return Validation(plain(document), unseen, live, last)


def _inputs(runs: LiveRuns, pricing: Pricing) -> dict[str, Any]:
    """What was run and where, and what priced it: a GPU is named where its data sheet or profile did."""
    gpu = {} if pricing.fitted else {"priced_as": assemble(runs.scenario).gpu.name}
    scenario = runs.scenario
    asked = {"engine": scenario.engine.name, "rate": scenario.workload.rate or None}
    return runs.about | {"profile": pricing.name} | asked | gpu


def _predicted(runs: LiveRuns, cost: StepCost, blocks: int | None = None) -> Latencies:
    """What the simulator says of the scenario; `blocks` 0 derives them from the GPU."""
    scenario: Scenario = replace(runs.scenario, live=replace(runs.scenario.live, clock="virtual"))
    if blocks is not None:
        scenario = replace(scenario, kv=replace(scenario.kv, blocks=blocks))
    session = ModelSession(cost, measured(runs.records), scenario.seed)
    hooks = Hooks(session=session, spans=True, cost=Ranked(assemble(scenario).cost))
    result = serving.simulate(scenario, trace=runs.trace, hooks=hooks)
    return Latencies(result.requests, result.steps, result.itl)


def _engine_stage(live: Sequence[Latencies], twins: Sequence[Twin]) -> dict[str, Measures]:
    """What a fresh engine makes of the live seconds: the live run itself, but where the twin check fails."""
    again = [
        recorded
        if twin.identical or twin.result is None
        else Latencies(twin.result.requests, twin.result.steps, twin.result.itl)
        for recorded, twin in zip(live, twins, strict=True)
    ]
    return {"engine": _mean([latencies.measures() for latencies in again])}


def _stages(runs: LiveRuns, cost: StepCost, rows: pd.DataFrame) -> dict[str, Measures]:
    """The simulator's own decisions at the pace of the live steps, then with the model's device seconds."""
    corrections = Corrections.of(runs.shapes(), rows)
    paced = (("batching", LiveLike(cost, corrections)), ("kernels", LiveLike(cost, corrections, device=False)))
    return {name: _predicted(runs, price).measures() for name, price in paced}


def _live_decisions(runs: LiveRuns, rows: pd.DataFrame, block_tokens: int) -> list[Measures]:
    """Of each record: its decisions, in their order, on the model's seconds."""
    measures: list[Measures] = []
    for number, record in enumerate(runs.records):
        mine = rows[rows["live"] == number]
        seconds = (mine["predicted_device_s"] + mine["predicted_host_s"]).to_numpy()
        measures.append(retimed(record, seconds, block_tokens).measures())
    return measures


def _mean(runs: Sequence[Measures]) -> Measures:
    means: dict[str, dict[str, float | None]] = {}
    for key, names in runs[0].items():
        means[key] = {}
        for name in names:
            known = [value for run in runs if (value := run[key][name]) is not None]
            means[key][name] = sum(known) / len(known) if known else None
    return means


def _twin_part(twins: Sequence[Twin]) -> dict[str, Any]:
    for number, twin in enumerate(twins):
        if (divergence := twin.difference) is not None:
            where = {
                "step": divergence.step,
                "key": divergence.key,
                "recorded": divergence.recorded,
                "ours": divergence.ours,
            }
            more = {"live": number, "spans": divergence.spans, "sentence": divergence.sentence()}
            return {"identical": False, "steps": twin.steps, "first_difference": where | more}
    return {"identical": True, "steps": sum(twin.steps for twin in twins), "first_difference": None}


def _model_part(runs: LiveRuns, pricing: Pricing) -> dict[str, Any]:
    """Which model priced the steps, and where its seconds come from."""
    terms = StepTerms(pricing.cost, [(0, shape, 1) for shape in runs.shapes()], overlap_host=False).seconds()
    sources: dict[str, float] = {}
    for (_, source), seconds in terms.items():
        sources[source] = sources.get(source, 0.0) + seconds
    constants: list[Mapping[str, Any]] = []
    if pricing.fitted:
        constants = [{"name": constant.name, "value": constant.value} for constant in pricing.cost.describe()]
    shares = {} if pricing.fitted else source_shares(sources)
    return {"model": pricing.name, "sources": shares, "constants": constants}
