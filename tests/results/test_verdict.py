"""The verdict: one true sentence whatever the run, never "met" where the queue grows, and the idle case answered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from command_kit import sim
from hypothesis import given
from hypothesis import strategies as st

from sim import api
from sim.report.run.page import render_page
from sim.report.terminal import render, summary_view
from sim.results.binding import IDLE, KV, LIMITS, NOTHING, SEATS
from sim.results.resources import RESOURCES
from sim.results.stability import grows, queue_warning
from sim.results.verdict import bounded, clause_name, stable, verdict

LOADED: dict[str, Any] = {
    "trace": "chatbot_arena.jsonl", "workload.sessions": False, "rate": 25.0, "limit": 300,
    "slo": "ttft_p99=0.5,tpot_p99=0.05",
}  # fmt: skip


def summary_of(**own: Any) -> dict[str, Any]:
    return api.run(**{**LOADED, **own}).summary


def made(measured: dict[str, float | None], limits: dict[str, float], by: str = NOTHING, **more: Any) -> dict[str, Any]:
    """The parts of a summary that a verdict reads."""
    stats = {f"{key}_s": {"p99": measured.get(key), "max": measured.get(key)} for key in ("ttft", "tpot")}
    waiting = dict.fromkeys(LIMITS, 0.0)
    return {
        "requests": {"total": 10, "completed": 10},
        "duration_s": 100.0,
        "throughput": {"requests_per_s": 0.1, "total_tokens_per_s": 30.0},
        **stats,
        "goodput": {"slo": limits},
        "bill": {"usd_per_million_tokens": 1.25, "usd_per_gpu_hour": 7.2, "gpus": 2},
        "inputs": {"replicas": 2},
        "load": {"kind": "open", "offered_per_s": 40.0, "served_per_s": 31.0, "users": None},
        "binding": {
            "by": by, "share": 0.63, "share_of": "time" if by in LIMITS else "step time", "words": "another replica",
            "shares": {IDLE: 0.0, **dict.fromkeys(RESOURCES, 0.2)}, "waiting": waiting,
            "peaks": {SEATS: 0.12, KV: 0.03},
        },
        **more,
    }  # fmt: skip


def test_a_run_that_meets_its_slo_says_by_how_much() -> None:
    told = summary_of()["verdict"]
    assert (told["slo"], told["stable"], told["binds"]) == ("met", True, NOTHING)
    for words in (" requests/s offered, ", "/s served: TTFT p99 ", " of 500 ms and TPOT p99 ", " of 50 ms are met; "):
        assert words in told["sentence"]
    assert "nothing binds yet (seats" in told["sentence"]
    assert told["sentence"].endswith("per million tokens at this load.")
    assert all(0 < clause["of_limit"] < 1 and clause["met"] for clause in told["clauses"])


def test_the_sentences_of_made_up_runs() -> None:
    missed = made({"ttft": 7.0, "tpot": 0.02}, {"ttft_p99": 0.5, "tpot_p99": 0.05}, KV)
    assert verdict(missed, is_stable=False)["sentence"] == (
        "40.0 requests/s offered, 31.0/s served, the queue grows: TTFT p99 7.00 s misses 500 ms by 14x and TPOT p99 "
        "20.0 ms so far (limit 50 ms); KV memory binds (requests waited for it 63.0 % of the time): another replica "
        "would move that; $1.25 per million tokens at this load."
    )
    slow = made({"tpot": 0.06}, {"tpot": 0.05}, "host")
    slow["binding"]["waiting"][SEATS] = 0.4
    assert verdict(slow, is_stable=True)["sentence"] == (
        "40.0 requests/s offered, 31.0/s served: TPOT max 60.0 ms misses 50 ms by 20.0 %; the host binds (63.0 % of "
        "the steps' time, while requests waited for seats 40.0 % of the time): another replica would move that; $1.25 "
        "per million tokens at this load."
    )
    users = made({"ttft": 0.1, "tpot": None}, {}, load={"kind": "closed", "users": 64})
    assert verdict(users, is_stable=None)["sentence"].startswith(
        "64 users at once, 0.100 requests/s served: no SLO asked, TTFT p99 100 ms; nothing binds yet (seats 12.0 % full"
    )
    alone = verdict(made({"ttft": 0.1}, {}, load={"kind": "recorded", "offered_per_s": None}), is_stable=None)
    assert alone["sentence"].startswith("10 requests at once, 10 completed in 100 s (0.100/s): ")
    undefined = verdict(made({"tpot": None}, {"tpot_p99": 0.05}), is_stable=True)
    assert undefined["slo"] == "missed"
    assert "TPOT p99 has no value" in undefined["sentence"]


CLAUSES = st.dictionaries(st.sampled_from(["ttft_p99", "tpot_p99", "ttft", "tpot"]), st.floats(1e-4, 10), max_size=4)
MEASURED = st.fixed_dictionaries({key: st.none() | st.floats(1e-5, 100) for key in ("ttft", "tpot")})


@given(MEASURED, CLAUSES, st.sampled_from([True, False, None]), st.sampled_from([NOTHING, *LIMITS, *RESOURCES]))
def test_every_verdict_is_one_sentence_and_a_growing_queue_meets_nothing(
    measured: dict[str, float | None], limits: dict[str, float], is_stable: bool | None, by: str
) -> None:
    told = verdict(made(measured, limits, by), is_stable=is_stable)
    text = told["sentence"]
    assert text.endswith(".")
    assert "\n" not in text
    assert "None" not in text
    assert "nan" not in text
    assert ("the queue grows" in text) == (is_stable is False)
    if is_stable is False:
        assert " met" not in text
        assert told["slo"] != "met"
    within = [measured[name.partition("_")[0]] for name in limits]
    all_met = all(value is not None and value <= limits[name] for value, name in zip(within, limits, strict=True))
    if is_stable is not False:
        assert told["slo"] == ("none asked" if not limits else "met" if all_met else "missed")
    for name in limits:
        assert clause_name(name) in text


def test_the_recorded_load_of_the_readme_is_told_to_be_idle() -> None:
    summary = summary_of(rate=0.0, slo="", limit=500)
    told = summary["verdict"]
    assert summary["load"]["kind"] == "recorded"
    assert "the recorded load leaves the GPU idle 9" in told["sentence"]
    assert "per million tokens" not in told["sentence"]  # the price of an idle GPU says nothing
    more = bounded(summary, {"rate_per_s": 82.0, "binds": "seats"}, "sim run --trace x")["verdict"]["sentence"]
    assert "; one replica could take about 82/s (a bound, from costs alone), at $" in more
    assert more.endswith(" per million tokens at 0.7 of it: sim run --trace x --rate 57.")


def test_the_money_at_the_bound_is_that_of_its_tokens() -> None:
    load = {"kind": "recorded", "offered_per_s": 0.1, "served_per_s": 0.1, "users": None}
    summary = made({"ttft": 0.1, "tpot": 0.01}, {}, load=load)
    summary["binding"]["shares"][IDLE] = 0.99
    summary |= {"verdict": {"stable": True}, "inputs": {"replicas": 2, "trace": "a.csv"}}
    bound = bounded(summary, {"rate_per_s": 10.0, "binds": "seats"}, "")["bound"]
    # One GPU a replica at $7.20 an hour; 7 requests/s of 300 tokens each.
    assert bound["usd_per_million_tokens"] == pytest.approx(7.2 / 3600 / (0.7 * 10.0 * 300.0) * 1e6)
    assert bound["asked_per_s"] == pytest.approx(7.0)


def test_it_is_the_first_line_of_text_json_and_page(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("run", "--trace", "chatbot_arena.jsonl", "--limit", 60, "--rate", 20, "--quiet")
    code, text, _ = sim(capsys, *words)
    code_json, document, _ = sim(capsys, *words, "--json")
    assert (code, code_json) == (0, 0)
    summary = json.loads(document)
    sentence = summary["verdict"]["sentence"]
    assert next(iter(summary)) == "verdict"
    assert " ".join(text.split()).startswith(sentence)
    result = api.run(trace="chatbot_arena.jsonl", limit=60, rate=20.0)
    page = render_page(result)
    assert page.index('<p class="answer">') < page.index("<h1>")
    assert "What binds when" in page


def test_a_run_of_an_earlier_version_is_shown_without_it() -> None:
    result = api.run(trace="chatbot_arena.jsonl", limit=60, rate=20.0)
    for key in ("verdict", "binding", "load"):
        del result.summary[key]
    del result.summary["inputs"]["engine"]
    assert render(summary_view(result.summary)).startswith(
        "llama-3.1-8b on h100 (TP 1, 1 replica): chatbot_arena.jsonl"
    )
    assert "What binds when" not in render_page(result)


def test_stability_is_one_rule() -> None:
    for rate, expected in ((20.0, True), (400.0, False)):
        result = api.run(**{**LOADED, "rate": rate, "engine.max_num_seqs": 32})
        assert grows(result.requests) is (not expected)
        assert (queue_warning(result.requests) is None) is expected
        assert stable(result.requests, {"kind": "open"}) is expected
        assert stable(result.requests, {"kind": "closed"}) is None
        assert result.summary["verdict"]["stable"] is expected
    few = result.requests.head(50)
    assert grows(few) is None
    assert stable(few, {"kind": "open"}) is None
