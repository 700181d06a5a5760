"""What binds a run: the limit at which its requests waited, or what its steps' time is made of. It tells no verdict.

Derived from the steps table: while requests wait, the step before them says which limit is full. The rules:
docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.results.kv import FULL, busy_s
from sim.results.metrics import REQUEST_COLUMNS, Limit, verdicts
from sim.results.percentiles import Floats, Ints
from sim.results.resources import COMPUTE, DEVICE, RESOURCES, Resources
from traces.table import Columns

FREE, SEATS, BUDGET, KV, POLICY, SLOTS = STATES = (
    "free", "seats", "token budget", "KV memory", "policy", "adapter slots",
)  # fmt: skip
"""What a span's waiting requests wait for; `FREE` where none waits. `POLICY`: there was room, and it asked for none."""
LIMITS = STATES[1:]
DEFERRED = "deferred"
"""The column of the steps table, where there are adapters, that counts the requests that wait for a slot of one."""
FRONT_END = "front end"
NOTHING, IDLE, UNDER_WAY = "nothing", "idle", "step under way"
BINDS_FROM = 0.1
"""A limit binds where requests waited for it during this share of the time."""
BUSY_FROM = 0.9
"""Users who wait for their answers, and requests that came at once, are held up by steps that run for this share; so
is whoever stands before a front end that works for it."""
Codes = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What a step may hold, as far as it takes to tell why a request waited.

    Args:
        seats: sequences at once (`engine.max_num_seqs`); `widest` of them is the most that one request takes.
        budget_tokens: of a step (`engine.max_num_batched_tokens`).
        request_tokens: KV slots with which no request could have been refused for want of memory.
        in_pieces: whether that room may lie anywhere; contiguous allocators need it in one piece.
        whole_prompts: no prompt is cut, so that the budget may refuse one before it is full.
        asks: whether the policy asks for the first waiting request in every step that has tokens left and preempts
            nobody, so that what no other limit refused was refused by the memory.
        batch: requests of a static batch, which nobody joins later; 0 for none.
    """

    seats: int
    budget_tokens: int
    request_tokens: int
    in_pieces: bool = True
    whole_prompts: bool = False
    asks: bool = False
    batch: int = 0
    widest: int = 1


def states(steps: Columns, limits: StepLimits) -> Codes:
    """Why requests waited during each span, as places in `STATES`; 0 where none did. (n,)"""

    def column(name: str) -> Ints:
        return np.asarray(steps[name], np.int64)

    tokens = column("prefill_tokens") + column("decode_requests")
    tokens += column("draft_tokens")
    # Free slots lie in at most one hole more than there are reservations, so that one of them is as large as the mean.
    holes = 1 if limits.in_pieces else 1 + np.maximum(column("running"), limits.batch)
    roomy = column("kv_free_tokens") >= limits.request_tokens * holes
    full = column("running") >= limits.seats - (limits.widest - 1)
    code = np.full(len(steps), STATES.index(KV), np.int8)
    held = np.where(limits.whole_prompts & (column("prefill_tokens") > 0), STATES.index(BUDGET), STATES.index(POLICY))
    code = code if limits.asks else np.where(roomy, held, code)
    code[tokens >= limits.budget_tokens] = STATES.index(BUDGET)
    if limits.batch:
        rows = column("running")
        padded = tokens + column("padding_tokens")
        code[padded * (rows + 1) > limits.budget_tokens * np.maximum(rows, 1)] = STATES.index(BUDGET)
    if DEFERRED in steps:
        code[np.asarray(steps[DEFERRED]) >= column("waiting")] = STATES.index(SLOTS)
    code[full] = STATES.index(SEATS)
    if limits.batch:
        code[column("running") >= limits.batch] = STATES.index(POLICY)
        code = _as_formed(code, column("prefill_requests") > 0, np.asarray(steps["replica"]))
    code[column("preempted") > 0] = STATES.index(KV)
    code[column("waiting") == 0] = 0
    return code.astype(np.int8)


def _as_formed(code: npt.NDArray[Any], forms: npt.NDArray[np.bool_], replica: Ints) -> npt.NDArray[Any]:
    """Of a static batch every step has the reason for which the batch took no more when it was formed."""
    code = code.copy()
    for index in np.unique(replica):
        mine = np.flatnonzero(replica == index)
        latest = np.maximum.accumulate(np.where(forms[mine], np.arange(len(mine)), 0))
        code[mine] = code[mine][latest]
    return code


@dataclass(frozen=True, slots=True)
class Load:
    """What of the load decides whether steps hold its users up: all of them are there and wait, or an SLO is missed."""

    closed: bool = False
    slo: Sequence[Limit] = ()


def binding(
    requests: Columns,
    steps: Columns,
    limits: StepLimits,
    resources: Resources,
    summary: Mapping[str, Any],
    load: Load,
    replicas: float = 1,
) -> dict[str, Any]:
    """The summary's `binding` without `setting`; `summary` has the distributions and the SLO. Keys: docs/metrics.md."""
    code, width_s = states(steps, limits), busy_s(steps)
    known = LIMITS if DEFERRED in steps else LIMITS[:-1]
    whole_s = summary["duration_s"] * replicas
    by_state = {name: float(width_s[code == STATES.index(name)].sum()) for name in (FREE, *known)}
    waits = np.asarray(steps["waiting"], np.float64) * width_s
    wait_s = {name: float(waits[code == STATES.index(name)].sum()) for name in known}
    names = dict(zip(STATES, STATES, strict=True))
    at_budget = resources.shares(code[resources.rows] == STATES.index(BUDGET))
    if at_budget.get(COMPUTE, 0.0) > 0.5:
        names[BUDGET] = COMPUTE  # a step of more tokens would take longer by as much
    shares = dict.fromkeys((*known, *RESOURCES, IDLE), 0.0)
    for name in known:
        shares[names[name]] += _of(by_state[name], whole_s)
    made_of = resources.shares()
    free = resources.shares(code[resources.rows] == 0) or made_of or {DEVICE: 1.0}
    for name, part in free.items():
        shares[name] += part * _of(by_state[FREE], whole_s)
    shares[IDLE] = max(0.0, 1.0 - _of(float(width_s.sum()), whole_s))
    waited_s = {names[name]: seconds for name, seconds in wait_s.items()}
    blocked = {names[name]: _of(by_state[name], whole_s) for name in known}
    by, share, share_of = _which(blocked, waited_s, shares, made_of, requests, summary, load)
    return {
        "by": by,
        "share": share,
        "share_of": share_of,
        "shares": shares,
        "waiting": blocked,
        "wait_s_by_reason": {**waited_s, UNDER_WAY: _under_way_s(requests, steps)},
        "step": made_of,
        "peaks": {
            SEATS: _of(float(steps["running"].max()) if len(steps) else 0.0, limits.seats),
            KV: summary["kv"]["peak_held"],
        },
        "limits": {**asdict(limits), "budget_is": names[BUDGET]},
    }


def _which(
    blocked: Mapping[str, float],
    waited_s: Mapping[str, float],
    shares: Mapping[str, float],
    made_of: Mapping[str, float],
    requests: Columns,
    summary: Mapping[str, Any],
    load: Load,
) -> tuple[str, float | None, str]:
    """(what binds, its share, and of what: of the run's time for a limit, of the steps' seconds for a resource).

    A front end that is always at work first, and then the limits; an SLO that is missed, or users who wait for their
    answers, name what the steps are made of. Where tokens come too slowly and none was preempted, no seat, budget or
    memory would make a step shorter.
    """
    if (busy := front_end_busy(summary)) >= BUSY_FROM:
        return FRONT_END, busy, "time"
    missed = [limit for limit, result in zip(load.slo, verdicts(summary), strict=True) if result.met is False]
    slow = any(limit.metric in ("tpot", "itl") for limit in missed)
    limit = max(blocked, key=lambda name: blocked[name])
    waited = max(waited_s, key=lambda name: waited_s[name])
    resource = max(made_of, key=lambda name: made_of[name], default=NOTHING)
    moved = summary["kv"]["preemptions"] > 0 and blocked[limit] >= BINDS_FROM
    if blocked[limit] >= BINDS_FROM and (not slow or moved or resource == NOTHING):
        return limit, blocked[limit], "time"
    if missed and waited_s[waited] > 0 and not slow and _queued(requests, missed):
        return waited, blocked[waited], "time"
    held_up = load.closed and 1.0 - shares[IDLE] >= BUSY_FROM
    if resource != NOTHING and (missed or held_up):
        return resource, made_of[resource], "step time"
    return NOTHING, None, ""


def _queued(requests: Columns, missed: Sequence[Limit]) -> bool:
    """Did those requests that are over a missed limit pass most of their time to the first token in the queue?"""
    over = np.zeros(len(requests), bool)
    for limit in missed:
        over |= np.asarray(requests[REQUEST_COLUMNS[limit.metric]], np.float64) > limit.limit_s
    queue_s, ttft_s = (float(np.nansum(np.asarray(requests[name], np.float64)[over])) for name in ("queue_s", "ttft_s"))
    return queue_s > 0.5 * ttft_s


def _under_way_s(requests: Columns, steps: Columns) -> float:
    """Seconds that requests waited for the end of the step that ran when they came, all together."""
    total = 0.0
    begun = ~np.isnan(np.asarray(requests["first_scheduled_s"], np.float64))
    sent_to, stepped = np.asarray(requests["replica"]), np.asarray(steps["replica"])
    for index in np.flatnonzero(np.bincount(stepped)):
        mine, own = stepped == index, begun & (sent_to == index)
        start_s, end_s = (np.asarray(steps[name], np.float64)[mine] for name in ("start_s", "end_s"))
        arrival_s, queue_s = (np.asarray(requests[name], np.float64)[own] for name in ("engine_arrival_s", "queue_s"))
        row = np.searchsorted(start_s, arrival_s, side="right") - 1
        left_s: Floats = np.where(row >= 0, end_s[np.maximum(row, 0)] - arrival_s, 0.0)
        total += float(np.clip(left_s, 0.0, queue_s).sum())
    return total


def _of(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def front_end_busy(summary: Mapping[str, Any]) -> float:
    """The share of the run's time that its front ends' processes work; 0 where there are none."""
    told = summary.get("front_end")
    return _of(told["busy_s"], told["processes"] * summary["duration_s"]) if told else 0.0


def limits_of(kept: Mapping[str, Any]) -> StepLimits:
    """The limits that a summary's `binding` keeps."""
    return StepLimits(**{key: value for key, value in kept.items() if key != "budget_is"})


def kv_limits(summary: Mapping[str, Any]) -> bool:
    """Does the capacity of the KV pools decide this run's answer, and is it an estimate?

    It decides where requests waited for memory or were preempted, or where the pool was all but full.
    """
    own = summary.get("pools", {}).values() or [summary]
    return any(_limits(each["kv"], each.get("binding", {}).get("by")) for each in own)


def _limits(kv: Mapping[str, Any], by: str | None) -> bool:
    estimated = kv.get("capacity_low_tokens", 0) < kv.get("capacity_high_tokens", 0)
    return bool(estimated and (by == KV or kv["preemptions"] > 0 or kv["peak_held"] > FULL))
