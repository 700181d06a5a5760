"""Quantiles of Student's t. It knows no values."""

from __future__ import annotations


def t_quantile(share: float, degrees: int) -> float:
    """The t that a share of Student's distribution with so many degrees of freedom lies below.

    scipy is imported by the first call: that takes a third of a second, and most runs ask for none.
    """
    from scipy.special import stdtrit  # noqa: PLC0415

    return float(stdtrit(degrees, share))
