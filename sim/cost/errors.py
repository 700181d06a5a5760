"""How far off the seconds of a step's terms may be, by where they are from and what they are spent on.

Each figure is the root mean square of findings, each a card's kernel tables beside the price of the same kernels; none
comes from a server's run, so that every such run can be judged by it. `pytest tests/cost/test_errors_public.py -sq`
finds them again. A profile, and a card's own constants, state errors of their own, which come first
(`sim.cost.profiled`, `sim.cost.sources`). It prices nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from sim.cost import terms
from sim.cost.description import Meta
from sim.cost.step import StepCost
from sim.cost.terms import ADAPTERS, COMMUNICATION, DRAFTING, ELEMENTWISE, HOST, LAUNCHING, MOVES, PRODUCTS, REST

EXPERTS, PREFILL_ATTENTION, DECODE_ATTENTION = "experts", "prefill attention", "decode attention"
KINDS = (
    PRODUCTS, EXPERTS, PREFILL_ATTENTION, DECODE_ATTENTION, ELEMENTWISE, ADAPTERS, COMMUNICATION, MOVES, DRAFTING,
    LAUNCHING, HOST, REST,
)  # fmt: skip
"""As `sim.cost.terms.KINDS`, with attention and products told apart further."""
NORMAL_P90 = 1.6448536269514722
"""Standard deviations within which 90 % of a normal distribution lie, on either side of its mean."""


class Error(NamedTuple):
    """Standard deviations of ln(predicted / real): `common` of a factor that all steps of a run share, `independent` of
    one that each step has for itself. `source` says where they are from."""

    common: float
    independent: float
    source: str


STEP_KINDS = PREFILL, MIXED, DECODE = ("prefill", "mixed", "decode")
"""Steps with prompts alone, with both, and with none."""
_TABLE_OF: Mapping[str, str] = {
    "sampling": "sampling", "mixed attention": "mixed_attention", "block copies": "copy", "swap": "swap",
}  # fmt: skip
_TABLE_OF_KIND: Mapping[str, str] = {
    PRODUCTS: "gemm", EXPERTS: "expert_gemm", PREFILL_ATTENTION: "prefill_attention",
    DECODE_ATTENTION: "decode_attention", ELEMENTWISE: "elementwise", COMMUNICATION: "all_reduce",
    LAUNCHING: "launch", HOST: "host",
}  # fmt: skip
"""The table of a profile that a term's seconds come from."""


class Figure(NamedTuple):
    """An error as it was found: (common, independent) by card."""

    found: Mapping[str, tuple[float, float]]
    how: str

    def error(self, without: str = "") -> Error:
        """The root mean square over all cards, or over all but one."""
        kept = {card: pair for card, pair in self.found.items() if card != without or len(self.found) == 1}
        common, independent = (math.sqrt(sum(pair[at] ** 2 for pair in kept.values()) / len(kept)) for at in (0, 1))
        return Error(common, independent, f"{self.how} ({', '.join(kept)})")


_TWICE = math.log(2) / NORMAL_P90
_ASSUMED = "assumed"
_REPEATS = Figure({"h200": (0.015, 0.015)}, "the same kernels measured again: 1.0 to 1.5 % apart in the mean")
_HELD_OUT = "points held out of the tables: the mean error, and that of a tenth over 1.64"
_OTHER = "priced by the constants of another card, the nearest that has tables"
_BEYOND = "the two largest values of each axis, predicted from the others"
_NO_FIGURE = "no figure of its own: as roofline"
_ROOFLINE: Mapping[str, Figure] = {
    PRODUCTS: Figure(
        {
            "h100": (0.131, 0.116),
            "a100-80": (0.132, 0.117),
            "l40s": (0.194, 0.256),
            "b200": (0.132, 0.087),
            "rtx-pro-6000": (0.046, 0.110),
            "rtx-4090": (0.163, 0.081),
        },
        f"layers of four products, {_OTHER}",
    ),
    EXPERTS: Figure({_ASSUMED: (0.2, 0.2)}, "runs of mixtures of experts by roofline were 15 to 19 % off"),
    PREFILL_ATTENTION: Figure(
        {
            "h100": (0.184, 0.202),
            "a100-80": (0.184, 0.210),
            "l40s": (0.368, 0.372),
            "b200": (0.172, 0.318),
            "rtx-pro-6000": (0.222, 0.313),
            "rtx-4090": (0.451, 0.238),
        },
        f"kernels of one head configuration, {_OTHER}",
    ),
    DECODE_ATTENTION: Figure(
        {
            "h100": (0.273, 0.173),
            "a100-80": (0.275, 0.148),
            "l40s": (0.426, 0.331),
            "b200": (0.356, 0.243),
            "rtx-pro-6000": (0.034, 0.078),
            "rtx-4090": (0.056, 0.124),
        },
        f"kernels of one head configuration, {_OTHER}",
    ),
    ELEMENTWISE: Figure(
        {"rtx-pro-6000": (0.52, 0.2), "rtx-4090": (0.52, 0.2), "h200": (0.11, 0.06)},
        "small kernels of Llama-3.1-8B in six steps, by the rates of data sheets",
    ),
    ADAPTERS: Figure({_ASSUMED: (_TWICE, 0.1)}, "90 % between half and twice: no table at hand has such kernels"),
    COMMUNICATION: Figure(
        {"h100": (0.21, 0.27)}, "all-reduces by a share of the link; PCIe without peers 18 to 22 % off"
    ),
    MOVES: Figure({"h200": (0.32, 0.16)}, "copies and swaps by the rates of data sheets: 40 and 22 % too fast"),
    DRAFTING: Figure({_ASSUMED: (0.15, 0.15)}, "as products"),
    LAUNCHING: Figure({_ASSUMED: (_TWICE, 0.1)}, "90 % between half and twice; engines differ by more"),
    HOST: Figure({_ASSUMED: (_TWICE, 0.1)}, "90 % between half and twice: 0.05 to 0.2 ms a step, 4 to 12 us a row"),
    REST: Figure({_ASSUMED: (0.15, 0.15)}, "as products"),
}
CLASSES: Mapping[str, Mapping[str, Figure]] = {
    "measured": {
        **dict.fromkeys(KINDS, _REPEATS),
        LAUNCHING: Figure({"h200": (0.15, 0.33)}, "measured again: 33 % apart in the mean"),
        HOST: Figure({"h200": (0.12, 0.42)}, "measured again: 42 % apart in the mean"),
    },
    "interpolated": {
        PRODUCTS: Figure(
            {
                "h100": (0.054, 0.083),
                "rtx-pro-6000": (0.015, 0.030),
                "rtx-4090": (0.013, 0.018),
                "h200": (0.022, 0.032),
            },
            _HELD_OUT,
        ),
        EXPERTS: Figure({_ASSUMED: (0.1, 0.15)}, "as the fitted form of expert layers"),
        PREFILL_ATTENTION: Figure(
            {
                "h100": (0.035, 0.043),
                "rtx-pro-6000": (0.067, 0.136),
                "rtx-4090": (0.083, 0.143),
                "h200": (0.056, 0.054),
            },
            _HELD_OUT,
        ),
        DECODE_ATTENTION: Figure(
            {
                "h100": (0.044, 0.081),
                "rtx-pro-6000": (0.019, 0.029),
                "rtx-4090": (0.037, 0.067),
                "h200": (0.025, 0.024),
            },
            _HELD_OUT,
        ),
        ELEMENTWISE: Figure(
            {"rtx-pro-6000": (0.018, 0.022), "rtx-4090": (0.025, 0.033), "h200": (0.018, 0.022)}, _HELD_OUT
        ),
        COMMUNICATION: Figure({"h100": (0.028, 0.044)}, _HELD_OUT),
        MOVES: Figure({"h200": (0.019, 0.016)}, _HELD_OUT),
        DRAFTING: Figure({_ASSUMED: (0.06, 0.08)}, "as products of the coarsest table"),
        LAUNCHING: Figure({"h200": (0.309, 0.295)}, _HELD_OUT),
        HOST: Figure({"h200": (0.123, 0.131)}, _HELD_OUT),
        REST: Figure({_ASSUMED: (0.06, 0.08)}, "as products of the coarsest table"),
    },
    "fitted": {
        COMMUNICATION: Figure(
            {"h100": (0.02, 0.03)}, "all-reduces from the card's own points: under 2 % off in the mean"
        ),
    },
    "derived": {kind: figure._replace(how=f"{_NO_FIGURE}: {figure.how}") for kind, figure in _ROOFLINE.items()},
    "extrapolated": {
        **{kind: figure._replace(how=f"{_NO_FIGURE}: {figure.how}") for kind, figure in _ROOFLINE.items()},
        PRODUCTS: Figure({"h100": (0.126, 0.117), "a100-80": (0.094, 0.092)}, _BEYOND),
        PREFILL_ATTENTION: Figure({"h100": (0.081, 0.078), "a100-80": (0.042, 0.040)}, _BEYOND),
        DECODE_ATTENTION: Figure({"h100": (0.159, 0.136), "a100-80": (0.051, 0.050)}, _BEYOND),
    },
    "roofline": _ROOFLINE,
}
"""By source class, as a summary's `cost_sources` calls them, and by kind. What has no figure counts as roofline."""


def kind_of(term: str) -> str:
    """The kind, one of `KINDS`, of a term of `StepCost.explain`."""
    kind = terms.kind_of(term)
    if kind == terms.ATTENTION:
        return PREFILL_ATTENTION if term.startswith("prefill") else DECODE_ATTENTION
    return EXPERTS if kind == PRODUCTS and term.startswith("expert ") else kind


def step_kind(prefills: object, decodes: int) -> str:
    """The kind of a step with these slices of prompts, and so many rows that decode or verify."""
    return (MIXED if decodes else PREFILL) if prefills else DECODE


def of_class(source: str, kind: str) -> Error:
    """What the figures say of a source class and a kind."""
    return CLASSES[source].get(kind, CLASSES["roofline"][kind]).error()


_LATENT_TABLE: Mapping[str, str] = {
    "prefill attention": "latent_prefill_attention", "decode attention": "latent_decode_attention",
}  # fmt: skip


def stated(meta: Meta, term: str, source: str, *, latent: bool = False) -> Error | None:
    """What a profile states of the table that gave a term (where `latent`, that of latent attention): of points of the
    grid how far the same measurement was from itself, of those between them (and of derived ones) the error of points
    held out. None where it states nothing."""
    own = (_LATENT_TABLE.get(term) if latent else None) or _TABLE_OF.get(term)
    known = meta.accuracy.get(own or _TABLE_OF_KIND.get(kind_of(term), ""))
    if known is None or source not in ("measured", "interpolated", "derived"):
        return None
    if source != "measured":
        return Error(known.mean, known.p90 / NORMAL_P90, f"{meta.name}: {known.how or 'held out'}")
    if known.repeat_mean is None:
        return None
    return Error(min(known.repeat_mean, known.mean), known.repeat_mean, f"{meta.name}: measured again")


def of_steps(meta: Meta, kind: str, *, graph: bool) -> Error | None:
    """What a profile states of whole steps: their bias is common to all of a kind, each has the mean error beside."""
    known = (meta.step_accuracy.get(f"{kind}_graph") if graph else None) or meta.step_accuracy.get(kind)
    return None if known is None else Error(abs(known.bias), known.mean, f"{meta.name}: {known.points} whole steps")


def error_of(cost: StepCost, term: str, source: str) -> Error:
    """The error of a term: what the cost says of its own tables or constants, else what its class has."""
    own = getattr(cost, "error_of", None)
    found: Error | None = None if own is None else own(term, source)
    return of_class(source, kind_of(term)) if found is None else found
