"""Several models on one fleet: each request goes to a pool of its model, and each model is served as if alone."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sim import api
from sim.cli.main import cli
from sim.scenario import build, dump
from traces.schema import InputError

SMALL = {"pools.small.model": "llama-3.1-8b", "pools.small.serves": ["small"], "pools.small.count": 2}
LARGE = {"pools.large.model": "llama-3.1-70b", "pools.large.tp": 4, "pools.large.serves": ["large", "huge"]}
LOAD: dict[str, Any] = {"router.name": "least-outstanding", "slo": "ttft=0.03", "front_end.name": "off"}


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Every third request is for the large model, by two names."""
    path = tmp_path / "two.csv"
    names = ["small", "small", "large", "small", "small", "huge"]
    rows = [f"{at * 0.05:.2f},{100 + at},{5 + at % 7},{names[at % 6]}" for at in range(90)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens,model", *rows]) + "\n")
    return str(path)


def test_each_request_goes_to_a_pool_of_its_model(trace: str) -> None:
    ran = api.run(trace=trace, **LOAD, **SMALL, **LARGE)
    asked = ran.trace.requests["model"]
    assert set(ran.requests["replica"][asked == "small"]) == {0, 1}
    assert set(ran.requests["replica"][asked != "small"]) == {2}
    assert ran.requests["model"].tolist() == ["llama-3.1-8b" if one == "small" else "llama-3.1-70b" for one in asked]
    told = ran.summary["models"]
    assert {model: own["requests"]["total"] for model, own in told.items()} == {"llama-3.1-8b": 60, "llama-3.1-70b": 30}
    assert sum(own["throughput"]["total_tokens_per_s"] for own in told.values()) == pytest.approx(
        ran.summary["throughput"]["total_tokens_per_s"]
    )
    good = sum(own["goodput"]["fraction"] * own["requests"]["total"] for own in told.values())
    assert good / 90 == pytest.approx(ran.summary["goodput"]["fraction"])
    assert 0 < good < 90
    again = build(tomllib.loads(dump(ran.scenario)))
    assert again == ran.scenario
    assert api.simulate(again).requests.equals(ran.requests)


def test_models_on_one_fleet_are_as_each_alone(trace: str, tmp_path: Path) -> None:
    """Work conservation of the split: no request of one model changes a time of the other's."""
    both = api.run(trace=trace, **LOAD, **SMALL, **LARGE)
    header, *rows = Path(trace).read_text().splitlines()
    own = tmp_path / "own.csv"
    own.write_text("\n".join([header, *(row for row in rows if row.endswith("small"))]) + "\n")
    alone = api.run(trace=str(own), **LOAD, **SMALL)
    mine = both.requests[both.requests["model"] == "llama-3.1-8b"]
    for name in ("first_scheduled_s", "first_token_s", "finish_s", "replica"):
        assert mine[name].tolist() == alone.requests[name].tolist()
    assert both.summary["pools"]["small"]["computed"] == alone.summary["pools"]["small"]["computed"]


def test_each_model_may_have_prefill_and_decode_pools(trace: str) -> None:
    apart = {
        "pools.one.role": "prefill",
        "pools.one.serves": "small",
        "pools.two.role": "decode",
        "pools.two.serves": "small",
        "transfer.gb_per_s": 50.0,
    }
    ran = api.run(trace=trace, **LOAD, **apart, **LARGE)
    assert ran.summary["requests"]["completed"] == 90
    assert ran.transfers is not None
    assert len(ran.transfers) == 60
    assert set(ran.transfers["source"]) == {0}


def test_shares_are_drawn_by_session() -> None:
    shares = {"workload.model_shares.small": 3.0, "workload.model_shares.large": 1.0}
    load = {"workload.trace": "chatbot_arena.jsonl", "workload.limit": 200, "workload.rate": 20.0}
    ran = api.run(**load, **LOAD, **SMALL, **LARGE, **shares)
    small = ran.requests["model"] == "llama-3.1-8b"
    assert 0.65 < small.mean() < 0.85
    assert ran.requests.groupby("session")["model"].nunique().max() == 1


def test_pages_tell_each_model(trace: str, tmp_path: Path) -> None:
    asked = [f"--set={key}={value}" for key, value in {**SMALL, **LARGE}.items()]
    outcome = CliRunner().invoke(cli, ["run", "--trace", trace, *asked, "--out", str(tmp_path / "out")])
    assert outcome.exit_code == 0, outcome.output
    words = " ".join(outcome.output.split())
    assert "small llama-3.1-8b on 2 x h100 (TP 1, 2 replicas) and large llama-3.1-70b on 4 x h100 (TP 4" in words
    assert "Model llama-3.1-70b: 30 requests, TTFT p99" in words
    assert "By model" in (tmp_path / "out" / "report.html").read_text()


def test_a_lone_model_reads_no_names_unless_its_pools_say_any(trace: str) -> None:
    assert api.run(trace=trace, **{"pools.a.count": 2}).summary["requests"]["completed"] == 90
    with pytest.raises(InputError, match="line 4: its model is 'large', which no pool serves; known: small"):
        api.run(trace=trace, **SMALL)
    ran = api.run(trace=trace, **SMALL, **{"workload.skip_bad": True})
    assert ran.summary["requests"]["rejected"] == 30
    assert set(ran.requests["reason"]) == {"", "no pool serves its model 'large'", "no pool serves its model 'huge'"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (SMALL | {"pools.large.model": "llama-3.1-70b", "pools.large.tp": 4}, "its model is 'large', which no pool"),
        (
            SMALL | LARGE | {"pools.large.serves": ["small"]},
            "pools.large serves small with llama-3.1-70b, and pools.sm",
        ),
        (SMALL | {"pools.small.serves": [3]}, "pools.small.serves must be the name of a model, or a list of names"),
        (
            SMALL | LARGE | {"workload.model_shares.tiny": 1.0},
            "its model is 'tiny', which no pool serves; known: small",
        ),
        (
            SMALL | LARGE | {"pools.large.role": "prefill", "transfer.gb_per_s": 1.0},
            "no pool of its model has the role decode",
        ),
        ({"workload.model_shares.small": 0.0}, "workload.model_shares are all 0, and one at least must be above"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_sentence(trace: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as told:
        api.run(trace=trace, **settings)
    assert words in str(told.value)


def test_a_trace_without_models_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0.0,10,2\n")
    with pytest.raises(InputError, match=r"it has no column model; workload\.model_shares draws it"):
        api.run(trace=str(path), **SMALL, **LARGE)
