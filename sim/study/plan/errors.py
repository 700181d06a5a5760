"""How far off a plan's step times and prices may be, by where they are from: one table, each figure with its source.

A figure is the share by which times of whole requests or steps have been off, told by docs/accuracy.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Error(NamedTuple):
    share: float
    source: str


ROOFLINE = Error(
    0.12,
    "roofline alone against a vLLM 0.19 run on an RTX PRO 6000: mean TPOT -7.4 %, mean E2E -11.6 %; against 86 vLLM "
    "runs on H100: TPOT 5 % in the mean (an engine of 2023 on A100 was 24 to 44 % slower)",
)
MEASURED = Error(
    0.05,
    "live runs on a CPU by a model fitted to half of their steps: median E2E off by up to 4.7 %; imported H100 tables "
    "against 86 vLLM runs: TPOT 3.8 % in the mean",
)
FITTED = Error(
    0.08,
    "kernel tables of the card itself by a formula with few constants: GEMM and decode attention 6 % off in the mean, "
    "prefill attention 4 to 8 % (docs/accuracy.md)",
)
COST_MODEL: Mapping[str, Error] = {
    "measured": MEASURED,
    "interpolated": MEASURED,
    "fitted": FITTED,
    "derived": Error(ROOFLINE.share, "no figure of its own; a profile scaled to another GPU by the roofline's ratio"),
    "extrapolated": Error(ROOFLINE.share, "no figure of its own; beyond measurements the roofline is followed"),
    "roofline": ROOFLINE,
}
"""By source class, as a summary's `cost_sources` calls them."""
PRICE = Error(0.2, "assumed: the price is one cloud's list price of one month; others and discounts differ by more")
GIVEN_PRICE = Error(0.0, "price.usd_per_gpu_hour is taken as it was given")


def cost_model(sources: Mapping[str, float] | None) -> float:
    """The share by which step times may be off, each source counted by its share of the seconds; a class that the
    table does not have counts as the roofline, as does a run of which no sources are known."""
    known = {name: share for name, share in (sources or {}).items() if share > 0}
    if not known:
        return ROOFLINE.share
    total = sum(known.values())
    return sum(share / total * COST_MODEL.get(name, ROOFLINE).share for name, share in known.items())


def price(source: str | None) -> Error:
    """The share by which a price may be off, by the bill's `price_source`."""
    return GIVEN_PRICE if source == "price.usd_per_gpu_hour" else PRICE
