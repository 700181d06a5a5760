"""From records of live runs to the whole comparison: twin check, steps, requests, attribution, verdict.

It runs nothing live; what it needs was recorded, so that anyone can compute it again without the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from sim import api
from sim.assemble import assemble
from sim.batch import Shape
from sim.cost.step import StepCost, Term
from sim.engine import Engine
from sim.executor import Executor, Predicted
from sim.metrics import plain, source_shares
from sim.record import term_seconds
from sim.scenario import Scenario
from sim.validate import attribution, fitted
from sim.validate.live import Kept
from sim.validate.requests import Measures, compare, paired
from sim.validate.retime import Seen, as_seen, retimed
from sim.validate.steps import step_report, step_rows
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


class ModelSession(ReplaySession):
    """Prices the batches of a live scenario: the same work (answers are what the model says), predicted seconds."""

    device_name = "a cost model"

    def __init__(self, cost: StepCost) -> None:
        super().__init__(())
        self._cost = cost

    def executor(self, engine: Engine) -> Executor:
        """One that asks the model; a live run has one batch in flight, so that nothing hides the host's seconds."""
        return Predicted(self._cost, overlap_host=False)


@dataclass(frozen=True, slots=True)
class WithoutHost:
    """A cost model whose host takes no time."""

    inner: StepCost

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        """As `StepCost.span_s`."""
        return self.inner.span_s(shape, repeats)[0], 0.0

    def explain(self, shape: Shape) -> dict[str, Term]:
        """As `StepCost.explain`."""
        return {name: term for name, term in self.inner.explain(shape).items() if not term.on_host}

    def describe(self) -> list[Any]:
        """As `StepCost.describe`."""
        return list(self.inner.describe())


def validate(kept: Kept, bounds: Bounds, *, fit: bool, own_capacity: bool = False) -> Validation:
    """Compare the records with what the simulator makes of the same scenario.

    Args:
        fit: price by a model fitted to every other step of the records, instead of the scenario's profile.
        own_capacity: let the simulator derive the KV blocks from the scenario's GPU, instead of the live number.
    """
    block_tokens = assemble(kept.scenario).pool.block_tokens
    cost = _fitted(kept) if fit else assemble(kept.scenario).cost
    rows = step_rows(kept.records, cost)
    if fit:
        rows = rows[~fitted.is_calibration(len(rows))].reset_index(drop=True)
    twins = [check_twin(kept.scenario, kept.trace, record) for record in kept.records]
    live = [as_seen(record, block_tokens) for record in kept.records]
    own = _predicted(kept, cost)
    last = _predicted(kept, cost, blocks=0) if own_capacity else own
    stages = [
        _stages(one, seen, twin, own, last)
        for one, seen, twin in zip(priced_runs(kept, cost, block_tokens), live, twins, strict=True)
    ]
    parts = attribution.split(stages)
    twin_part = _twin_part(twins)
    steps_part = step_report(rows) | _model_part(kept, cost, fit)
    requests_part = compare([one["live"] for one in stages], stages[0]["capacity"])
    verdict = judge(twin_part, steps_part, requests_part, parts, bounds)
    document = {
        "twin": twin_part,
        "steps": steps_part,
        "requests": requests_part | {"paired": paired(live[0].requests, last.requests)},
        "attribution": parts
        | {
            "without_host": compare([one["live"] for one in stages], _predicted(kept, WithoutHost(cost)).measures()),
            "kv_blocks": {"live": kept.scenario.kv.blocks, "matched": not own_capacity},
        },
        "verdict": {"good": verdict.good, "reason": verdict.reason, "out": list(verdict.out)},
        "lives": len(kept.records),
        "died": [record.died for record in kept.records if record.died],
        "inputs": _inputs(kept, fit),
    }
    return Validation(plain(document), rows, live, last)


def _inputs(kept: Kept, fit: bool) -> dict[str, Any]:
    """What was run, with the model that priced it; a GPU that had no part in it is not named."""
    told = kept.about | {"profile": fitted.NAME if fit else kept.scenario.cost.profile}
    return {name: value for name, value in told.items() if name != "gpu" or not fit}


def _fitted(kept: Kept) -> StepCost:
    shapes = [shape for record in kept.records for shape in record.shapes]
    results = [result for record in kept.records for result in record.results]
    device_s, host_s = np.array([one.device_s[0] for one in results]), np.array([one.host_s for one in results])
    if len(shapes) < 2 * len(fitted.TERMS):
        raise InputError(
            f"the live run has {len(shapes)} steps, too few to fit a cost model to; "
            "take more requests, or give a calibrated --profile"
        )
    return fitted.fit(shapes, device_s, host_s)


def _predicted(kept: Kept, cost: StepCost, blocks: int | None = None) -> Seen:
    """What the simulator says of the scenario; `blocks` 0 derives them from the GPU."""
    plan: Scenario = replace(kept.scenario, live=replace(kept.scenario.live, clock="virtual"))
    if blocks is not None:
        plan = replace(plan, kv=replace(plan.kv, blocks=blocks))
    hooks = api.Hooks(session=ModelSession(cost), spans=True)
    result = api.simulate(plan, trace=kept.trace, hooks=hooks)
    return Seen(result.requests, result.steps, result.itl)


def priced_runs(kept: Kept, cost: StepCost, block_tokens: int) -> list[dict[str, Measures]]:
    """Of each record: its decisions with the model's device seconds, then with the model's host seconds too."""
    rows = step_rows(kept.records, cost)
    runs: list[dict[str, Measures]] = []
    for number, record in enumerate(kept.records):
        mine = rows[rows["live"] == number]
        whole_s = np.array([one.seconds[0] for one in record.results])
        kernels_s = whole_s + (mine["predicted_device_s"] - mine["device_s"]).to_numpy()
        host_s = kernels_s + (mine["predicted_host_s"] - mine["host_s"]).to_numpy()
        both = (("kernels", kernels_s), ("host", host_s))
        runs.append({name: retimed(record, spent, block_tokens).measures() for name, spent in both})
    return runs


def _stages(priced: dict[str, Measures], live: Seen, twin: Twin, own: Seen, last: Seen) -> dict[str, Measures]:
    replayed = twin.result
    engine = live if twin.identical or replayed is None else Seen(replayed.requests, replayed.steps, replayed.itl)
    found: dict[str, Measures] = {"live": live.measures(), "engine": engine.measures()}
    return found | priced | {"batching": own.measures(), "capacity": last.measures()}


def _twin_part(twins: Sequence[Twin]) -> dict[str, Any]:
    for number, twin in enumerate(twins):
        if (found := twin.difference) is not None:
            told = {"step": found.step, "key": found.key, "recorded": found.recorded, "ours": found.ours}
            more = {"live": number, "spans": found.spans, "sentence": found.sentence()}
            return {"identical": False, "steps": twin.steps, "first_difference": told | more}
    return {"identical": True, "steps": sum(twin.steps for twin in twins), "first_difference": None}


def _model_part(kept: Kept, cost: StepCost, fit: bool) -> dict[str, Any]:
    """Which model priced the steps, and where its seconds come from."""
    sample = [(shape, 1) for record in kept.records for shape in record.shapes]
    terms = term_seconds(cost, sample[:: max(1, len(sample) // SAMPLE)], overlap_host=False)
    sources: dict[str, float] = {}
    for (_, source), seconds in terms.items():
        sources[source] = sources.get(source, 0.0) + seconds
    name = fitted.NAME if fit else kept.scenario.cost.profile
    constants = [{"name": one.name, "value": one.value} for one in cost.describe()] if fit else []
    return {"model": name, "sources": {} if fit else source_shares(sources), "constants": constants}
