"""Scenarios are strict: what is unknown or of the wrong type is named, with what is known; and they survive TOML."""

from __future__ import annotations

import tomllib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.scenario import (
    CostSettings,
    EngineSettings,
    KvSettings,
    OffloadSettings,
    Part,
    Scenario,
    build,
    dump,
    parse_setting,
    read,
)
from sim.specs.front_end import FrontEndSettings
from sim.specs.workload import WorkloadSettings
from traces.schema import InputError


def told(tables: dict[str, Any], settings: dict[str, Any] | None = None) -> str:
    """The sentence that refuses these settings."""
    with pytest.raises(InputError) as caught:
        build(tables, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- strictness -----------------------------------------------------------------------------------------------------


def test_nothing_given_is_the_default() -> None:
    assert build({}, {"front_end.name": "off"}) == replace(Scenario(), front_end=FrontEndSettings("off"))


@pytest.mark.parametrize(
    ("tables", "key", "known"),
    [
        ({"modell": "x"}, "'modell'", ["model", "gpu", "seed", "workload", "engine", "kv", "policy"]),
        ({"engine": {"max_seqs": 1}}, "'engine.max_seqs'", ["max_num_seqs", "max_num_batched_tokens"]),
        ({"kv": {"block": 1}}, "'kv.block'", ["blocks", "block_tokens", "gpu_memory_utilization"]),
        ({"workload": {"rat": 1.0}}, "'workload.rat'", ["rate", "rate_scale", "concurrency"]),
        ({"cost": {"profil": "x"}}, "'cost.profil'", ["profile", "efficiency"]),
        ({"offload": {"layers": 1}}, "'offload.layers'", ["weight_layers", "kv_layers", "host_gib"]),
        ({"engin": {"max_num_seqs": 1}}, "'engin'", ["engine"]),
    ],
)
def test_an_unknown_key_is_named_with_the_known_ones(tables: dict[str, Any], key: str, known: list[str]) -> None:
    text = told(tables)
    assert key in text
    for name in known:
        assert name in text
    # The same key as a dotted setting.
    section, value = next(iter(tables.items()))
    settings = {f"{section}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else tables
    assert told({}, settings) == text


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("seed", "7", "int"),
        ("seed", 7.0, "int"),
        ("seed", True, "int"),
        ("model", 8, "str"),
        ("engine.max_num_seqs", "64", "int"),
        ("engine.max_num_seqs", 64.0, "int"),
        ("engine.max_num_seqs", True, "int"),
        ("engine.max_num_seqs", [64], "int"),
        ("engine.chunked_prefill", 1, "bool"),
        ("engine.chunked_prefill", "yes", "bool"),
        ("engine.async_scheduling", 1, "bool | str"),
        ("kv.gpu_memory_utilization", "0.9", "float"),
        ("workload.trace", 1, "str"),
        ("workload.rate", True, "float"),
        ("cost.efficiency.gemm", "0.7", "float"),
        ("cost.efficiency", 0.7, "efficiency"),
        ("weights", 4, "str"),
        ("offload.kv_layers", 1.5, "int"),
        ("offload.host_gib", "64", "float"),
        ("engine", 3, "section"),
        ("engine.max_num_seqs.more", 3, "int"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_key(key: str, value: Any, kind: str) -> None:
    text = told({}, {key: value})
    assert ".".join(key.split(".")[:2]) in text
    assert kind in text


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("tp", 0, "tp is 0; it must be at least 1"),
        ("replicas", -1, "replicas is -1"),
        ("seed", -1, "seed is -1"),
        ("engine.async_scheduling", "sometimes", "known: true, false, auto"),
        ("kv.blocks", -1, "kv.blocks is -1"),
        ("kv.block_tokens", 0, "kv.block_tokens is 0"),
        ("kv.gpu_memory_utilization", 0.0, "above 0 and at most 1"),
        ("kv.gpu_memory_utilization", 1.5, "above 0 and at most 1"),
        ("kv.gpu_memory_utilization", float("nan"), "above 0 and at most 1"),
        ("workload.rate", -1.0, "workload.rate is -1.0"),
        ("workload.rate", float("nan"), "workload.rate is nan"),
        ("workload.rate_scale", 0.0, "workload.rate_scale is 0.0"),
        ("workload.rate_scale", float("nan"), "workload.rate_scale is nan"),
        ("workload.limit", -5, "workload.limit is -5"),
        ("workload.concurrency", -5, "workload.concurrency is -5"),
    ],
)
def test_a_value_out_of_range_is_named_with_the_range(key: str, value: Any, text: str) -> None:
    assert text in told({}, {key: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"rate": 2.0, "workload.rate_scale": 2.0},
        {"workload.rate": 2.0, "workload.concurrency": 4},
        {"workload.rate_scale": 0.5, "workload.concurrency": 4},
    ],
)
def test_settings_that_contradict_one_another_are_refused(settings: dict[str, Any]) -> None:
    assert "exclude one another" in told({}, settings)


def test_a_value_is_no_section() -> None:
    assert "'seed'" in told({"seed": 3}, {"seed.more": 4})
    assert "'engine'" in told({"engine": 3}, {"engine.max_num_seqs": 4})
    assert "engine" in told({"engine": 3}, {"engine": {"max_num_seqs": 4}})


# ---- merging --------------------------------------------------------------------------------------------------------


def test_settings_win_over_the_file_and_leave_the_rest() -> None:
    made = build(
        {"engine": {"max_num_seqs": 4, "max_num_batched_tokens": 100}, "seed": 1},
        {"engine.max_num_seqs": 8, "seed": 2},
    )
    assert (made.engine.max_num_seqs, made.engine.max_num_batched_tokens, made.seed) == (8, 100, 2)


def test_a_section_may_be_given_whole_on_top_of_the_file() -> None:
    made = build({"engine": {"max_num_seqs": 4, "max_num_batched_tokens": 100}}, {"engine": {"max_num_seqs": 8}})
    assert (made.engine.max_num_seqs, made.engine.max_num_batched_tokens) == (8, 100)


@pytest.mark.parametrize(
    ("short", "value", "where"),
    [
        ("trace", "t.csv", ("workload", "trace")),
        ("policy", "sjf", ("policy", "name")),
        ("allocator", "prefix", ("allocator", "name")),
        ("router", "least-outstanding", ("router", "name")),
        ("profile", "h200-llama-3.1-8b", ("cost", "profile")),
    ],
)
def test_short_keys(short: str, value: str, where: tuple[str, str]) -> None:
    section, key = where
    for made in (build({short: value}), build({}, {short: value}), build({section: {key: value}})):
        assert getattr(getattr(made, section), key) == value


def test_a_short_key_keeps_the_parameters_of_the_section() -> None:
    made = build({"policy": {"name": "sjf", "by": "total"}}, {"policy": "sjf", "policy.by": "output"})
    assert made.policy == Part("sjf", {"by": "output"})
    assert build({"policy": {"long_prefill_token_threshold": 9}}).policy.name == "chunked"
    assert "policy.name" in told({"policy": {"name": 3}})


def test_what_was_given_is_not_changed() -> None:
    tables, settings = {"engine": {"max_num_seqs": 4}}, {"engine.max_num_seqs": 8, "policy": "sjf"}
    build(tables, settings)
    assert tables == {"engine": {"max_num_seqs": 4}}
    assert settings == {"engine.max_num_seqs": 8, "policy": "sjf"}


# ---- key=value ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("engine.max_num_seqs=64", "engine.max_num_seqs", 64),
        (" engine.max_num_seqs = 64 ", "engine.max_num_seqs", 64),
        ("kv.gpu_memory_utilization=0.85", "kv.gpu_memory_utilization", 0.85),
        ("engine.chunked_prefill=false", "engine.chunked_prefill", False),
        ("engine.async_scheduling=auto", "engine.async_scheduling", "auto"),
        ('workload.trace="a b.csv"', "workload.trace", "a b.csv"),
        ("workload.trace=a b.csv", "workload.trace", "a b.csv"),
        ("slo=ttft_p99=0.5,tpot_p99=0.05", "slo", "ttft_p99=0.5,tpot_p99=0.05"),
        ("model=llama-3.1-8b", "model", "llama-3.1-8b"),
        ("workload.trace=", "workload.trace", ""),
        ("policy.x=[1, 2]", "policy.x", [1, 2]),
    ],
)
def test_a_setting_is_a_toml_value_or_text(text: str, key: str, value: Any) -> None:
    parsed = parse_setting(text)
    assert parsed == (key, value)
    assert type(parsed[1]) is type(value)


@pytest.mark.parametrize("text", ["", "engine.max_num_seqs", "=3", "  =3"])
def test_a_setting_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"expected section\.key=value"):
        parse_setting(text)


@pytest.mark.parametrize("key", ["engine.", ".max_num_seqs", "engine..max_num_seqs", "."])
def test_a_crooked_key_is_refused(key: str) -> None:
    assert "unknown setting" in told({}, {key: 3})


def test_a_line_break_smuggles_nothing_in() -> None:
    key, value = parse_setting("seed=1\ntp=2")
    assert key == "seed"
    assert value != 1


# ---- TOML -----------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.sampled_from(["a", "b_c", "long_prefill_token_threshold"])
values = st.one_of(st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.booleans(), texts)
parts = st.builds(Part, texts, st.dictionaries(names, values, max_size=3))
scenarios = st.builds(
    Scenario,
    model=texts,
    gpu=texts,
    tp=st.integers(1, 16),
    replicas=st.integers(1, 9),
    seed=st.integers(0, 2**40),
    slo=texts,
    workload=st.builds(
        WorkloadSettings,
        trace=texts,
        limit=st.integers(0, 10**9),
        rate=st.one_of(st.just(0.0), st.floats(1e-6, 1e9)),
        sessions=st.booleans(),
        side=texts,
        skip_bad=st.booleans(),
    ),
    engine=st.builds(
        EngineSettings,
        max_num_seqs=st.integers(1, 10**6),
        chunked_prefill=st.booleans(),
        async_scheduling=st.sampled_from([True, False, "auto"]),
    ),
    front_end=st.just(FrontEndSettings("off")),  # as built: what stands for auto has a name
    kv=st.builds(KvSettings, blocks=st.integers(0, 10**6), gpu_memory_utilization=st.floats(0.01, 1)),
    weights=texts,
    offload=st.builds(
        OffloadSettings, weight_layers=st.integers(1, 200), kv_layers=st.integers(0, 200), host_gib=st.floats(0, 9e5)
    ),
    policy=parts,
    allocator=parts,
    router=parts,
    cost=st.builds(CostSettings, efficiency=st.dictionaries(names, st.floats(0, 1e6), max_size=3)),
)


@given(scenarios)
def test_a_scenario_survives_toml(made: Scenario) -> None:
    text = dump(made)
    assert build(tomllib.loads(text)) == made
    assert dump(build(tomllib.loads(text))) == text


def test_a_dump_spells_every_setting_out() -> None:
    tables = tomllib.loads(dump(Scenario()))
    for entry in fields(Scenario):
        if entry.name == "pools":
            continue  # written where there are some
        assert entry.name in tables
        value = getattr(Scenario(), entry.name)
        if is_dataclass(value) and not isinstance(value, Part):
            assert set(tables[entry.name]) == {inner.name for inner in fields(value)}


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('policy = "sjf"\ntrace = "t.csv"\n[engine]\nmax_num_seqs = 7\n[allocator]\nname = "prefix"\n')
    made = build(read(path))
    assert (made.policy.name, made.workload.trace, made.engine.max_num_seqs, made.allocator.name) == (
        "sjf",
        "t.csv",
        7,
        "prefix",
    )


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none.toml", "does not exist"), (tmp_path, "is a folder, not a file")):
        with pytest.raises(InputError, match=why) as caught:
            read(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "line"), [(b"seed = 1\ntp = \n", "line 2"), (b"seed = 1\nseed = 2\n", "line 2"), (b"\xff\xfe", "")]
)
def test_what_is_no_toml_is_named_with_its_line(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "s.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is not (TOML|UTF-8)") as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert line in str(caught.value)
