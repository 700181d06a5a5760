"""Every setting has a meaning, and every number a bound, also of a GPU and a model; beyond it is a sentence."""

from __future__ import annotations

import dataclasses
import math

import click
import pytest

from sim import api
from sim.catalog import load_gpu, load_model
from sim.cli.compare import compare
from sim.cli.options import OPTIONS
from sim.cli.plan import plan
from sim.cli.run import run
from sim.cli.sweep import sweep
from sim.cli.validate import validate
from sim.scenario import SETTINGS, Scenario, build
from sim.specs.bounds import Bound
from sim.specs.front_end import FrontEndSettings
from sim.specs.gpu import PHYSICAL
from sim.specs.settings import word
from sim.specs.shape import LARGEST
from traces import edit, from_frame
from traces.schema import InputError

BOUNDS = {key: (default, about.bound) for key, (default, about) in SETTINGS.items() if about.bound is not None}


def test_every_number_has_a_bound_and_keeps_it() -> None:
    for key, (default, about) in SETTINGS.items():
        if isinstance(default, int | float) and not isinstance(default, bool):
            assert about.bound is not None, key
        if about.bound is not None and not isinstance(default, dict | str):
            about.bound.check(key, default)


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_has_a_meaning_and_a_default_it_may_have(key: str) -> None:
    default, about = SETTINGS[key]
    assert about.meaning.endswith(".")
    assert about.meaning[0].isupper() or about.meaning.startswith("virtual")
    about.check(key, default)
    default_of = {} if isinstance(default, dict) else {key: default}
    if key == "front_end.name":
        assert build({}, default_of) == build({})
    else:
        bare = dataclasses.replace(
            Scenario(), front_end=FrontEndSettings("off")
        )  # what another costs is a fact of its engine
        assert build({}, {"front_end.name": "off"} | default_of) == bare


@pytest.mark.parametrize("key", BOUNDS)
def test_beyond_its_bound_a_number_is_refused_with_it(key: str) -> None:
    default, bound = BOUNDS[key]
    key = f"{key}.gemm" if isinstance(default, dict) else key
    least = bound.least / 2 if bound.least > 0 and isinstance(default, float) else bound.least - 1
    beyond: list[float] = (
        [least, bound.most + 1, 10**400, -1]
        if isinstance(default, int)
        else [least, 2 * bound.most, -math.inf if bound.infinite else math.inf, math.nan]
    )
    for value in beyond:
        with pytest.raises(InputError) as caught:
            build({}, {key: value})
        assert str(caught.value).startswith(f"{key} is ")
        assert str(bound) in str(caught.value)
        assert len(str(caught.value)) < 300
    for value in (bound.most, *([] if bound.above else [bound.least])):
        bound.check(key, value)


@pytest.mark.parametrize("key", [key for key, (_, about) in SETTINGS.items() if about.choices])
def test_what_is_no_choice_is_refused_with_the_choices(key: str) -> None:
    with pytest.raises(InputError) as caught:
        build({}, {key: "magic"})
    assert str(caught.value) == f"{key} is 'magic'; known: {', '.join(map(word, SETTINGS[key][1].choices))}"


@pytest.mark.parametrize("flag", OPTIONS)
def test_an_option_says_what_its_setting_says(flag: str) -> None:
    meaning = SETTINGS[OPTIONS[flag]][1].meaning
    for command in (run, compare, validate, sweep, plan):
        options = [option for option in command.params if isinstance(option, click.Option) and flag in option.opts]
        if flag in ("--executor", "--device") and command in (sweep, plan):
            assert not [option for option in options if option.help == meaning]
        else:
            assert [option.help for option in options] == [meaning]


def test_the_ends_of_a_bound_belong_to_it() -> None:
    bound = Bound(2, 5, "none")
    assert [value for value in range(-1, 8) if bound.holds(value)] == [0, 2, 3, 4, 5]
    assert not Bound(0.0, 1.0, above=True).holds(0.0)
    assert not bound.holds(math.nan)
    endless = Bound(1.0, 9.0, infinite="all at once")
    assert endless.holds(math.inf)
    assert not endless.holds(-math.inf)
    assert not endless.holds(10.0)
    assert str(endless) == "at least 1 and at most 9, or inf (all at once)"


@pytest.mark.parametrize("key", PHYSICAL)
@pytest.mark.parametrize("value", [1e-300, 5e-324, 1e300, math.inf, math.nan, -1.0])
def test_a_gpu_of_no_known_physics_is_refused(key: str, value: float) -> None:
    with pytest.raises(InputError, match=key):
        dataclasses.replace(load_gpu("h100"), **{key: value})


@pytest.mark.parametrize("key", [*LARGEST, "vocab", "max_context_tokens"])
def test_a_model_a_thousand_times_the_largest_is_refused(key: str) -> None:
    with pytest.raises(InputError, match=key):
        dataclasses.replace(load_model("llama-3.1-8b"), **{key: 10**12})


def test_blocks_of_all_replicas_together_are_bounded() -> None:
    with pytest.raises(InputError, match="at most 100,000,000 are simulated"):
        api.run(trace="chatbot_arena.jsonl", limit=1, replicas=10_000, **{"kv.blocks": 10_001})


def test_parameters_of_a_part_are_bounded() -> None:
    for value in (math.inf, math.nan, 1e16):
        with pytest.raises(InputError, match=r"policy\.timeout_s is"):
            api.run(trace="chatbot_arena.jsonl", limit=1, policy="static", **{"policy.timeout_s": value})
    with pytest.raises(InputError, match=r"policy\.batch_size is"):
        api.run(trace="chatbot_arena.jsonl", limit=1, policy="static", **{"policy.batch_size": 10**400})


def test_a_trace_is_neither_drawn_nor_stretched_beyond_measure() -> None:
    import numpy as np
    import pandas as pd

    trace = from_frame(pd.DataFrame({"arrival_s": [0.0, 1.0], "prompt_tokens": [1, 1], "output_tokens": [1, 1]}))
    with pytest.raises(InputError, match="at most 10,000,000"):
        edit.resample(trace, 10**9, np.random.default_rng(0))
    for rate in (1e-300, 1e300, math.nan):
        with pytest.raises(InputError, match="rate"):
            edit.set_rate(trace, rate, np.random.default_rng(0))
    slow = from_frame(pd.DataFrame({"arrival_s": [0.0, 3e9], "prompt_tokens": [1, 1], "output_tokens": [1, 1]}))
    with pytest.raises(InputError, match="over 100 years"):
        edit.scale_rate(slow, 1e-6)
