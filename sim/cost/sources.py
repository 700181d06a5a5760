"""Where the seconds of a roofline's terms are from, and how far off they are: fitted to tables of this card, or not.

It prices nothing.
"""

from __future__ import annotations

from sim.cost.errors import NORMAL_P90, Error
from sim.cost.interpolation import FITTED, ROOFLINE, SOURCES
from sim.cost.kernels import Kernels
from sim.cost.terms import PRODUCTS, kind_of
from sim.specs.model import ModelSpec
from sim.specs.parallel import SINGLE, Parallel

TABLED_HEAD_DIMS = (64, 128)
"""Head dimensions that kernel tables have; attention of others is not marked as fitted."""
_SIXTEEN_BITS = ("bf16", "fp16")


class Sources:
    """The source of each term of one model on one GPU, by name."""

    def __init__(self, model: ModelSpec, kernels: Kernels, parallel: Parallel = SINGLE) -> None:
        self._told: dict[str, str] = {}
        self._eff = kernels.eff
        within = kernels.gpu.nodes(parallel.tp) == 1
        self._all_reduce = "all_reduce" if within else ""
        self._experts = {gemm.name for gemm in model.expert_gemms(SINGLE)} if not model.blocks else set()
        wide = kernels.dtype in _SIXTEEN_BITS
        weights = "gemm_fp8" if kernels.computes_fp8 else "gemm"
        tabled = kernels.weights in ("fp8", kernels.dtype)
        self._products = weights if wide and tabled and not model.blocks else ""
        self._plain_products = "gemm" if wide else ""
        grouped = "experts_fp8" if kernels.computes_fp8 else "experts"
        self._grouped = grouped if wide and tabled else ""
        plain = not model.is_latent and not model.blocks and model.attended_window is None
        plain = plain and wide and kernels.kv_dtype in _SIXTEEN_BITS and model.head_dim in TABLED_HEAD_DIMS
        suffix = "_64" if model.head_dim == TABLED_HEAD_DIMS[0] else ""
        self._attention = {
            name: operation + suffix if plain else ""
            for name, operation in (
                ("prefill attention", "prefill_attention"),
                ("decode attention", "decode_attention"),
            )
        }

    def of(self, term: str) -> str:
        """The source of a term of `StepCost.explain`."""
        told = self._told.get(term)
        if told is None:
            told = self._told[term] = SOURCES[FITTED if self._eff.is_fitted(self._operation(term)) else ROOFLINE]
        return told

    def error_of(self, term: str) -> Error | None:
        """How far the card's constants are off the tables that they were fitted to; None of a term that has none.

        What all products of a layer are off at one number of tokens is 0.8 to 0.95 of a table's mean error (the root
        mean square of 4,800 draws of four products a card), so that this is taken for what a run's steps share.
        """
        name = self._operation(term)
        if not self._eff.is_fitted(name) or self._eff.fit is None:
            return None
        for each in self._eff.fit.operations:
            if each.name == name:
                return Error(each.mean_error, each.p90_error / NORMAL_P90, self._eff.fit.source_of(each))
        return None

    def _operation(self, term: str) -> str:
        """The operation of `sim.cost.fits` whose constants price a term; "" where none are asked for."""
        if term in self._attention:
            return self._attention[term]
        if term in ("LM head", "router"):
            return self._plain_products
        if term in self._experts:
            return self._grouped
        if term == "all-reduce":
            return self._all_reduce
        return self._products if kind_of(term) == PRODUCTS else ""
