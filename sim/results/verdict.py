"""The first line of every report: what was offered and served, the SLO, what binds and what it costs, in one sentence.

It reads the summary and the table of requests; it computes no metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sim.results.binding import BINDS_FROM, BUDGET, FRONT_END, IDLE, KV, NOTHING, POLICY, SEATS, SLOTS
from sim.results.metrics import verdicts
from sim.results.resources import HOST, LINK
from sim.results.stability import grows
from sim.results.units import count, count_of, dollars, limit, number, percent, seconds
from traces.table import Columns

IDLE_FROM = 0.5
"""A recorded load that leaves the replicas idle for this share of the time is told to do so."""
ASK = 0.7
"""The share of the bound at which the command that the sentence names would run."""
_WORDS = {"queue": "Queue"}
_SUBJECTS = {
    BUDGET: "the token budget",
    POLICY: "the batching policy",
    HOST: "the host",
    LINK: "the link",
    FRONT_END: "the front end",
}
Summary = Mapping[str, Any]


def clause_name(name: str) -> str:
    """`ttft_p99` as `TTFT p99`, `itl` as `ITL max`: a name without a statistic speaks of every request."""
    metric, _, statistic = name.partition("_")
    return f"{_WORDS.get(metric, metric.upper())} {statistic or 'max'}"


def stable(requests: Columns, load: Summary) -> bool | None:
    """Whether the queue did not grow; None where that cannot be told: too few requests, or no open load."""
    grown = None if load["kind"] in ("closed", "at once") else grows(requests)
    return None if grown is None else not grown


def bounded(summary: Summary, bound: Summary, command: str) -> dict[str, Any]:
    """The summary with a replica's `bound` (`rate_per_s`, and what `binds` there), and the verdict that tells it.

    The bound gains `asked_per_s`, the rate at which `command` would ask for more, and the money at that rate.
    """
    asked_per_s = ASK * bound["rate_per_s"]
    rates, bill = summary["throughput"], summary.get("bill") or {}
    usd: float | None = None
    if bill.get("usd_per_gpu_hour") and rates["requests_per_s"] and asked_per_s:
        tokens = rates["total_tokens_per_s"] / rates["requests_per_s"]
        gpus = bill["gpus"] / (summary["inputs"].get("replicas") or 1)
        usd = bill["usd_per_gpu_hour"] * gpus / 3600.0 / (asked_per_s * tokens) * 1e6
    full = {**bound, "asked_per_s": asked_per_s, "usd_per_million_tokens": usd, "command": command}
    told = {**summary, "bound": full}
    return {**told, "verdict": verdict(told, is_stable=summary["verdict"]["stable"])}


def verdict(summary: Summary, *, is_stable: bool | None) -> dict[str, Any]:
    """The summary's `verdict` (docs/metrics.md); `summary` has `load`, `binding` and, where it was asked, `bound`."""
    clauses = [
        {
            "name": result.name,
            "limit_s": result.limit_s,
            "measured_s": result.measured_s,
            "of_limit": None if result.measured_s is None else result.measured_s / result.limit_s,
            # Of a queue that grows, what is within its limit so far will not stay there.
            "met": None if is_stable is False and result.met else result.met,
        }
        for result in verdicts(summary)
    ]
    slo = "none asked" if not clauses else "met" if all(clause["met"] for clause in clauses) else "missed"
    told = {
        "slo": slo,
        "stable": is_stable,
        "clauses": clauses,
        "binds": summary["binding"]["by"],
    }
    return {"sentence": _sentence(summary, told), **told}


def _sentence(summary: Summary, told: Summary) -> str:
    if not summary["requests"]["completed"]:
        return f"{_load(summary)}: no request completed."
    parts = [_idle(summary, told)] if rests(summary, told["stable"]) else [_limits(summary, told)]
    return f"{_load(summary)}{', the queue grows' if told['stable'] is False else ''}: {'; '.join(parts)}."


def rests(summary: Summary, is_stable: bool | None) -> bool:
    """Whether a recorded load leaves the replicas idle most of the time: what they could take is the question then."""
    idle = summary["binding"]["shares"][IDLE]
    return bool(summary["load"]["kind"] == "recorded" and idle >= IDLE_FROM and is_stable is not False)


def _limits(summary: Summary, told: Summary) -> str:
    money = _money(summary.get("bill") or {})
    return "; ".join(filter(None, [_slo(summary, told), _binds(summary["binding"]), money]))


def _load(summary: Summary) -> str:
    load, done = summary["load"], summary["requests"]["completed"]
    if load["kind"] == "closed":
        return (
            f"{count(load['users'])} users at once, {number(summary['throughput']['requests_per_s'])} requests/s served"
        )
    if load["kind"] == "at once" or load["offered_per_s"] is None:
        rate = number(summary["throughput"]["requests_per_s"])
        total = f"{count_of(summary['requests']['total'], 'request')} at once"
        return f"{total}, {count(done)} completed in {seconds(summary['duration_s'])} ({rate}/s)"
    return f"{number(load['offered_per_s'])} requests/s offered, {number(load['served_per_s'])}/s served"


def _slo(summary: Summary, told: Summary) -> str:
    clauses: Sequence[Summary] = told["clauses"]
    if not clauses:
        parts = [(name, summary[key]["p99"]) for name, key in (("TTFT", "ttft_s"), ("TPOT", "tpot_s"))]
        return "no SLO asked, " + " and ".join(f"{name} p99 {seconds(p99)}" for name, p99 in parts if p99 is not None)
    if told["slo"] == "met":
        listed = [f"{clause_name(one['name'])} {_against(one)}" for one in clauses]
        return f"{_listed(listed)} {'is' if len(listed) == 1 else 'are'} met"
    missed = sorted((one for one in clauses if one["met"] is False), key=lambda one: -one["of_limit"])
    texts = [
        f"{clause_name(one['name'])} {seconds(one['measured_s'])} misses {limit(one['limit_s'])} {_by(one['of_limit'])}"
        for one in missed
    ]
    for one in clauses:
        if one["met"]:
            texts.append(f"{clause_name(one['name'])} {_against(one)} is met")
        elif one["met"] is None and one["measured_s"] is None:
            texts.append(f"{clause_name(one['name'])} has no value")
        elif one["met"] is None:
            texts.append(
                f"{clause_name(one['name'])} {seconds(one['measured_s'])} so far (limit {limit(one['limit_s'])})"
            )
    return _listed(texts)


def _against(clause: Summary) -> str:
    return f"{seconds(clause['measured_s'])} of {limit(clause['limit_s'])}"


def _by(of_limit: float) -> str:
    return f"by {number(of_limit, 2)}x" if of_limit >= 2 else f"by {percent(of_limit - 1)}"


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _binds(binding: Summary) -> str:
    by, share = binding["by"], binding["share"]
    if by == NOTHING:
        fullest = max((SEATS, KV), key=lambda name: binding["peaks"][name])
        return f"nothing binds yet ({fullest} {percent(binding['peaks'][fullest])} full at the peak)"
    several = by in (SEATS, SLOTS)
    name, verb = _SUBJECTS.get(by, by), "bind" if several else "binds"
    if by == FRONT_END:
        what = f"its processes work {percent(share)} of the time"
    elif binding["share_of"] == "time":
        what = f"requests waited for {'them' if several else 'it'} {percent(share)} of the time"
    else:
        what = f"{percent(share)} of the steps' time"
        queue, waited = max(binding["waiting"].items(), key=lambda one: one[1])
        if waited >= BINDS_FROM:
            what += f", while requests waited for {queue} {percent(waited)} of the time"
    words = binding["words"]
    return f"{name} {verb} ({what})" + (f": {words} would move that" if words else "")


def _money(bill: Summary) -> str:
    usd = bill.get("usd_per_million_tokens")
    return "" if usd is None else f"{dollars(usd)} per million tokens at this load"


def _idle(summary: Summary, told: Summary) -> str:
    """That the recorded load leaves the GPU idle, what one replica could take, and the command that asks for it."""
    gpus = "the GPU" if summary["bill"]["gpus"] == 1 else "the GPUs"
    text = f"the recorded load leaves {gpus} idle {percent(summary['binding']['shares'][IDLE])} of the time"
    if told["clauses"]:
        text = f"{_slo(summary, told)}; {text}"
    bound = summary.get("bound")
    if not bound or not bound["rate_per_s"]:
        return text
    asked = number(bound["asked_per_s"], 2).replace(",", "")
    usd = bound["usd_per_million_tokens"]
    money = f", at {dollars(usd)} per million tokens at {ASK:g} of it" if usd is not None else ""
    could = f"one replica could take about {number(bound['rate_per_s'], 2)}/s (a bound, from costs alone)"
    return f"{text}; {could}{money}: {bound['command']} --rate {asked}"
