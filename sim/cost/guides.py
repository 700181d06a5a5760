"""What the roofline says of a kernel in a profile's table: the shape that prices follow outside of what was measured.

A guide maps a point of the table's axes to seconds. Only ratios of guides are used, so what they leave out cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from sim.cost.efficiency import Efficiency
from sim.cost.interpolate import Guide
from sim.cost.kernels import Kernels
from sim.cost.tables import Row
from sim.specs.gpu import GpuSpec

_KEPT = 1024


def guide_of(table: str, group: Row, gpu: GpuSpec, efficiency: Efficiency) -> Guide:
    """The guide of the kernel of `table` whose group columns are `group`."""
    kernels = Kernels(
        gpu,
        efficiency,
        str(group.get("dtype", "fp16")),
        _kv_type(group),
        str(group["weight_dtype"]) if "weight_dtype" in group else None,
    )
    return _GUIDES[table](kernels, group)


def _kv_type(group: Row) -> str:
    told = str(group.get("kv_dtype", "none"))
    return str(group.get("dtype", "fp16")) if told == "none" else told


def _gemm(kernels: Kernels, group: Row) -> Guide:
    k, n = int(group["k"]), int(group["n"])
    return lambda point: kernels.linear_s(point[0], k, n)


def _experts(kernels: Kernels, group: Row) -> Guide:
    experts, visited = int(group["experts"]), int(group["experts_per_token"])
    k, n = int(group["k"]), int(group["n"])

    def seconds(point: tuple[float, ...]) -> float:
        touched = experts * (1.0 - (1.0 - visited / experts) ** point[0])
        return kernels.expert_gemm_s(point[0] * visited, touched, k, n)

    return seconds


def _prefill(kernels: Kernels, group: Row) -> Guide:
    slice_ = kernels.prefill_attention(int(group["heads"]), int(group["kv_heads"]), int(group["head_dim"]))
    floor_s, window = kernels.eff.prefill_attention_floor_s, int(group["window"])

    def seconds(point: tuple[float, ...]) -> float:
        sequences, past, new = point
        # Sizes may lie between whole numbers, where only the window's clipping needs them whole.
        if window:
            return floor_s + sequences * slice_.window_s(round(new), round(past), window)
        return floor_s + sequences * slice_.slice_s(new, past)  # type: ignore[arg-type]

    return seconds


def _decode(kernels: Kernels, group: Row) -> Guide:
    row_s, token_s = kernels.decode_attention(int(group["kv_heads"]), int(group["head_dim"]))
    floor_s, window = kernels.eff.decode_attention_floor_s, int(group["window"])

    def seconds(point: tuple[float, ...]) -> float:
        sequences, context = point
        seen = min(context, window) if window else context
        return floor_s + sequences * (row_s + token_s * seen)

    return seconds


def _mixed(kernels: Kernels, group: Row) -> Guide:
    # Around one point all lines of a grid share either part.
    prefill, decode = map(lru_cache(_KEPT), (_prefill(kernels, group), _decode(kernels, group)))
    return lambda point: prefill((1.0, point[2], point[3])) + decode((point[0], point[1]))


def _elementwise(kernels: Kernels, group: Row) -> Guide:
    # Every one of them reads about as much as it writes; ratios do not depend on how often.
    return lambda point: kernels.small_s(4.0 * point[0] * int(group["width"]))


def _collective(kernels: Kernels, group: Row) -> Guide:
    gpus = int(group["gpus"])
    price = kernels.all_reduce_s if group["op"] == "all_reduce" else kernels.gather_s
    return lambda point: price(point[0], gpus)


_GUIDES: Mapping[str, Callable[[Kernels, Row], Guide]] = {
    "gemm": _gemm,
    "expert_gemm": _experts,
    "prefill_attention": _prefill,
    "decode_attention": _decode,
    "mixed_attention": _mixed,
    "elementwise": _elementwise,
    "sampling": lambda kernels, group: lambda point: kernels.sampling_s(int(point[0]), int(group["vocab"])),
    "copy": lambda kernels, _: lambda point: kernels.copy_s(point[0]),
    "swap": lambda kernels, _: lambda point: kernels.swap_s(point[0]),
    "all_reduce": _collective,
    "launch": lambda _, __: lambda point: 1.0 + point[0],
    "host": lambda kernels, _: lambda point: kernels.eff.host_step_s + kernels.eff.host_row_s * point[0],
}
