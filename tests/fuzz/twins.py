"""Laws that take a second run: what must not change, or must change in a way that is known."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim import api, catalog, scenario
from sim.cost.fits import choose
from sim.specs.gpu import GpuSpec
from traces.schema import InputError, Trace
from traces.write import write

from .case import Run, Scaled
from .compare import differences, put_together, single_columns, summary_differences, table_differences, tables
from .laws import Law


def spans(run: Run) -> Iterator[str]:
    """Planning every step by itself changes nothing: the same decisions bit for bit, seconds to 1e-9."""
    single = run.case.run(spans=False)
    if (single.steps["repeats"] != 1).any():
        yield "a step was repeated, and spans are off"
    mine, wanted = single_columns(run.steps), put_together(run, single.steps)
    if run.parts.layout.groups and (not run.one_each or run.plan.allocator.name == "prefix"):
        # Where a window drops blocks that others share, a span's means count them as used (docs/metrics.md).
        means = [name for name in mine if name.endswith("_mean_tokens")]
        mine, wanted = mine.drop(columns=means), wanted.drop(columns=means)
    yield from differences(run, single, steps=mine, wanted_steps=wanted)
    yield from summary_differences(run, single, loose=True)


def again(run: Run) -> Iterator[str]:
    """The same scenario gives the same bytes."""
    other = run.case.run()
    yield from differences(run, other, exact=True)
    yield from summary_differences(run, other)
    for name, table in tables(run).items():
        if not table.dtypes.equals(tables(other)[name].dtypes):
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
    yield from differences(run, other, exact=True)


def from_file(run: Run) -> Iterator[str]:
    """The same requests, and the first of them alone, from a file of our own format."""
    case = replace(run.case, cost=None)
    if case.timeless:
        return
    half = len(case.rows) // 2 + 1
    starts = [row.arrival_s for row in case.rows]
    # A limit keeps the sessions that start first: the first lines, unless these are out of order or at other times.
    anew = run.plan.workload.laid_anew or run.plan.workload.resample
    first = starts == sorted(starts) and not anew
    parts = [(half, replace(case, rows=case.rows[:half]))] if first else []
    with tempfile.TemporaryDirectory() as folder:
        suffix = ("csv", "jsonl", "parquet", "csv.gz")[len(case.rows) % 4]
        path = write(case.trace(), Path(folder, f"trace.{suffix}"))
        for limit, part in ((0, case), *parts):
            wanted = _ends(part.run)
            found = _ends(partial(api.run, trace=str(path), **{"workload.limit": limit}, **case.told()))
            if (wanted is None) != (found is None):
                yield f"with a limit of {limit} only one of memory and file is refused"
            elif found is not None:
                # Columns that the first requests alone do not need, and lines of a file, tell nothing.
                columns = [name for name in wanted.requests if name in found.requests and name != "source_row"]
                yield from differences(
                    wanted.having(requests=wanted.requests[columns]),
                    replace(wanted, result=found).having(requests=found.requests[columns]),
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
    halved = {name: _halved(table) for name, table in tables(other).items()}
    yield from differences(run, other.having(**halved), exact=True, clock=[one / 2 for one in other.result.step_end_s])


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
    back = {name: _moved(table, -later_s) for name, table in tables(other).items()}
    for name in ("arrival_s", "engine_arrival_s"):
        back["requests"][name] = np.where(run.kept, back["requests"][name], run.requests[name])
    yield from differences(run, other.having(**back), clock=[one - later_s for one in other.result.step_end_s])


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
        yield from table_differences(f"requests of replica {index}", _apart(alone.requests), _apart(mine), exact=True)
        yield from table_differences(
            f"steps of replica {index}", _apart(alone.steps), _apart(both.replica(index)), exact=True
        )


def lone(run: Run) -> Iterator[str]:
    """A request alone is never later with more KV blocks, or on a GPU that is in nothing slower.

    Kernels of the other GPU are as efficient as those of the first: tables of its own may say otherwise (split products
    of few rows take longer on a B200 than on an H100).
    """
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
    fit = settings.get("cost.fit", choose(catalog.load_gpu(run.plan.gpu)).gpu)
    for name in _faster(run.plan.gpu)[:2]:
        other = _ends(replace(case, settings={**alone, "kv.blocks": blocks, "gpu": name, "cost.fit": fit}).run)
        yield from _later(f"on {name} instead of {run.plan.gpu}", base, other)


LAWS: dict[str, Law] = {
    law.__name__: law for law in (spans, again, resolved, from_file, scaled, shifted, replicas, lone)
}


# ---- changing -------------------------------------------------------------------------------------------------------


def _stretched(trace: Trace, factor: float) -> Trace:
    times = {name: trace.requests[name] * factor for name in ("arrival_s", "think_s") if name in trace.requests}
    return replace(trace, requests=trace.requests.assign(**times))


def _halved(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{name: table[name] / 2 for name in table if str(name).endswith("_s")})


def _moved(table: pd.DataFrame, by_s: float) -> pd.DataFrame:
    moments = ("arrival_s", "engine_arrival_s", "first_scheduled_s", "first_token_s", "finish_s", "start_s", "end_s")
    return table.assign(**{name: table[name] + by_s for name in moments if name in table})


def _apart(table: pd.DataFrame) -> pd.DataFrame:
    """Without what tells one replica's rows from another's."""
    return table.drop(columns=[name for name in ("request", "replica") if name in table])


def _ends(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except InputError:
        return None


def _later(how: str, base: Run, other: Run | None) -> Iterator[str]:
    if other is None:
        return
    for name in ("first_token_s", "finish_s"):
        before_s, after_s = base.requests[name].iloc[0], other.requests[name].iloc[0]
        if not after_s <= before_s * (1 + 1e-12):
            yield f"{how} {name} is {after_s!r} and was {before_s!r}"


def _faster(name: str) -> list[str]:
    """GPUs that are in nothing slower, whose files know of no other efficiency.

    Those that compute in fp8 have a kernel more, which narrows the input: few rows are quicker without.
    """
    base = catalog.load_gpu(name)
    rates = [key for key in GpuSpec.__dataclass_fields__ if key.endswith("_per_s")] + [
        "sms",
        "l2_bytes",
        "memory_bytes",
        "node_gpus",
    ]
    found = []
    for other in map(catalog.load_gpu, catalog.names("gpus")):
        no_less = all(getattr(other, key) >= getattr(base, key) for key in rates)
        alike = bool(other.fp8_flops_per_s) == bool(base.fp8_flops_per_s)
        if other.name != base.name and no_less and alike and other.efficiency == base.efficiency:
            found.append(other.name)
    return found
