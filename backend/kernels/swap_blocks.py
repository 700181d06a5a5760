"""Moving blocks between the device's cache and its twin in pinned host memory. It knows no policy and no streams.

The copy kernel itself reads and writes the pinned blocks (CUDA maps pinned memory into the device's addresses), so that
N scattered blocks cost one launch for keys, values and scales. An asynchronous copy per block would cost a call each:
a block of 16 tokens x 8 heads x 128 in bf16 is 32 KiB, which crosses the link in less time than such a call takes (an
estimate from the link's rate; not measured). Staging through one dense buffer would add a pass on either side.

It runs on the caller's stream, without an event: the engine hands blocks that were swapped out to other requests, and
reads those swapped in, within the same step, so a side stream's event would be waited for at once; stream order is that
wait. A caller that plans a step ahead may call it under `torch.cuda.stream(side)`.
"""

from __future__ import annotations

from torch import Tensor

from backend.cache.kvcache import LayerCache
from backend.kernels._common import INTERPRETED, KernelVariant, check_device
from backend.kernels.copy_blocks import copy_blocks_reference, launch_copy
from backend.kernels.copy_blocks import variants as copy_variants
from traces.schema import InputError


def swap_out(cache: LayerCache, host: LayerCache, device_blocks: Tensor, host_blocks: Tensor) -> None:
    """Copies device_blocks[i] of the cache to host_blocks[i] of its host twin, bit for bit.

    Both lists are [N] int32 on the cache's device; a target 0 writes nothing. Asynchronous on CUDA: read the host's
    tensors from Python only after a synchronisation. Raises InputError for layouts that differ and for unpinned memory.
    """
    _check(cache, host, device_blocks, host_blocks)
    launch_copy(cache, host, device_blocks, host_blocks)


def swap_in(cache: LayerCache, host: LayerCache, device_blocks: Tensor, host_blocks: Tensor) -> None:
    """Copies host_blocks[i] of the host twin to device_blocks[i] of the cache; otherwise as `swap_out`."""
    _check(cache, host, device_blocks, host_blocks)
    launch_copy(host, cache, host_blocks, device_blocks)


def _check(cache: LayerCache, host: LayerCache, device_blocks: Tensor, host_blocks: Tensor) -> None:
    check_device(device_blocks, host_blocks, *cache.tensors())
    if host.k.device.type != "cpu":
        raise InputError(f"blocks are swapped to host memory, not to {host.k.device.type}")
    if not INTERPRETED and not (host.k.is_pinned() and host.v.is_pinned()):
        raise InputError("the host's cache has to be pinned for the device to reach it; make it with KvCache.host")


def swap_reference(origin: LayerCache, goal: LayerCache, sources: Tensor, targets: Tensor) -> LayerCache:
    """The cache `goal` after blocks sources[i] of `origin` were copied to its targets[i]; both stay as they are."""
    after = copy_blocks_reference(goal, targets[:0], targets[:0])
    for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
        for before, changed in zip(origin.tensors(), after.tensors(), strict=True):
            if target and changed.ndim:
                changed[target] = before[source]
    return after


def variants() -> list[KernelVariant]:
    """The copy kernel's: swapping adds none."""
    return copy_variants()
