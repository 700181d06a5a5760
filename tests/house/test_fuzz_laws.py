"""The fuzzer's laws are laws: each reports what is planted against it, in a table or in the product itself."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fuzz.case import Case, Row, Run, Steps
from fuzz.check import CRASH, LAWS, SENTENCE, STUCK, broken, check

import sim.api
import sim.results.files
import sim.results.kv
import sim.results.metrics
import sim.serving.pool
import sim.serving.run
import sim.serving.source
import sim.speculation.acceptance
from sim.cost.roofline import Roofline
from sim.policies.chunked import Chunked
from sim.routers.round_robin import RoundRobin
from sim.serving.executor import Predicted
from sim.serving.progress import NoProgressError
from traces.schema import InputError

TICK_S = 2.0**-11
MS = Steps(2.0**-10, host_s=2.0**-12)
CROWD = tuple(Row(at * TICK_S, 5 + at % 7, 2 + at % 5, priority=at % 2) for at in range(9))
TIGHT = {"policy": "priority", "kv.blocks": 6, "kv.block_tokens": 4, "engine.max_num_batched_tokens": 16}
RUNS: Mapping[str, Case] = {
    "open": Case({**TIGHT, "slo": "ttft=0.01,tpot_p50=0.002", "model": "tiny-llama"}, CROWD, MS),
    "sync": Case({**TIGHT, "engine.async_scheduling": False, "kv.swap_gib": 1.0, "model": "tiny-llama"}, CROWD, MS),
    "roomy": Case({"replicas": 2, "model": "tiny-llama", "kv.blocks": 99, "gpu": "a100-40"}, CROWD, None),
    "closed": Case({"concurrency": 2, "model": "tiny-llama", "kv.blocks": 99}, CROWD, MS),
    "sessions": Case(
        {"model": "tiny-llama", "kv.blocks": 99},
        (Row(0.0, 9, 4), Row(0.0, 9, 3), Row(TICK_S, 20, 2, after=0, think_s=3 * TICK_S), Row(TICK_S, 20, 2, after=1)),
        MS,
    ),
    "prefix": Case(
        {"allocator": "prefix", "model": "tiny-llama", "kv.blocks": 99, "kv.block_tokens": 4},
        tuple(row._replace(arrival_s=at * 0.05, prompt_tokens=13, prefix=(1, 4, 13)) for at, row in enumerate(CROWD)),
        MS,
        4,
    ),
    "drafts": Case(
        {"policy": "speculative", "model": "tiny-llama", "kv.blocks": 99, "speculation.acceptance": 0.5}, CROWD, MS
    ),
    "static": Case(
        {"policy": "static", "policy.batch_size": 3, "model": "tiny-llama", "kv.blocks": 99, "kv.block_tokens": 4},
        CROWD,
        MS,
    ),
    "rejected": Case(
        {"model": "tiny-llama", "kv.blocks": 3, "kv.block_tokens": 4, "workload.skip_bad": True}, CROWD, MS
    ),
}


@cache
def run_of(name: str) -> Run:
    return RUNS[name].run()


@pytest.mark.parametrize("name", RUNS)
def test_what_is_corrupted_below_is_right(name: str) -> None:
    assert check(RUNS[name]).broken == ()
    assert check(RUNS[name]).refused == ""


def test_the_corrupted_runs_have_what_is_corrupted() -> None:
    assert run_of("open").steps["preempted"].any()
    assert run_of("sync").steps["swapped_bytes"].any()
    assert run_of("prefix").requests["prefix_hit_tokens"].any()
    assert run_of("drafts").requests["accepted_tokens"].any()
    assert run_of("static").steps["padding_tokens"].any()
    assert (run_of("rejected").requests["status"] == "rejected").any()


# ---- tables ---------------------------------------------------------------------------------------------------------

Corrupt = Callable[[Run], Run]


def cell(table: str, column: str, value: Any, row: int = 0) -> Corrupt:
    """One value of a table as something else: a value, or a function of what it was."""

    def corrupt(run: Run) -> Run:
        changed = getattr(run.result, table).copy()
        was = changed[column].iloc[row]
        changed[column] = [*changed[column].iloc[:row], value(was) if callable(value) else value,
                           *changed[column].iloc[row + 1 or len(changed) :]]  # fmt: skip
        return run.having(**{table: changed})

    return corrupt


def gaps_told(change: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Run], Run]:
    """Corrupts the distribution of gaps between tokens, of which the gaps themselves know nothing."""

    def corrupt(run: Run) -> Run:
        gaps, told = copy.copy(run.result.gaps), change(*run.result.itl)
        vars(gaps)["itl"] = lambda: told
        return run.having(gaps=gaps)

    return corrupt


def column(table: str, name: str, value: Callable[[pd.Series], Any]) -> Corrupt:
    return lambda run: run.having(**{table: getattr(run.result, table).assign(**{name: value})})


def told(path: str, value: Callable[[Any], Any]) -> Corrupt:
    """One number of the summary as something else."""

    def corrupt(run: Run) -> Run:
        summary = copy.deepcopy(run.summary)
        *way, last = path.split(".")
        inner = summary
        for key in way:
            inner = inner[key]
        inner[last] = value(inner[last])
        return run.having(summary=summary)

    return corrupt


def more(value: Any) -> Any:
    return value + 1


def longer(value: Any) -> Any:
    return value * 1.001


PLANTED: list[tuple[str, str, Corrupt]] = [
    ("conservation", "open", lambda run: run.having(requests=run.requests.iloc[:-1])),
    ("conservation", "open", cell("requests", "prompt_tokens", more)),
    ("conservation", "open", cell("requests", "status", "unfinished")),
    ("conservation", "open", cell("requests", "status", "rejected")),
    ("conservation", "open", cell("requests", "finish_s", np.nan)),
    ("conservation", "open", cell("requests", "replica", 7)),
    ("conservation", "open", told("requests.completed", more)),
    ("conservation", "rejected", column("requests", "reason", lambda table: "")),
    ("conservation", "rejected", lambda run: replace(run, plan=run.plan.__class__())),
    ("causality", "open", cell("requests", "arrival_s", lambda was: was + 9.0)),
    ("causality", "open", cell("requests", "first_token_s", lambda was: np.nextafter(was, 9.0))),
    ("causality", "open", column("requests", "finish_s", lambda table: table["first_token_s"] - TICK_S)),
    ("causality", "open", column("requests", "ttft_s", lambda table: table["ttft_s"] * 2)),
    ("causality", "open", column("requests", "tpot_s", lambda table: table["tpot_s"] * 1.01)),
    ("causality", "open", column("requests", "max_itl_s", lambda table: table["max_itl_s"] * 0.1)),
    ("arrivals", "open", cell("requests", "arrival_s", lambda was: was + TICK_S)),
    ("arrivals", "closed", cell("requests", "arrival_s", lambda was: was + TICK_S, row=4)),
    ("arrivals", "closed", cell("requests", "arrival_s", TICK_S)),
    ("arrivals", "sessions", cell("requests", "arrival_s", lambda was: was - TICK_S, row=2)),
    ("clock", "open", cell("steps", "step", more, row=2)),
    ("clock", "open", cell("steps", "end_s", lambda was: was + 1e-6)),
    ("clock", "open", cell("steps", "start_s", lambda was: was - 1e-6, row=3)),
    ("clock", "sync", cell("steps", "device_s", longer)),
    ("clock", "open", cell("steps", "host_s", lambda was: was * 99)),
    ("budgets", "open", cell("steps", "prefill_tokens", 17)),
    ("budgets", "open", cell("steps", "running", 257)),
    ("budgets", "open", cell("steps", "waiting", -1)),
    ("budgets", "open", cell("steps", "prefill_requests", 90)),
    ("budgets", "static", column("steps", "padding_tokens", lambda table: table["padding_tokens"] + 99)),
    ("work", "roomy", cell("steps", "prefill_tokens", more)),
    ("work", "open", column("steps", "decode_requests", lambda table: 0)),
    ("work", "open", told("computed.tokens", more)),
    ("work", "open", cell("steps", "padding_tokens", 1)),
    ("memory", "open", cell("steps", "kv_free_tokens", more)),
    ("memory", "open", cell("steps", "kv_used_mean_tokens", more)),
    ("memory", "open", cell("steps", "kv_saved_tokens", 1)),
    ("memory", "open", told("kv.classes.used.peak", longer)),
    ("memory", "open", told("kv.classes.used.mean", longer)),
    ("memory", "open", told("kv.waste.of_held.used", longer)),
    ("memory", "open", told("kv.mean_used", lambda was: 1.1)),
    ("memory", "open", told("kv.preemptions", more)),
    ("memory", "sync", told("kv.swapped_bytes", more)),
    ("memory", "open", cell("steps", "swapped_bytes", 64)),
    ("content", "closed", cell("steps", "kv_used_tokens", more, row=2)),
    ("content", "roomy", cell("requests", "finish_s", lambda was: was - TICK_S, row=2)),
    ("content", "closed", cell("steps", "decode_requests", more, row=2)),
    ("hits", "prefix", cell("requests", "prefix_hit_tokens", 13, row=3)),
    ("hits", "prefix", cell("requests", "prefix_hit_blocks", more)),
    ("hits", "open", cell("requests", "prefix_hit_tokens", 4)),
    ("hits", "prefix", told("kv.prefix_hit_rate", longer)),
    ("hits", "prefix", told("kv.prefix_hit_rate_blocks", longer)),
    *(("percentiles", "open", told(f"{name}_s.{key}", longer)) for name, key in
      itertools.product(("ttft", "tpot", "itl", "e2e", "queue"), ("mean", "p95", "max"))),
    ("gaps", "open", gaps_told(lambda seconds, counts: (seconds, counts + 1))),
    ("gaps", "open", gaps_told(lambda seconds, counts: (seconds * 1.001, counts))),
    ("gaps", "open", column("requests", "max_itl_s", lambda table: table["max_itl_s"] * 1.001)),
    ("population", "open", cell("steps", "running", more, row=3)),
    ("population", "open", cell("steps", "waiting", more, row=3)),
    ("population", "sync", cell("steps", "waiting", more, row=3)),
    ("population", "sync", lambda run: cell("steps", "running", lambda was: was - 1, row=3)(
        cell("steps", "waiting", more, row=3)(run))),
    ("littles_law", "open", told("throughput.requests_per_s", longer)),
    ("littles_law", "open", told("e2e_s.mean", longer)),
    ("totals", "open", told("duration_s", longer)),
    ("totals", "open", told("throughput.total_tokens_per_s", longer)),
    ("totals", "open", cell("requests", "samples", 2)),
    ("goodput", "open", told("goodput.fraction", lambda was: was / 2)),
    ("goodput", "open", told("goodput.requests_per_s", longer)),
    ("goodput", "open", lambda run: replace(run, plan=replace(run.plan, slo=""))),
    ("bill", "roomy", told("bill.usd", longer)),
    ("bill", "roomy", told("bill.joules", longer)),
    ("bill", "roomy", told("bill.usd_per_million_output_tokens", longer)),
    ("bill", "roomy", told("bill.gpus", more)),
    ("terms", "roomy", told("cost_sources.roofline", longer)),
    ("terms", "roomy", lambda run: run.having(summary={**run.summary, "cost_terms": {}})),
    ("band", "roomy", told("band.tpot_s.p50.low", lambda was: was * 10)),
    ("band", "roomy", lambda run: run.having(summary={**run.summary, "band": None})),
    ("drafts", "drafts", told("speculation.drafted_tokens", more)),
    ("drafts", "drafts", cell("requests", "accepted_tokens", 99)),
    ("drafts", "drafts", column("steps", "draft_tokens", lambda table: 0)),
    ("drafts", "drafts", told("speculation.acceptance", lambda was: 1.5)),
    ("drafts", "open", lambda run: run.having(summary={**run.summary, "speculation": {}})),
]  # fmt: skip


@pytest.mark.parametrize(("law", "name", "corrupt"), PLANTED, ids=[f"{at}-{one[0]}" for at, one in enumerate(PLANTED)])
def test_a_law_reports_a_corrupted_table(law: str, name: str, corrupt: Corrupt) -> None:
    assert list(LAWS[law](corrupt(run_of(name))))


# ---- the product ----------------------------------------------------------------------------------------------------


def test_spans_are_seen_to_matter_where_answers_come_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim.serving.source.math, "nextafter", lambda value, towards: value)
    assert broken(RUNS["closed"], "spans")


def test_spans_are_seen_to_matter_for_means_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim.results.kv, "kv_means", sim.results.kv.kv_tokens)
    assert "kv.mean_used" in broken(RUNS["static"], "spans")


def test_chance_without_a_seed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    count = itertools.count()
    monkeypatch.setattr(sim.speculation.acceptance, "crc32", lambda text: next(count))
    assert broken(RUNS["drafts"], "again")


def test_a_scenario_that_says_other_blocks_than_it_had_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = sim.serving.pool.resolved
    monkeypatch.setattr(
        sim.serving.pool, "resolved", lambda plan, parts: replace(honest(plan, parts), kv=replace(plan.kv, blocks=98))
    )
    assert broken(RUNS["roomy"], "resolved")


def test_a_file_that_is_read_as_another_trace_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = sim.serving.run.load_trace

    def late(plan: Any) -> Any:
        trace = honest(plan)
        return replace(trace, requests=trace.requests.assign(arrival_s=trace.requests["arrival_s"] + TICK_S))

    monkeypatch.setattr(sim.serving.run, "load_trace", late)
    assert broken(RUNS["roomy"], "from_file")


@pytest.mark.usefixtures("pure")
def test_seconds_that_do_not_scale_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Predicted.execute

    def slow(self: Predicted, batch: Any) -> Any:
        result = honest(self, batch)
        return replace(result, seconds=[one + TICK_S for one in result.seconds])

    monkeypatch.setattr(Predicted, "execute", slow)
    assert broken(RUNS["roomy"], "scaled")


def test_a_policy_that_looks_at_the_hour_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Chunked.__call__

    def tired(self: Chunked, step: Any) -> None:
        self.most = 1 if step.now_s > 10 else 0
        honest(self, step)

    monkeypatch.setattr(Chunked, "__call__", tired)
    assert broken(RUNS["open"], "shifted")


def test_a_router_that_has_a_favourite_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = RoundRobin.__call__
    monkeypatch.setattr(
        RoundRobin, "__call__", lambda self, req, replicas: replicas[0] if req.id == 1 else honest(self, req, replicas)
    )
    assert broken(RUNS["open"], "replicas")


@pytest.mark.usefixtures("pure")
def test_a_faster_gpu_that_is_slower_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Roofline.span_s

    def upside_down(self: Any, shape: Any, repeats: int) -> Any:
        device, host_s = honest(self, shape, repeats)
        return [one + self.kernels.gpu.memory_bytes * 1e-12 for one in device], host_s

    monkeypatch.setattr(Roofline, "span_s", upside_down)
    assert "instead of a100-40" in broken(RUNS["roomy"], "lone")


def test_more_blocks_that_make_later_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Chunked.__call__

    def spoilt(self: Chunked, step: Any) -> None:
        self.most = 1 if step._allocator.free_blocks > 150 else 0
        honest(self, step)

    monkeypatch.setattr(Chunked, "__call__", spoilt)
    case = replace(RUNS["sessions"], settings={**RUNS["sessions"].settings, "engine.preset": "foretoken"})
    assert "KV blocks instead of 99" in broken(
        case, "lone"
    )  # under vLLM 0.33's rules a threshold spares a lone request


def test_files_that_are_not_the_tables_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = sim.results.files.parquet
    monkeypatch.setattr(
        sim.results.files, "parquet", lambda table, *more: honest(table.iloc[::-1].reset_index(drop=True), *more)
    )
    assert "requests.parquet is not the table" in broken(RUNS["open"], "folder")


def test_a_number_that_is_none_is_seen_in_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = sim.results.metrics.summarise
    monkeypatch.setattr(
        sim.results.metrics, "summarise", lambda *given, **named: {**honest(*given, **named), "duration_s": np.nan}
    )
    assert "ValueError" in broken(RUNS["open"], "folder")


@pytest.mark.parametrize(
    ("error", "law"),
    [
        (ZeroDivisionError("a bug"), CRASH),
        (InputError("two\nlines"), SENTENCE),
        (InputError(""), SENTENCE),
        (InputError("the run cannot go on: nothing runs"), STUCK),
        (NoProgressError("nothing runs"), CRASH),
    ],
)
def test_what_is_no_sentence_is_seen(monkeypatch: pytest.MonkeyPatch, error: Exception, law: str) -> None:
    def raises(*given: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(sim.serving.pool, "assemble", raises)
    assert [name for name, _ in check(RUNS["open"], ()).broken] == [law]


def test_a_run_that_goes_on_for_ever_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def anew(self: Chunked, step: Any) -> None:
        step.advance_running(2)
        for req in list(step.running):
            if step.computed(req) > 4:
                step.evict(req)
        for req in step.waiting:
            step.grant(req, 2)

    monkeypatch.setattr(Chunked, "__call__", anew)
    settings = {"model": "tiny-llama", "kv.blocks": 9, "engine.async_scheduling": False}
    assert "goes on and on" in broken(Case(settings, (Row(0.0, 9, 9),), MS), STUCK)


def test_every_law_is_tested_here() -> None:
    twins = {"spans", "again", "resolved", "from_file", "scaled", "shifted", "replicas", "lone", "folder"}
    assert {law for law, _, _ in PLANTED} | twins == set(LAWS)
