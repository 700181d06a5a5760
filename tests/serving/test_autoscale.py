"""Autoscaling: looks by hand, the delay, the cool-down, the bill of a fleet as it was, and a day that shows it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from sim import api
from sim.cli.main import cli
from sim.report.run.operations import operation_lines, operation_panels
from sim.results.presence import ABSENT, DIES, DOWN, DRAINS, ORDERED, SERVES, STOPS, present
from sim.serving.autoscale import Autoscaler
from sim.serving.clock import Clock
from sim.serving.lifecycle import Lifecycle, Member
from sim.specs.operations import AutoscaleSettings
from traces.schema import InputError

LOAD: dict[str, Any] = {"workload.trace": "chatbot_arena.jsonl", "workload.limit": 180, "workload.rate": 30.0}
SCALE: dict[str, Any] = {
    "metric": "outstanding",
    "target": 20.0,
    "max": 5,
    "interval_s": 1.0,
    "delay_s": 2.0,
    "cooldown_s": 4.0,
}


def scaled(**more: Any) -> dict[str, Any]:
    return {f"autoscale.{key}": value for key, value in (SCALE | more).items()}


class Seen:
    """A replica behind a router, made up: as many requests are there as the test says."""

    def __init__(self) -> None:
        self.outstanding = 0
        self.sent = 0


class Servers:
    """A cluster, made up."""

    def __init__(self, count: int) -> None:
        self.seen = [Seen() for _ in range(count)]
        self.held: list[object] = []
        self.out: set[int] = set()

    def snapshot(self, place: int) -> Seen:
        return self.seen[place]

    def take_out(self, place: int) -> None:
        self.out.add(place)

    def put_back(self, place: int) -> None:
        self.out.discard(place)


class Renewed:
    moving = 0

    def renew(self, engine: object) -> None:
        pass


def looks(whole: list[int], **more: Any) -> tuple[list[list[str]], list[tuple[float, int, str]]]:
    """The states of the replicas before each look, of whom the first has so many unfinished requests; the events."""
    settings = AutoscaleSettings(**{**SCALE, **more})
    clock, servers = Clock(), Servers(settings.max)
    members = [Member(Renewed(), servers, place, object) for place in range(settings.max)]  # type: ignore[arg-type]
    lifecycle = Lifecycle(clock, members)
    states: list[list[str]] = []
    end_s = len(whole) * settings.interval_s
    for number, requests in enumerate(whole):

        def told(event: object, requests: int = requests) -> None:
            states.append([member.state for member in members])
            servers.seen[0].outstanding = requests

        clock.call_at((number + 0.9) * settings.interval_s, told)
    Autoscaler(clock, settings, range(settings.max), 1, lifecycle, lambda: clock.now > end_s + 0.5)
    clock.run_out()
    events = lifecycle.events().query("time_s > 0")
    return states, list(events.itertuples(index=False, name=None))


def test_replicas_are_ordered_and_serve_after_the_delay_by_hand() -> None:
    states, events = looks([41, 41, 41, 41])
    assert states == [
        [SERVES, ABSENT, ABSENT, ABSENT, ABSENT],
        [SERVES, DOWN, DOWN, ABSENT, ABSENT],
        [SERVES, DOWN, DOWN, ABSENT, ABSENT],
        [SERVES, SERVES, SERVES, ABSENT, ABSENT],
    ]
    assert events == [(1.0, 1, ORDERED), (1.0, 2, ORDERED), (3.0, 1, SERVES), (3.0, 2, SERVES)]


def test_no_more_than_the_most_and_nothing_within_the_tolerance() -> None:
    assert looks([1000] * 3)[0][-1] == [SERVES] + [DOWN] * 4
    assert looks([21] * 3)[1] == []
    assert looks([21] * 3, tolerance=0.04)[1] == [(1.0, 1, ORDERED), (3.0, 1, SERVES)]


def test_replicas_go_when_no_look_of_the_cool_down_wanted_them() -> None:
    _, events = looks([60, 60, 60, 30, 30, 5, 5, 5, 5, 5])
    gone = [(time_s, replica) for time_s, replica, event in events if event == DRAINS]
    # Three are wanted at the looks of 1 to 3 s and two at 4 and 5 s, after which four seconds pass each time.
    assert gone == [(8.0, 2), (10.0, 1)]
    assert [event for _, replica, event in events if replica == 2] == [ORDERED, SERVES, DRAINS, STOPS, ABSENT]


def test_who_does_not_serve_yet_is_released_first() -> None:
    _, events = looks([60, 5, 5, 5], delay_s=100.0, cooldown_s=0.0)
    assert events == [(1.0, 1, ORDERED), (1.0, 2, ORDERED), (2.0, 2, ABSENT), (2.0, 1, ABSENT)]


def test_an_order_that_was_taken_back_lets_nobody_serve() -> None:
    _, events = looks([40, 5, 40, 40, 40, 40], delay_s=2.5, cooldown_s=0.0)
    assert events == [(1.0, 1, ORDERED), (2.0, 1, ABSENT), (3.0, 1, ORDERED), (5.5, 1, SERVES)]


def test_the_bill_follows_the_fleet_as_it_was() -> None:
    ran = api.run(**LOAD, **scaled(), **{"price.usd_per_gpu_hour": 3600.0})
    told, bill = ran.summary["scaling"]["all"], ran.summary["bill"]
    assert ran.events is not None
    begin_s = ran.requests["arrival_s"].min()
    end_s = begin_s + ran.summary["duration_s"]
    paid_s, since_s = 0.0, {0: begin_s}
    for time_s, replica, event in ran.events.itertuples(index=False, name=None):
        if event == ORDERED:
            since_s[replica] = time_s
        if event == ABSENT and time_s > 0:
            paid_s += time_s - since_s.pop(replica)
    paid_s += sum(end_s - time_s for time_s in since_s.values())
    assert bill["usd"] == pytest.approx(paid_s)
    assert told["gpu_hours"] == pytest.approx(paid_s / 3600)
    assert told["mean_replicas"] == bill["gpus"] == pytest.approx(paid_s / ran.summary["duration_s"])
    assert 1 < told["mean_replicas"] < told["most_replicas"] <= 5
    assert told["ordered"] == (ran.events["event"] == ORDERED).sum()
    served = present(ran.events, 5, begin_s, "paid")
    ends_s = np.where(np.isnan(served.end_s), end_s, served.end_s)
    assert (ends_s - served.start_s).sum() == pytest.approx(paid_s)
    assert (present(ran.events, 5, begin_s, "serving").start_s >= begin_s).all()
    lines = dict(operation_lines(ran.summary))
    assert f"{told['ordered']} ordered, {told['released']} released" in lines["Scaling"]
    assert [title for title, _ in operation_panels(ran.summary)] == ["Scaling"]


def test_a_fleet_that_may_not_change_is_as_one_that_cannot() -> None:
    plain = api.run(**LOAD, replicas=2)
    fixed = api.run(**LOAD, replicas=2, **scaled(min=2, max=2))
    assert fixed.requests.drop(columns="resent").equals(plain.requests)
    assert fixed.steps.equals(plain.steps)
    assert fixed.summary["bill"]["usd"] == pytest.approx(plain.summary["bill"]["usd"])
    assert fixed.summary["kv"]["peak_used"] == plain.summary["kv"]["peak_used"]
    assert fixed.summary["binding"]["by"] == plain.summary["binding"]["by"]
    assert fixed.summary["kv"]["mean_used"] == pytest.approx(plain.summary["kv"]["mean_used"])


@pytest.mark.parametrize(("metric", "target"), [("queue", 1.0), ("kv", 0.002), ("rate", 10.0), ("outstanding", 15.0)])
def test_each_metric_gets_replicas_where_there_is_much_to_do(metric: str, target: float) -> None:
    load = {**LOAD, "workload.rate": 60.0, "engine.max_num_seqs": 24}
    ran = api.run(**load, **scaled(metric=metric, target=target, delay_s=0.5))
    assert ran.summary["requests"]["completed"] == 180
    assert ran.summary["scaling"]["all"]["most_replicas"] > 1
    assert ran.requests["replica"].nunique() > 1


def test_a_pool_scales_beside_one_that_does_not() -> None:
    pools = {f"pools.a.{key}": value for key, value in scaled().items()} | {"pools.b.gpu": "a100-80"}
    ran = api.run(**LOAD, **pools)
    own = ran.summary["pools"]
    assert list(ran.summary["scaling"]) == ["a"]
    assert sum(pool["bill"]["usd"] for pool in own.values()) == pytest.approx(ran.summary["bill"]["usd"])
    assert own["b"]["bill"]["gpus"] == 1
    again = api.run(**LOAD, **{key.replace("pools.a", "pools.z"): value for key, value in pools.items()})
    assert again.requests.equals(ran.requests)


def test_prefill_and_decode_pools_scale_each_by_itself() -> None:
    scale = SCALE | {"delay_s": 0.5, "cooldown_s": 1.0, "interval_s": 0.5}
    prefill = {f"pools.p.autoscale.{key}": value for key, value in (scale | {"metric": "rate", "target": 8.0}).items()}
    decode = {f"pools.d.autoscale.{key}": value for key, value in (scale | {"target": 8.0}).items()}
    stages = [{"rate": rate, "duration_s": 5.0} for rate in (5.0, 30.0, 5.0, 5.0)]
    load = {"workload.trace": "chatbot_arena.jsonl", "workload.stages": stages, "transfer.gb_per_s": 0.5}
    ran = api.run(**load, **prefill, **decode, **{"pools.p.role": "prefill", "pools.d.role": "decode"})
    assert ran.summary["requests"]["unfinished"] == ran.summary["requests"]["rejected"] == 0
    told, events = ran.summary["scaling"], ran.events
    assert all(told[name]["most_replicas"] > 1 and told[name]["released"] > 0 for name in "pd")
    assert events is not None
    assert ran.transfers is not None
    # A replica that drains is not gone before the last KV has left it, or has come and been decoded there.
    for replica in events["replica"][events["event"] == STOPS].unique():
        own = events[events["replica"] == replica]
        drains_s, stops_s = (own["time_s"][own["event"] == event].to_numpy() for event in (DRAINS, STOPS))
        for begin_s, end_s in zip(drains_s, stops_s, strict=False):
            for side in ("source", "target"):
                moved = ran.transfers[ran.transfers[side] == replica]
                assert not ((moved["asked_s"] > begin_s) & (moved["asked_s"] < end_s) & (side == "target")).any()
                assert not ((moved["asked_s"] < begin_s) & (moved["landed_s"] > end_s)).any()
    counts = ran.itl[1]
    assert counts.sum() == (ran.requests["output_tokens"] - 1).sum()


def test_behind_front_ends_everybody_is_answered(tmp_path: Path) -> None:
    ran = api.run(**LOAD, **scaled(), **{"front_end.name": "vllm-0.33"})
    assert ran.summary["requests"]["completed"] == 180
    assert ran.summary["scaling"]["all"]["ordered"] > 0


def test_pages_and_tables_tell_what_became_of_replicas(tmp_path: Path) -> None:
    settings = [f"--set={key}={value}" for key, value in (scaled() | {"failures.mtbf_s": 5.0}).items()]
    asked = ["--trace", "chatbot_arena.jsonl", "--limit", "200", "--rate", "30", "--perfetto"]
    outcome = CliRunner().invoke(cli, ["run", *asked, *settings, "--out", str(tmp_path / "out")])
    assert outcome.exit_code == 0, outcome.output
    assert "h100 (TP 1, 1 to 5 replicas by outstanding)" in " ".join(outcome.output.split())
    events = pd.read_parquet(tmp_path / "out" / "events.parquet")
    assert DIES in set(events["event"])
    lanes = json.loads((tmp_path / "out" / "trace.perfetto.json").read_text())["traceEvents"]
    told = [(one["pid"] - 2, one["name"]) for one in lanes if one.get("cat") == "replica"]
    assert told == list(events[["replica", "event"]].itertuples(index=False, name=None))
    named = {one["pid"] for one in lanes if one["name"] == "process_name"}
    assert {replica + 2 for replica in events["replica"]} <= named
    page = (tmp_path / "out" / "report.html").read_text()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    mean = summary["scaling"]["all"]["mean_replicas"]
    assert f"of {mean:,.2f} that were paid for; one died" in page
    assert "Requests by replica" in page
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    assert CliRunner().invoke(cli, ["report", str(tmp_path / "copy")]).exit_code == 0
    assert (tmp_path / "copy" / "report.html").read_text() == page


def test_a_day_and_a_night_are_cheaper_than_the_day_all_along() -> None:
    """Two days of a sine in 120 s: the fleet follows, with nearly the latency of as many as it had at the most."""
    stages = [{"rate": 12.0 + 10.0 * math.sin(2 * math.pi * (at + 0.5) / 12), "duration_s": 5.0} for at in range(24)]
    load = {"workload.trace": "chatbot_arena.jsonl", "workload.stages": stages, "engine.max_num_seqs": 64}
    ran = api.run(**load, **scaled(metric="rate", target=6.0, interval_s=2.5, delay_s=1.0, cooldown_s=5.0), replicas=3)
    told = ran.summary["scaling"]["all"]
    most = api.run(**load, replicas=told["most_replicas"])
    assert ran.summary["bill"]["usd"] < 0.8 * most.summary["bill"]["usd"]
    assert ran.summary["ttft_s"]["p50"] < 1.2 * most.summary["ttft_s"]["p50"]
    assert ran.events is not None
    sizes = ran.events["event"].map({ORDERED: 1, ABSENT: -1}).fillna(0).cumsum()
    at_s = np.arange(0.25, 120.0, 0.5)
    size = 5 + np.array([sizes[ran.events["time_s"] <= time_s].iloc[-1:].sum() for time_s in at_s])
    day = at_s % 60.0 < 30.0  # the half in which the sine is high
    assert size[day].mean() > 1.4 * size[~day].mean()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (scaled(min=4, max=3), "autoscale.min is 4, and autoscale.max is 3: it must be at least that"),
        (scaled(target=0.0), "autoscale.target is not set: how much outstanding a replica is to have"),
        (scaled(metric="kv", target=20.0), "autoscale.target is 20, and kv is a share of the KV blocks, at most 1"),
        (scaled(min=2), "replicas is 1, with how many it begins, and autoscale lets it have 2 to 5"),
        (scaled(metric="load"), "autoscale.metric is 'load'; known: off, queue, kv, rate, outstanding"),
        (scaled() | {"policy.name": "speculative"}, "policy.name is speculative, and autoscale beside drafts"),
        ({"pools.a.autoscale.max": 3}, "pools.a.autoscale.max is 3, and it is read only where"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as told:
        api.run(**LOAD, **settings)
    assert words in str(told.value)
