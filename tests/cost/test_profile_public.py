"""Interpolation on real measurements of an H100: fitted to every other size, tested between them.

The tables are those of ai-dynamo/aiconfigurator; `pytest -s` prints the errors that docs/calibrate.md tells.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from profile_kit import EFFICIENCY, GPU, meta

from calibrate.fit import best_forms, form_errors
from calibrate.importers.build import import_profile
from sim.cost.interpolation import left_out
from sim.cost.lookup import Tables, measured_kernels
from sim.cost.profile import Profile
from sim.cost.tables import Row, Table, Value

pytestmark = pytest.mark.shared


def rows(folder: Path, name: str) -> Iterator[dict[str, Value]]:
    file = {"gemm": "gemm_bf16", "prefill_attention": "context_attention_bf16"}.get(name, "generation_attention_bf16")
    with (folder / "measured" / "h100_kernels" / f"{file}.csv").open() as lines:
        for line in csv.DictReader(lines):
            us = 1e3 * float(line.pop("latency_ms"))
            size = {key: int(value) for key, value in line.items()}
            if name == "gemm":
                group = {"dtype": "bf16", "weight_dtype": "bf16", "k": size["k"], "n": size["n"]}
                yield {**group, "tokens": size["m"], "us": us}
                continue
            heads: dict[str, Value] = {"dtype": "bf16", "kv_dtype": "bf16", "heads": size["num_heads"]}
            heads |= {"kv_heads": size["num_key_value_heads"], "head_dim": size["head_dim"], "window": 0}
            heads["sequences"] = size["batch_size"]
            if name == "prefill_attention":
                yield {**heads, "past_tokens": 0, "new_tokens": size["isl"], "us": us}
            else:
                context = size["step"] + 1  # the new token is attended too
                yield {**heads, "width": 1, "mean_context_tokens": context, "max_context_tokens": context, "us": us}


def is_power(value: Value) -> bool:
    return int(value).bit_count() == 1


def every_other(value: Value, first: int) -> bool:
    """Of powers of two those of 4, from 2 ** first on."""
    return int(value).bit_length() % 2 == (first + 1) % 2


@pytest.mark.parametrize(
    ("name", "fitted", "points"),
    [
        ("gemm", lambda row: is_power(row["k"]) and is_power(row["n"]), 624),
        ("prefill_attention", lambda row: is_power(row["new_tokens"]), 104),
        (
            "decode_attention",
            lambda row: every_other(row["sequences"], 0) and every_other(row["mean_context_tokens"], 1),
            392,
        ),
    ],
)
def test_between_measured_sizes(shared: Path, name: str, fitted: Callable[[Row], bool], points: int) -> None:
    measured = list(rows(shared, name))
    table = Table.of(name, [row for row in measured if fitted(row)])
    tables = Tables(Profile(meta(), {name: table}), GPU, EFFICIENCY)
    errors = []
    for row in measured:
        kernel = tables.kernel(name, **{column.name: row[column.name] for column in table.spec.groups})
        assert kernel is not None
        price = kernel.at(*(float(row[column.name]) for column in table.spec.axes))
        if fitted(row):
            assert price.source == "measured"
            assert price.seconds == pytest.approx(1e-6 * float(row["us"]))
        elif price.source == "interpolated":
            errors.append(1e6 * price.seconds / float(row["us"]) - 1.0)
    sizes = np.abs(errors)
    sys.stdout.write(
        f"\n{name}: {len(errors)} points, mean {sizes.mean():.1%}, 90 % {np.quantile(sizes, 0.9):.1%}, "
        f"bias {np.mean(errors):+.1%}\n"
    )
    assert len(errors) == points
    assert sizes.mean() <= 0.06
    assert abs(np.mean(errors)) <= 0.02


BEST = {
    "gemm": ["efficiency"],
    "prefill_attention": ["efficiency", "linear", "efficiency"],
    "decode_attention": ["linear", "linear"],
    "all_reduce": ["efficiency"],
}


def test_forms_are_chosen_by_what_left_out_points_say(shared: Path) -> None:
    """In every axis the form that is chosen has the least error."""
    found = import_profile([shared / "measured" / "h100_kernels"], "h100").profile
    for name, table in found.tables.items():
        kernels, chosen = list(measured_kernels(table, GPU, EFFICIENCY)), best_forms(table, GPU, EFFICIENCY)
        assert chosen == BEST[name]
        for axis, column in enumerate(table.spec.axes):
            points = sum(1 for one in kernels for _ in left_out(one.points, one.guide, axis, "linear"))
            means = form_errors(kernels, axis)
            shown = ", ".join(f"{form} {mean:.1%}" for form, mean in means.items())
            sys.stdout.write(f"\n{name} {column.name}: {points} points, {shown}")
            assert means[chosen[axis]] == min(means.values())
