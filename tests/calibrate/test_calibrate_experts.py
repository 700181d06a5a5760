"""Calibrating a model of routed experts on this CPU: what is measured, and that a simulation is priced by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("torch", reason="calibrating needs torch")

from model_kit import config_of

from backend.model import layers
from backend.model.layers import ExpertMlp
from backend.model.loader import random_model
from calibrate.cli import cli
from calibrate.routed import DrawnExperts, Untimed
from sim.catalog import load_model
from sim.cost import profile
from sim.cost.experts import Routing
from sim.cost.profiled import Profiled
from sim.engine.batch import Shape
from sim.specs.model import ModelSpec
from sim.specs.parallel import SINGLE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of experts smaller than any of the catalog: its config alone."""
    path = tmp_path_factory.mktemp("mixture")
    (path / "config.json").write_text(json.dumps(config_of("mixtral")))
    return str(path)


@pytest.fixture
def spec(folder: str) -> ModelSpec:
    return load_model(folder).with_dtypes(dtype="fp32")


def test_experts_are_measured_and_price_a_step(folder: str, spec: ModelSpec, tmp_path: Path) -> None:
    out = tmp_path / "mixture-cpu"
    sizes = ("--max-tokens", "16", "--max-rows", "2", "--max-context", "64", "--dtype", "fp32")
    done = CliRunner().invoke(
        cli, ["--gpu", "cpu", "--models", folder, *sizes, "--budget-s", "3", "--quiet", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output + str(done.exception)
    assert "routed experts" not in done.output
    made = profile.find(str(out))
    rows = list(made.tables["expert_layer"].rows())
    size = (spec.hidden, spec.expert_ffn, spec.experts, spec.experts_per_token)
    for row in rows:
        assert (row["hidden"], row["ffn"], row["experts"], row["experts_per_token"]) == size
        assert row["routing"] == "uniform"
        assert spec.experts_per_token <= row["touched"] <= min(spec.experts, row["tokens"] * spec.experts_per_token)
    assert len({row["tokens"] for row in rows}) == len(rows) > 2
    # Of the matrices only whole ones: what experts multiply within is not the table's.
    matrices = {(row["k"], row["n"]) for row in made.tables["gemm"].rows()}
    assert (spec.hidden, spec.experts) in matrices
    assert not {(spec.hidden, 2 * spec.expert_ffn), (spec.expert_ffn, spec.hidden)} & matrices
    assert "route" in {row["op"] for row in made.tables["elementwise"].rows()}
    priced = Profiled(spec, made.gpu(), made).explain(Shape(((16, 0),), 0, 0))
    term = priced[spec.expert_gemms(SINGLE)[0].name]
    us = next(row["us"] for row in rows if row["tokens"] == 16)
    assert term.source != "roofline"
    assert term.seconds == pytest.approx(spec.expert_layers * float(us) * 1e-6, rel=0.3)


def test_drawn_visits_are_even_and_counted(spec: ModelSpec) -> None:
    spec = replace(spec, experts=32, experts_per_token=4)
    drawn = DrawnExperts(spec, 400, torch.device("cpu"), 3)
    ids = drawn._ids.numpy()
    assert all(len(set(row)) == 4 for row in ids)
    for tokens in (1, 2, 7, 400):
        assert drawn.touched(tokens) == len(np.unique(ids[:tokens]))
    loads = np.bincount(ids.ravel(), minlength=32)
    assert abs(loads - 50).max() < 5 * 50**0.5
    assert drawn.touched(5) == pytest.approx(Routing("uniform").load(5, 32, 4).touched, abs=5)


def test_drawn_experts_compute_what_those_experts_do(spec: ModelSpec) -> None:
    """With the router's own choice in place of the drawn one, the MLP is the model's."""
    model = random_model(spec)
    weights = model.weights.layers[0].mlp
    assert isinstance(weights, ExpertMlp)
    hidden = torch.randn(6, spec.hidden, generator=torch.Generator().manual_seed(2))
    drawn = DrawnExperts(spec, 6, torch.device("cpu"), 0)
    with torch.inference_mode():
        drawn._ids, _ = layers.route(hidden, weights)
        found = drawn.mlp(Untimed(), model.ops, model.ops, hidden, weights)
        torch.testing.assert_close(found, layers.mlp(model.ops, hidden, weights), atol=0.0, rtol=0.0)
