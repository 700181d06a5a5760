"""Scenarios that come with Foretoken: a name stands for each, and each one runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sim import api, catalog
from sim.cli.main import cli
from sim.scenario import load
from sim.serving.assemble import assemble
from traces.schema import InputError

WIDE = "deepseek-v3-wide-ep"
SMALLER = {WIDE: {"limit": 60, "dp": 16, "ep": 16}}
"""What keeps a run of each short; a scenario that is not here runs as it is."""


@pytest.mark.parametrize("name", catalog.names("scenarios"))
def test_every_bundled_scenario_runs(name: str) -> None:
    result = api.run(name, **SMALLER.get(name, {}))
    assert (result.requests["status"] == "completed").all()


@pytest.mark.parametrize(("gpus", "each"), [(16, 18), (32, 9), (64, 5)])
def test_wide_expert_parallelism_from_16_to_64_gpus(gpus: int, each: int) -> None:
    """256 experts and 32 copies, whole ones over all GPUs; attention's weights and all KV are each rank's own."""
    parts = load(WIDE, {"dp": gpus, "ep": gpus})
    assert parts.parallel.gpus == gpus
    assert parts.parallel.held(256) == each


def test_more_gpus_hold_more_kv_and_a_model_that_does_not_fit_says_how_many_it_takes() -> None:
    room = [assemble(load(WIDE, {"dp": gpus, "ep": gpus})).pool.tokens for gpus in (16, 64)]
    assert room[1] > room[0] > 0
    with pytest.raises(InputError, match=r"does not fit on GPU 'h100' with tp = 1, dp = 8, ep = 8: .* tp = 1, dp = 16"):
        assemble(load(WIDE, {"gpu": "h100", "dp": 8, "ep": 8, "redundant_experts": 0}))


def test_a_file_of_ones_own_goes_first_and_a_name_that_is_none_tells_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / WIDE).write_text('model = "llama-3.2-1b"\n')
    assert load(WIDE).model == "llama-3.2-1b"
    with pytest.raises(InputError, match=f"^no file nosuch, and bundled scenarios are .*{WIDE}"):
        load("nosuch")
    listed = json.loads(CliRunner().invoke(cli, ["list", "scenarios", "--json"]).output)
    assert [row["name"] for row in listed] == catalog.names("scenarios")
    assert all(row["about"] for row in listed)


def _memory(*words: str) -> dict[str, dict[str, int]]:
    outcome = CliRunner().invoke(cli, ["memory", "--json", *words])
    assert outcome.exit_code == 0, outcome.output
    return {fit["gpu"]: fit["batch"] for fit in json.loads(outcome.output)["gpus"]}


def test_memory_understands_every_kind_of_parallelism() -> None:
    placed = _memory("--model", "deepseek-v3", "--gpu", "h200", "--dp", "16", "--ep")["h200"]
    assert (placed["tp"], placed["pp"], placed["dp"], placed["ep"], placed["nodes"]) == (1, 1, 16, 16, 2)
    assert placed["sequences"] % 16 == 0
    two, eight = (_memory("--model", "llama-3.1-70b", "--gpu", "h100", *more)["h100"] for more in (["--pp", "4"], []))
    assert (two["tp"], two["pp"], eight["tp"], eight["pp"]) == (1, 4, 2, 1)
    outcome = CliRunner().invoke(cli, ["memory", "--model", "llama-3.1-8b", "--ep"])
    assert str(outcome.exception) == "model 'llama-3.1-8b' has no experts to place"
    shown = CliRunner().invoke(cli, ["memory", "--model", "deepseek-v3", "--gpu", "h200", "--dp", "16", "--ep"])
    assert "1 (2x8)" in shown.output
    assert "16 ranks" in shown.output
