"""How far off a plan's prices may be; what its step times may be off is `sim.cost.errors`'."""

from __future__ import annotations

from typing import NamedTuple


class Error(NamedTuple):
    """A share, and where it is from."""

    share: float
    source: str


PRICE = Error(0.2, "assumed: the price is one cloud's list price of one month; others and discounts differ by more")
GIVEN_PRICE = Error(0.0, "price.usd_per_gpu_hour is taken as it was given")


def price(source: str | None) -> Error:
    """The share by which a price may be off, by the bill's `price_source`."""
    return GIVEN_PRICE if source == "price.usd_per_gpu_hour" else PRICE
