"""How much memory a device has for what is about to be allocated, refused in one sentence before it is touched."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from traces.schema import InputError


def device_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated: free ones on CUDA (what torch keeps cached counts), all there are on a CPU.

    A CPU's figure is the machine's whole memory: how much of it the system could free cannot be told beforehand.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_device(device: torch.device | str) -> torch.device:
    """The device, if this machine has it; raises InputError otherwise."""
    try:
        place = torch.device(device)
    except RuntimeError:
        raise InputError(f"device {device!r} is unknown; known are cpu and cuda (or cuda:0, cuda:1, ...)") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {str(place)!r}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    if place.type not in ("cpu", "cuda", "meta"):
        raise InputError(f"device {str(place)!r} is not supported; known are cpu and cuda")
    return place


def check_memory(what: str, needed_bytes: int, device: torch.device, hint: Callable[[int], str]) -> None:
    """Raises InputError where `what` cannot fit: what it needs, what there is, and the hint for so many bytes."""
    if device.type == "meta":
        return
    there = device_bytes(device)
    if needed_bytes > there:
        raise InputError(
            f"{what} needs {needed_bytes / 2**30:.2f} GiB, but {device} has {there / 2**30:.2f} GiB left: {hint(there)}"
        )


def no_memory(device: torch.device, what: str, blocks: int) -> InputError:
    """The sentence for a step that does not fit beside the cache."""
    return InputError(
        f"{device} has no memory left for {what} beside a KV cache of {blocks} blocks; lower kv.blocks, "
        "kv.gpu_memory_utilization or engine.max_num_batched_tokens"
    )
