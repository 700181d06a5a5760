"""One scenario of the fuzzer: settings, requests, prices; and how it is run. It draws nothing and checks nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sim import api, scenario
from sim.cost.fixed import FixedCost
from sim.cost.step import Constant, StepCost, Term
from sim.engine.batch import Batch, Shape
from sim.engine.flight import Observer
from sim.scenario import Scenario
from sim.serving.assemble import Parts, assemble
from sim.serving.replica import Replica
from sim.serving.workload import timed
from traces.rows import from_frame, keep_rows
from traces.schema import Trace

from . import assets


class Row(NamedTuple):
    """One request. `prefix` names the full units of its prompt; `after` is the row that must finish first."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    samples: int = 1
    after: int = -1
    think_s: float = 0.0
    prefix: tuple[int, ...] = ()
    acceptance: float | None = None


@dataclass(frozen=True)
class Steps:
    """Prices that follow from a step's tokens alone, with a share of the host's."""

    base_s: float = 2.0**-10
    per_token_s: float = 0.0
    per_context_token_s: float = 0.0
    host_s: float = 0.0

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        fixed = FixedCost(self.base_s, self.per_token_s, self.per_context_token_s)
        return fixed.span_s(shape, repeats)[0], self.host_s

    def explain(self, shape: Shape) -> dict[str, Term]:
        device = Term(self.span_s(shape, 1)[0][0], "measured")
        return {"step": device, "host": Term(self.host_s, "measured", on_host=True)}

    def describe(self) -> list[Constant]:
        return []


@dataclass(frozen=True)
class Scaled:
    """Another price times a power of two, which is exact."""

    inner: StepCost
    factor: float

    @property
    def needs_longest(self) -> bool:
        return bool(getattr(self.inner, "needs_longest", False))

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        device, host_s = self.inner.span_s(shape, repeats)
        return [one * self.factor for one in device], host_s * self.factor

    def explain(self, shape: Shape) -> dict[str, Term]:
        return {
            name: one._replace(seconds=one.seconds * self.factor) for name, one in self.inner.explain(shape).items()
        }

    def describe(self) -> list[Constant]:
        return self.inner.describe()


class EndlessError(RuntimeError):
    """A run plans far more steps than its tokens need."""


class Patience(Observer):
    """Ends a run that would go on for ever: after `most` plans."""

    def __init__(self, most: int) -> None:
        self._left = most

    def planned(self, replica: Replica, batch: Batch) -> None:
        self._left -= 1
        if self._left < 0:
            raise EndlessError("the run goes on and on")


PRICED = {
    "cost.efficiency.host_gap_s": 0.0, "cost.efficiency.host_gap_row_s": 0.0, "front_end.name": "off",
    "cost.noise": 0.0,
}  # fmt: skip
"""What would be added to the prices that laws scale, and to the engine's times that laws ask for."""


@dataclass(frozen=True)
class Case:
    """One scenario.

    Args:
        settings: dotted keys of a scenario.
        cost: prices in place of the scenario's cost model; None for that.
        unit_tokens: tokens that each id of a row's `prefix` names.
        token_ids: tell shared prefixes by token ids instead of block ids.
        timeless: the trace has no arrival times.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    rows: tuple[Row, ...] = (Row(0.0, 1, 1),)
    cost: Steps | None = None
    unit_tokens: int = 16
    token_ids: bool = False
    timeless: bool = False

    def told(self) -> dict[str, Any]:
        """The settings with the paths of files that they name (`assets`)."""
        return PRICED | {key: assets.told(value) for key, value in self.settings.items()}

    def plan(self) -> Scenario:
        return scenario.build({}, self.told())

    def trace(self) -> Trace:
        """The requests with the columns that any of them needs, before rates and other arrivals are asked for."""
        rows = self.rows
        table = pd.DataFrame({name: [getattr(row, name) for row in rows] for name in Row._fields[:3]})
        for name in ("priority", "samples"):
            if any(getattr(row, name) != Row._field_defaults[name] for row in rows):
                table[name] = [getattr(row, name) for row in rows]
        if any(row.after >= 0 for row in rows):
            table = table.assign(after=[row.after for row in rows], think_s=[row.think_s for row in rows])
            table = table.assign(session=self._sessions(), turn=self._turns())
        if any(row.acceptance is not None for row in rows):
            table["acceptance"] = [math.nan if row.acceptance is None else row.acceptance for row in rows]
        if any(row.prefix for row in rows):
            if self.token_ids:
                table["token_ids"] = [self._tokens(at) for at in range(len(rows))]
            else:
                table["prefix_blocks"] = [np.array(row.prefix, np.int64) for row in rows]
                table["prefix_block_tokens"] = self.unit_tokens
        return replace(from_frame(table, name="fuzz"), has_arrivals=not self.timeless)

    def _sessions(self) -> list[str]:
        roots: list[int] = []
        for at, row in enumerate(self.rows):
            roots.append(at if row.after < 0 else roots[row.after])
        return [f"s{root}" for root in roots]

    def _turns(self) -> list[int]:
        turns: list[int] = []
        for row in self.rows:
            turns.append(0 if row.after < 0 else turns[row.after] + 1)
        return turns

    def _tokens(self, at: int) -> np.ndarray:
        row, unit = self.rows[at], self.unit_tokens
        ids = [1000 * name + place for name in row.prefix for place in range(unit)][: row.prompt_tokens]
        return np.array([*ids, *(10**6 + 1000 * at + place for place in range(row.prompt_tokens - len(ids)))], np.int64)

    def run(self, **changes: Any) -> Run:
        """Simulate it. `changes`: `spans`, `cost` (of `api.Hooks`), `trace` (its times as they are), `plan`.

        Raises InputError where the scenario is refused.
        """
        plan = changes.pop("plan", None) or self.plan()
        trace = changes.pop("trace", None)
        if trace is None:
            trace = timed(self.trace(), plan.workload, plan.seed)
        cost = changes.pop("cost", self.cost)
        tokens = (trace.requests["prompt_tokens"] + trace.requests["output_tokens"]).sum()
        hooks = api.Hooks(cost=cost, observer=Patience(10_000 + 100 * int(tokens)), **changes)
        result = api.simulate(plan, trace=trace, hooks=hooks)
        return Run(self, plan, trace, result)


@dataclass(frozen=True)
class Run:
    """What a case gave, and what it was given."""

    case: Case
    plan: Scenario
    trace: Trace
    result: api.Result

    @property
    def requests(self) -> pd.DataFrame:
        return self.result.requests

    @property
    def steps(self) -> pd.DataFrame:
        return self.result.steps

    @property
    def summary(self) -> dict[str, Any]:
        return self.result.summary

    @cached_property
    def parts(self) -> Parts:
        return assemble(self.plan)

    @cached_property
    def done(self) -> pd.DataFrame:
        """The requests that completed."""
        return self.requests[self.requests["status"] == "completed"]

    @cached_property
    def kept(self) -> np.ndarray:
        return (self.requests["status"] != "rejected").to_numpy()

    @cached_property
    def after(self) -> np.ndarray | None:
        """For each request that was sent, the place among those sent of the one that it follows; -1 for none."""
        if "after" not in self.trace.requests or not self.plan.workload.sessions:
            return None
        sent = keep_rows(self.trace.requests, self.kept)
        after = sent["after"].to_numpy()
        return after if (after >= 0).any() else None

    @property
    def asynchronous(self) -> bool:
        return bool(self.result.scenario.engine.async_scheduling)

    @property
    def one_each(self) -> bool:
        """Does every request ask for one sequence?"""
        return bool((self.requests["samples"] == 1).all()) and self.plan.workload.samples <= 1

    def replica(self, index: int) -> pd.DataFrame:
        return self.steps[self.steps["replica"] == index]

    def having(self, **tables: Any) -> Run:
        """The same with other tables, as a law's own test wants it."""
        return replace(self, result=replace(self.result, **tables))
