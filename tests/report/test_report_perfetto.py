"""The Perfetto trace: valid Trace Event JSON, balanced, monotone on every track, and true to the tables."""

from __future__ import annotations

import json
import tracemalloc
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_samples import Run, make_run

from sim import api
from sim.report.run import perfetto
from sim.results.percentiles import merge_itl
from traces.schema import InputError

Event = dict[str, Any]


@dataclass
class PreemptedRun(Run):
    """A made-up run that tells of preemptions."""

    preempted: pd.DataFrame | None = None


NEEDED = {
    "M": {"name": str, "pid": int, "tid": int, "args": dict},
    "X": {"name": str, "cat": str, "pid": int, "tid": int, "ts": float, "dur": float, "args": dict},
    "C": {"name": str, "pid": int, "ts": float, "args": dict},
    "b": {"name": str, "cat": str, "id": int, "pid": int, "tid": int, "ts": float},
    "e": {"name": str, "cat": str, "id": int, "pid": int, "tid": int, "ts": float},
    "i": {"name": str, "s": str, "pid": int, "tid": int, "ts": float},
}


def events(run: Run | api.Result, window: perfetto.Window | None = None) -> list[Event]:
    def constant(name: str) -> float:
        raise ValueError(f"{name} is not JSON")

    trace = json.loads("".join(perfetto.trace_json(run, window=window)), parse_constant=constant)
    assert set(trace) == {"displayTimeUnit", "otherData", "traceEvents"}
    return trace["traceEvents"]


def check(found: list[Event]) -> None:
    """Every law of the format that holds for any trace of ours."""
    for event in found:
        needed = NEEDED[event["ph"]]
        assert all(isinstance(event[key], kind) for key, kind in needed.items()), event
        assert event.get("ts", 0) >= 0
        assert event.get("dur", 0) >= 0
    last: dict[tuple[Any, ...], float] = defaultdict(float)
    open_names: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for event in found:
        kind = event["ph"]
        if kind == "X":
            track = ("X", event["pid"], event["tid"])
            assert round(event["ts"] * 1000) >= round(last[track] * 1000), "slices of one track overlap"
            last[track] = event["ts"] + event["dur"]
        elif kind in "be":
            track = (event["pid"], event["cat"], event["id"])
            assert event["ts"] >= last[track]
            last[track] = event["ts"]
            if kind == "b":
                open_names[track].append(event["name"])
            else:
                assert open_names[track].pop() == event["name"]
        elif kind == "C":
            track = ("C", event["pid"], event["name"])
            assert event["ts"] >= last[track]
            last[track] = event["ts"]
    assert not any(open_names.values()), "a slice was never closed"


@pytest.fixture(scope="module")
def run() -> Run:
    return make_run(150, rate=14.0, replicas=2)


def test_the_trace_is_valid_and_says_what_the_tables_say(run: Run) -> None:
    found = events(run)
    check(found)
    slices = [event for event in found if event["ph"] == "X"]
    assert len(slices) == len(run.steps)
    assert {event["name"] for event in slices} == {"prefill", "mixed", "decode"}
    assert sum(event["args"]["repeats"] for event in slices) == run.steps["repeats"].sum()
    assert sum(event["dur"] for event in slices) == pytest.approx(
        (run.steps["end_s"] - run.steps["start_s"]).sum() * 1e6
    )
    assert all((event["name"] == "prefill") == (event["args"]["decode_requests"] == 0) for event in slices)
    begun = {event["id"]: event for event in found if event["ph"] == "b" and event["name"] == "request"}
    ended = {event["id"]: event["ts"] for event in found if event["ph"] == "e" and event["name"] == "request"}
    done = run.requests[run.requests["status"] == "completed"].set_index("request")
    assert set(begun) == set(done.index)
    for index, row in done.iterrows():
        assert ended[index] - begun[index]["ts"] == pytest.approx(row["e2e_s"] * 1e6, abs=0.01)
        assert begun[index]["args"]["prompt_tokens"] == row["prompt_tokens"]
    assert [event["args"]["request"] for event in found if event["ph"] == "i"] == [149]
    names = [event["args"]["name"] for event in found if event["ph"] == "M"]
    assert names == ["requests", "replica 0", "steps", "replica 1", "steps"]


def test_counters_follow_the_tables(run: Run) -> None:
    found = [event for event in events(run) if event["ph"] == "C" and event["pid"] == perfetto.FIRST_REPLICA_PID]
    rows = run.steps[run.steps["replica"] == 0]
    used = [event["args"]["used"] for event in found if event["name"] == "KV tokens"]
    assert max(used) == rows["kv_used_tokens"].max()
    assert used[-1] == 0
    waiting = {event["args"]["waiting"] for event in found if event["name"] == "requests"}
    assert waiting == set(rows["waiting"]) | {0}


def test_every_kv_class_that_is_held_has_a_counter() -> None:
    run = make_run(40, rate=14.0)
    for place, name in enumerate(("shared", "reserved", "internal", "external"), 1):
        run.steps[f"kv_{name}_tokens"] = place
    found = [event["args"] for event in events(run) if event["ph"] == "C" and event["name"] == "KV tokens"]
    assert set(found[0]) == {"used", "shared", "reserved", "internal waste", "external waste"}
    assert list(found[0].values())[1:] == [1, 2, 3, 4]
    assert set(found[-1].values()) == {0}


def test_a_window_keeps_what_touches_it(run: Run) -> None:
    found = events(run, window=(2.0, 3.0))
    check(found)
    slices = [event for event in found if event["ph"] == "X"]
    rows = run.steps[(run.steps["start_s"] <= 3.0) & (run.steps["end_s"] >= 2.0)]
    assert len(slices) == len(rows) > 0
    alive = run.requests[(run.requests["arrival_s"] <= 3.0) & (run.requests["finish_s"] >= 2.0)]
    assert {event["id"] for event in found if event["ph"] == "b"} == set(alive["request"])
    check(events(run, window=(1e6, 2e6)))


def test_overlapping_batches_get_tracks_of_their_own() -> None:
    run = make_run(40, rate=14.0)
    run.steps.loc[1:, "start_s"] = run.steps["start_s"].to_numpy()[1:] - 0.002
    found = events(run)
    check(found)
    assert {event["tid"] for event in found if event["ph"] == "X"} == {1, 2}


def test_unfinished_and_never_arrived_requests() -> None:
    run = make_run(30, rate=14.0)
    nan = float("nan")
    stamps = ["first_scheduled_s", "first_token_s", "finish_s"]
    run.requests.loc[[5, 6, 7], "status"] = "unfinished"
    run.requests.loc[5, stamps] = nan
    run.requests.loc[6, stamps[2]] = nan
    run.requests.loc[7, ["arrival_s", *stamps]] = nan
    found = events(run)
    check(found)
    mine = {i: [event["name"] for event in found if event["ph"] == "b" and event["id"] == i] for i in (5, 6, 7)}
    assert mine == {5: ["request", "queued"], 6: ["request", "queued", "prefill", "decode"], 7: []}
    end_us = max(event["ts"] for event in found if event["ph"] == "e" and event["id"] == 5)
    assert end_us == pytest.approx(run.steps["end_s"].max() * 1e6)


def test_text_from_outside_is_escaped() -> None:
    run = make_run(20)
    run.requests.loc[19, "reason"] = 'a "quoted" \\ reason\n'
    instant = next(event for event in events(run) if event["ph"] == "i")
    assert instant["args"]["reason"] == 'a "quoted" \\ reason\n'


@pytest.mark.parametrize("count", [0, 1])
def test_nearly_nothing(count: int) -> None:
    check(events(make_run(count)))


def test_it_streams_in_chunks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = "".join(perfetto.trace_json(run))
    monkeypatch.setattr(perfetto, "CHUNK_ROWS", 7)
    pieces = list(perfetto.trace_json(run))
    assert "".join(pieces).replace(",\n", "\n") == whole.replace(",\n", "\n")
    assert max(map(len, pieces)) < len(whole) / 10


def test_neighbouring_steps_meet_exactly() -> None:
    """Times that are no whole nanoseconds must not make a slice begin before the last one ended."""
    rng = np.random.default_rng(3)
    run = make_run(60, rate=14.0)
    ends = np.cumsum(rng.random(len(run.steps)) * 1e-5)
    run.steps["start_s"], run.steps["end_s"] = np.concatenate([[0.0], ends[:-1]]), ends
    check(events(Run(run.requests[:0], pd.DataFrame(run.steps), merge_itl([]))))


@pytest.mark.parametrize("text", ["", "3", "5:2", "a:b", "1:2:3", "-1:4", "1:inf", "1:1"])
def test_a_wrong_window_is_refused(text: str) -> None:
    assert perfetto.parse_window("10:20.5") == (10.0, 20.5)
    with pytest.raises(InputError, match="START:END"):
        perfetto.parse_window(text)


@pytest.fixture(scope="module")
def real() -> api.Result:
    """A run of the simulator with two replicas, whose memory is so small that it preempts."""
    settings = {"kv.blocks": 250, "limit": 300, "rate": 80.0, "replicas": 2}
    return api.run(trace="chatbot_arena.jsonl", **settings)


def test_steps_have_their_terms(real: api.Result) -> None:
    found = events(real)
    check(found)
    slices = [event for event in found if event["ph"] == "X"]
    assert len(slices) == len(real.steps)
    for event in slices:
        args = event["args"]
        if args["repeats"] == 1:
            device_ms = sum(args["terms_ms"].values()) - args["terms_ms"]["host"]
            assert device_ms == pytest.approx(args["device_ms"], rel=1e-2)


def test_preemptions_are_slices_within_their_phases(real: api.Result) -> None:
    found = events(real)
    check(found)
    assert real.preempted is not None
    preempted = real.preempted.dropna()
    begun = [event["id"] for event in found if event["ph"] == "b" and event["name"] == "preempted"]
    assert set(begun) == set(preempted["request"])
    assert len(begun) >= len(preempted) > 10
    lasting_us: dict[int, float] = defaultdict(float)
    for event in found:
        if event.get("name") == "preempted":
            lasting_us[event["id"]] += event["ts"] if event["ph"] == "e" else -event["ts"]
    told = preempted.assign(lasted_s=preempted["end_s"] - preempted["start_s"]).groupby("request")["lasted_s"].sum()
    assert {request: value / 1e6 for request, value in lasting_us.items()} == pytest.approx(told.to_dict(), abs=1e-6)


@pytest.mark.parametrize(("status", "last"), [("completed", []), ("unfinished", ["preempted"])])
def test_a_preemption_is_cut_to_the_phases_that_it_falls_into(run: Run, status: str, last: list[str]) -> None:
    """The first spans the first token; the second never ends: at the last step of a request, or of the run."""
    row = run.requests.iloc[5]
    start_s, end_s = [row["first_token_s"] - 1e-3, row["finish_s"] - 1e-3], [row["first_token_s"] + 1e-3, float("nan")]
    gone = pd.DataFrame({"request": [5, 5], "sequence": [0, 0], "start_s": start_s, "end_s": end_s})
    mine = run.requests["request"] == 5
    table = run.requests.assign(preemptions=np.where(mine, 2, 0), status=run.requests["status"].where(~mine, status))
    found = events(PreemptedRun(table, run.steps, run.itl, run.summary, gone))
    check(found)
    names = [event["name"] for event in found if event["ph"] == "b" and event.get("id") == 5]
    assert names == ["request", "queued", "prefill", "preempted", "decode", "preempted", *last]


def test_of_very_many_spans_some_have_their_terms_and_the_file_says_so(
    real: api.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perfetto, "MOST_EXPLAINED", 50)
    trace = json.loads("".join(perfetto.trace_json(real)))
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    explained = [event for event in slices if "terms_ms" in event["args"]]
    assert 25 <= len(explained) <= 50
    assert trace["otherData"]["terms"].startswith(f"{len(explained)} of {len(slices)} spans")
    window = (real.steps["start_s"].iloc[100], real.steps["end_s"].iloc[110])
    cut = json.loads("".join(perfetto.trace_json(real, window=window)))
    assert all("terms_ms" in event["args"] for event in cut["traceEvents"] if event["ph"] == "X")


def test_memory_does_not_grow_with_the_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside some numbers for each row, no more than a chunk of the text is ever held."""
    monkeypatch.setattr(perfetto, "CHUNK_ROWS", 500)
    later = [
        run.steps.assign(start_s=run.steps["start_s"] + at, end_s=run.steps["end_s"] + at) for at in range(0, 4000, 100)
    ]
    requests = pd.concat([run.requests] * len(later), ignore_index=True)
    big = Run(requests, pd.concat(later, ignore_index=True), run.itl, run.summary)
    peaks, sizes = [], []
    for one in (run, big):
        tracemalloc.start()
        sizes.append(sum(map(len, perfetto.trace_json(one))))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    rows = len(big.requests) + len(big.steps)
    assert sizes[1] > 30 * sizes[0]
    assert peaks[1] < peaks[0] + 100 * rows < sizes[1] / 2
