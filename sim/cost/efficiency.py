"""The constants of the roofline: what share of a data sheet's rates kernels reach, and what a launch costs at least.

Those of products, attention and experts are fitted to kernel tables card by card (`sim.cost.fits`); the values here
stand where no fit says another.

"AIC" is arithmetic over the public kernel tables of ai-dynamo/aiconfigurator (H200 unless it says H100; vLLM 0.22 and
0.24). A constant says where it is from; none was measured by this project.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

from sim.cost.fits import AUTO, FittedCard, choose
from sim.cost.step import Constant
from sim.specs.model import GpuSpec
from traces.schema import InputError


def _share(value: float, source: str) -> float:
    """A share of a data-sheet rate: above 0, at most 1."""
    return _constant(value, source, most=1.0, positive=True)


def _fraction(value: float, source: str) -> float:
    """From 0 to 1, both included."""
    return _constant(value, source, most=1.0, positive=False)


def _positive(value: float, source: str) -> float:
    return _constant(value, source, most=1e9, positive=True)


def _amount(value: float, source: str) -> float:
    """Seconds, bytes or a count; zero is allowed."""
    return _constant(value, source, most=1e9, positive=False)


def _constant(value: float, source: str, most: float, positive: bool) -> float:
    return field(default=value, metadata={"source": source, "most": most, "positive": positive})


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Shares are of the GPU's data-sheet rates; `_s` are seconds. `origins` says who changed which default."""

    gemm_compute: float = _share(0.70, "AIC, H200: bf16 GEMMs sustain 695 of 989 TFLOP/s")
    gemm_compute_fp8: float = _share(0.84, "AIC, H100, vLLM 0.24: fp8 GEMMs, at peak clocks, without quantise_row_s")
    gemm_memory: float = _share(0.88, "AIC, H200, vLLM 0.22, up to 16 tokens: bytes / 4.24 of 4.8 TB/s")
    gemm_floor_s: float = _amount(3.9e-6, "AIC, H200, vLLM 0.22, up to 16 tokens: 3.9 us + bytes / 4.24 TB/s")
    gemm_floor_s_fp8: float = _amount(4.2e-6, "AIC, H100, vLLM 0.24: the smallest fp8 GEMM")
    quantise_row_s: float = _amount(
        5.7e-9, "AIC, H100 and B200: a row's share of making the input of an fp8 GEMM, beside its bytes; fitted"
    )
    gemm_feed: float = _positive(0.04, "bytes that L2 hands to the SMs for each FLOP of the 16-bit peak; estimate")
    gemm_tile_s: float = _amount(0.5e-6, "SM time to start and end a tile of a GEMM; estimate")
    gemm_split_s: float = _amount(3e-6, "the second pass of a GEMM that splits its inner dimension; estimate")
    gemm_exposed: float = _fraction(0.3, "of arithmetic and memory traffic of a GEMM, the shorter's share not hidden")
    sustained_compute: float = _share(1.0, "of the peak clocks' rate, what long products keep; 1: none known")
    sustained_after_s: float = _amount(1e-3, "a product of so many seconds loses half of what sustained_compute tells")
    expert_compute: float = _share(0.70, "as gemm_compute; grouped products of routed experts")
    expert_compute_fp8: float = _share(0.50, "estimate: grouped products in fp8")
    expert_memory: float = _share(0.88, "as gemm_memory; grouped products of routed experts")
    expert_floor_s: float = _amount(10e-6, "one grouped product, sorting tokens by expert included; estimate")
    expert_tile_s: float = _amount(2e-6, "SM time to start and end a tile of a grouped product; estimate")
    expert_exposed: float = _fraction(0.3, "as gemm_exposed; grouped products of routed experts")
    prefill_attention_compute: float = _share(
        0.68, "fitted by this project to AIC, H100, context attention, together with prefill_tile_s"
    )
    prefill_attention_compute_64: float = _share(0.60, "estimate: heads of 64 elements, half of whose tiles is softmax")
    prefill_attention_floor_s: float = _amount(11e-6, "AIC, H100 and H200, vLLM 0.24: 11 us for the smallest kernel")
    prefill_tile_tokens: float = _positive(
        128, "FlashAttention-3 (arXiv 2407.08608): query tiles of 128; half of each diagonal tile is masked work"
    )
    prefill_packed: float = _fraction(
        0,
        "1 where a tile has the queries of all heads that share a KV head (FlashAttention-3, PackGQA), else 0",
    )
    prefill_tile_s: float = _amount(
        2e-6, "SM time to start and end a query tile; fitted by this project to AIC, H100, context attention"
    )
    prefill_chain: float = _amount(0.85, "share of its time that the longest block takes where it has its SM to itself")
    prefill_memory: float = _share(
        0.60, "estimate: rate at which prefill attention moves queries, keys, values, outputs"
    )
    prefill_exposed: float = _fraction(0.5, "as gemm_exposed; prefill attention")
    decode_attention_memory: float = _share(0.92, "AIC, H200, vLLM 0.24 bf16: bytes / 4.42 of 4.8 TB/s")
    decode_attention_memory_fp8: float = _share(0.64, "AIC, H200, vLLM 0.24 fp8 KV: bytes / 3.07 of 4.8 TB/s")
    decode_attention_memory_int8: float = _share(0.64, "estimate: as measured for fp8; int8 values are widened alike")
    decode_attention_memory_int4: float = _share(
        0.48, "estimate: three quarters of fp8's; QServe (arXiv 2405.04532) has KV4 1.5 times as fast as KV8, not twice"
    )
    decode_attention_compute: float = _share(
        0.66, "FlashMLA's README, H800 SXM5: 660 of 989 TFLOP/s; binds latent attention only"
    )
    decode_attention_floor_s: float = _amount(11e-6, "AIC, H200, vLLM 0.24 bf16: 11.0 us + bytes / 4.42 TB/s")
    decode_program_s: float = _amount(
        2.8e-6, "SM time per sequence and KV head; AIC, H200, vLLM 0.22: 0.17 us per sequence, 8 KV heads, 132 SMs"
    )
    decode_exposed: float = _fraction(
        0.4, "as gemm_exposed; blocks' own time and reading the cache in decode attention"
    )
    decode_idle: float = _amount(0.5, "waves of blocks of decode attention whose start hides in the launch's latency")
    decode_split_s: float = _amount(5e-6, "second pass that joins parts of long contexts in decode attention; estimate")
    decode_split_tokens: float = _positive(2048, "context from which decode attention needs all of decode_split_s")
    decode_swap_s: float = _amount(
        0, "bringing query heads together by KV head before and after decode attention (FlashAttention-2)"
    )
    stream_memory: float = _share(0.89, "device copy on H200: 4.3 of 4.8 TB/s")
    small_kernel_floor_s: float = _amount(
        2.4e-6, "LLMServingSim op profile, RTX PRO 6000, vLLM 0.19: norm 2.4 us, rope and activation 2.7 us at 1 token"
    )
    sampling_floor_s: float = _amount(25e-6, "LLMServingSim op profile, RTX PRO 6000: sampler 24.7 us at 1 sequence")
    sampling_bytes_per_logit: float = _amount(
        10, "greedy: read 16-bit logits, write them as fp32, read them for the argmax (2 + 4 + 4 bytes)"
    )
    all_reduce_floor_s: float = _amount(4.3e-6, "AIC, H100, vLLM 0.24 custom all-reduce in a graph: 4.2 to 4.7 us")
    all_reduce_link: float = _share(
        0.65, "fitted by this project to AIC, H100: the better of vLLM custom and NCCL 2.29, from 1 MiB"
    )
    network_hop_s: float = _amount(
        10e-6, "ai-dynamo/aiconfigurator, h100_sxm.yaml: p2p_latency 10 us, its authors' correction after observations"
    )
    network_link: float = _share(
        0.85, "estimate, as for the host link: no collective measured across nodes was at hand"
    )
    host_link: float = _share(0.85, "estimate: pinned copies reach about 27 of 32 (PCIe Gen4), 55 of 64 GB/s (Gen5)")
    launch_s: float = _amount(
        25e-6, "sgl-project/sglang PR 1401: Llama-3-8B eager decode step 8.2 to 9.3 ms over about 330 launches"
    )
    host_step_s: float = _amount(
        1e-3, "estimate: leaving out the host shifts TPOT by 6 to 10 %, 1 to 1.6 ms of a 16 ms step (Qwen3-32B, H100)"
    )
    host_row_s: float = _amount(
        15e-6, "estimate: vLLM 0.19 on an RTX PRO 6000 spends 9 % of a 32.5 ms step of 128 requests outside kernels"
    )
    host_gap_s: float = _amount(
        1e-4,
        "not hidden by asynchronous scheduling; estimate, 0.05 to 0.2 ms in real steps: copying inputs, starting the "
        "next graph once the last has sampled. vLLM 0.12 on H100, which hides nothing, shows 0.5 to 0.9 ms in all",
    )
    host_gap_row_s: float = _amount(
        8e-6,
        "not hidden by asynchronous scheduling; estimate, 4 to 12 us in real steps: of the 19 us a row of vLLM 0.12 on "
        "H100, where nothing is hidden (TP 4 and 8, Qwen3-32B), sampling and handling outputs",
    )
    origins: tuple[tuple[str, str], ...] = ()
    fit: FittedCard | None = None
    """What was fitted to tables of this card, or of the card that stands in for it."""

    def __post_init__(self) -> None:
        for item in _constants():
            _check(item.name, getattr(self, item.name), item.metadata)

    def changed(self, values: Mapping[str, float], origin: str) -> Efficiency:
        """With other values, from `origin`; InputError lists the known names when one is unknown."""
        known = [item.name for item in _constants()]
        for name in values:
            if name not in known:
                raise InputError(f"unknown efficiency {name!r}; known are {', '.join(known)}")
        origins = {**dict(self.origins), **dict.fromkeys(values, origin)}
        given: dict[str, Any] = dict(values)
        return replace(self, **given, origins=tuple(origins.items()))

    @classmethod
    def of(cls, gpu: GpuSpec, overrides: Mapping[str, float] | None = None, fit: str = AUTO) -> Efficiency:
        """What was fitted to the card's tables (or by `fit`, as `sim.cost.fits.choose`), then what the GPU's file knows
        better, then the scenario's `overrides`."""
        chosen = choose(gpu, fit)
        efficiency = replace(cls(), fit=chosen)
        for operation in chosen.operations:
            efficiency = efficiency.changed(operation.constants, chosen.source_of(operation))
        for name, value, source in gpu.efficiency:
            efficiency = efficiency.changed({name: value}, source)
        return efficiency.changed(overrides or {}, "given in the scenario")

    def is_fitted(self, operation: str) -> bool:
        """Whether tables of this very card had the operation."""
        return self.fit is not None and self.fit.own and operation in self.fit.names

    def describe(self) -> list[Constant]:
        """Every constant with its value and source."""
        origins = dict(self.origins)
        return [
            Constant(item.name, getattr(self, item.name), origins.get(item.name, item.metadata["source"]))
            for item in _constants()
        ]


def _constants() -> list[Field[float]]:
    return [item for item in fields(Efficiency) if item.metadata]


def _check(name: str, value: object, limits: Mapping[str, object]) -> None:
    most, positive = limits["most"], limits["positive"]
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"efficiency {name} = {value!r} must be a finite number")
    if not 0 <= value <= most or (positive and value == 0):  # type: ignore[operator]
        raise InputError(
            f"efficiency {name} = {value!r} must be {'above' if positive else 'at least'} 0, at most {most:g}"
        )
