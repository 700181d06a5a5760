"""The recorded live runs in tests/data: anyone can compare them again, without a device and without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_kit import sim

from sim.validate import store
from sim.validate.twin import check_twin

DATA = Path(__file__).parents[1] / "data" / "validate_cpu"
BLOCKED = "import sys; sys.modules['torch'] = None; from sim.cli.main import main; sys.exit(main())"
MOST_BYTES = 2_000_000


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((DATA / "expected.json").read_text())
    return found


def _figures(document: dict[str, Any]) -> dict[str, float]:
    requests = {
        f"{key}.{name}": document["requests"][key][name]["error"]
        for key, name in (("ttft_s", "p90"), ("tpot_s", "p50"), ("e2e_s", "p50"), ("e2e_s", "p99"))
    }
    rate = {"throughput.output_tokens_per_s": document["requests"]["throughput"]["output_tokens_per_s"]["error"]}
    overall = document["steps"]["all"]
    return {"steps": document["twin"]["steps"], "bias": overall["bias"], "mape": overall["mape"], **requests, **rate}


NAMES = ("chat-8-speculative-paged", "chat-8-continuous-paged", "long-60-chunked-prefix")


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the records; all of them are the same command on the folder itself."""
    where = tmp_path_factory.mktemp("some")
    for name in NAMES:
        shutil.copytree(DATA / name, where / name)
    return where


def test_the_figures_are_those_that_were_told(some: Path, expected: dict[str, dict[str, float]], capsys: Any) -> None:
    code, out, err = sim(capsys, "validate", "--recorded", some, "--json")
    assert code == 0, err
    document = json.loads(out)
    steps = sum(expected[name]["steps"] for name in NAMES)
    assert document["twin"] == {"identical": True, "steps": steps, "first_difference": None}
    for name, one in document["records"].items():
        assert one["lives"] == 3
        assert one["inputs"]["gpu"] is None
        assert _figures(one) == pytest.approx(expected[name], rel=1e-4, abs=2e-6), name
    drafting = document["records"]["chat-8-speculative-paged"]["steps"]
    assert drafting["by_kind"]["verify"]["steps"] > 10
    assert {"matrices", "attention", "elementwise", "rest"} < set(drafting["by_part"])


def test_every_record_has_a_twin(expected: dict[str, dict[str, float]]) -> None:
    assert {path.name for path in store.folders(DATA)} == set(expected)
    for name in set(expected) - set(NAMES):
        kept = store.read(DATA / name)
        twin = check_twin(kept.scenario, kept.trace, kept.records[0])
        assert twin.identical, (name, twin.difference and twin.difference.sentence())


def test_all_kinds_of_policy_and_allocator_are_there(expected: dict[str, dict[str, float]]) -> None:
    _, policies, allocators = zip(*(name.rsplit("-", 2) for name in expected), strict=True)
    assert set(policies) == {"static", "continuous", "chunked", "speculative"}
    assert set(allocators) == {"paged", "prefix", "contiguous"}


def test_they_stay_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < MOST_BYTES


def test_no_torch_is_needed(tmp_path: Path) -> None:
    words = ("validate", "--recorded", str(DATA / "long-60-chunked-prefix"), "--json")
    done = subprocess.run([sys.executable, "-c", BLOCKED, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["twin"]["identical"]


def test_several_records_at_once(
    some: Path, tmp_path: Path, expected: dict[str, dict[str, float]], capsys: Any
) -> None:
    code, _, err = sim(capsys, "validate", "--recorded", some, "--out", tmp_path / "out")
    assert code == 2
    assert "give one of them" in err
    code, out, _ = sim(capsys, "validate", "--recorded", some, "--within", 1e-6)
    assert code == 1
    assert "OUT: chat-8-continuous-paged: " in out
    assert f"{sum(expected[name]['steps'] for name in NAMES):,} live steps, all taken again" in out
    assert all(len(line) <= 80 for line in out.splitlines())
