"""From records of live runs to the whole comparison: twin check, steps, requests, attribution, verdict.

It runs nothing live; what it needs was recorded, so that anyone can compute it again without the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from sim.cost.step import Constant, StepCost, Term
from sim.engine.batch import Shape
from sim.engine.protocol import ServingEngine
from sim.results.metrics import plain, source_shares
from sim.results.terms import term_seconds
from sim.scenario import Scenario
from sim.serving import run as serving
from sim.serving.assemble import assemble
from sim.serving.executor import Executor, Predicted
from sim.validate import attribution, fitted
from sim.validate.drafts import Drafts, measured
from sim.validate.live import LiveRuns, Ranked
from sim.validate.livelike import Corrections, LiveLike
from sim.validate.requests import Measures, compare, paired
from sim.validate.retime import Seen, as_seen, retimed
from sim.validate.steps import step_report, step_rows, timed_terms
from sim.validate.twin import ReplaySession, Twin, check_twin
from sim.validate.verdict import Bounds, judge
from traces.schema import InputError

SAMPLE = 1000


@dataclass(frozen=True, slots=True)
class Validation:
    """A comparison: `document` is what `--json` prints, the rest is what the page draws.

    `rows` are the predicted steps, calibration left out; `live` has one entry for each repeat.
    """

    document: dict[str, Any]
    rows: pd.DataFrame | None
    live: Sequence[Seen]
    predicted: Seen


@dataclass(frozen=True, slots=True)
class Pricing:
    """What prices the steps, and by which name; `fitted` to every other step of the records, or from elsewhere."""

    cost: StepCost
    name: str
    fitted: bool = False

    @classmethod
    def of_profile(cls, kept: LiveRuns) -> Pricing:
        """That of the scenario's profile."""
        return cls(assemble(kept.scenario).cost, kept.scenario.cost.profile)

    @classmethod
    def fitted_to(cls, kept: LiveRuns) -> Pricing:
        """A model fitted to every other step of the records, by term where operations were timed.

        Raises:
            InputError: there are too few steps.
        """
        shapes = kept.shapes()
        if len(shapes) < 2 * len(fitted.COUNTS):
            raise InputError(
                f"the live run has {len(shapes)} steps, too few to fit a cost model to; "
                "take more requests, or give a calibrated --profile"
            )
        rows = step_rows(kept.records, None)
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
class WithoutHost:
    """A cost model whose host takes no time."""

    inner: StepCost

    @property
    def needs_longest(self) -> bool:
        """As the model itself."""
        return bool(getattr(self.inner, "needs_longest", False))

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        """As `StepCost.span_s`."""
        return self.inner.span_s(shape, repeats)[0], 0.0

    def explain(self, shape: Shape) -> dict[str, Term]:
        """As `StepCost.explain`."""
        return {name: term for name, term in self.inner.explain(shape).items() if not term.on_host}

    def describe(self) -> list[Constant]:
        """As `StepCost.describe`."""
        return list(self.inner.describe())


def validate(kept: LiveRuns, bounds: Bounds, pricing: Pricing, *, own_capacity: bool = False) -> Validation:
    """Compare the records with what the simulator makes of the same scenario.

    Args:
        own_capacity: let the simulator derive the KV blocks from the scenario's GPU, instead of the live number.
    """
    cost, block_tokens = pricing.cost, assemble(kept.scenario).pool.block_tokens
    priced = step_rows(kept.records, cost)
    unseen = priced[~fitted.is_calibration(len(priced))].reset_index(drop=True) if pricing.fitted else priced
    twins = [check_twin(kept.scenario, kept.trace, record) for record in kept.records]
    live = [as_seen(record, block_tokens) for record in kept.records]
    lives = [one.measures() for one in live]
    own = _predicted(kept, cost)
    last = _predicted(kept, cost, blocks=0) if own_capacity else own
    stages = _engine_stage(live, twins) | _stages(kept, cost, priced)
    stages |= {"host": own.measures(), "capacity": last.measures()}
    parts = attribution.split(lives, stages)
    twin_part = _twin_part(twins)
    steps_part = step_report(unseen) | _model_part(kept, pricing)
    requests_part = compare(lives, stages["capacity"])
    verdict = judge(twin_part, steps_part, requests_part, parts, bounds)
    without_host = _predicted(kept, WithoutHost(cost)).measures()
    document = {
        "twin": twin_part,
        "steps": steps_part,
        "requests": requests_part | {"paired": paired(live[0].requests, last.requests)},
        "attribution": parts
        | {
            "live_decisions": compare(lives, _mean(_live_decisions(kept, priced, block_tokens))),
            "without_host": compare(lives, without_host),
            "kv_blocks": {"live": kept.scenario.kv.blocks, "matched": not own_capacity},
        },
        "verdict": {"good": verdict.good, "reason": verdict.reason, "out": list(verdict.out)},
        "lives": len(kept.records),
        "died": [record.died for record in kept.records if record.died],
        "inputs": _inputs(kept, pricing),
    }
    return Validation(plain(document), unseen, live, last)


def _inputs(kept: LiveRuns, pricing: Pricing) -> dict[str, Any]:
    """What was run and where, and what priced it: a GPU is named where its data sheet or profile did."""
    gpu = {} if pricing.fitted else {"priced_as": assemble(kept.scenario).gpu.name}
    return kept.about | {"profile": pricing.name} | gpu


def _predicted(kept: LiveRuns, cost: StepCost, blocks: int | None = None) -> Seen:
    """What the simulator says of the scenario; `blocks` 0 derives them from the GPU."""
    plan: Scenario = replace(kept.scenario, live=replace(kept.scenario.live, clock="virtual"))
    if blocks is not None:
        plan = replace(plan, kv=replace(plan.kv, blocks=blocks))
    session = ModelSession(cost, measured(kept.records), plan.seed)
    hooks = serving.Hooks(session=session, spans=True, cost=Ranked(assemble(plan).cost))
    result = serving.simulate(plan, trace=kept.trace, hooks=hooks)
    return Seen(result.requests, result.steps, result.itl)


def _engine_stage(live: Sequence[Seen], twins: Sequence[Twin]) -> dict[str, Measures]:
    """What a fresh engine makes of the live seconds: the live run itself, but where the twin check fails."""
    again = [
        seen
        if twin.identical or twin.result is None
        else Seen(twin.result.requests, twin.result.steps, twin.result.itl)
        for seen, twin in zip(live, twins, strict=True)
    ]
    return {"engine": _mean([one.measures() for one in again])}


def _stages(kept: LiveRuns, cost: StepCost, rows: pd.DataFrame) -> dict[str, Measures]:
    """The simulator's own decisions at the pace of the live steps, then with the model's device seconds."""
    corrections = Corrections.of(kept.shapes(), rows)
    paced = (("batching", LiveLike(cost, corrections)), ("kernels", LiveLike(cost, corrections, device=False)))
    return {name: _predicted(kept, one).measures() for name, one in paced}


def _live_decisions(kept: LiveRuns, rows: pd.DataFrame, block_tokens: int) -> list[Measures]:
    """Of each record: its decisions, in their order, on the model's seconds."""
    runs: list[Measures] = []
    for number, record in enumerate(kept.records):
        mine = rows[rows["live"] == number]
        seconds = (mine["predicted_device_s"] + mine["predicted_host_s"]).to_numpy()
        runs.append(retimed(record, seconds, block_tokens).measures())
    return runs


def _mean(runs: Sequence[Measures]) -> Measures:
    """Measure by measure over the runs that have it."""
    found: dict[str, dict[str, float | None]] = {}
    for key, names in runs[0].items():
        found[key] = {}
        for name in names:
            known = [value for one in runs if (value := one[key][name]) is not None]
            found[key][name] = sum(known) / len(known) if known else None
    return found


def _twin_part(twins: Sequence[Twin]) -> dict[str, Any]:
    for number, twin in enumerate(twins):
        if (found := twin.difference) is not None:
            told = {"step": found.step, "key": found.key, "recorded": found.recorded, "ours": found.ours}
            more = {"live": number, "spans": found.spans, "sentence": found.sentence()}
            return {"identical": False, "steps": twin.steps, "first_difference": told | more}
    return {"identical": True, "steps": sum(twin.steps for twin in twins), "first_difference": None}


def _model_part(kept: LiveRuns, pricing: Pricing) -> dict[str, Any]:
    """Which model priced the steps, and where its seconds come from."""
    sample = [(shape, 1) for shape in kept.shapes()]
    terms = term_seconds(pricing.cost, sample[:: max(1, len(sample) // SAMPLE)], overlap_host=False)
    sources: dict[str, float] = {}
    for (_, source), seconds in terms.items():
        sources[source] = sources.get(source, 0.0) + seconds
    constants: list[Mapping[str, Any]] = []
    if pricing.fitted:
        constants = [{"name": one.name, "value": one.value} for one in pricing.cost.describe()]
    shares = {} if pricing.fitted else source_shares(sources)
    return {"model": pricing.name, "sources": shares, "constants": constants}
