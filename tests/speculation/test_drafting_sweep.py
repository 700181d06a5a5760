"""Sweeps over load that hold drafting against its absence: one axis does it, a list of points too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sim import api
from sim.report.sweep.charts import drafting_chart
from sim.report.sweep.folder import page_of
from sim.report.sweep.table import Sweep
from sim.study.sweep.question import Question
from sim.study.sweep.sweep import axes_of, run
from traces.schema import InputError

RATES = [5, 400]
EAGLE: dict[str, Any] = {"policy": "speculative", "speculation.drafter": "eagle", "speculation.k": 3}
EQUAL: dict[str, Any] = {"engine.async_scheduling": False}
"""A drafting run plans one step at a time unless told otherwise."""


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "steady.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{at},20,40\n" for at in range(150)))
    return str(path)


def gain(table: pd.DataFrame, rate: int) -> float:
    """How much shorter the time between two tokens is with drafts."""
    at = table[table["workload.rate"] == rate].set_index("policy.name")["tpot_s.mean"]
    return float(at["chunked"] / at["speculative"])


def test_settings_of_drafts_are_for_the_points_that_draft(trace: str, tmp_path: Path) -> None:
    """The drafter is named beside the axis; the point without it is the run that nobody told of drafts."""
    axes = {"policy": ["chunked", "speculative"], "rate": RATES}
    asked = Question.of(None, {**EAGLE, **EQUAL, "trace": trace, **axes})
    table = run(asked, out=tmp_path / "out", workers=1, page=page_of)
    assert table["status"].tolist() == ["ok"] * 4
    assert table["speculation.drafted_tokens"].notna().tolist() == [False, False, True, True]
    alone = api.run(trace=trace, rate=RATES[0], **EQUAL).summary
    assert table["tpot_s.mean"][0] == alone["tpot_s"]["mean"]
    assert gain(table, RATES[0]) > 1.3
    chart = drafting_chart(Sweep.of(table, axes_of(asked.grid)))
    assert chart is not None
    assert chart.sentence in (tmp_path / "out" / "report.html").read_text()


def test_settings_that_no_point_heeds_are_refused(trace: str) -> None:
    settings: dict[str, Any] = {"trace": trace, "speculation.k": 3, "policy": ["chunked", "sjf"]}
    with pytest.raises(InputError, match=r"speculation\.k is 3, and it is read only where policy\.name is speculative"):
        api.sweep(**settings, workers=1)


def test_points_may_leave_settings_of_drafts_open(trace: str, tmp_path: Path) -> None:
    """Two drafters against none: the page has a line for each, and maps only of what points say."""
    draft_model = {**EAGLE, "speculation.drafter": "draft-model", "speculation.draft_model": "llama-3.2-1b"}
    asked = Question.of(
        None, {"trace": trace, "rate": RATES, **EQUAL}, points=[{"policy": "chunked"}, EAGLE, draft_model]
    )
    table = run(asked, out=tmp_path / "out", workers=1, page=page_of)
    assert table["status"].tolist() == ["ok"] * 6
    chart = drafting_chart(Sweep.of(table, axes_of(asked.grid)))
    assert chart is not None
    assert [len(line["y"]) for line in chart.spec["choices"][0]["series"]] == [2, 2]
    assert "map-policy-name-speculation-drafter" in (tmp_path / "out" / "report.html").read_text()
