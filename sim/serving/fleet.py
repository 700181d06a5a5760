"""What a run of several pools tells of each of them, beside what it tells of all."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd

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
from sim.serving.pool import Pool, each_replica
from sim.specs.fleet import PREFILL

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
    told = {}
    for pool in pools:
        scenario = pool.parts.scenario
        told[pool.name] = {
            "role": pool.role,
            "replicas": pool.count,
            "gpu": pool.parts.gpu.name,
            "tp": scenario.tp,
            **{key: value for key in ("pp", "dp", "ep") if (value := getattr(scenario, key)) > 1},
            "policy": scenario.policy.name,
            "allocator": scenario.allocator.name,
        }
    return {"pools": told}


def pool_notes(pools: Sequence[Pool]) -> list[str]:
    """What a run of pools does not model."""
    if all(pool.role != PREFILL for pool in pools):
        return []
    return [
        "No front end is modelled where prompts and answers are of different pools: clients see what the engines do, "
        "when they do it."
    ]


def numbers(pools: Sequence[Pool]) -> list[range]:
    """The replicas of each pool."""
    ends = np.cumsum([pool.ranks for pool in pools]).tolist()
    return [range(end - pool.ranks, end) for pool, end in zip(pools, ends, strict=True)]


def by_pool(
    pools: Sequence[Pool], spans: Sequence[tuple[int, Shape, int]], steps: pd.DataFrame
) -> list[Sequence[tuple[int, Shape, int]]]:
    """The recorded spans (see `StepTerms`) of each pool."""
    if len(pools) == 1:
        return [spans]
    replica = steps["replica"].to_numpy()
    pool_of = np.repeat(np.arange(len(pools)), [pool.ranks for pool in pools])
    own: list[list[tuple[int, Shape, int]]] = [[] for _ in pools]
    for span in spans:
        own[pool_of[replica[span[0]]]].append(span)
    return list(own)


def kv_facts(pools: Sequence[Pool]) -> KvFacts:
    """Of all replicas."""
    first = pools[0].parts.kv_facts
    sizes = tuple(pool.parts.pool.tokens for pool in each_replica(pools))
    return replace(first, replicas=len(sizes), each_tokens=sizes)


def fleet_summary(
    summary: Mapping[str, Any],
    pools: Sequence[Pool],
    requests: pd.DataFrame,
    steps: pd.DataFrame,
    terms: Sequence[StepTerms],
    slo: Sequence[Limit],
    transfers: pd.DataFrame | None,
) -> dict[str, Any]:
    """The summary of a run of pools: `pools` has each one's own numbers.

    What binds is what binds the pool that is held up most, and the bill is the sum of theirs.
    """
    duration = summary["duration_s"]
    own: dict[str, dict[str, Any]] = {}
    for pool, mine, its_terms in zip(pools, numbers(pools), terms, strict=True):
        of_pool = steps["replica"].isin(mine).to_numpy()
        its_steps = steps[of_pool]
        served = _served(pool, mine, requests, transfers)
        facts = replace(pool.parts.kv_facts, replicas=pool.ranks)
        rates = Rates.of(pool.gpus, pool.parts.gpu, pool.parts.scenario.price)
        kv = kv_summary(served, its_steps, facts, duration)
        local = {**summary, "kv": kv}
        within = _within(its_terms, of_pool)
        own[pool.name] = {
            "role": pool.role,
            "replicas": pool.count,
            "requests": len(served),
            "busy": _busy(its_steps, pool.ranks, duration),
            "queue_s": distribution(served["queue_s"]),
            "computed": metrics.computed(its_steps),
            "kv": kv,
            "bill": metrics.run_bill(served, its_steps, rates, pool.ranks, duration),
            "binding": binding_of(local, pool.parts, served, its_steps, within, slo, pool.ranks),
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
    if transfers is not None:
        told["transfers"] = plain(_transfer_summary(transfers, duration))
    return {"verdict": plain(verdict(told, is_stable=stable(requests, summary["load"]))), **told}


def _within(terms: StepTerms, of_pool: np.ndarray) -> StepTerms:
    """The terms with their rows counted among the pool's own."""
    place = np.cumsum(of_pool) - 1
    return replace(terms, spans=[(int(place[row]), shape, repeats) for row, shape, repeats in terms.spans])


def _served(pool: Pool, mine: range, requests: pd.DataFrame, transfers: pd.DataFrame | None) -> pd.DataFrame:
    """The requests that a pool's replicas had, with the replica that had them there."""
    if pool.role != PREFILL or transfers is None:
        return requests[requests["replica"].isin(mine)]
    source = np.where(requests["replica"].isin(mine), requests["replica"], -1)
    source[transfers["request"].to_numpy()] = transfers["source"].to_numpy()
    return requests.assign(replica=source)[np.isin(source, mine)]


def _busy(steps: pd.DataFrame, replicas: int, duration: float) -> float | None:
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
