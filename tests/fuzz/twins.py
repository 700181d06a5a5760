"""Laws that take a second run: what must not change, or must change in a way that is known."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim import api, catalog, scenario
from sim.gpu import GpuSpec
from traces.schema import Trace
from traces.write import write

from .case import Run, Scaled
from .laws import Law

OFTEN = (
    "prefill_requests",
    "prefill_tokens",
    "prefill_past_tokens",
    "decode_requests",
    "draft_tokens",
    "padding_tokens",
)
"""Columns of the steps that are told of one step of a span, and are the same for all."""
PEAKS = tuple(f"kv.classes.{kind}.peak" for kind in ("reserved", "internal", "external", "free"))
"""Told of the ends of spans, within which these may have been higher."""
SUMS = ("device_s", "host_s", "swapped_bytes", "copied_bytes", "preempted")


def spans(run: Run) -> Iterator[str]:
    """Planning every step by itself changes nothing: the same decisions bit for bit, seconds to 1e-9."""
    single = run.case.run(spans=False)
    if (single.steps["repeats"] != 1).any():
        yield "a step was repeated, and spans are off"
    yield from _differences(run, single, steps=_single(run.steps), wanted_steps=_one_clock(run, single.steps))
    yield from _summaries(run, single, loose=True)


def again(run: Run) -> Iterator[str]:
    """The same scenario gives the same bytes."""
    other = run.case.run()
    yield from _differences(run, other, exact=True)
    yield from _summaries(run, other)
    for name, table in _tables(run).items():
        if not table.dtypes.equals(_tables(other)[name].dtypes):
            yield f"{name}: other types"


def resolved(run: Run) -> Iterator[str]:
    """The scenario that a run says it was, written down and read again, runs the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scenario.toml")
        path.write_text(scenario.dump(run.result.scenario), encoding="utf-8")
        plan = scenario.build(scenario.read(path))
    if plan != run.result.scenario:
        yield "the scenario is not what was written down"
    other = run.case.run(plan=plan)
    if other.result.scenario != run.result.scenario:
        yield f"resolved again it is {other.result.scenario}"
    yield from _differences(run, other, exact=True)


def from_file(run: Run) -> Iterator[str]:
    """The same requests from a file of our own format."""
    if run.case.timeless or run.case.cost is not None:
        return
    with tempfile.TemporaryDirectory() as folder:
        suffix = ("csv", "jsonl", "parquet", "csv.gz")[len(run.case.rows) % 4]
        path = write(run.case.trace(), Path(folder, f"trace.{suffix}"))
        result = api.run(trace=str(path), **run.case.told())
    if "session" in result.requests and "session" not in run.requests:
        yield "a column of sessions came out of nowhere"
    other = replace(run, result=result)
    drop = ("source_row",)
    yield from _differences(
        run.having(requests=run.requests.drop(columns=list(drop))),
        other.having(requests=result.requests.drop(columns=list(drop))),
        exact=True,
    )


def scaled(run: Run) -> Iterator[str]:
    """With all times twice as long, of arrivals, thinking, waiting and steps, all times are twice as long, exactly."""
    case = run.case
    if run.plan.policy.name == "static":
        wait_s = 2 * case.settings.get("policy.timeout_s", 0.1)
        case = replace(case, settings={**case.settings, "policy.timeout_s": wait_s})
    cost = case.cost or run.parts.cost
    other = case.run(trace=_stretched(run.trace, 2.0), cost=Scaled(cost, 2.0))
    halved = {name: _halved(table) for name, table in _tables(other).items()}
    yield from _differences(run, other.having(**halved), exact=True, clock=[one / 2 for one in other.result.step_end_s])


def shifted(run: Run) -> Iterator[str]:
    """With all arrivals so much later, everything is so much later; a closed loop does not look at them."""
    requests = run.trace.requests
    exact = run.case.cost is not None and run.case.cost.base_s != 0.001 and run.plan.workload.arrivals == "trace"
    if not exact or {"rate", "rate_scale"} & set(run.case.settings) or run.plan.workload.resample:
        return
    if run.plan.policy.name == "static" and (run.case.settings.get("policy.timeout_s", 0.1) * 2**11) % 1:
        return
    if run.after is not None and not run.plan.workload.concurrency:
        return  # an answer comes just after an end, in the last bit of a time, and that bit is worth more later
    later_s = 0.0 if run.plan.workload.concurrency else 16.0
    trace = replace(run.trace, requests=requests.assign(arrival_s=requests["arrival_s"] + 16.0))
    other = run.case.run(trace=trace)
    back = {name: _moved(table, -later_s) for name, table in _tables(other).items()}
    back["requests"]["arrival_s"] = np.where(run.kept, back["requests"]["arrival_s"], run.requests["arrival_s"])
    yield from _differences(run, other.having(**back), clock=[one - later_s for one in other.result.step_end_s])


def replicas(run: Run) -> Iterator[str]:
    """Two replicas in turn, sent every request twice, each do what one alone does."""
    plan, table = run.plan, run.trace.requests
    random = plan.workload.beam_search or plan.policy.name == "speculative"
    if plan.workload.concurrency or random or plan.replicas > 1 or run.after is not None:
        return
    twice = table.loc[np.repeat(np.arange(len(table)), 2)].reset_index(drop=True)
    if "after" in twice:
        twice = twice.drop(columns=["after", "think_s"])
    trace = replace(run.trace, requests=twice)
    both = run.case.run(plan=replace(plan, replicas=2, router=scenario.Part("round-robin")), trace=trace, spans=False)
    alone = run.case.run(spans=False)
    rejected = both.requests["replica"] < 0
    for index in range(2):
        mine = both.requests[(both.requests["replica"] == index) | (rejected & (both.requests["request"] % 2 == index))]
        yield from _table(f"requests of replica {index}", _apart(alone.requests), _apart(mine), exact=True)
        yield from _table(f"steps of replica {index}", _apart(alone.steps), _apart(both.replica(index)), exact=True)


def lone(run: Run) -> Iterator[str]:
    """A request alone is never later with more KV blocks, or on a GPU that is in nothing slower."""
    settings, row = run.case.settings, run.case.rows[0]
    asked = {"workload.resample": 0, "concurrency": 1, "replicas": 1}
    alone = {
        key: value for key, value in settings.items() if key not in ("rate", "rate_scale", "router", "router.seed")
    }
    alone = {key: value for key, value in alone.items() if not key.startswith("workload.arrivals")} | asked
    case = replace(run.case, rows=(row._replace(after=-1),), settings=alone)
    base = _ends(replace(case, settings={**alone, "workload.skip_bad": False}).run)
    if base is None:
        return
    blocks = base.result.scenario.kv.blocks
    more = _ends(replace(case, settings={**alone, "kv.blocks": 2 * blocks + 1}).run)
    yield from _later(f"with {2 * blocks + 1} KV blocks instead of {blocks}", base, more)
    if run.case.cost is not None or run.plan.speculation.adaptive:
        return
    for name in _faster(run.plan.gpu)[:2]:
        other = _ends(replace(case, settings={**alone, "kv.blocks": blocks, "gpu": name}).run)
        yield from _later(f"on {name} instead of {run.plan.gpu}", base, other)


LAWS: dict[str, Law] = {
    law.__name__: law for law in (spans, again, resolved, from_file, scaled, shifted, replicas, lone)
}


# ---- comparing ------------------------------------------------------------------------------------------------------


def _tables(run: Run) -> dict[str, pd.DataFrame]:
    assert run.result.preempted is not None
    return {"requests": run.requests, "steps": run.steps, "preempted": run.result.preempted}


def _differences(
    run: Run,
    other: Run,
    *,
    exact: bool = False,
    steps: pd.DataFrame | None = None,
    wanted_steps: pd.DataFrame | None = None,
    clock: list[np.ndarray] | None = None,
) -> Iterator[str]:
    """Where two runs' tables differ, by column; seconds by more than 1e-9 unless `exact`."""
    wanted = _tables(other)
    for name, table in _tables(run).items():
        mine = steps if name == "steps" and steps is not None else table
        yours = wanted_steps if name == "steps" and wanted_steps is not None else wanted[name]
        yield from _table(name, mine, yours, exact=exact)
    for index, (mine_s, other_s) in enumerate(
        zip(run.result.step_end_s, clock or other.result.step_end_s, strict=True)
    ):
        if len(mine_s) != len(other_s) or not np.allclose(mine_s, other_s, rtol=0, atol=0 if exact else 1e-9):
            yield f"the clock of replica {index} differs"


def _table(name: str, mine: pd.DataFrame, other: pd.DataFrame, *, exact: bool) -> Iterator[str]:
    mine, other = mine.reset_index(drop=True), other.reset_index(drop=True)
    if list(mine) != list(other) or len(mine) != len(other):
        yield f"{name}: {len(mine)} rows of {list(mine)} against {len(other)} of {list(other)}"
        return
    for column in mine:
        one, two = mine[column].to_numpy(), other[column].to_numpy()
        if str(column).endswith(("_s", "_mean_tokens")) and not exact:
            alike = np.isclose(one, two, rtol=1e-9, atol=1e-9, equal_nan=True)
        else:
            alike = (one == two) | (pd.isna(one) & pd.isna(two))
        if not alike.all():
            at = int(np.argmin(alike))
            yield f"{name}.{column}, row {at}: {one[at]!r} against {two[at]!r} ({(~alike).sum()} of {len(one)} differ)"


def _single(steps: pd.DataFrame) -> pd.DataFrame:
    """The columns of a table of spans that single steps, added up, must have."""
    return steps.drop(columns=["repeats"])


def _one_clock(run: Run, single: pd.DataFrame) -> pd.DataFrame:
    """Single steps put together to the spans of `run`."""
    order = run.steps[["replica", "step", "repeats"]].reset_index(names="span")
    order = order.loc[np.repeat(np.arange(len(order)), order["repeats"])]
    order["step"] += order.groupby("span").cumcount()
    merged = order[["span", "replica", "step"]].merge(single, on=["replica", "step"], how="left")
    groups = merged.groupby("span", sort=True)
    first, last, sums = groups.first(), groups.last(), groups.sum()
    table = first.copy()
    for name in single.columns:
        if name in SUMS:
            table[name] = sums[name]
        elif name.endswith("_mean_tokens"):
            table[name] = groups[name].mean()
        elif name == "end_s" or name.startswith("kv_"):
            table[name] = last[name]
        elif name in (*OFTEN, "waiting") and not (groups[name].nunique() == 1).all():
            table[name] = np.nan  # which no span has
    if len(merged) != len(single):
        table = table.iloc[:0]
    return table[[name for name in run.steps.columns if name != "repeats"]]


def _summaries(run: Run, other: Run, *, loose: bool = False) -> Iterator[str]:
    """Where two summaries differ. `loose`: but for what spans make approximate, as docs/metrics.md says."""
    skip = {"simulator", *(("cost_terms", "cost_sources") if loose else ())}
    # Steps of a span are taken as equally long, and a window gives blocks back between them.
    even = run.case.cost is not None and not run.case.cost.per_context_token_s
    even = even and run.plan.allocator.name != "windowed"
    for key, told in run.summary.items():
        if key in skip:
            continue
        for name, one, two in _leaves(key, told, other.summary.get(key)):
            if loose and (name in PEAKS or (name.startswith(("kv", "speculation.drafting")) and not even)):
                continue
            same = one == two
            if loose and isinstance(one, float) and isinstance(two, float):
                same = bool(np.isclose(one, two, rtol=1e-9, atol=1e-9))
            if not same:
                yield f"summary {name}: {one!r} against {two!r}"


def _leaves(key: str, one: Any, two: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(two, dict):
        for name in {**one, **two}:
            yield from _leaves(f"{key}.{name}", one.get(name), two.get(name))
    else:
        yield key, one, two


# ---- changing -------------------------------------------------------------------------------------------------------


def _stretched(trace: Trace, factor: float) -> Trace:
    times = {name: trace.requests[name] * factor for name in ("arrival_s", "think_s") if name in trace.requests}
    return replace(trace, requests=trace.requests.assign(**times))


def _halved(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{name: table[name] / 2 for name in table if str(name).endswith("_s")})


def _moved(table: pd.DataFrame, by_s: float) -> pd.DataFrame:
    moments = ("arrival_s", "first_scheduled_s", "first_token_s", "finish_s", "start_s", "end_s")
    return table.assign(**{name: table[name] + by_s for name in moments if name in table})


def _apart(table: pd.DataFrame) -> pd.DataFrame:
    """Without what tells one replica's rows from another's."""
    return table.drop(columns=[name for name in ("request", "replica") if name in table])


def _ends(run: Any) -> Run | None:
    try:
        return run()
    except api.InputError:
        return None


def _later(how: str, base: Run, other: Run | None) -> Iterator[str]:
    if other is None:
        return
    for name in ("first_token_s", "finish_s"):
        before_s, after_s = base.requests[name].iloc[0], other.requests[name].iloc[0]
        if not after_s <= before_s * (1 + 1e-12):
            yield f"{how} {name} is {after_s!r} and was {before_s!r}"


def _faster(name: str) -> list[str]:
    """GPUs that are in nothing slower, with the same constants of efficiency."""
    base = catalog.load_gpu(name)
    rates = [key for key in GpuSpec.__dataclass_fields__ if key.endswith("_per_s")] + [
        "sms",
        "l2_bytes",
        "memory_bytes",
    ]
    found = []
    for other in map(catalog.load_gpu, catalog.names("gpus")):
        no_less = all(getattr(other, key) >= getattr(base, key) for key in rates)
        if other.name != base.name and no_less and other.efficiency == base.efficiency:
            found.append(other.name)
    return found
