"""Which requests a simulation sends, and when, so that it stands beside the results of a real server.

The file's own times where it has them. Where it has none, the load that the tool was asked for, unless the scenario
names another; where it holds no requests, those of the scenario's trace, or lengths drawn as the file says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from sim.scenario import Scenario
from sim.serving.workload import TraceReading, read_trace, stream, timed
from sim.specs.workload import WorkloadSettings
from sim.validate.against.rows import RandomLengths, SentLoad
from sim.validate.against.tables import Served
from traces.late import pd
from traces.rows import from_frame, keep_rows
from traces.schema import MAX_REQUESTS, InputError, Trace

NEAR = 0.1


@dataclass(frozen=True, slots=True)
class Sent:
    """What is simulated: `scenario` has the load, `trace` the requests; `most` may be under way, 0 for no such rule."""

    scenario: Scenario
    trace: Trace
    notes: tuple[str, ...]
    most: int = 0


def sent(scenario: Scenario, served: Served) -> Sent:
    """What to simulate beside these results.

    Raises:
        InputError: settings of arrivals where the file has them; no requests and no trace; a trace of other requests;
            neither file, scenario nor trace says when requests come.
    """
    workload = scenario.workload
    _refuse_unread(workload)
    if served.load is None:
        if workload.laid_anew or workload.concurrency:
            raise InputError("--against takes the arrivals as they were recorded: leave out rates, stages and users")
        trace = _same(read_trace(TraceReading.of(workload)), served) if workload.trace else served.trace
        assert trace is not None  # without a load, the file holds its requests
        assert served.trace is not None
        times_s = served.trace.requests["arrival_s"].to_numpy()
        trace = replace(trace, requests=trace.requests.assign(arrival_s=times_s), has_arrivals=True)
        # Turns of a session came when they came: none waits for the answer before it.
        return Sent(replace(scenario, workload=replace(workload, sessions=False)), trace, ())
    trace, notes = _requests(scenario, served)
    own = workload.laid_anew or workload.concurrency > 0
    load = SentLoad() if own else served.load
    if own:
        trace = timed(trace, workload, scenario.seed)
        note = "The load is the one asked for here; what the file says of its own is not read."
    else:
        trace, workload, note = _laid(trace, workload, load, scenario.seed)
    most = load.concurrency if load.rate and math.isfinite(load.rate) else 0
    return Sent(replace(scenario, workload=workload), trace, (*notes, note), most)


def _refuse_unread(workload: WorkloadSettings) -> None:
    """Settings that say how to read a trace say nothing where there is none."""
    given = {"--limit": workload.limit, "--format": workload.format, "workload.resample": workload.resample}
    for name in (name for name, value in given.items() if value and not workload.trace):
        raise InputError(f"{name} is of a trace, and --against without --trace takes the requests of the results")


def _same(trace: Trace, served: Served) -> Trace:
    """The trace, if it has the requests of the results; both are in order of arrival, or of sending."""
    assert served.trace is not None
    theirs = served.trace.requests
    trace = _answered(trace, theirs, served.omitted)
    ours = trace.requests
    if len(ours) != len(theirs):
        raise InputError(
            f"{trace.path or trace.name} has {len(ours)} requests, and {served.name} results of {len(theirs)}: "
            "they must be of the same requests"
        )
    for name in ("prompt_tokens", "output_tokens"):
        differing = (ours[name].to_numpy() != theirs[name].to_numpy()).nonzero()[0]
        if len(differing):
            at = int(differing[0])
            raise InputError(
                f"{served.name} is of another trace: request {at} has {theirs[name].iat[at]} {name}, and "
                f"{ours[name].iat[at]} in {trace.path or trace.name}"
            )
    return trace


def _answered(trace: Trace, theirs: pd.DataFrame, omitted: int) -> Trace:
    """The trace without the requests that the results leave out, where the others, in their order, are theirs."""
    lengths = ["prompt_tokens", "output_tokens"]
    if not omitted or len(trace) != len(theirs) + omitted:
        return trace
    wanted = theirs[lengths].to_numpy().tolist()
    kept = np.zeros(len(trace), bool)
    at = 0
    for row, pair in enumerate(trace.requests[lengths].to_numpy().tolist()):
        if at < len(wanted) and pair == wanted[at]:
            kept[row] = True
            at += 1
    if at < len(wanted):
        return trace
    return trace.edited(
        keep_rows(trace.requests, kept),
        f"{omitted} of its {len(trace)} requests are left out, as in the results: the others have their lengths.",
    )


def _requests(scenario: Scenario, served: Served) -> tuple[Trace, list[str]]:
    """(the requests, without regard to when they come; what to know about them)."""
    if scenario.workload.trace:
        trace = read_trace(TraceReading.of(scenario.workload))
        return (_same(trace, served), []) if served.complete else (trace, _unlike(trace, served))
    if served.trace is not None:
        return _repeated(served) if served.sampled else (served.trace, [])
    if served.lengths is not None and served.answered:
        trace = _drawn(served.lengths, _count(served), scenario.seed, served.name)
        return trace, ["The lengths are drawn anew, as the tool drew them.", *_unlike(trace, served)]
    raise InputError(f"{served.name} holds statistics and no requests: give what was sent as --trace{_hint(served)}")


def _hint(served: Served) -> str:
    prompt, output = served.mean_tokens
    means = ""
    if served.answered and not math.isnan(prompt + output):
        means = f" ({served.answered:,} requests of {prompt:,.1f} prompt and {output:,.1f} output tokens on average)"
    made = "; sim trace synth requests makes one of given lengths"
    return f"{means}{made}, and {served.more}" if served.more else f"{means}{made}"


def _repeated(served: Served) -> tuple[Trace, list[str]]:
    """The sample's requests, in turn, as many as there were."""
    assert served.trace is not None
    held, total = len(served.trace), _count(served)
    requests = served.trace.requests.iloc[np.arange(total) % held].reset_index(drop=True)
    note = f"The {held} requests of the sample are sent in turn, {total} in all: the lengths of the others are unknown."
    return served.trace.edited(requests, note), [note]


def _count(served: Served) -> int:
    """How many requests there were; raises InputError for more than a trace may have."""
    if served.answered > MAX_REQUESTS:
        raise InputError(
            f"{served.name} is of {served.answered:,} requests, and a trace has at most {MAX_REQUESTS:,}: give --trace"
        )
    return served.answered


def _drawn(lengths: RandomLengths, count: int, seed: int, name: str) -> Trace:
    rng = stream(seed, "lengths")
    prompt, output = (rng.integers(*bounds, size=count, endpoint=True) for bounds in (lengths.prompt, lengths.output))
    table = pd.DataFrame({"arrival_s": np.zeros(count), "prompt_tokens": prompt, "output_tokens": output})
    return replace(from_frame(table, name=name, kind="results"), has_arrivals=False)


def _unlike(trace: Trace, served: Served) -> list[str]:
    """How the trace differs from what the file says of its requests."""
    notes = []
    if served.answered and len(trace) != served.answered:
        notes.append(f"The trace has {len(trace):,} requests, and the results are of {served.answered:,}.")
    for name, theirs in zip(("prompt", "output"), served.mean_tokens, strict=True):
        ours = float(trace.requests[f"{name}_tokens"].mean())
        if theirs > 0 and abs(ours / theirs - 1) > NEAR:
            notes.append(f"The trace has {ours:,.1f} {name} tokens on average, and the results are of {theirs:,.1f}.")
    return notes


def _laid(trace: Trace, workload: WorkloadSettings, load: SentLoad, seed: int) -> tuple[Trace, WorkloadSettings, str]:
    """(the requests at their times, the load as settings, how it is known)."""
    if load.concurrency and (math.isinf(load.rate) or not load.rate):
        users = load.concurrency
        note = f"When each request came is not in the file: a closed loop of {users:,} is simulated, as was asked for."
        return trace, replace(workload, concurrency=users), note
    if math.isinf(load.rate):
        again = replace(workload, rate=math.inf)
        return timed(trace, again, seed), again, "All requests are sent at once, as was asked for."
    if not load.rate:
        if not trace.has_arrivals:
            raise InputError(
                f"{trace.path or trace.name} does not tell when requests came, nor at which rate or concurrency: give "
                "--rate, --concurrency, or a --trace with times"
            )
        return trace, workload, "The file does not tell when requests came: they come at the times of the trace."
    if not load.cv:
        times_s = np.arange(len(trace)) / load.rate
        note = f"The requests come evenly spaced, {load.rate:g} a second, as was asked for."
        return trace.edited(trace.requests.assign(arrival_s=times_s), note, has_arrivals=True), workload, note
    process, words = ("poisson", "Poisson") if load.cv == 1 else ("gamma", "gamma-distributed")
    again = replace(workload, rate=load.rate, arrivals=process, arrivals_cv=1.0 if load.cv == 1 else load.cv)
    return timed(trace, again, seed), again, (
        f"When each request came is not in the file: {words} arrivals at {load.rate:g} a second are drawn anew, as "
        "was asked for; other ones (--seed) give other numbers."
    )  # fmt: skip
