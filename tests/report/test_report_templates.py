"""The templates of the pages: whatever comes from outside is escaped in each of them, and nothing is left out."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError
from patience import PATIENCE_S
from profile_kit import llama_profile
from report_samples import make_run
from report_sweeps import sweep_table
from test_report_page import EVIL, Outline

from calibrate.evaluate import Checked
from calibrate.page import page
from sim.report import templates
from sim.report.compare.page import render_comparison
from sim.report.compare.variant import Failure, Variant
from sim.report.plan.page import render_plan
from sim.report.run.page import render_page
from sim.report.sweep.page import render_sweep
from sim.report.validation.page import render_validation
from sim.validate import store
from sim.validate.run import Pricing, Validation, validate
from sim.validate.verdict import ON_CPU

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "tests" / "data" / "validate_cpu" / "chat-8-speculative-paged"
CANDIDATE = {
    "capacity_per_replica": 3.0, "replicas": 1, "gpus": 2, "gpu": EVIL, "usd_per_hour": None, "tp": 2,
    "usd_per_million_tokens": None, "joules_per_million_tokens": None, "ttft_s": {"p99": 0.5},
    "e2e_s": {"p50": 2.0, "p99": 3.0}, "status": "best", "reason": EVIL, "replications": 10,
}  # fmt: skip


def a_run(name: str) -> str:
    run = make_run(30, trace=name, model=name, gpu=name, policy=name, notes=[name], version=name, slo="ttft=0.1")
    return render_page(run, scenario=name)


def a_comparison(name: str) -> str:
    kept = Variant.of(name, make_run(300, trace=name, model=name, gpu=name, policy=name, notes=[name], version=name))
    named = replace(kept, warnings=[name], settings={name: name}, scenario=name)
    return render_comparison([named, replace(named, name=name * 2, settings={}), Failure(name * 3, name)])


def a_sweep(name: str) -> str:
    axes: dict[str, list[Any]] = {"policy.name": [name, "b"], "workload.rate": [2.0, 4.0]}
    table = sweep_table(axes, fail="4.0").assign(reason=name, **{"inputs.trace": name})
    about = {"title": name, "version": name, "scenario": name, "notes": [name], "who": name, name: [name]}
    return render_sweep(table, axes, about)


def a_plan(name: str) -> str:
    row = {**CANDIDATE, "name": name, "gpu": name, "reason": name}
    inputs = {"trace": name, "model": name, "version": name, "policy": name}
    choice = {"candidates": [row, {**row, "name": name * 2}], "best": row, "capacity": None, "precision": 0.03}
    return render_plan(
        {"rate": 3.0, "rates": [], "slo": {"ttft_p99": 1.0}, "inputs": inputs, "notes": [name], **choice}
    )


@pytest.fixture(scope="module")
def validation() -> Validation:
    kept = store.read(RECORDED)
    return validate(kept, ON_CPU, Pricing.fitted_to(kept))


def a_profile(name: str) -> str:
    profile = llama_profile(device=name, source=name, notes=(name,), software={name: name})
    return page(profile, [Checked(name, name, 10.0, 15.0, name)])


PAGES = {"run": a_run, "comparison": a_comparison, "sweep": a_sweep, "plan": a_plan, "profile": a_profile}


def check(render: Callable[[str], str]) -> None:
    """The page of hostile names has the tags of the page of harmless ones, and no attribute that runs anything."""
    hostile, harmless = (Outline(render(name)) for name in (EVIL, "x"))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    assert not {"img", "iframe"} & {tag for tag, _ in hostile.tags}
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]
    for one in hostile.scripts[:1]:
        json.loads(one)


@pytest.mark.parametrize("kind", PAGES)
def test_hostile_names_stay_names(kind: str) -> None:
    check(PAGES[kind])


def test_hostile_names_stay_names_in_a_validation(validation: Validation) -> None:
    def render(name: str) -> str:
        document = copy.deepcopy(validation.document)
        document["inputs"].update(trace=name, model=name, device=name, version=name, notes=[name])
        document["verdict"].update(out=[name], reason=name)
        document["steps"]["model"] = name
        document["twin"].update(identical=False, first_difference={"sentence": name, "live": 1})
        return render_validation(replace(validation, document=document))

    check(render)


def test_data_cannot_end_its_element() -> None:
    value = {"b": "</script><!-- & > '", "a": 1}
    text = templates.environment().from_string("{{ value|tojson }}").render(value=value)
    assert not set("<>&'") & set(text)
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        templates.environment().from_string("{{ value|tojson }}").render(value=float("nan"))


def test_a_page_may_run_its_own_style_and_script_alone() -> None:
    """What the policy in the head allows are the digests of just what stands in the page."""
    text = a_run("x")
    policy = next(attributes["content"] for tag, attributes in Outline(text).tags if "http-equiv" in attributes)
    inner = [text.split(f"<{tag}>")[1].split(f"</{tag}>")[0] for tag in ("style", "script")]
    style, script = (base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in inner)
    allowed = f"style-src 'sha256-{style}'; script-src 'sha256-{script}'"
    assert policy == f"default-src 'none'; img-src data:; {allowed}"


def test_a_value_that_a_page_was_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'version' is undefined"):
        templates.render("run.html")


def test_every_template_is_escaped_and_compiles() -> None:
    for package in ("sim.report", "calibrate"):
        environment = templates.environment(package)
        assert environment.autoescape is True
        for name in environment.list_templates(extensions=["html"]):
            environment.get_template(name)
            source = (environment.loader and environment.loader.get_source(environment, name)[0]) or ""
            assert source.count("|safe") == (2 if name == "base.html" else 0), name


def test_a_command_that_draws_nothing_loads_no_templates() -> None:
    code = (
        "import sys; from sim.cli.main import cli; cli(['run', '--help'], standalone_mode=False); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=PATIENCE_S
    )
    assert "jinja2" not in done.stdout.split()
