"""What a calibration comes to that is cut, faulted or measured badly: all that was right is used, the rest is told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_kit import LawBench
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE_S

from calibrate import device as devices
from calibrate import measure as measuring
from calibrate.cases import BETWEEN, DENSITIES, GRID, STEPS, Case, Range, cases
from calibrate.cli import cli
from calibrate.harness import middle_run
from calibrate.journal import Begun, read
from calibrate.measure import MOST_FAILURES, CasePlan, Reading, Sample, schedule
from calibrate.order import VALUE, by_value, family
from calibrate.result import Calibration, fitted
from calibrate.run import Job, Settings, calibrate, journal_path, prepare
from calibrate.timed import FIRST_HOLD_S, HOLD_MARGIN_S, MOST_BOOST, REMEMBERED, Holds
from sim.cost.profile import find, write
from sim.cost.profiled import Profiled
from sim.engine.batch import Shape
from sim.specs.model import ModelSpec
from traces.schema import InputError

H200 = devices.Target(torch.device("meta"), "h200", "NVIDIA H200")
LIMITS = Range(8192, 256, 32_768, 800_000)
CALM = {"sm_mhz": 1980.0, "watts": 400.0, "hw_slowdown": 0.0, "thermal_slowdown": 0.0}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law answers at once; asked for as long as a GPU it would be asked a million times."""
    monkeypatch.setattr(measuring, "SHORT_REPEATS", 1)
    monkeypatch.setattr(measuring, "SUSTAINED_S", 0.0)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What nvidia-smi tells, asked anew after every case."""
    told = dict(CALM)
    monkeypatch.setattr(devices, "telemetry", lambda _goal: dict(told))
    monkeypatch.setattr(devices, "others", lambda _goal: "")
    monkeypatch.setattr(measuring, "CLOCKS_S", -1.0)
    return told


def job(**changed: Any) -> Job:
    made = prepare(Settings(gpu="h200", budget_s=40, tokens=2048, rows=16, context=4096, **changed), H200)
    density = replace(made.density, passes=2, repeats=1, ratio=8, random=8)
    one = {name: replace(sub, cases=cases(made.limits, density, 0)) for name, sub in made.subjects.items()}
    return replace(made, density=density, subjects=one, settings=replace(made.settings, budget_s=1e6))


def run(out: Path, bench: Callable[[Any], Any] = LawBench, made: Job | None = None) -> Calibration:
    return calibrate(
        made or job(),
        lambda spec, _limits: bench(spec),
        out,
        name="law",
        date="2026-01-01",
        resume=False,
        progress=lambda _what, _done, _total: None,
    )


def begun(out: Path) -> Begun:
    return read(journal_path(out))


# ---- a journal that is cut -----------------------------------------------------------------------------------------


def test_a_journal_cut_anywhere_is_fitted_and_tells_what_it_lacks(tmp_path: Path, clocks: dict[str, float]) -> None:
    whole = run(tmp_path / "p")
    assert whole.profile.meta.notes == ()
    told, model = begun(tmp_path / "p"), next(iter(job().subjects.values())).spec
    shape = Shape(decodes=4, decode_context=4 * 300, decode_longest=300)
    for cut in (1, 2, 3, 5, 9, 17, 30, len(told.entries) // 2, len(told.entries) - 1):
        partial = fitted(told.header, told.entries[:cut], name="cut").profile
        assert any("passes are whole" in note for note in partial.meta.notes), cut
        write(partial, tmp_path / f"cut{cut}")
        cost = Profiled(model, partial.gpu(), find(str(tmp_path / f"cut{cut}")))
        assert sum(cost.span_s(shape, 1)[0]) > 0.0
    again = fitted(told.header, told.entries, told.troubles, name="law").profile
    assert again.meta == whole.profile.meta
    assert {name: one.csv() for name, one in again.tables.items()} == {
        name: one.csv() for name, one in whole.profile.tables.items()
    }


def test_fitting_needs_no_torch_and_no_device(tmp_path: Path, clocks: dict[str, float]) -> None:
    run(tmp_path / "p")
    journal = journal_path(tmp_path / "p")
    journal.write_bytes(journal.read_bytes()[:-40])  # killed in the middle of a line
    code = "import sys; sys.modules['torch'] = sys.modules['backend'] = None; from calibrate.cli import main; main()"
    args = [sys.executable, "-c", code, "fit", str(journal), "--out", str(tmp_path / "home"), "--json"]
    done = subprocess.run(args, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["device"] == "NVIDIA H200"
    made = find(str(tmp_path / "home"))
    assert (made.meta.gpu, made.meta.name, made.meta.date) == ("h200", "home", "2026-01-01")
    assert journal.exists()


def test_bad_journals_are_one_sentence(tmp_path: Path, clocks: dict[str, float]) -> None:
    run(tmp_path / "p")
    journal = journal_path(tmp_path / "p")
    lines = journal.read_text().splitlines(keepends=True)

    def refused(text: str, *more: str) -> str:
        journal.write_text(text)
        done = CliRunner().invoke(cli, ["fit", str(journal), "--out", str(tmp_path / "q"), *more])
        assert isinstance(done.exception, InputError), done.output
        assert not (tmp_path / "q").exists()
        return str(done.exception)

    assert "nothing was measured that a profile could be made of" in refused(lines[0])
    assert "not a journal of a calibration" in refused("")
    assert "begins with no header of a calibration" in refused('{"calibration": {"gpu": "h200"}}\n')
    assert ":2: not a line of a calibration's journal" in refused(lines[0] + '{"model": 3}\n')
    assert "names model 'another', and its header does not" in refused(
        lines[0] + lines[1].replace('"llama-3.1-8b, bf16"', '"another"')
    )
    assert "'odd' is the name of no case" in refused(lines[0] + _case_named(lines[1], "odd"))
    assert "'role prefill - decode -' is the name" in refused(
        lines[0] + _case_named(lines[1], "role prefill - decode -")
    )
    header = json.loads(lines[0])
    header["calibration"]["limits"] = {"miles": 3}
    assert "limits, density, specs or groups of its header are of another form" in refused(json.dumps(header) + "\n")
    journal.write_text("".join(lines))
    (tmp_path / "q").mkdir()
    done = CliRunner().invoke(cli, ["fit", str(journal), "--out", str(tmp_path / "q")])
    assert "q is there already; remove it, give another --out, or --replace it" in str(done.exception)
    assert list((tmp_path / "q").iterdir()) == []


def _case_named(line: str, name: str) -> str:
    return json.dumps({**json.loads(line), "case": name}) + "\n"


# ---- what cannot be right ------------------------------------------------------------------------------------------


def test_rows_faster_than_the_sheet_are_left_out_and_listed(tmp_path: Path, clocks: dict[str, float]) -> None:
    def spoil(table: str, row: dict[str, object]) -> float:
        return 1e-4 if table == "gemm" and (row["n"], row["tokens"]) == (4096, 64) else 1.0

    sound = run(tmp_path / "sound").profile
    made = run(tmp_path / "p", lambda spec: LawBench(spec, spoil=spoil)).profile
    gone = {row["tokens"] for row in sound.tables["gemm"].rows()} - {
        row["tokens"] for row in made.tables["gemm"].rows() if row["n"] == 4096
    }
    assert 64 in gone
    notes = [note for note in made.meta.notes if "faster than the data sheet" in note]
    assert notes
    assert all(note.startswith("left out of gemm") and "n 4096, tokens 64" in note for note in notes)
    write(made, tmp_path / "q")
    assert find(str(tmp_path / "q")).meta.notes == made.meta.notes


def test_what_took_no_time_is_left_out_and_listed(tmp_path: Path, clocks: dict[str, float]) -> None:
    made = run(
        tmp_path / "p", lambda spec: LawBench(spec, spoil=lambda table, _row: float(table != "sampling"))
    ).profile
    assert "sampling" not in made.tables
    assert any("left out of sampling, took no time at all: " in note for note in made.meta.notes)


def test_what_was_measured_while_throttled_is_left_out(tmp_path: Path, clocks: dict[str, float]) -> None:
    class Hot(LawBench):
        @contextmanager
        def prepared(self, case: Case, number: int, *, timed: bool) -> Iterator[Callable[[], Sample]]:
            clocks["thermal_slowdown"] = float(len(case.decodes) == 16)
            with super().prepared(case, number, timed=timed) as measure:
                yield measure

    made = run(tmp_path / "p", Hot).profile
    rows = {row["sequences"] for row in made.tables["decode_attention"].rows()}
    assert 8 in rows
    assert 16 not in rows
    assert any("slowed itself down" in note and "sequences 16" in note for note in made.meta.notes)
    told = begun(tmp_path / "p")
    kept = fitted(told.header, told.entries, name="kept", keep=("throttled",)).profile
    assert 16 in {row["sequences"] for row in kept.tables["decode_attention"].rows()}


def test_nothing_sound_at_all_says_why(tmp_path: Path, clocks: dict[str, float]) -> None:
    clocks["hw_slowdown"] = 1.0
    with pytest.raises(InputError, match=r"nothing was measured that a profile could be made of: .*slowed itself down"):
        run(tmp_path / "p")
    assert journal_path(tmp_path / "p").exists()


class Late(LawBench):
    """The device waits in every layer for norms, in some for matrices, and takes long then."""

    def _readings(self, case: Case, rng: Any) -> Iterator[Reading]:
        for number, one in enumerate(super()._readings(case, rng)):
            norm = dict(one.operation.row).get("op") == "norm"
            waited = norm or (one.operation.table == "gemm" and number % 9 < 3)
            yield one._replace(waited=waited, seconds=one.seconds * (3.0 if waited else 1.0))


def test_times_with_launches_in_them_are_left_out(tmp_path: Path, clocks: dict[str, float]) -> None:
    """Of matrices other layers were timed well, and these count alone; of norms none was."""
    sound, made = run(tmp_path / "sound").profile, run(tmp_path / "p", Late).profile
    assert "norm" not in {row["op"] for row in made.tables["elementwise"].rows()}
    assert any("waited for their launch" in note and "op norm" in note for note in made.meta.notes)
    heads = {row["n"] for row in made.tables["gemm"].rows()} & {28_672, 4096}
    assert heads
    truth = {(row["k"], row["n"], row["tokens"]): row["us"] for row in sound.tables["gemm"].rows()}
    for row in made.tables["gemm"].rows():
        assert row["us"] == pytest.approx(truth[row["k"], row["n"], row["tokens"]], rel=1e-6)


# ---- what fails ----------------------------------------------------------------------------------------------------


class Faulty(LawBench):
    """A device on which some kernels fail."""

    fails: Callable[[Case], bool] = staticmethod(lambda case: bool(case.decodes))

    @contextmanager
    def prepared(self, case: Case, number: int, *, timed: bool) -> Iterator[Callable[[], Sample]]:
        if self.fails(case):
            raise RuntimeError("an illegal memory access was encountered\nand more")
        with super().prepared(case, number, timed=timed) as measure:
            yield measure


def test_what_fails_is_told_and_the_rest_measured(tmp_path: Path, clocks: dict[str, float]) -> None:
    class Few(Faulty):
        fails = staticmethod(lambda case: len(case.prefills) == 4 or len(case.decodes) == 1)

    made = run(tmp_path / "p", lambda spec: Few(spec, troubles=("no graphs here",))).profile
    assert "decode_attention" in made.tables
    notes = made.meta.notes
    assert any("no graphs here" in note for note in notes)
    assert any("failed: RuntimeError: an illegal memory access was encountered" in note for note in notes)
    assert any("prompts at once: 0 of " in note for note in notes)
    assert sum("failed" in note for note in notes) > MOST_FAILURES
    assert not any("given up" in note for note in notes)


def test_a_model_that_cannot_be_set_up_is_told_and_the_others_measured(
    tmp_path: Path, clocks: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bench(spec: ModelSpec) -> LawBench:
        if spec.kv_dtype == "fp8":
            raise RuntimeError("out of memory")
        return LawBench(spec)

    monkeypatch.setattr(devices, "others", lambda _goal: "9, python")
    made = run(tmp_path / "p", bench, job(kv_dtypes=("bf16", "fp8"))).profile
    assert {row["kv_dtype"] for row in made.tables["decode_attention"].rows()} == {"bf16"}
    for told in (
        "llama-3.1-8b, fp8: not measured at all",
        "could not be set up: out of memory",
        "a process on the GPU",
    ):
        assert any(told in note for note in made.meta.notes), told


def test_one_model_that_cannot_be_set_up_is_refused(tmp_path: Path, clocks: dict[str, float]) -> None:
    def bench(_: ModelSpec) -> LawBench:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path / "p", bench)


def test_a_device_that_answers_no_more_is_given_up(tmp_path: Path, clocks: dict[str, float]) -> None:
    left = iter(range(20))

    class Dead(Faulty):
        fails = staticmethod(lambda _case: next(left, None) is None)

    made = run(tmp_path / "p", Dead).profile
    told = begun(tmp_path / "p")
    assert len(told.entries) == 20 + 1  # block copies among them
    assert sum("failed" in one.why for one in told.troubles) == MOST_FAILURES
    assert any("given up after" in note for note in made.meta.notes)


# ---- the most valuable first ---------------------------------------------------------------------------------------


def plan(ratio: int) -> list[Case]:
    return cases(LIMITS, replace(DENSITIES[1], ratio=ratio), 0)


@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_every_case_is_measured_once_a_pass_and_the_backbone_first(ratio: int) -> None:
    grid = plan(ratio)
    order = by_value(grid, 0)
    assert sorted(order) == list(range(len(grid)))
    first = [grid[at] for at in order[:20]]
    assert {family(case) for case in first if case.role == GRID} == set(VALUE)
    assert {1, 8192} <= {case.prefills[0][0] for case in first if family(case) == "prompts"}
    assert {1, 256} <= {len(case.decodes) for case in first if family(case) == "decode"}
    assert {case.role for case in first} == {GRID, BETWEEN, STEPS}
    planned = schedule(CasePlan("m", grid, replace(job().density, passes=3), 0.0))
    for number in range(3):
        assert sorted(at for one, at in planned if one == number) == list(range(-1, len(grid)))


def test_the_first_part_of_the_order_leaves_no_large_hole() -> None:
    """Against a random order: after a third of the prompts the largest gap between sizes is smaller."""
    grid = plan(2)
    mine = [grid[at] for at in by_value(grid, 0) if family(grid[at]) == "prompts" and grid[at].role == GRID]
    sizes = sorted(case.prefills[0][0] for case in mine[: len(mine) // 3])
    assert max(after / before for before, after in pairwise(sizes)) <= 16


@given(
    st.lists(st.tuples(st.integers(1, 99_999), st.integers(0, 99_999)), max_size=4),
    st.lists(st.integers(1, 99_999), max_size=6),
    st.sampled_from((GRID, BETWEEN, STEPS)),
)
def test_a_case_is_known_by_its_name(prefills: list[tuple[int, int]], decodes: list[int], role: str) -> None:
    case = Case(tuple(prefills), tuple(decodes), role)
    assert Case.named(case.name) == case


# ---- how long the device is held -----------------------------------------------------------------------------------


def test_holds_follow_launches_and_forget_what_was_an_accident() -> None:
    holds = Holds()
    assert holds.seconds("gemm") == FIRST_HOLD_S
    for _ in range(REMEMBERED):
        holds.told("gemm", 100e-6, waited=False)
    usual = holds.seconds("gemm")
    assert 100e-6 + HOLD_MARGIN_S < usual < 250e-6
    holds.told("gemm", 50e-3, waited=False)
    assert holds.seconds("gemm") == pytest.approx(usual)
    assert holds.seconds("norm") == FIRST_HOLD_S
    for _ in range(20):
        holds.told("gemm", 100e-6, waited=True)
    assert holds.seconds("gemm") == pytest.approx(MOST_BOOST * usual)


def test_one_disturbed_step_is_not_what_steps_take() -> None:
    runs = iter([(66e-3, 1e-3), (12e-3, 1e-3), (12.2e-3, 1e-3), (1.0, 1.0)])
    assert middle_run(lambda: next(runs), 3) == (12.2e-3, 1e-3)
    assert middle_run(lambda: next(runs), 3) == (1.0, 1.0)
