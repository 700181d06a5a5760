"""Whole runs that draft: what their summaries and reports say, acceptance replayed, and mistakes in one sentence."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim import api, scenario
from sim.report.run.page import render_page
from sim.report.run.sentences import drafts_by_position
from sim.report.terminal import render, summary_view
from sim.serving.workload import load_trace
from sim.speculation.rates import acceptance_rates
from traces.schema import InputError, Trace

ARENA: dict[str, Any] = {"trace": "chatbot_arena.jsonl", "limit": 60, "rate": 3.0}


@cache
def arena_trace() -> Trace:
    return load_trace(scenario.build({}, ARENA))


@cache
def arena(**settings: Any) -> api.Result:
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return api.simulate(scenario.build({}, {**ARENA, **named}), trace=arena_trace())


def drafted(**settings: Any) -> api.Result:
    return arena(policy="speculative", **{f"speculation__{key}": value for key, value in settings.items()})


def test_the_summary_of_a_run() -> None:
    done = drafted(k=4, acceptance="0.8,0.6", drafter="eagle")
    found = done.summary["speculation"]
    rates, rows = (0.8, 0.6, 0.6, 0.6), found["drafted_tokens"] / 4
    assert found["drafter"] == "eagle"
    assert found["acceptance_by_position"] == pytest.approx(list(np.cumprod(rates)), abs=4 * 0.5 / math.sqrt(rows))
    assert found["acceptance"] == pytest.approx(np.mean(found["acceptance_by_position"]))
    assert found["tokens_per_target_step"] == pytest.approx(1 + sum(found["acceptance_by_position"]))
    assert found["accepted_tokens"] == pytest.approx(found["acceptance"] * found["drafted_tokens"])
    assert done.steps["draft_tokens"].sum() == found["drafted_tokens"]
    assert 0.02 < found["drafting_share"] < 0.5
    assert found["draft_weight_bytes"] > 1e8
    assert done.summary["requests"]["completed"] == 60
    plain = arena(**{"engine__async_scheduling": False})
    assert plain.summary["tpot_s"]["p50"] > 1.3 * done.summary["tpot_s"]["p50"]
    assert "speculation" not in plain.summary
    assert not plain.steps["draft_tokens"].any()


def test_a_run_with_a_tree() -> None:
    """A tree of the same depth gives more tokens a step than the chain, at the price of a larger batch."""
    chain = drafted(drafter="medusa", k=3, acceptance=0.5)
    tree = drafted(drafter="medusa", k=3, acceptance=0.5, tree="3,2,1")
    found = tree.summary["speculation"]
    # Levels: 1 - 0.5^3, 1 - 0.5^2, 0.5.
    assert found["acceptance_by_position"] == pytest.approx([0.875, 0.65625, 0.328125], abs=0.02)
    assert found["tokens_per_target_step"] > 1.3 * chain.summary["speculation"]["tokens_per_target_step"]
    assert tree.steps["draft_tokens"].sum() == 15 * found["drafted_tokens"] / 3
    assert tree.summary["speculation"]["draft_weight_bytes"] == chain.summary["speculation"]["draft_weight_bytes"]


def test_a_run_replays_the_acceptance_of_another(tmp_path: Path) -> None:
    """A summary gives the rates by position under which it was made, each given that all before were right."""
    first = drafted(k=3, acceptance="0.8,0.5,0.4")
    (tmp_path / "summary.json").write_text(json.dumps(first.summary))
    rates = acceptance_rates(str(tmp_path / "summary.json"))
    assert rates == pytest.approx((0.8, 0.5, 0.4), abs=0.03)
    assert list(rates) == first.summary["speculation"]["rate_by_position"]
    (tmp_path / "rates.json").write_text("[0.75, 0.25]")
    assert acceptance_rates(str(tmp_path / "rates.json")) == (0.75, 0.25)
    again = drafted(k=3, acceptance=str(tmp_path / "summary.json")).summary["speculation"]
    assert again["acceptance_by_position"] == pytest.approx(
        first.summary["speculation"]["acceptance_by_position"], abs=0.03
    )


def test_a_trace_says_how_well_each_request_drafts(tmp_path: Path) -> None:
    path = tmp_path / "unlike.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens,acceptance\n0,9,41,1\n0,9,41,0\n0,9,41,\n")
    settings: dict[str, Any] = {"speculation.k": 3, "speculation.acceptance": 0.5, "engine.max_num_seqs": 1}
    done = api.run(trace=str(path), policy="speculative", **settings)
    steps = done.steps[done.steps["draft_tokens"] > 0]["start_s"].to_numpy()
    ends = done.requests["finish_s"].to_numpy()
    each = np.diff([0, *(int((steps < end).sum()) for end in ends)])
    assert each[:2].tolist() == [10, 40]
    assert 15 < each[2] < 30


@pytest.mark.parametrize("base", ["continuous", "priority", "sjf"])
def test_every_base(base: str) -> None:
    done = arena(policy="speculative", policy__base=base, speculation__k=2)
    assert done.summary["requests"]["completed"] == 60
    assert done.summary["speculation"]["tokens_per_target_step"] > 1.9


def test_the_base_takes_its_own_parameters() -> None:
    """A threshold cuts prompts as it does without drafts; what the base does not know is refused in its name."""
    cut = arena(policy="speculative", policy__long_prefill_token_threshold=16)
    whole = arena(policy="speculative")
    prefills = [done.steps["prefill_tokens"].max() for done in (cut, whole)]
    assert prefills[0] < prefills[1]
    with pytest.raises(InputError, match="policy 'continuous' has no parameter 'long_prefill_token_threshold'"):
        arena(policy="speculative", policy__base="continuous", policy__long_prefill_token_threshold=16)


def test_reports_tell_of_drafts() -> None:
    done = drafted(k=4, acceptance="0.8,0.6", drafter="eagle")
    found = done.summary["speculation"]
    shares = [f"{100 * share:.1f} %" for share in found["acceptance_by_position"]]
    text = " ".join(render(summary_view(done.summary), 200).split())
    assert f"Drafts {found['tokens_per_target_step']:.2f} tokens a target step; right by position: " in text
    assert ", ".join(shares) in text
    weights = f"{found['draft_weight_bytes'] / 2**20:.0f} MiB"
    assert f"Drafter eagle, {100 * found['drafting_share']:.1f} % of the time; weights {weights}, KV 4.00 KiB" in text
    page = render_page(done)
    for shown in ("Speculative decoding", ", ".join(shares), weights, f"{100 * found['drafting_share']:.1f} %"):
        assert shown in page
    assert "Speculative decoding" not in render_page(arena())
    assert "Draft" not in render(summary_view(arena().summary))


def test_reports_of_long_drafts_and_of_none() -> None:
    shares = [0.9**at for at in range(1, 13)]
    assert drafts_by_position({"acceptance_by_position": shares}).endswith("43.0 % .. 28.2 %")
    assert drafts_by_position({"acceptance_by_position": []}) == "nothing was drafted"


# ---- mistakes --------------------------------------------------------------------------------------------------------


EAGLE = {"speculation.drafter": "eagle"}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"speculation.drafter": "oracle"},
            "speculation.drafter is 'oracle'; known: ngram, draft-model, eagle, medusa",
        ),
        ({"speculation.k": 0}, "speculation.k is 0; it must be at least 1 and at most 64"),
        ({"speculation.k": 65}, "speculation.k is 65; it must be at least 1 and at most 64"),
        ({"speculation.acceptance": 1.5}, "speculation.acceptance is 1.5; it must be at least 0 and at most 1"),
        ({"speculation.acceptance": 2}, "speculation.acceptance is 2.0; it must be at least 0 and at most 1"),
        ({"speculation.acceptance": "0.8,-0.1"}, "speculation.acceptance is '0.8,-0.1'; expected probabilities"),
        ({"speculation.acceptance": "often"}, "speculation.acceptance is 'often'; expected probabilities"),
        ({"speculation.acceptance": math.nan}, "speculation.acceptance is nan; it must be at least 0"),
        ({"speculation.acceptance": "none.json"}, "speculation.acceptance: none.json does not exist"),
        ({"speculation.drafter": "draft-model"}, "speculation.draft_model names the model"),
        ({"speculation.draft_model": "llama-3.2-1b"}, "speculation.drafter is 'ngram'"),
        (
            {"speculation.drafter": "draft-model", "speculation.draft_model": "llama-2-7b"},
            "'llama-2-7b' has a vocabulary of 32000 tokens and 'llama-3.1-8b' one of 128256",
        ),
        ({"engine.async_scheduling": True}, "ngram has none then"),
        ({"speculation.tree": "2,2", "speculation.k": 2}, "speculation.tree needs the drafter eagle or medusa"),
        ({**EAGLE, "speculation.tree": "2,2"}, "speculation.tree '2,2' has 2 levels and speculation.k is 4; set it so"),
        ({**EAGLE, "speculation.tree": "2,x"}, "speculation.tree is '2,x'; expected candidates by level"),
        ({**EAGLE, "speculation.tree": "2,0,1,1"}, "speculation.tree is '2,0,1,1'; expected candidates by level"),
        ({**EAGLE, "speculation.tree": "3,3,3,3"}, "has 120 drafts; at most 64 are verified"),
        ({**EAGLE, "speculation.tree": "2,1,1,1", "speculation.adaptive": True}, "exclude one another"),
        ({"workload.samples": 2}, "drafting serves one for each request"),
        ({"policy.base": "static"}, "policy.base is 'static'; speculative works on top of"),
        ({"policy.base": "speculative"}, "policy.base is 'speculative'; speculative works on top of"),
        ({"policy.base": "unheard-of"}, "unknown name 'unheard-of' in policies"),
        ({"allocator": "no-cache"}, "without a KV cache there is nothing that drafts could be verified against"),
        (
            {"policy": "chunked", "speculation.k": 3},
            "speculation.k is 3, and it is read only where policy.name is speculative",
        ),
        (
            {"speculation.drafter": "draft-model", "speculation.draft_model": "llama-3.1-70b"},
            "(the drafter's 131.4 GiB of weights included)",
        ),
    ],
)
def test_mistakes_are_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        api.run(**{**ARENA, "limit": 3, "policy": "speculative", **settings})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [0, 1])
def test_certainty_may_be_a_whole_number(rate: int) -> None:
    assert drafted(acceptance=rate).summary["speculation"]["acceptance"] == rate


@pytest.mark.parametrize("text", ["{", "[]", "[0.5, 2]", '"x"', "{}", '{"speculation": {}}', "7", "[null]"])
def test_a_file_that_holds_no_rates(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"speculation\.acceptance"):
        acceptance_rates(str(path))
