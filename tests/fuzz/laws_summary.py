"""Laws of the summary: every number of it recomputed from the tables, the slow and obvious way (docs/metrics.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sim import catalog

from .case import Run
from .laws import Law

OF_A_REQUEST = {"ttft": "ttft_s", "tpot": "tpot_s", "itl": "max_itl_s", "e2e": "e2e_s", "queue": "queue_s"}


def percentiles(run: Run) -> Iterator[str]:
    """Means, percentiles and maxima are numpy's of the requests' own values, and of all gaps between tokens."""
    gaps = np.repeat(*run.result.itl)
    populations = {name: run.requests[f"{name}_s"].dropna() for name in ("ttft", "tpot", "e2e", "queue")}
    for name, values in {**populations, "itl": gaps}.items():
        told = run.summary[f"{name}_s"]
        if not len(values):
            wanted: Mapping[str, Any] = dict.fromkeys(told)
        else:
            wanted = {f"p{q}": np.percentile(values, q) for q in (50, 90, 95, 99)}
            wanted = {"mean": np.mean(values), **wanted, "max": np.max(values)}
        for key, value in wanted.items():
            if not _same(told[key], value):
                yield f"{name}_s {key} is {told[key]!r}, the table says {value!r}"


def gaps(run: Run) -> Iterator[str]:
    """There is a gap for each token of a sequence but its first, and together they are the time between both."""
    seconds, counts = run.result.itl
    done = run.done
    wanted = int(((done["output_tokens"] - 1) * done["samples"]).sum())
    if counts.sum() != wanted or (seconds < 0).any():
        yield f"{counts.sum()} gaps, and the answers have {wanted}"
    longest = done["max_itl_s"].max()
    if len(seconds) and not _same(float(seconds[counts > 0].max()), float(longest)):
        yield f"the longest gap is {seconds.max()!r}, that of any request {longest!r}"
    if not run.one_each:
        return
    total, spent = float(np.dot(seconds, counts)), float((done["finish_s"] - done["first_token_s"]).sum())
    if not math.isclose(total, spent, rel_tol=1e-9, abs_tol=1e-9):
        yield f"gaps of {total!r} s in {spent!r} s of decoding"


def population(run: Run) -> Iterator[str]:
    """Whenever a step is planned, those running and waiting are those that have come and not ended; so Little's law."""
    gone, seats = run.result.preempted, int(run.requests["samples"].max())
    for index in range(run.plan.replicas):
        steps, mine = run.replica(index), run.done[run.done["replica"] == index]
        if not len(steps):
            continue
        planned_s = steps["start_s"].to_numpy()
        if run.asynchronous:
            # The next step is planned when the last repeat of the one before begins, unless the device was idle.
            ends_s = run.result.step_end_s[index]
            last = (steps["step"] + steps["repeats"] - 1).to_numpy()
            began_s = np.where(steps["repeats"] > 1, ends_s[np.maximum(last - 1, 0)], planned_s)
            ahead = np.concatenate([[False], planned_s[1:] == steps["end_s"].to_numpy()[:-1]])
            planned_s = np.where(ahead, np.concatenate([[0.0], began_s[:-1]]), planned_s)
        inside = _at(planned_s, mine["arrival_s"]) - _at(planned_s, mine["finish_s"])
        told = (steps["running"] + steps["waiting"]).to_numpy()
        idle = run.asynchronous & (
            (told < inside) | (told > inside * seats)
        )  # may have been planned when the device had ended, not before
        if idle.any():
            late = _at(steps["start_s"].to_numpy(), mine["arrival_s"]) - _at(
                steps["start_s"].to_numpy(), mine["finish_s"]
            )
            inside = np.where(idle, late, inside)
        wrong = (told < inside) | (told > inside * seats)
        if wrong.any():
            at = int(np.argmax(wrong))
            yield f"replica {index}, span {at}: {told[at]} run or wait, and {inside[at]} have come and not ended"
            continue
        if run.asynchronous or gone is None or not run.one_each:
            continue
        away = gone[gone["request"].isin(mine.index)]
        back_s = away["end_s"].fillna(away["request"].map(mine["finish_s"]))
        waiting = _at(planned_s, mine["arrival_s"]) - _at(planned_s, mine["first_scheduled_s"])
        waiting += _at(planned_s, away["start_s"]) - _at(planned_s, back_s)
        if (waiting != steps["waiting"]).any():
            at = int(np.argmax(waiting != steps["waiting"]))
            yield f"replica {index}, span {at}: {steps['waiting'].iloc[at]} wait, and by the requests {waiting[at]}"


def littles_law(run: Run) -> Iterator[str]:
    """Mean requests in the system = rate x mean time in it."""
    done, rate, mean_s = run.done, run.summary["throughput"]["requests_per_s"], run.summary["e2e_s"]["mean"]
    if rate is None or mean_s is None:
        return
    times_s = np.sort(np.concatenate([done["arrival_s"], done["finish_s"]]))
    inside = _at(times_s, done["arrival_s"]) - _at(times_s, done["finish_s"])
    mean = float(np.dot(inside[:-1], np.diff(times_s))) / run.summary["duration_s"]
    if not math.isclose(mean, rate * mean_s, rel_tol=1e-9):
        yield f"{mean!r} requests in the system, and {rate!r}/s times {mean_s!r} s"


def totals(run: Run) -> Iterator[str]:
    """Duration and throughput follow from the requests and steps."""
    done, steps = run.done, run.steps
    arrival_s = run.requests["arrival_s"]
    duration_s = max(arrival_s.max(), steps["end_s"].max()) - arrival_s.min()
    if run.summary["duration_s"] != duration_s:
        yield f"duration_s is {run.summary['duration_s']!r}, the tables say {duration_s!r}"
    output = int((done["output_tokens"] * done["samples"]).sum())
    amounts = {
        "requests_per_s": len(done),
        "output_tokens_per_s": output,
        "total_tokens_per_s": output + int(done["prompt_tokens"].sum()),
    }
    for name, amount in amounts.items():
        if not _same(run.summary["throughput"][name], amount / duration_s):
            yield f"{name} is {run.summary['throughput'][name]!r}, not {amount} in {duration_s!r} s"
    asked = run.plan.workload.samples or run.trace.requests.get("samples", pd.Series(1, run.requests.index))
    if (run.requests["samples"] != asked)[run.kept].any():
        yield "samples are not those asked for"


def goodput(run: Run) -> Iterator[str]:
    """Who met the SLO is counted request by request."""
    told = run.summary.get("goodput")
    if (told is None) != (not run.plan.slo):
        yield f"the SLO is {run.plan.slo!r} and the goodput {told}"
    if told is None or not run.plan.slo:
        return
    clauses = [clause.split("=") for clause in run.plan.slo.split(",")]
    met = 0
    for row in run.requests.to_dict("records"):
        values = [(row[OF_A_REQUEST[name.split("_")[0]]], float(limit)) for name, limit in clauses]
        met += row["status"] == "completed" and not any(value > limit for value, limit in values)
    if told["fraction"] != met / len(run.requests) or not _same(
        told["requests_per_s"], met / run.summary["duration_s"]
    ):
        yield f"{met} of {len(run.requests)} requests met {run.plan.slo}, and the summary says {told}"


def bill(run: Run) -> Iterator[str]:
    """Every GPU is paid for all the time; power is drawn while steps run, and the idle power between them."""
    told, price, plan = run.summary["bill"], run.plan.price, run.plan
    gpu, gpus, duration_s = catalog.load_gpu(plan.gpu), plan.tp * plan.replicas, run.summary["duration_s"]
    busy_s = sum(
        _covered_s(list(zip(steps["start_s"], steps["end_s"], strict=True)))
        for steps in (run.replica(index) for index in range(plan.replicas))
    )
    usd_per_hour, watts = price.usd_per_gpu_hour or gpu.usd_per_gpu_hour, price.watts_per_gpu or gpu.watts
    usd = usd_per_hour * gpus * duration_s / 3600 if usd_per_hour else None
    idle = price.idle_watts_per_gpu or watts
    joules = watts * busy_s * plan.tp + idle * (gpus * duration_s - busy_s * plan.tp) if watts else None
    done = run.done
    output = int((done["output_tokens"] * done["samples"]).sum())
    for name, amount in (("usd", usd), ("joules", joules)):
        if not _same(told[name], amount):
            yield f"{name} is {told[name]!r}, the tables say {amount!r}"
        for key, tokens in (("tokens", output + int(done["prompt_tokens"].sum())), ("output_tokens", output)):
            each = amount / tokens * 1e6 if amount is not None and tokens else None
            if not _same(told[f"{name}_per_million_{key}"], each):
                yield f"{name}_per_million_{key} is {told[f'{name}_per_million_{key}']!r}, the tables say {each!r}"
    if told["gpus"] != gpus:
        yield f"{told['gpus']} GPUs on the bill, and there are {gpus}"


def terms(run: Run) -> Iterator[str]:
    """The shares of the step seconds by source, and by term, add up to all of them."""
    by_source, by_term = run.summary["cost_sources"], run.summary["cost_terms"]
    if not math.isclose(sum(by_source.values()), 1.0, rel_tol=1e-9) or min(by_source.values()) < 0:
        yield f"the sources' shares are {by_source}"
    if not math.isclose(sum(sum(one.values()) for one in by_term.values()), 1.0, rel_tol=1e-9):
        yield f"the terms' shares are {by_term}"


def band(run: Run) -> Iterator[str]:
    """Every interval of the band has the summary's value in it, or no ends."""
    told = run.summary.get("band")
    if (told is None) != (run.result.terms is None):
        yield "a band and steps that are priced do not go together"
    if not told:
        return
    for part in ("ttft_s", "tpot_s", "e2e_s", "throughput"):
        for name, ends in told[part].items():
            value, low, high = run.summary[part][name], ends["low"], ends["high"]
            if (low is None) != (high is None) or (low is not None and not low <= value <= high):
                yield f"the band of {part}.{name} is {low!r} to {high!r}, and it is {value!r}"


def drafts(run: Run) -> Iterator[str]:
    """Drafts verified and right add up over requests, positions and the summary."""
    told = run.summary.get("speculation")
    if (told is None) != (run.plan.policy.name != "speculative"):
        yield "drafting and its summary do not go together"
    if not told:
        return
    table = run.requests
    if (
        told["drafted_tokens"] != table["draft_tokens"].sum()
        or told["accepted_tokens"] != table["accepted_tokens"].sum()
    ):
        yield f"the summary has {told['drafted_tokens']} drafts, {told['accepted_tokens']} right; the table differs"
    if (table["accepted_tokens"] > table["draft_tokens"]).any() or (table["draft_tokens"] < 0).any():
        yield "more drafts right than there were"
    if (
        not run.plan.speculation.tree
        and told["drafted_tokens"] > (run.steps["draft_tokens"] * run.steps["repeats"]).sum()
    ):
        yield "more drafts verified than the steps had"
    shares = [*told["acceptance_by_position"], *told["found_by_position"], told["acceptance"] or 0.0]
    if not all(0 <= one <= 1 for one in shares):
        yield f"shares outside 0..1: {shares}"


def _covered_s(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds in any of these spans."""
    covered, until = 0.0, -math.inf
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered


def _at(times_s: np.ndarray, events_s: pd.Series) -> np.ndarray:
    """How many of the events have happened by each of these times."""
    return np.searchsorted(np.sort(events_s.to_numpy()), times_s, side="right")


def _same(told: float | None, wanted: float | None) -> bool:
    if told is None or wanted is None:
        return told is wanted
    return math.isclose(told, wanted, rel_tol=1e-9, abs_tol=1e-15)


LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (percentiles, gaps, population, littles_law, totals, goodput, bill, terms, band, drafts)
}
