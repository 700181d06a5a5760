"""What a run takes in money and energy: rates and times in, a bill out. It knows no table, no catalog and no policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.scenario import PriceSettings
from sim.specs.gpu import GpuSpec

NO_PRICE = "no price known; set price.usd_per_gpu_hour"
NO_POWER = "no power known; set price.watts_per_gpu"
ALL_THE_TIME = "counted all the time, since what it draws between steps is not known (price.idle_watts_per_gpu)"


@dataclass(frozen=True, slots=True)
class Rates:
    """What `gpus` GPUs cost and draw, None where that is not known, and where the numbers are from.

    `watts_per_gpu` is drawn while steps run, `idle_watts_per_gpu` between them. Where the number of GPUs changes,
    `gpus` is its mean over the run.
    """

    gpus: float
    usd_per_gpu_hour: float | None = None
    watts_per_gpu: float | None = None
    idle_watts_per_gpu: float | None = None
    price_source: str = NO_PRICE
    power_source: str = NO_POWER
    upper_bound: bool = True
    """Whether less may be drawn: the power is that of a data sheet, or that between steps is not known."""

    @classmethod
    def of(cls, gpus: float, gpu: GpuSpec | None, price: PriceSettings) -> Rates:
        """The scenario's price and power, else the catalog's of `gpu` (None: hardware that is not in the catalog)."""
        usd, priced_by = price.usd_per_gpu_hour, "price.usd_per_gpu_hour"
        watts, told_by = price.watts_per_gpu, "price.watts_per_gpu"
        if not usd and gpu is not None and gpu.usd_per_gpu_hour:
            usd, priced_by = gpu.usd_per_gpu_hour, f"{gpu.source_of('usd_per_gpu_hour')} ({gpu.price_month})"
        if not watts and gpu is not None and gpu.watts:
            watts, told_by = gpu.watts, f"at most the board power: {gpu.source_of('watts')}"
        idle = price.idle_watts_per_gpu
        told_by += "; between steps price.idle_watts_per_gpu" if idle else f"; {ALL_THE_TIME}"
        return cls(
            gpus,
            usd or None,
            watts or None,
            idle if watts and idle else None,
            priced_by if usd else NO_PRICE,
            told_by if watts else NO_POWER,
            upper_bound=not (price.watts_per_gpu and idle),
        )


def bill(rates: Rates, *, duration_s: float, busy_gpu_s: float, tokens: int, output_tokens: int) -> dict[str, Any]:
    """Dollars and joules of a run and of a million tokens; None where a rate, or a token to share them, is missing.

    Args:
        rates: all its GPUs are paid for the whole time, busy or not.
        duration_s: how long the run lasted.
        busy_gpu_s: GPU-seconds during which steps ran, over all GPUs. Where the idle power is not known, all
            GPU-seconds count as busy.
        tokens: of the requests that completed, prompts and answers; `output_tokens`: the answers alone.
    """
    gpu_s = rates.gpus * duration_s
    busy_gpu_s = min(busy_gpu_s, gpu_s)
    usd = joules = None
    if rates.usd_per_gpu_hour is not None:
        usd = rates.usd_per_gpu_hour * gpu_s / 3600.0
    if rates.watts_per_gpu is not None:
        idle_watts = rates.watts_per_gpu if rates.idle_watts_per_gpu is None else rates.idle_watts_per_gpu
        joules = rates.watts_per_gpu * busy_gpu_s + idle_watts * (gpu_s - busy_gpu_s)
    return {
        "gpus": rates.gpus,
        "usd_per_gpu_hour": rates.usd_per_gpu_hour,
        "usd": usd,
        "usd_per_million_tokens": _per_million(usd, tokens),
        "usd_per_million_output_tokens": _per_million(usd, output_tokens),
        "watts_per_gpu": rates.watts_per_gpu,
        "idle_watts_per_gpu": rates.idle_watts_per_gpu,
        "joules": joules,
        "joules_upper_bound": None if joules is None else rates.upper_bound,
        "joules_per_million_tokens": _per_million(joules, tokens),
        "joules_per_million_output_tokens": _per_million(joules, output_tokens),
        "price_source": rates.price_source,
        "power_source": rates.power_source,
    }


def bill_of_all(bills: Sequence[Mapping[str, Any]], *, tokens: int, output_tokens: int) -> dict[str, Any]:
    """One bill of several pools': sums, and None where one of them does not know; a GPU's own rates are their means."""
    gpus = sum(each["gpus"] for each in bills)

    def total(key: str, each_gpu: bool = False) -> float | None:
        values = [each[key] if not each_gpu or each[key] is None else each[key] * each["gpus"] for each in bills]
        return None if any(value is None for value in values) else sum(values)

    def mean(key: str) -> float | None:
        whole = total(key, each_gpu=True)
        return None if whole is None else whole / gpus

    usd, joules = total("usd"), total("joules")
    bounds = [each["joules_upper_bound"] for each in bills]
    return {
        "gpus": gpus,
        "usd_per_gpu_hour": mean("usd_per_gpu_hour"),
        "usd": usd,
        "usd_per_million_tokens": _per_million(usd, tokens),
        "usd_per_million_output_tokens": _per_million(usd, output_tokens),
        "watts_per_gpu": mean("watts_per_gpu"),
        "idle_watts_per_gpu": mean("idle_watts_per_gpu"),
        "joules": joules,
        "joules_upper_bound": None if joules is None else any(bounds),
        "joules_per_million_tokens": _per_million(joules, tokens),
        "joules_per_million_output_tokens": _per_million(joules, output_tokens),
        "price_source": _sources(bills, "price_source"),
        "power_source": _sources(bills, "power_source"),
    }


def _sources(bills: Sequence[Mapping[str, Any]], key: str) -> str:
    return " | ".join(dict.fromkeys(each[key] for each in bills))


def _per_million(amount: float | None, tokens: int) -> float | None:
    return None if amount is None or not tokens else amount / tokens * 1e6
