"""The adapters (LoRA) that requests ask for: are they served, which are loaded when, and what their requests saw."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sim.cost.adapters import Adapted
from sim.engine.adapters import Adapters
from sim.engine.engine import Engine
from sim.engine.flight import Flight, ObservedReplica, Observer
from sim.engine.request import Adapter
from sim.results.binding import DEFERRED
from sim.results.percentiles import distribution
from sim.serving.pool import Pool, each_replica, models_asked
from traces.schema import InputError, Trace
from traces.table import Columns, ColumnTable

MOST_TOLD = 10
"""Adapters of which the summary tells each one's latencies: those with most requests."""
STEP_COLUMNS = ("adapters", "adapter_tokens", DEFERRED)
LOAD_COLUMNS = ("replica", "time_s", "load_s", "adapter", "disk", "evicted")


def check_adapters(trace: Trace, pools: Sequence[Pool]) -> Trace:
    """The trace, all of whose adapters are served.

    Raises:
        InputError: a request asks for an adapter in pools that serve none, or in which it has different ranks.
    """
    requests = trace.table
    if "adapter" not in requests:
        return trace
    named = np.asarray(requests["adapter"], object)
    asks, asked = named != "", models_asked(requests, pools)
    for pool in pools:
        mine = asks if asked is None else asks & (np.array(asked) == pool.parts.model.name)
        where = f"pools.{pool.name}." if pool.name else ""
        if mine.any() and pool.parts.adapters is None:
            row, drawn = int(np.flatnonzero(mine)[0]), pool.parts.scenario.workload.adapters
            line = f"{trace.path or trace.name} line {np.asarray(requests['source_row'])[row]}"
            asking = f"workload.adapters is {drawn}" if drawn else f"{line}: it asks for the adapter {named[row]!r}"
            raise InputError(
                f"{asking}, and {where}lora.max_loras is 0, with which none is served; set "
                f"{where}lora.max_loras to how many a step may have (vLLM's --enable-lora --max-loras), or leave "
                f"{'workload.adapters' if drawn else 'the column adapter'} out"
            )
    serving = [pool for pool in pools if pool.parts.adapters is not None]
    for name in dict.fromkeys(named[asks]):
        ranks = {pool.name: pool.parts.scenario.lora.rank_of(name) for pool in serving}
        if len(set(ranks.values())) > 1:
            told = " and ".join(f"{rank} in pools.{pool}" for pool, rank in ranks.items())
            raise InputError(f"adapter {name!r} has the rank {told}; an adapter is the same wherever it is served")
    return trace


def adapters_of(requests: Columns, pools: Sequence[Pool]) -> list[Adapter | None] | None:
    """Of each request the adapter that it asks for; None where none asks for any."""
    named = np.asarray(requests["adapter"], object).tolist() if "adapter" in requests else []
    if not any(named):
        return None
    lora = next(pool.parts.scenario.lora for pool in pools if pool.parts.adapters is not None)
    known: dict[str, Adapter | None] = {"": None}
    for name in named:
        if name not in known:
            known[name] = Adapter(len(known), name, lora.rank_of(name))
    return [known[name] for name in named]


class AdapterLog(Observer):
    """Writes down what steps load, and how many adapters they have."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._costs = [pool.parts.cost for pool in each_replica(pools)]
        self._pools = [pool for pool in pools if pool.parts.adapters is not None]
        self._log: dict[str, array[Any]] = {
            "replica": array("q"), "time_s": array("d"), "load_s": array("d"), "disk": array("b"),
        }  # fmt: skip
        self._names: list[tuple[str, str]] = []
        """(adapter, the one that it takes the slot of, or "") of each load."""
        self._served: dict[int, Adapters] = {}
        """Those of every engine, of one that has died included."""
        self._steps: dict[str, array[Any]] = {name: array("q") for name in STEP_COLUMNS}

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        batch, engine = flight.batch, replica.engine
        if isinstance(engine, Engine) and engine.adapters is not None:
            self._served[id(engine.adapters)] = engine.adapters
        work = batch.shape.adapters
        for counts, count in zip(self._steps.values(), (work.adapters, work.tokens, batch.deferred), strict=True):
            counts.append(count)
        time_s, cost = flight.times_s[0], self._costs[replica.index]
        for load in batch.loads:
            load_s = cost.load_s(load.adapter.rank, load.disk) if isinstance(cost, Adapted) else 0.0
            row = (replica.index, time_s, load_s, load.disk)
            for column, value in zip(self._log.values(), row, strict=True):
                column.append(value)
            self._names.append((load.adapter.name, load.evicted.name if load.evicted is not None else ""))
            time_s += load_s

    def loads(self) -> ColumnTable:
        """One row for each load, in order of its step's planning: `replica`, `time_s` at which it begins, `load_s`,
        `adapter`, `disk` (read from there first), `evicted` (whose slot it takes, "" for a free one)."""
        told: dict[str, Any] = {name: np.array(column) for name, column in self._log.items()}
        told["disk"] = told["disk"].astype(bool)
        told["adapter"] = np.array([name for name, _ in self._names], object)
        told["evicted"] = np.array([name for _, name in self._names], object)
        return ColumnTable({name: told[name] for name in LOAD_COLUMNS})

    def with_adapters(self, steps: ColumnTable) -> ColumnTable:
        """The steps table with the columns `adapters` (different ones), `adapter_tokens` (computed with one, in each
        repeat) and `deferred` (requests that wait for a slot)."""
        return steps.assign(**{name: np.array(counts) for name, counts in self._steps.items()})

    def facts(self, requests: ColumnTable, steps: ColumnTable) -> dict[str, Any]:
        """What the summary tells, of the tables of all requests and steps."""
        loads = self.loads()
        lora = self._pools[0].parts.scenario.lora
        shape, parallel = self._pools[0].parts.adapters, self._pools[0].parts.parallel
        assert shape is not None
        named = np.asarray(requests["adapter"] if "adapter" in requests else [""] * len(requests), object)
        counts = Counter(named[named != ""].tolist())
        told = ["", *(name for name, _ in counts.most_common(MOST_TOLD))]
        groups = {name: named == name for name in told}
        own = Counter(loads["adapter"].tolist())
        return {
            "asked": len(counts),
            "requests": counts.total(),
            "max_loras": lora.max_loras,
            "max_cpu_loras": lora.kept,
            "max_lora_rank": lora.max_lora_rank,
            "slot_bytes": shape.slot_bytes(parallel),
            "loads": len(loads),
            "disk_loads": int(loads["disk"].sum()),
            "evictions": int((loads["evicted"] != "").sum()),
            "load_s": float(loads["load_s"].sum()),
            "deferred_requests": sum(adapters.skipped for adapters in self._served.values()),
            "tokens": int(np.dot(steps["adapter_tokens"], steps["repeats"])),
            "per_step": {
                "mean": float(np.average(steps["adapters"], weights=steps["repeats"])),
                "max": int(steps["adapters"].max()),
            },
            "each": {
                name: {
                    "requests": int(chosen.sum()),
                    "loads": own[name],
                    **{f"{what}_s": distribution(requests[f"{what}_s"][chosen]) for what in ("ttft", "tpot")},
                }
                for name, chosen in groups.items()
                if chosen.any()
            },
        }


def adapter_notes(pools: Sequence[Pool]) -> list[str]:
    """What a run with adapters assumes."""
    if all(pool.parts.adapters is None for pool in pools):
        return []
    return [
        "A step waits for the adapters that it loads, as vLLM's does; what their kernels and loads take is estimated "
        "by bytes and operations, and was compared with no measurement."
    ]
