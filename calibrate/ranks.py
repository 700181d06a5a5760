"""One of several processes that time collectives with each other, a GPU each or none: NCCL, or gloo on a CPU.

It is told what to do as one JSON document on standard input; the first writes a line for every message measured to
standard output. On GPUs the device of each is held busy until all is launched, and a small all-reduce after that lets
all begin together, so that neither launching nor waiting for another's host is in the time.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from backend.bench.clock import CpuClock
from backend.prove.box import die_with_parent
from calibrate.messages import Message, Orders
from calibrate.timed import EventClock, Holds, OperationClock, held

REPEATS = 7
MOST_LAUNCHES, LAUNCHED_BYTES = 16, 2**26
"""So often a message is sent on end for one reading, in so many bytes."""
QUIET_S = 60.0
"""After so long without an answer from the others a process gives up."""


class _TogetherOnGpus(EventClock):
    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._one = torch.zeros(1, device=device)

    def hold(self, seconds: float) -> None:
        super().hold(seconds)
        dist.all_reduce(self._one)


class _TogetherOnCpu(CpuClock):
    """By the clock on the wall: a process that waits for another runs no thread."""

    def hold(self, seconds: float) -> None:
        dist.barrier()

    def passed(self, mark: float) -> bool:
        return False


def prepared(message: Message, device: torch.device) -> tuple[Callable[[], None], Callable[[], None]]:
    """(what makes its data anew, what sends it once)."""
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    elements, gpus = message.bytes // kind.itemsize, message.gpus
    data = torch.empty(elements, dtype=kind, device=device).normal_(std=1e-6)
    whole, part = torch.empty_like(data), torch.empty(elements // gpus, dtype=kind, device=device)
    part.copy_(data[: len(part)])
    gather = _newest("all_gather_single", "all_gather_into_tensor")
    scatter = _newest("reduce_scatter_single", "reduce_scatter_tensor")
    sends: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: gather(whole, part),
        "all_to_all": lambda: dist.all_to_all_single(whole, data),
        "reduce_scatter": lambda: scatter(part, data),
    }
    # A sum in place grows each time, and must not overflow.
    return lambda: _keep(whole, data), sends[message.op]


def _newest(name: str, before: str) -> Callable[..., Any]:
    """What torch calls it since 2.13, or did before."""
    call: Callable[..., Any] = getattr(dist, name, None) or getattr(dist, before)
    return call


def _keep(whole: Tensor, data: Tensor) -> None:
    whole.copy_(data)


def launches(message: Message) -> int:
    """How often it is sent for one reading."""
    return max(1, min(MOST_LAUNCHES, LAUNCHED_BYTES // message.bytes))


def timed(message: Message, device: torch.device, clock: OperationClock, holds: Holds) -> tuple[list[float], bool]:
    """(microseconds of one message in each repeat, whether in all of them the device waited for a launch)."""
    renew, send = prepared(message, device)
    count = launches(message)

    def several() -> None:
        for _ in range(count):
            send()

    readings = []
    for number in range(REPEATS + 1):
        renew()
        _, begin, end, waited = held(clock, holds, f"{message.op} {count}", several)
        if number:  # the first warms up
            readings.append((1e6 * clock.seconds(begin, end) / count, waited))
    sound = [us for us, waited in readings if not waited]
    return sound or [us for us, _ in readings], not sound


def main() -> None:
    if sys.platform == "linux":
        die_with_parent()
    orders = Orders.of(sys.stdin.read())
    torch.set_num_threads(1)
    device = torch.device("cpu")
    clock: OperationClock = _TogetherOnCpu()
    if orders.device == "cuda":
        device = torch.device("cuda", orders.rank)
        torch.cuda.set_device(device)
        clock = _TogetherOnGpus(device)
    dist.init_process_group(
        "nccl" if orders.device == "cuda" else "gloo",
        init_method=f"file://{orders.meeting}",
        rank=orders.rank,
        world_size=orders.gpus,
        timeout=datetime.timedelta(seconds=QUIET_S),
    )
    holds = Holds()
    for message in orders.messages:
        us, waited = timed(message, device, clock, holds)
        if orders.rank == 0:
            print(json.dumps({**asdict(message), "us": us, "waited": waited}), flush=True)  # noqa: T201
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
