"""Tables of two runs held against each other, column by column. It knows no law."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from .case import Run

OFTEN = (
    "prefill_requests",
    "prefill_tokens",
    "prefill_past_tokens",
    "decode_requests",
    "draft_tokens",
    "padding_tokens",
)
"""Columns of the steps that are told of one step of a span, and are the same for all."""
PEAKS = tuple(f"kv.classes.{kind}.peak" for kind in ("reserved", "internal", "external", "free"))
"""Told of the ends of spans, within which these may have been higher."""
SUMS = ("device_s", "host_s", "swapped_bytes", "copied_bytes", "preempted")


def tables(run: Run) -> dict[str, pd.DataFrame]:
    assert run.result.preempted is not None
    return {"requests": run.requests, "steps": run.steps, "preempted": run.result.preempted}


def differences(
    run: Run,
    other: Run,
    *,
    exact: bool = False,
    steps: pd.DataFrame | None = None,
    wanted_steps: pd.DataFrame | None = None,
    clock: list[np.ndarray] | None = None,
) -> Iterator[str]:
    """Where two runs' tables differ, by column; seconds by more than 1e-9 unless `exact`."""
    wanted = tables(other)
    for name, table in tables(run).items():
        mine = steps if name == "steps" and steps is not None else table
        yours = wanted_steps if name == "steps" and wanted_steps is not None else wanted[name]
        yield from table_differences(name, mine, yours, exact=exact)
    for index, (mine_s, other_s) in enumerate(
        zip(run.result.step_end_s, clock or other.result.step_end_s, strict=True)
    ):
        if len(mine_s) != len(other_s) or not np.allclose(mine_s, other_s, rtol=0, atol=0 if exact else 1e-9):
            yield f"the clock of replica {index} differs"


def table_differences(name: str, mine: pd.DataFrame, other: pd.DataFrame, *, exact: bool) -> Iterator[str]:
    mine, other = mine.reset_index(drop=True), other.reset_index(drop=True)
    if list(mine) != list(other) or len(mine) != len(other):
        yield f"{name}: {len(mine)} rows of {list(mine)} against {len(other)} of {list(other)}"
        return
    for column in mine:
        one, two = mine[column].to_numpy(), other[column].to_numpy()
        if str(column).endswith(("_s", "_mean_tokens")) and not exact:
            alike = np.isclose(one, two, rtol=1e-9, atol=1e-9, equal_nan=True)
        else:
            alike = (one == two) | (pd.isna(one) & pd.isna(two))
        if not alike.all():
            at = int(np.argmin(alike))
            yield f"{name}.{column}, row {at}: {one[at]!r} against {two[at]!r} ({(~alike).sum()} of {len(one)} differ)"


def single_columns(steps: pd.DataFrame) -> pd.DataFrame:
    """The columns of a table of spans that single steps, added up, must have."""
    return steps.drop(columns=["repeats"])


def put_together(run: Run, single: pd.DataFrame) -> pd.DataFrame:
    """Single steps put together to the spans of `run`."""
    order = run.steps[["replica", "step", "repeats"]].reset_index(names="span")
    order = order.loc[np.repeat(np.arange(len(order)), order["repeats"])]
    order["step"] += order.groupby("span").cumcount()
    merged = order[["span", "replica", "step"]].merge(single, on=["replica", "step"], how="left")
    groups = merged.groupby("span", sort=True)
    first, last, sums = groups.first(), groups.last(), groups.sum()
    table = first.copy()
    for name in single.columns:
        if name in SUMS:
            table[name] = sums[name]
        elif name.endswith("_mean_tokens"):
            table[name] = groups[name].mean()
        elif name == "end_s" or name.startswith("kv_"):
            table[name] = last[name]
        elif name in (*OFTEN, "waiting") and not (groups[name].nunique() == 1).all():
            table[name] = np.nan  # which no span has
    if len(merged) != len(single):
        table = table.iloc[:0]
    return table[[name for name in run.steps.columns if name != "repeats"]]


def summary_differences(run: Run, other: Run, *, loose: bool = False) -> Iterator[str]:
    """Where two summaries differ. `loose`: but for what spans make approximate, as docs/metrics.md says."""
    skip = {"simulator", "binding", "verdict", *(("cost_terms", "cost_sources", "band") if loose else ())}
    # Steps of a span are taken as equally long, and a window gives blocks back between them.
    even = run.case.cost is not None and not run.case.cost.per_context_token_s
    even = even and not run.parts.layout.groups
    for key, told in run.summary.items():
        if key in skip:
            continue
        for name, one, two in _leaves(key, told, other.summary.get(key)):
            if loose and (name in PEAKS or (name.startswith(("kv", "speculation.drafting")) and not even)):
                continue
            same = one == two
            if loose and isinstance(one, float) and isinstance(two, float):
                same = bool(np.isclose(one, two, rtol=1e-9, atol=1e-9))
            if not same:
                yield f"summary {name}: {one!r} against {two!r}"


def _leaves(key: str, one: Any, two: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(two, dict):
        for name in {**one, **two}:
            yield from _leaves(f"{key}.{name}", one.get(name), two.get(name))
    else:
        yield key, one, two
