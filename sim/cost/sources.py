"""Where the seconds of a roofline's terms are from: fitted to tables of this card, or not. It prices nothing."""

from __future__ import annotations

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
        self._eff = kernels.eff
        within = kernels.gpu.nodes(parallel.tp) == 1
        whole = parallel.ep > 1 and kernels.gpu.nodes(parallel.expert_gpus) == 1
        self._exchange = self._of("all_to_all") if whole else SOURCES[ROOFLINE]
        self._all_reduce = self._of("all_reduce") if within else SOURCES[ROOFLINE]
        self._experts = {gemm.name for gemm in model.expert_gemms(SINGLE)} if not model.blocks else set()
        wide = kernels.dtype in _SIXTEEN_BITS
        weights = "gemm_fp8" if kernels.computes_fp8 else "gemm"
        tabled = kernels.weights in ("fp8", kernels.dtype)
        self._products = self._of(weights) if wide and tabled and not model.blocks else SOURCES[ROOFLINE]
        self._plain_products = self._of("gemm") if wide else SOURCES[ROOFLINE]
        grouped = "experts_fp8" if kernels.computes_fp8 else "experts"
        self._grouped = self._of(grouped) if wide and tabled else SOURCES[ROOFLINE]
        plain = not model.is_latent and not model.blocks and model.attended_window is None
        plain = plain and wide and kernels.kv_dtype in _SIXTEEN_BITS and model.head_dim in TABLED_HEAD_DIMS
        suffix = "_64" if model.head_dim == TABLED_HEAD_DIMS[0] else ""
        self._attention = {
            name: self._of(operation + suffix) if plain else SOURCES[ROOFLINE]
            for name, operation in (
                ("prefill attention", "prefill_attention"),
                ("decode attention", "decode_attention"),
            )
        }

    def _of(self, operation: str) -> str:
        return SOURCES[FITTED if self._eff.is_fitted(operation) else ROOFLINE]

    def of(self, term: str) -> str:
        """The source of a term of `StepCost.explain`."""
        if term in self._attention:
            return self._attention[term]
        if term in ("LM head", "router"):
            return self._plain_products
        if term in self._experts:
            return self._grouped
        if term in ("expert dispatch", "expert return"):
            return self._exchange
        if term == "all-reduce":
            return self._all_reduce
        return self._products if kind_of(term) == PRODUCTS else SOURCES[ROOFLINE]
