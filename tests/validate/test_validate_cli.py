"""`sim validate` as a person and a script meet it: live on a CPU, from kept records; every mistake in a sentence."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browser_kit import chromium, needs_chromium
from command_kit import sim
from validate_kit import AT_ONCE, trace_file

from sim.results.files import write_file
from sim.results.run_id import check_one, mark_of, table
from sim.results.transaction import Claim
from sim.validate import store
from traces.schema import InputError

pytest.importorskip("torch")
LIVE = ("--device", "cpu", "--model", "tiny-llama", "--kv-blocks", 24, "--within", 900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `--out` writes of two live runs."""
    from sim.cli.validation import ValidateOptions, answer

    where = tmp_path_factory.mktemp("kept")
    settings: dict[str, Any] = {
        "workload.trace": str(trace_file(where, **AT_ONCE)),
        "device": "cpu",
        "model": "tiny-llama",
    }
    out = where / "out"
    answer(ValidateOptions(settings=settings | {"kv.blocks": 24}, repeats=2, within=900.0, out=out))
    return out


def test_a_live_run_and_its_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = sim(capsys, "validate", "--trace", trace_file(tmp_path, **AT_ONCE), *LIVE, "--json", "--quiet")
    assert code == 0, err
    found = json.loads(out)
    assert found["twin"]["identical"]
    assert found["steps"]["all"]["steps"] == found["twin"]["steps"] // 2  # the other half was fitted
    assert {"twin", "steps", "requests", "attribution", "verdict"} <= set(found)
    for split in (one for one in found["attribution"].values() if "parts" in one):
        assert sum(split["parts"].values()) == pytest.approx(split["error"], abs=1e-9)
        assert split["parts"]["engine"] == split["parts"]["capacity"] == 0.0
    assert found["steps"]["model"] == "fitted-here"


def test_records_give_the_same_again(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, _ = sim(capsys, "validate", "--recorded", folder, "--json", "--within", 900)
    assert code == 0
    kept = json.loads((folder / "validate.json").read_text())
    assert {"run_id": kept["run_id"], **json.loads(out)} == kept
    code, out, _ = sim(capsys, "validate", "--recorded", folder, "--within", 900)
    assert code == 0
    for word in ("WITHIN", "Twin check  Identical", "fitted-here", "TTFT p50", "spread", "batching"):
        assert word in out


def test_out_of_bounds_is_exit_code_1(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, _ = sim(capsys, "validate", "--recorded", folder, "--within", 1e-6)
    assert code == 1
    assert "OUT: " in out


def test_two_lanes_for_perfetto(folder: Path) -> None:
    events = json.loads((folder / "trace.perfetto.json").read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {"requests", "live", "simulated"}
    requests = [event for event in events if event["name"] == "request" and event["ph"] == "b"]
    assert len({event["id"] for event in requests}) == len(requests) == 12


@needs_chromium
def test_the_page_in_a_browser(folder: Path) -> None:
    page = folder / "validate.html"
    with chromium() as browser:
        for width in (1200, 400):
            browser.resize(width, 900)
            browser.open(page)
            assert browser.complaints() == []
            assert browser.requested() == [page.as_uri()]
            assert browser.value("document.documentElement.scrollWidth") <= width
        assert int(browser.value("document.querySelectorAll('figure[data-chart=scatter] .plot circle').length")) > 5
        assert browser.value("document.querySelectorAll('figure[data-chart=e2e] path.line').length") == 3
        points = "document.querySelectorAll('figure[data-chart=scatter] .plot circle').length"
        shown = browser.value(points)
        browser.value("document.querySelector('figure[data-chart=scatter] button.key').click()")
        assert browser.value(points) < shown
        browser.value("document.querySelector('figure[data-chart=scatter] button.key').click()")
        assert browser.value(points) == shown
        box = browser.value(
            "(() => { const c = document.querySelector('figure[data-chart=scatter] .plot circle'); c.scrollIntoView(); "
            "const b = c.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        browser.mouse("mouseMoved", *box)
        assert "measured" in browser.value("document.querySelector('figure[data-chart=scatter] .tip').textContent")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--schedules", "a", "--recorded", "b"), "exclude one another"),
        (("--recorded", "a", "--repeats", "2"), "nothing runs live"),
        (("--recorded", "a", "--clock", "wall"), "nothing runs live"),
        (("--recorded", "a", "--within", "0"), "--within is 0"),
        (("--recorded", "nowhere"), "no records of live runs"),
        (("--schedules", "a", "--model", "tiny-llama"), "no other option"),
        (("--device", "cpu", "--model", "tiny-llama"), "no trace given"),
        (("--device", "abacus", "--trace", "chatbot_arena.jsonl", "--model", "tiny-llama"), "abacus"),
        (("--executor", "predicted", "--device", "cpu", "--model", "none", "--trace", "chatbot_arena.jsonl"), "none"),
    ],
)
def test_mistakes_in_one_sentence(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str) -> None:
    code, _, err = sim(capsys, "validate", *words)
    assert code == 2
    assert told in err
    assert err.count("\n") == 1


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def _changed(path: Path, **columns: Any) -> None:
    table = pd.read_parquet(path)
    for name, values in columns.items():
        table[name] = values(table[name]) if callable(values) else values
    table.to_parquet(path)


def test_records_that_are_none(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    steps = copy / "live-1.steps.parquet"
    cases = [
        (lambda: _changed(steps, end_s=lambda column: -column), "the clock runs backwards in step"),
        (lambda: _changed(steps, step=lambda column: column + 1), "steps are missing"),
        (lambda: _changed(steps, entries="no"), "not a record of decisions"),
        (lambda: pd.read_parquet(steps)[:20].to_parquet(steps), "it ends with step 19, and a token came in step"),
        (lambda: pd.read_parquet(steps).drop(columns="shape").to_parquet(steps), "no column 'shape'"),
        (lambda: steps.write_text("no"), "not a valid Parquet"),
        (steps.unlink, "does not exist"),
    ]
    good = steps.read_bytes()
    for spoil, told in cases:
        steps.write_bytes(good)
        spoil()
        code, _, err = sim(capsys, "validate", "--recorded", copy)
        assert (code, err.count("\n")) == (2, 1), err
        assert told in err


def test_records_of_another_trace(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    trace = pd.read_parquet(copy / "trace.parquet")
    mark = mark_of(copy / "trace.parquet")
    write_file(copy / "trace.parquet", table(trace[:-1], mark))
    code, _, err = sim(capsys, "validate", "--recorded", copy)
    assert code == 2
    assert "had 6 requests, and the trace 5" in err
    write_file(copy / "trace.parquet", table(trace.assign(prompt_tokens=trace["prompt_tokens"] + 16), mark))
    code, out, _ = sim(capsys, "validate", "--recorded", copy)
    assert code == 1
    assert "no twin" in out.replace("\n", " ")


def test_records_know_no_other_settings(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, _, err = sim(capsys, "validate", "--recorded", folder, "--policy", "sjf")
    assert code == 2
    assert "only --profile" in err
    code, _, err = sim(capsys, "validate", "--recorded", folder, "--profile", "roofline")
    assert code == 2
    assert "a roofline is of a GPU" in err


def test_records_of_a_run_that_died(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    about = json.loads((copy / "about.json").read_text())
    about["died"][1] = "RuntimeError: out of memory"
    (copy / "about.json").write_text(json.dumps(about))
    steps = pd.read_parquet(copy / "live-1.steps.parquet")
    write_file(copy / "live-1.steps.parquet", table(steps[: len(steps) // 2], about["run_id"]))
    code, out, _ = sim(capsys, "validate", "--recorded", copy, "--within", 900)
    assert code == 0
    assert "A live run died half-way (RuntimeError: out of memory)" in " ".join(out.split())


@pytest.mark.shared
def test_schedules_in_the_same_frame(capsys: pytest.CaptureFixture[str], shared: Path, tmp_path: Path) -> None:
    recorded = shared / "measured" / "vllm_v1_schedules"
    for part in ("scenario.json", "steps.jsonl"):
        (tmp_path / f"t01_chunking.{part}").write_bytes((recorded / f"t01_chunking.{part}").read_bytes())
    code, out, _ = sim(capsys, "validate", "--schedules", tmp_path, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["twin"]["identical"]
    assert found["verdict"]["good"]
    steps = tmp_path / "t01_chunking.steps.jsonl"
    steps.write_text(steps.read_text().replace('"tokens":', '"tokens":1', 1))
    code, out, _ = sim(capsys, "validate", "--schedules", tmp_path, "--json")
    found = json.loads(out)
    assert code == 1
    assert found["twin"]["first_difference"]["schedule"] == "t01_chunking"
    assert found["twin"]["first_difference"]["key"] == "tokens"


def test_records_are_replaced_with_their_pages(copy: Path, tmp_path: Path) -> None:
    """Records of one run over those of two leave no page and no repeat of them; records of two runs are refused."""
    kept = store.read(copy)
    one = replace(kept, records=kept.records[:1])
    with Claim(copy) as claim:
        mark = store.mark_of(one)
        claim.write(store.writers(one, mark), stale=[*store.names(copy), *store.PAGES])
    names = sorted(path.name for path in copy.iterdir())
    assert names == sorted(store.names(copy))
    assert not [name for name in names if name.startswith("live-1")]
    assert check_one(copy, names) == mark
    assert len(store.read(copy).records) == 1
    arrivals = pd.read_parquet(copy / "live-0.arrivals.parquet")
    write_file(copy / "live-0.arrivals.parquet", table(arrivals, "0" * 16))
    with pytest.raises(InputError, match="copy mixes two results"):
        store.read(copy)


def test_results_of_a_server_do_not_take_the_place_of_records(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    code, _, err = sim(capsys, "validate", "--against", "x.jsonl", "--kv-blocks", 9, "--out", copy)
    assert code == 2
    assert "holds records of live runs" in err
