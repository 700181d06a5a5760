"""Weights and KV of some layers in host memory: where the bytes lie and what streams in a step. It knows no scenario.

FlexGen (Sheng et al. 2023, arXiv 2303.06865) and ZeRO-Inference (DeepSpeed): while one layer computes, the next one's
weights and KV come over the host link, into one of two buffers on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.cost.attend import Slices
from sim.cost.attention import Attention
from sim.cost.kernels import Kernels
from sim.cost.step import Constant
from sim.engine.batch import Verifies
from sim.specs.model import ModelSpec
from sim.specs.parallel import Parallel
from traces.schema import InputError

GIB = 2**30
BUFFERS = 2


@dataclass(frozen=True, slots=True)
class Offload:
    """The last `weight_layers` layers keep their weights in host memory; `kv_layers` layers, full ones before those
    with a window, their KV. Two layers' buffers stay on the GPU, so that the first two of each save no GPU memory.
    Host memory is limited to `host_limit_bytes` for each GPU; 0 does not limit it.
    """

    weight_layers: int = 0
    kv_layers: int = 0
    host_limit_bytes: int = 0

    def __bool__(self) -> bool:
        return self.weight_layers > 0 or self.kv_layers > 0

    def check(self, model: ModelSpec) -> None:
        """Raise InputError unless the model has so many layers, all alike."""
        if self and model.blocks:
            raise InputError(
                f"offload moves layers that are alike, and those of {model.name} are of {len(model.blocks)} kinds"
            )
        for key in ("weight_layers", "kv_layers"):
            if not 0 <= getattr(self, key) <= model.layers:
                raise InputError(
                    f"offload.{key} is {getattr(self, key)}; {model.name} has {model.layers} layers, so it must lie "
                    f"between 0 and {model.layers}"
                )

    def host_bytes(self, model: ModelSpec, parallel: Parallel, kv_tokens: int) -> int:
        """Host memory for one GPU with a cache of `kv_tokens` tokens.

        Raises:
            InputError: it is more than there is.
        """
        needed = self.host_weight_bytes(model, parallel) + kv_tokens * self.host_kv_bytes_per_token(model, parallel)
        if self.host_limit_bytes and needed > self.host_limit_bytes:
            raise InputError(
                f"offload.host_gib gives each GPU {self.host_limit_bytes / GIB:.1f} GiB of host memory, and the "
                f"offloaded weights and the KV of {kv_tokens} tokens need {needed / GIB:.1f} GiB"
            )
        return needed

    def host_weight_bytes(self, model: ModelSpec, parallel: Parallel) -> int:
        """Host memory for one GPU's weights."""
        return model.last_layers_weight_bytes(self.weight_layers, parallel)

    def gpu_weight_bytes(self, model: ModelSpec, parallel: Parallel) -> int:
        """Weights that stay on the GPU, and the buffers for those that do not."""
        buffers = model.last_layers_weight_bytes(min(BUFFERS, self.weight_layers), parallel)
        return model.gpu_weight_bytes(parallel) - self.host_weight_bytes(model, parallel) + buffers

    def host_kv_bytes_per_token(self, model: ModelSpec, parallel: Parallel) -> int:
        """Host memory for the KV of one token of one GPU."""
        return self.kv_layers * model.layer_kv_bytes_per_token(parallel)

    def host_blocks(self, model: ModelSpec, parallel: Parallel, block_tokens: int) -> int | None:
        """KV blocks whose offloaded layers fit in the host memory beside the weights; None without a limit."""
        if not self.host_limit_bytes or not self.kv_layers:
            return None
        block_bytes = self.host_kv_bytes_per_token(model, parallel) * block_tokens
        if not block_bytes:
            return None
        return (self.host_limit_bytes - self.host_weight_bytes(model, parallel)) // block_bytes

    def gpu_kv_bytes_per_token(self, model: ModelSpec, parallel: Parallel) -> int:
        """GPU memory for the KV of one token; the buffers must hold all that a step may read of two layers."""
        if not self.kv_layers:
            return model.gpu_kv_bytes_per_token(parallel)
        layers = model.layers - self.kv_layers + min(BUFFERS, self.kv_layers)
        return layers * model.layer_kv_bytes_per_token(parallel)


class Stream:
    """Seconds that one GPU's host link is busy in a step.

    A step that computes anything brings in the weights of the offloaded layers, brings in the KV that the offloaded
    layers attend and takes out that of the new tokens. A decode row attends its context less the token that it makes,
    so that both together are its context: the seconds are linear in it, as those of attention are.
    """

    __slots__ = ("_attention", "_kernels", "_layer_bytes", "context_s", "offload", "weights_s", "window_s")

    def __init__(
        self, model: ModelSpec, kernels: Kernels, parallel: Parallel, attention: Attention, offload: Offload
    ) -> None:
        offload.check(model)
        self.offload = offload
        self._kernels, self._attention = kernels, attention
        self._layer_bytes = model.layer_kv_bytes_per_token(parallel)
        self.weights_s = kernels.stream_s(offload.host_weight_bytes(model, parallel))
        full = min(offload.kv_layers, attention.full_layers)
        self.context_s = full * kernels.stream_s(self._layer_bytes)
        self.window_s = (offload.kv_layers - full) * kernels.stream_s(self._layer_bytes)

    @property
    def idle(self) -> bool:
        """Is nothing offloaded?"""
        return not self.weights_s and not self.offload.kv_layers

    def fixed_s(self, slices: Slices, verifies: Verifies = ()) -> float:
        """All of a step that computes something but what grows with the decode rows' contexts."""
        if not (slices or verifies) or not self.offload.kv_layers:
            return self.weights_s
        moved = self._attention.moved_tokens(slices, verifies, self.offload.kv_layers)
        return self.weights_s + self._kernels.stream_s(moved * self._layer_bytes)

    def describe(self) -> list[Constant]:
        """What is offloaded."""
        text = "given in the scenario: {} of so many layers are in host memory"
        return [
            Constant("offload_weight_layers", self.offload.weight_layers, text.format("the weights")),
            Constant("offload_kv_layers", self.offload.kv_layers, text.format("the KV")),
        ]
