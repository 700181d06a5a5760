"""Measuring collectives: which messages, by which processes, and what becomes of them where these fail or hang."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from bench_kit import LawBench
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S

from calibrate import collectives, run
from calibrate import device as devices
from calibrate import measure as measuring
from calibrate.cases import BETWEEN, GRID, cases
from calibrate.collectives import Gang, groups, nothing_to_measure, planned, reserved_s
from calibrate.journal import Journal, MessageTime, read
from calibrate.measure import ClockWatch
from calibrate.messages import LEAST_BYTES, VALUE, Message, messages
from calibrate.result import Calibration, fitted
from calibrate.roofline import fit_roofline
from calibrate.run import Job, Settings, journal_path, prepare
from sim.catalog import load_gpu
from sim.cost.collectives import Collectives
from sim.cost.efficiency import Efficiency
from sim.cost.profiled import Profiled
from sim.engine.batch import Shape
from sim.specs.parallel import Parallel
from traces.schema import InputError

H200 = devices.Target(torch.device("meta"), "h200", "NVIDIA H200")


@settings(max_examples=30)
@given(st.integers(2, 72), st.integers(1, 2**28), st.integers(0, 9))
def test_messages_reach_from_the_least_to_the_most_and_are_told_apart(gpus: int, most: int, seed: int) -> None:
    every = messages(gpus, most, seed)
    assert len(set(every)) == len(every)
    for op in VALUE:
        grid = sorted(one.bytes for one in every if one.op == op and one.role == GRID)
        assert grid[0] <= LEAST_BYTES + 8 * gpus
        assert grid[-1] >= max(most, 2 * LEAST_BYTES) - 8 * gpus
        assert all(large <= 2 * small + 8 * gpus for small, large in pairwise(grid))
        between = {one.bytes for one in every if one.op == op and one.role == BETWEEN}
        assert not between & set(grid)
        assert all(grid[0] <= size <= grid[-1] for size in between)
    assert all(one.bytes % (4 * gpus) == 0 for one in every)
    assert every[0].op == "all_reduce", "what a replica does twice a layer comes first"


@pytest.mark.parametrize(
    ("asked", "here", "on_cpu", "found"),
    [
        (None, 8, False, (8, 4, 2)),
        (None, 6, False, (6, 3)),
        (None, 1, False, ()),
        (None, 0, False, ()),
        ("8", 0, False, (8,)),
        (None, 2, True, ()),
        ("2", 1, True, (2,)),
        ("2, 4,2", 8, False, (4, 2)),
        ("none", 8, False, ()),
        ("4", 1, False, "--collectives 4: a group of 4 is asked for, and 1 GPU is here"),
        ("9", 1, True, "on a CPU at most 8 processes"),
        ("1", 8, False, "must be numbers of GPUs from 2 on"),
        ("2,x", 8, False, "must be numbers of GPUs from 2 on"),
    ],
)
def test_groups_are_those_that_are_here(asked: str | None, here: int, on_cpu: bool, found: object) -> None:
    if isinstance(found, str):
        with pytest.raises(InputError, match=found):
            groups(asked, here, on_cpu=on_cpu)
        return
    assert groups(asked, here, on_cpu=on_cpu) == found
    alone = (asked, here, on_cpu) == (None, 1, False)
    assert bool(nothing_to_measure(asked, here, on_cpu=on_cpu)) == alone


def test_two_processes_measure_with_each_other() -> None:
    wanted = [Message(op, 2, size) for op in VALUE for size in (1024, 65536)]
    told = list(Gang().times("cpu", wanted, PATIENCE_S))
    assert [one.message for one in told] == wanted
    assert all(min(one.us) > 0.0 and len(one.us) > 2 and not one.waited for one in told)


SCRIPT = """
import json, sys, time
told = json.load(sys.stdin)
if told["rank"] == 0:
    for one in told["messages"][:3]:
        print(json.dumps({**one, "us": [5.0, 6.0], "waited": False}), flush=True)
if told["rank"] == AT:
    DO
time.sleep(60)
"""


def gang(at: int, what: str) -> Gang:
    return Gang((sys.executable, "-c", SCRIPT.replace("AT", str(at)).replace("DO", what)))


@pytest.mark.parametrize("at", [0, 1])
def test_a_process_that_fails_is_told_and_what_was_known_is_kept(at: int) -> None:
    times, told = gang(at, "raise RuntimeError('the link is down')").times("cpu", messages(2, 4096, 0), PATIENCE_S), []
    with pytest.raises(RuntimeError, match=f"process {at} of 2: RuntimeError: the link is down"):
        told.extend(times)
    if at == 0:
        assert len(told) == 3


def test_processes_that_hang_are_stopped_in_time() -> None:
    began_s = time.monotonic()
    told = list(gang(0, "time.sleep(50)").times("cpu", messages(2, 4096, 0), 3.0))
    assert len(told) <= 3
    assert time.monotonic() - began_s < 30.0


# ---- from messages to prices ---------------------------------------------------------------------------------------

FLOOR_S, BYTES_PER_S = 8e-6, 300e9
TIMES = {"all_reduce": 2.0, "all_gather": 1.2, "all_to_all": 0.9, "reduce_scatter": 1.5}


def law_us(one: Message) -> float:
    return 1e6 * (FLOOR_S * (1 + one.gpus / 8) + one.bytes / BYTES_PER_S * TIMES[one.op])


class LawGang(Gang):
    """Processes of a known law, that are cut after so many messages of each group."""

    most = 10**6

    def times(self, device: str, wanted: Sequence[Message], seconds: float) -> Iterator[MessageTime]:
        assert device == "cuda"
        for one in wanted[: self.most]:
            yield MessageTime(one, (law_us(one),) * 3, waited=one.bytes == wanted[0].bytes and one.op == "all_to_all")


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(measuring, "SHORT_REPEATS", 1)
    monkeypatch.setattr(measuring, "SUSTAINED_S", 0.0)
    monkeypatch.setattr(devices, "telemetry", lambda _goal: {"hw_slowdown": 0.0})
    monkeypatch.setattr(devices, "others", lambda _goal: "")
    monkeypatch.setattr(devices, "count", lambda _goal: 4)
    monkeypatch.setattr(collectives, "Gang", LawGang)
    made = prepare(Settings(gpu="h200", budget_s=1e6, tokens=512, rows=4, context=1024), H200)
    density = replace(made.density, passes=1, repeats=1, ratio=8, random=4)
    one = {name: replace(sub, cases=cases(made.limits, density, 0)) for name, sub in made.subjects.items()}
    return replace(made, density=density, subjects=one)


def calibrated(job: Job, out: Path, *, resume: bool = False) -> Calibration:
    return run.calibrate(
        job, lambda spec, _limits: LawBench(spec), out, name="law", date="2026-01-01", resume=resume,
        progress=lambda _what, _done, _total: None,
    )  # fmt: skip


def test_measured_collectives_price_a_replica_of_several_gpus(job: Job, tmp_path: Path) -> None:
    made = calibrated(job, tmp_path / "p").profile
    header = read(journal_path(tmp_path / "p")).header
    assert header.groups == job.groups == (4, 2)
    assert made.meta.accuracy["all_reduce"].mean < 0.05
    assert made.meta.accuracy["all_reduce"].how.startswith("points measured between")
    rows = list(made.tables["all_reduce"].rows())
    assert len({(row["op"], row["gpus"]) for row in rows}) == 2 * len(VALUE)
    assert any("the device waited for their launch" in note and "all_to_all" in note for note in made.meta.notes)
    spec = next(iter(job.subjects.values())).spec
    cost = Profiled(spec, made.gpu(), made, parallel=Parallel(4), cuda_graphs=False)
    for tokens in (1, 37, 512):
        term = cost.explain(Shape(decodes=tokens, decode_context=tokens * 100))["all-reduce"]
        size = tokens * spec.hidden * spec.element_bytes
        assert term.source in ("measured", "interpolated")
        assert term.seconds == pytest.approx(2 * spec.layers * 1e-6 * law_us(Message("all_reduce", 4, size)), rel=0.1)


def test_they_become_constants_of_the_roofline(job: Job, tmp_path: Path) -> None:
    made = calibrated(job, tmp_path / "p").profile
    table = tmp_path / "all_reduce.csv"
    table.write_text(made.tables["all_reduce"].csv())
    constants = tmp_path / "mine.toml"
    constants.write_text(fit_roofline([table], "h200", "2026-01-01").text)
    gpu = load_gpu("h200")
    priced = Collectives(gpu, Efficiency.of(gpu, fit=str(constants)))
    for count, size in ((2, 8192), (4, 2**20)):
        for op, seconds in (
            ("all_reduce", priced.all_reduce_s(size, count)),
            ("all_gather", priced.gather_s(size, count)),
            ("reduce_scatter", priced.scatter_s(size, count)),
            ("all_to_all", priced.all_to_all_s(size, count, 1.0, 1.0)),
        ):
            assert 1e6 * seconds == pytest.approx(law_us(Message(op, count, size)), rel=1e-3), op


def test_what_was_not_measured_is_told_and_goes_on(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, whole = tmp_path / "p", calibrated(job, tmp_path / "whole").profile
    monkeypatch.setattr(LawGang, "most", 20)
    cut = calibrated(job, out).profile
    told = read(journal_path(out))
    every = len(planned(told.header)[4])
    assert f"collectives over 4: 20 of {every} messages were measured" in cut.meta.notes
    assert (
        cut.meta.notes == fitted(told.header, told.entries, told.troubles, told.messages, name="x").profile.meta.notes
    )
    monkeypatch.setattr(LawGang, "most", 10**6)
    again = calibrated(job, out, resume=True).profile
    times = read(journal_path(out)).messages
    assert len({one.message for one in times}) == len(times)
    assert again.tables["all_reduce"].csv() == whole.tables["all_reduce"].csv()
    assert again.meta.notes == whole.meta.notes


def test_a_group_that_fails_is_told_and_the_others_measured(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Torn(LawGang):
        def times(self, device: str, wanted: Sequence[Message], seconds: float) -> Iterator[MessageTime]:
            yield from super().times(device, wanted[:5], seconds)
            if wanted[0].gpus == 4:
                raise RuntimeError("process 3 of 4: the link is down")

    monkeypatch.setattr(collectives, "Gang", Torn)
    made = calibrated(job, tmp_path / "p").profile
    assert "collectives, over 4: failed: process 3 of 4: the link is down" in made.meta.notes
    counts = [row["gpus"] for row in made.tables["all_reduce"].rows()]
    assert set(counts) == {2, 4}


def test_a_journal_of_before_and_a_bad_line(job: Job, tmp_path: Path) -> None:
    calibrated(job, tmp_path / "p")
    path = journal_path(tmp_path / "p")
    lines = path.read_text().splitlines(keepends=True)
    head = json.loads(lines[0])
    del head["calibration"]["groups"]
    path.write_text(json.dumps(head) + "\n" + "".join(line for line in lines[1:] if '"collective"' not in line))
    assert read(path).header.groups == ()
    bad = json.loads(next(line for line in lines if '"collective"' in line))
    bad["collective"]["message"]["op"] = "broadcast"
    path.write_text(lines[0] + json.dumps(bad) + "\n")
    with pytest.raises(InputError, match=":2: not a line of a calibration's journal"):
        read(path)


def test_without_time_nothing_is_asked_of_them(job: Job, tmp_path: Path) -> None:
    class Never(Gang):
        def times(self, device: str, wanted: Sequence[Message], seconds: float) -> Iterator[MessageTime]:
            raise AssertionError("no time is left")

    calibrated(job, tmp_path / "p")
    header = read(journal_path(tmp_path / "p")).header
    journal = Journal(tmp_path / "late.jsonl", header, resume=False)
    late_s = time.monotonic() - 1.0
    collectives.measure(header, journal, Never(), late_s, ClockWatch(dict), lambda *_: None)
    assert journal.messages == []


def test_time_is_kept_for_them() -> None:
    assert reserved_s(300.0, ()) == 0.0
    assert reserved_s(300.0, (4, 2)) == 65.0
    assert reserved_s(20.0, (8, 4, 2)) == 10.0
