"""What a run of several pools tells of each of them, beside what it tells of all."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from sim.engine.batch import Shape
from sim.results import metrics
from sim.results.bill import Rates, bill_of_all
from sim.results.binding import NOTHING
from sim.results.kv import KvFacts, busy_s, kv_summary
from sim.results.metrics import Limit, plain
from sim.results.percentiles import distribution
from sim.results.terms import StepTerms
from sim.results.verdict import stable, verdict
from sim.serving.answer import binding_of
from sim.serving.lifecycle import Lifecycle
from sim.serving.pool import Pool, by_model, each_replica, numbers
from sim.specs.fleet import PREFILL
from traces.late import pd
from traces.table import Columns

Value = TypeVar("Value", bound=Hashable)
MIXED = "mixed"


def shared(values: Iterable[Value]) -> Value | str | None:
    """The value that all pools have; "mixed" where texts differ, None where numbers do."""
    known = list(dict.fromkeys(values))
    if len(known) == 1:
        return known[0]
    return MIXED if isinstance(known[0], str) else None


def pool_inputs(pools: Sequence[Pool]) -> dict[str, Any]:
    """What the inputs of a summary say of each pool; nothing where there are none."""
    if not pools[0].name:
        return {}
    told, several = {}, len(by_model(pools)) > 1
    for pool in pools:
        scenario = pool.parts.scenario
        told[pool.name] = {
            **({"model": pool.parts.model.name} if several else {}),
            "role": pool.role,
            "replicas": pool.count,
            "gpu": pool.parts.gpu.name,
            "tp": scenario.tp,
            **{key: value for key in ("pp", "dp", "ep") if (value := getattr(scenario, key)) > 1},
            **scales(pool),
            "policy": scenario.policy.name,
            "allocator": scenario.allocator.name,
        }
    return {"pools": told}


def scales(pool: Pool) -> dict[str, Any]:
    """What the inputs of a summary say of a pool whose size changes."""
    settings = pool.parts.scenario.autoscale
    return {"scales": [settings.min, settings.max], "scales_by": settings.metric} if pool.start else {}


def scaling_facts(pools: Sequence[Pool], present: Present, lifecycle: Lifecycle, duration: float) -> dict[str, Any]:
    """What the summary tells of the pools whose size changed."""
    told = {}
    for pool, mine, there in zip(pools, numbers(pools), present.of_pools, strict=True):
        if pool.start:
            told[pool.name or "all"] = {
                "mean_replicas": there,
                **lifecycle.sizes(mine),
                "gpu_hours": there * pool.parts.parallel.rank_gpus * duration / 3600.0,
            }
    return told


def pool_notes(pools: Sequence[Pool]) -> list[str]:
    """What a run of pools does not model."""
    if all(pool.role != PREFILL for pool in pools):
        known = {pool.parts.preset.name: bool(pool.parts.preset.front_end) for pool in pools}
        if len(known) == 1 or not any(known.values()) or pools[0].parts.scenario.front_end.on:
            return []
        return [
            f"No front end is simulated before pools of several engines ({', '.join(known)}) unless one is named "
            "(--front-end): clients see what the engines do, when they do it."
        ]
    return [
        "No front end is modelled where prompts and answers are of different pools: clients see what the engines do, "
        "when they do it."
    ]


def by_pool(
    pools: Sequence[Pool], spans: Sequence[tuple[int, Shape, int]], steps: Columns
) -> list[Sequence[tuple[int, Shape, int]]]:
    """The recorded spans (see `StepTerms`) of each pool."""
    if len(pools) == 1:
        return [spans]
    replica = np.asarray(steps["replica"])
    pool_of = np.repeat(np.arange(len(pools)), [pool.ranks for pool in pools])
    own: list[list[tuple[int, Shape, int]]] = [[] for _ in pools]
    for span in spans:
        own[pool_of[replica[span[0]]]].append(span)
    return list(own)


@dataclass(frozen=True, slots=True)
class Present:
    """How many replicas there were, each rank counted as one."""

    of_pools: tuple[float, ...]
    """Of each pool, on average over the run."""
    shares: tuple[float, ...] = ()
    """Of each replica the share of the run in which it was paid for, where their number changes."""

    @classmethod
    def of(cls, pools: Sequence[Pool], shares: Sequence[float] | None) -> Present:
        """From the shares of all replicas; None where all are there all the time."""
        if shares is None or not any(pool.start for pool in pools):
            return cls(tuple(pool.ranks for pool in pools))
        own = [sum(shares[index] for index in mine) for mine in numbers(pools)]
        there = (mean if pool.start else pool.ranks for pool, mean in zip(pools, own, strict=True))
        return cls(tuple(there), tuple(shares))

    @property
    def replicas(self) -> float:
        return sum(self.of_pools)


def kv_facts(pools: Sequence[Pool], present: Present) -> KvFacts:
    """Of all replicas."""
    first = pools[0].parts.kv_facts
    sizes = tuple(pool.parts.pool.tokens for pool in each_replica(pools))
    return replace(first, replicas=present.replicas, each_tokens=sizes, each_share=present.shares)


def fleet_summary(
    summary: Mapping[str, Any],
    pools: Sequence[Pool],
    requests: Columns,
    steps: Columns,
    terms: Sequence[StepTerms],
    slo: Sequence[Limit],
    transfers: pd.DataFrame | None,
    present: Present,
) -> dict[str, Any]:
    """The summary of a run of pools: `pools` has each one's own numbers.

    What binds is what binds the pool that is held up most, and the bill is the sum of theirs.
    """
    duration = summary["duration_s"]
    own: dict[str, dict[str, Any]] = {}
    for pool, mine, its_terms, there in zip(pools, numbers(pools), terms, present.of_pools, strict=True):
        of_pool = np.isin(steps["replica"], mine)
        its_steps = steps[of_pool]
        served = _served(pool, mine, requests, transfers)
        facts = replace(pool.parts.kv_facts, replicas=there)
        rates = Rates.of(there * pool.parts.parallel.rank_gpus, pool.parts.gpu, pool.parts.scenario.price)
        kv = kv_summary(served, its_steps, facts, duration)
        local = {**summary, "kv": kv}
        within = _within(its_terms, of_pool)
        own[pool.name] = {
            "role": pool.role,
            "replicas": pool.count,
            "requests": len(served),
            "busy": _busy(its_steps, there, duration),
            "queue_s": distribution(served["queue_s"]),
            "computed": metrics.computed(its_steps),
            "kv": kv,
            "bill": metrics.run_bill(served, its_steps, rates, there, duration),
            "binding": binding_of(local, pool.parts, served, its_steps, within, slo, there),
        }
    bindings = {name: pool["binding"] for name, pool in own.items()}
    bills = [pool["bill"] for pool in own.values()]
    most = max(bindings, key=lambda name: (bindings[name]["by"] != NOTHING, bindings[name]["share"] or 0.0))
    prompt, output = metrics.served_tokens(requests)
    told = {
        "load": summary["load"],
        "binding": plain({**bindings[most], "pool": most}),
        **{key: summary[key] for key in summary if key != "load"},
        "bill": plain(bill_of_all(bills, tokens=prompt + output, output_tokens=output)),
        "pools": plain(own),
    }
    if "model" in requests:
        told["models"] = plain(model_facts(requests, slo, duration))
    if transfers is not None:
        told["transfers"] = plain(_transfer_summary(transfers, duration))
    return {"verdict": plain(verdict(told, is_stable=stable(requests, summary["load"]))), **told}


def model_facts(requests: Columns, slo: Sequence[Limit], duration: float) -> dict[str, Any]:
    """What the summary tells of the requests for each model."""
    told = {}
    models = np.asarray(requests["model"], object)
    for model in dict.fromkeys(models.tolist()):
        if not model:
            continue
        own = requests[models == model]
        told[str(model)] = {
            "requests": metrics.request_counts(own),
            "throughput": metrics.throughput(own, duration),
            **{f"{name}_s": distribution(own[f"{name}_s"]) for name in ("ttft", "tpot", "e2e")},
            **({"goodput": metrics.goodput(own, slo, duration)} if slo else {}),
        }
    return told


def _within(terms: StepTerms, of_pool: np.ndarray) -> StepTerms:
    """The terms with their rows counted among the pool's own."""
    place = np.cumsum(of_pool) - 1
    return terms.under(place[terms.rows].tolist())


def _served(pool: Pool, mine: range, requests: Columns, transfers: pd.DataFrame | None) -> Columns:
    """The requests that a pool's replicas had, with the replica that had them there."""
    if pool.role != PREFILL or transfers is None:
        return requests[np.isin(requests["replica"], mine)]
    source = np.where(np.isin(requests["replica"], mine), requests["replica"], -1)
    source[np.asarray(transfers["request"])] = np.asarray(transfers["source"])
    return requests.assign(replica=source)[np.isin(source, mine)]


def _busy(steps: Columns, replicas: float, duration: float) -> float | None:
    from_steps = float(busy_s(steps).sum()) if len(steps) else 0.0
    return from_steps / (replicas * duration) if duration > 0 else None


def _transfer_summary(transfers: pd.DataFrame, duration: float) -> dict[str, Any]:
    asked_s, placed_s, landed_s = (transfers[name] for name in ("asked_s", "placed_s", "landed_s"))
    size = float(transfers["bytes"].sum())
    return {
        "count": len(transfers),
        "bytes": size,
        "bytes_per_s": size / duration if duration > 0 else None,
        "wait_s": distribution(placed_s - asked_s),
        "sending_s": distribution(landed_s - placed_s),
    }
