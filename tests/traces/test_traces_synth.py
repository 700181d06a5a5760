"""Synthetic traces: seeded, at the rate and with the lengths asked for, and strict about what is asked."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import math
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import traces
from traces import arena, arrivals, servegen
from traces.lengths import Empirical, Fixed, FromTrace, Lognormal, Quantiles, parse
from traces.reader import DATA
from traces.reuse import reuse
from traces.rows import from_frame, validate
from traces.schema import InputError, Trace
from traces.synth import Recipe

COUNT = 20_000
BUNDLED = DATA / "chatbot_arena.jsonl.gz"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("make", "cv"),
    [
        (lambda: arrivals.poisson(COUNT, 5.0, rng()), 1.0),
        (lambda: arrivals.gamma(COUNT, 5.0, rng(), 3.0), 3.0),
        (lambda: arrivals.gamma(COUNT, 5.0, rng(), 0.25), 0.25),
        (lambda: arrivals.weibull(COUNT, 5.0, rng(), 2.0), 2.0),
        (lambda: arrivals.weibull(COUNT, 5.0, rng(), 0.5), 0.5),
        (lambda: arrivals.constant(COUNT, 5.0), 0.0),
    ],
    ids=["poisson", "gamma-bursty", "gamma-smooth", "weibull-bursty", "weibull-smooth", "constant"],
)
def test_processes_hold_rate_and_cv(make: Callable[[], np.ndarray], cv: float) -> None:
    times = make()
    gaps = np.diff(times)
    assert len(times) == COUNT
    assert times[0] == 0
    assert (gaps >= 0).all()
    error = 4 * cv / math.sqrt(len(gaps))  # four standard errors of the mean gap
    assert gaps.mean() * 5.0 == pytest.approx(1.0, abs=error + 1e-9)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.08, abs=1e-9)


def test_weibull_shape_of_cv_one_is_the_exponential() -> None:
    assert arrivals.weibull_shape(1.0) == pytest.approx(1.0, rel=1e-9)


def test_diurnal_follows_its_hours() -> None:
    times = arrivals.diurnal(100_000, 100_000 / (5 * arrivals.DAY_S), rng(), start_hour=0.0)
    counts = np.bincount((times % arrivals.DAY_S // 3600).astype(int), minlength=24)
    expected = np.array(arrivals.RAGPULSE_DAY) / sum(arrivals.RAGPULSE_DAY) * len(times)
    assert ((counts - expected) ** 2 / expected).sum() < 60  # chi square with 23 degrees of freedom: p < 1e-4 above
    quiet = [1.0] * 12 + [0.0] * 12
    hours = arrivals.diurnal(5_000, 0.1, rng(), quiet, start_hour=6.0) / 3600 + 6.0
    assert ((hours % 24) <= 12.0 + 1e-9).all()


def test_lengths_have_their_distributions() -> None:
    drawn = Lognormal(200.0, 1.0, 5, 2000).draw(COUNT, rng())
    assert np.median(drawn) == pytest.approx(200, rel=0.05)
    assert drawn.min() >= 5
    assert drawn.max() <= 2000
    assert Fixed(7).draw(3, rng()).tolist() == [7, 7, 7]
    values = Empirical((16, 64), (3.0, 1.0)).draw(COUNT, rng())
    assert set(values.tolist()) == {16, 64}
    assert (values == 16).mean() == pytest.approx(0.75, abs=0.02)
    line = Quantiles({0.0: 100.0, 1.0: 300.0}).draw(COUNT, rng())
    assert line.mean() == pytest.approx(200, rel=0.02)
    assert Quantiles({0.0: 1, 0.5: 131.5, 1.0: 600}).at(np.array([0.0, 0.5, 1.0])).tolist() == [1, 132, 600]


def test_lengths_from_a_trace_stay_pairs() -> None:
    import pandas as pd

    table = pd.DataFrame({"arrival_s": [0.0, 1.0], "prompt_tokens": [10, 20], "output_tokens": [1, 2]})
    prompt, output = FromTrace(from_frame(table)).draw(1000, rng())
    assert (prompt == 10 * output).all()
    assert set(prompt.tolist()) == {10, 20}


BAD = [
    ({"count": 0}, "count is 0"),
    ({"rate": 0.0}, "rate is 0.0; it must be above 0"),
    ({"rate": math.nan}, "rate is nan"),
    ({"arrivals": "magic"}, "unknown arrival process 'magic'; known are poisson, gamma"),
    ({"cv": 2.0}, "cv does not apply to poisson"),
    ({"arrivals": "gamma", "cv": 0.0}, "cv is 0.0"),
    ({"arrivals": "weibull", "cv": 1e9}, "a Weibull process here takes"),
    ({"start_hour": 2.0}, "start_hour does not apply to poisson"),
    ({"arrivals": "diurnal", "start_hour": 25.0}, "start_hour is 25.0"),
    ({"think": 3.0}, "think needs next_turn"),
    ({"next_turn": 1.0}, "next_turn is 1.0"),
    ({"next_turn": 0.5, "think": 0.0}, "think times must be above 0"),
    ({"prefix_tokens": 3}, "prefix_tokens needs prefixes"),
    ({"prefixes": 0}, "prefixes need a count"),
    ({"prompt": None}, "lengths are missing"),
    ({"lengths_from": "chatbot_arena"}, "exclude one another"),
    ({"prompt": "fixed:0"}, "tokens is 0"),
    ({"prompt": "fixed:x"}, "'x' is not a whole number"),
    ({"prompt": "magic:3"}, "unknown distribution 'magic'; known are fixed, lognormal"),
    ({"prompt": "lognormal:median=3"}, "median and sigma are needed"),
    ({"prompt": "lognormal:median=3,sigma=1,mean=2"}, "unknown 'mean'; known are median"),
    ({"prompt": "lognormal:median=3,sigma=1,least=1.5"}, "'1.5' is not a whole number"),
    ({"prompt": "lognormal:median=3,sigma"}, "come pairs like a=1,b=2"),
    ({"prompt": "lognormal:median=-3,sigma=1"}, "median is -3.0"),
    ({"prompt": "empirical:3=-1"}, "weight is -1.0"),
    ({"prompt": "empirical:3=0"}, "a sum above 0"),
    ({"prompt": "quantiles:0=5,1=3"}, "must rise"),
    ({"prompt": "quantiles:0=5,2=9"}, "level is 2.0"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_recipes_are_strict(change: dict[str, object], message: str) -> None:
    plain: dict[str, object] = {"count": 10, "rate": 1.0, "prompt": "fixed:10", "output": "fixed:5"}
    with pytest.raises(InputError) as error:
        Recipe(**{**plain, **change}).make(rng())  # type: ignore[arg-type]
    assert message in str(error.value)


def test_parse_reads_every_distribution() -> None:
    assert parse("fixed:128") == Fixed(128)
    assert parse("lognormal:median=200,sigma=1.5,least=2,most=700") == Lognormal(200.0, 1.5, 2, 700)
    assert parse("empirical:16=0.5,64=1.5") == Empirical((16, 64), (0.5, 1.5))
    assert parse("quantiles:0=1,0.5=130,1=600") == Quantiles({0.0: 1.0, 0.5: 130.0, 1.0: 600.0})


@settings(max_examples=30)
@given(
    st.integers(1, 300),
    st.sampled_from(["poisson", "gamma", "weibull", "constant", "diurnal"]),
    st.none() | st.floats(0, 0.9),
    st.none() | st.integers(1, 4),
    st.integers(0, 2**32),
)
def test_any_recipe_gives_a_valid_trace_of_its_count(
    count: int, process: str, next_turn: float | None, prefixes: int | None, seed: int
) -> None:
    recipe = Recipe(
        count,
        2.0,
        process,
        prompt="lognormal:median=60,sigma=1",
        output="fixed:9",
        next_turn=next_turn,
        prefixes=prefixes,
    )
    trace = recipe.make(rng(seed))
    assert len(trace) == count
    assert trace.synthetic
    validate(trace.requests, "made")
    assert trace.requests.equals(recipe.make(rng(seed)).requests)
    table = trace.requests
    assert (np.diff(table["arrival_s"]) >= 0).all()
    if next_turn is not None:
        follows = table["after"] >= 0
        before = table.loc[table.loc[follows, "after"]]
        after = table.loc[follows]
        assert (after["session"].to_numpy() == before["session"].to_numpy()).all()
        assert (after["turn"].to_numpy() == before["turn"].to_numpy() + 1).all()
        repeated = before["prompt_tokens"].to_numpy() + before["output_tokens"].to_numpy()
        assert (after["prompt_tokens"].to_numpy() > repeated).all()


def test_sessions_and_prefixes_hold_their_means() -> None:
    recipe = Recipe(COUNT, 50.0, prompt="fixed:100", output="fixed:28", next_turn=0.25, think=30.0, prefixes=3)
    table = recipe.make(rng()).requests
    sizes = table.groupby("session").size()
    assert sizes.mean() == pytest.approx(1 / 0.75, rel=0.03)
    think = table.loc[table["after"] >= 0, "think_s"]
    assert think.median() == pytest.approx(30.0, rel=0.06)
    first = table.loc[table["turn"] == 0]
    assert (first["prompt_tokens"] == 356).all()
    heads = {tuple(ids[:16].tolist()) for ids in first["prefix_blocks"]}
    assert len(heads) == 3
    starts = first["arrival_s"].to_numpy()
    assert (len(starts) - 1) / (starts[-1] - starts[0]) == pytest.approx(50 * 0.75, rel=0.04)


def test_later_turns_reuse_prompt_and_answer() -> None:
    table = Recipe(500, 5.0, prompt="fixed:32", output="fixed:16", next_turn=0.5, prefixes=1, prefix_tokens=0).make(
        rng()
    )
    found = reuse(table.requests)
    assert found is not None
    rows = table.requests
    follows = rows["after"] >= 0
    repeated = int((rows.loc[follows, "prompt_tokens"] - 32).sum())  # all but the new question
    assert found.reused_tokens == repeated
    uncomputed = int(follows.sum()) * 16  # the last token of an answer has no KV, and its block is not full without it
    assert found.kv_reused_tokens == repeated - uncomputed


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_bundled_arena_is_what_its_generator_makes() -> None:
    made = "".join(line + "\n" for line in arena.lines(arena.Launch(), rng(arena.SEED)))
    kept = gzip.decompress(BUNDLED.read_bytes())
    assert hashlib.sha256(made.encode()).hexdigest() == hashlib.sha256(kept).hexdigest()
    assert BUNDLED.stat().st_size < 2_000_000
    assert BUNDLED.read_bytes()[4:8] == b"\0\0\0\0"  # no time of packing


def test_bundled_arena_has_the_published_statistics() -> None:
    rows = rows_of(BUNDLED)
    trace = traces.read("chatbot_arena.jsonl")
    table = trace.requests
    assert len(rows) == 4_700
    assert all(row["synthetic"] is True for row in rows)
    assert all(row["model_a"] != row["model_b"] for row in rows)
    assert len({row["judge"] for row in rows}) == pytest.approx(4_700 / 2.466, rel=0.001)
    assert len(table) == 2 * sum(int(str(row["turn"])) for row in rows)
    assert len(table) / 9_400 == pytest.approx(1.2, abs=0.02)
    assert table["output_tokens"].mean() == pytest.approx(189.5, rel=0.01)
    first = table["prompt_tokens"][table["turn"] == 0]
    assert first.mean() == pytest.approx(52.3, rel=0.02)
    assert np.percentile(first, [50, 90, 99]) == pytest.approx([22, 125, 514], rel=0.08)
    both = np.log(table.loc[table["turn"] == 0, ["prompt_tokens", "output_tokens"]])
    assert np.corrcoef(both.T)[0, 1] == pytest.approx(0.11, abs=0.04)
    winners = [row["winner"] for row in rows]
    assert winners.count("tie") / len(rows) == pytest.approx(0.187, abs=0.02)
    assert sum(row["language"] == "English" for row in rows) / len(rows) == pytest.approx(0.8, abs=0.02)
    assert rows[0]["tstamp"] == 1682351591.1322
    days = trace.span_s / 86_400
    assert 7.2 < days < 7.4


def test_arena_rows_have_the_real_schema() -> None:
    row = json.loads(next(iter(arena.lines(arena.Launch(votes=1), rng()))))
    assert set(row) == {
        *("question_id", "model_a", "model_b", "winner", "judge", "conversation_a", "conversation_b", "turn", "anony"),
        *("language", "tstamp", "openai_moderation", "toxic_chat_tag", "synthetic"),
    }
    assert len(row["question_id"]) == 32
    assert len(row["openai_moderation"]["categories"]) == 11
    assert [message["role"] for message in row["conversation_a"][:2]] == ["user", "assistant"]


def test_arena_plans_are_strict() -> None:
    with pytest.raises(InputError, match="votes is 0"):
        arena.Launch(votes=0)
    with pytest.raises(InputError, match="days is"):
        arena.Launch(days=0)


WINDOWS = "0,2,1.5,Gamma,0.4,1\n600,0,0,,0,0\n1200,4,0.5,Weibull,2,1\n"
DATASET = {"0": {"input_tokens": "{5: 0.5, 7: 0.5}", "output_tokens": "{0: 0.25, 9: 0.75}", "reason_ratio": "{}"}}


def servegen_folder(folder: Path, windows: str = WINDOWS, dataset: object = DATASET) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "chunk-0-trace.csv").write_text(windows)
    (folder / "chunk-0-dataset.json").write_text(dataset if isinstance(dataset, str) else json.dumps(dataset))
    return folder


def test_servegen_windows_hold_their_rates(tmp_path: Path) -> None:
    clients = servegen.read_clients(servegen_folder(tmp_path))
    counts = np.zeros(3)
    for seed in range(40):
        found = list(servegen._arrivals(clients[0], rng(seed), 0.0, 1800.0, 1.0))
        assert [begin for begin, _ in found] == [0.0, 1200.0]
        for begin, times in found:
            assert ((times >= begin) & (times <= begin + 600)).all()
            counts[int(begin // 600)] += len(times) / 40
    assert counts == pytest.approx([1200, 0, 2400], rel=0.03)


def test_servegen_trace(tmp_path: Path) -> None:
    trace: Trace = servegen.synthesise(servegen.read_clients(servegen_folder(tmp_path)), rng(), duration_s=1800)
    table = trace.requests
    assert set(table["prompt_tokens"]) == {5, 7}
    assert set(table["output_tokens"]) == {1, 9}  # an answer of 0 tokens counts as 1
    assert (np.diff(table["arrival_s"]) >= 0).all()
    validate(table, "made")
    with pytest.raises(InputError, match="no ServeGen client sends anything between 600 s and 900 s"):
        servegen.synthesise(servegen.read_clients(tmp_path), rng(), start_s=600, duration_s=300)
    with pytest.raises(InputError, match="above 0"):
        servegen.synthesise(servegen.read_clients(tmp_path), rng(), duration_s=-1)


@pytest.mark.parametrize(
    ("windows", "dataset", "message"),
    [
        ("0,x,1,Gamma,1,1\n", DATASET, r"chunk-0-trace\.csv line 1: expected start, rate"),
        (WINDOWS + "1800,1,1,Pareto,1,1\n", DATASET, r"line 4: .* Gamma or Weibull"),
        (WINDOWS + "1800,1,1,Gamma,0,1\n", DATASET, r"line 4: shape is 0; it must be above 0"),
        (WINDOWS + "900,1,1,Gamma,1,1\n", DATASET, r"line 4: windows must be in order"),
        ("0,1,1,Gamma,1,1\n", DATASET, r"fewer than two windows"),
        (WINDOWS, "{", r"chunk-0-dataset\.json is not the lengths"),
        (WINDOWS, {"0": {"input_tokens": 5, "output_tokens": "{}"}}, r"lengths must be a text"),
        (WINDOWS, {"0": {"input_tokens": "{5: __import__('os')}", "output_tokens": "{}"}}, r"is not a token count"),
        (WINDOWS, {"0": {"input_tokens": "{}", "output_tokens": "{}"}}, r"sends requests but has no lengths"),
    ],
)
def test_servegen_files_are_checked(tmp_path: Path, windows: str, dataset: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        servegen.synthesise(servegen.read_clients(servegen_folder(tmp_path, windows, dataset)), rng(), duration_s=60)


def test_servegen_archives(tmp_path: Path) -> None:
    folder = servegen_folder(tmp_path / "model")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        archive.add(folder, arcname="model")
    path = tmp_path / "model.tar.xz"
    path.write_bytes(packed.getvalue())
    assert servegen.read_clients(path) == servegen.read_clients(folder)
    path.write_bytes(packed.getvalue()[:-60])
    with pytest.raises(InputError, match="cut off"):
        servegen.read_clients(path)
    path.write_bytes(lzma.compress(b"nothing"))
    with pytest.raises(InputError, match="not a tar"):
        servegen.read_clients(path)
    for name, message in (("gone", "does not exist"), ("empty", r"holds no chunk-N-trace\.csv")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=message):
            servegen.read_clients(tmp_path / name)
