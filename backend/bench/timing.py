"""Times contenders beside one another: one process, the same tensors, taking turns, none finding its inputs in L2.

Every contender is run once and compared with a float64 reference before it is timed. It knows no operation.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from backend.bench.clock import CpuClock, DeviceClock, LateError, within
from backend.bench.record import ABSENT, FAILED, MEASURED, SKIPPED, BenchRow, Report, Stats, l2_bytes
from backend.ops import Ops

Call = Callable[[int], Any]
"""Executes on one of the rotating sets of inputs; gives the tensor to compare, or a tuple that begins with it."""

MOST_SETS = 64
HOLD_MARGIN_S = 30e-6
NO_TIME = "no time left"


class AbsentError(Exception):
    """A contender is not here, or cannot do this case; the message says which."""


class DisagreementError(Exception):
    """A contender computed something else."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A contender: `build` makes what is timed, and may compile for it or raise.

    held: launched while the device is busy with something else, so that its kernels are timed and not their launches.
    """

    name: str
    build: Callable[[], Call]
    ours: bool = False
    held: bool = True


@dataclass(frozen=True, slots=True)
class Check:
    """What contenders must have computed: `pick` takes the compared part of an output, `expected` is it in float64."""

    pick: Callable[[Tensor], Tensor]
    expected: Tensor
    tolerance: float

    def error(self, out: Any) -> float:
        """|out - expected| / |expected|; inf where something is not finite."""
        tensor = out[0] if isinstance(out, tuple) else out
        got = self.pick(tensor).double()
        if got.shape != self.expected.shape or not bool(got.isfinite().all()):
            return float("inf")
        return float((got - self.expected).norm() / self.expected.norm().clamp(min=1e-30))


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchTask:
    """One case as rows tell it, with the sets its inputs rotate through, and what one execution takes."""

    group: str
    case: str
    sizes: Mapping[str, int | str] = field(default_factory=dict)
    sets: int = 1
    set_bytes: int = 0
    bytes: int = 0
    flops: int = 0
    tokens: int = 0
    check: Check | None = None
    peak: bool = False
    rounds: int = 30
    notes: Mapping[str, Any] = field(default_factory=dict)

    def row(self, offer: Offer, state: str, **values: Any) -> BenchRow:
        return BenchRow(
            group=self.group, case=self.case, contender=offer.name, ours=offer.ours, state=state, sizes=self.sizes,
            bytes=self.bytes, flops=self.flops, tokens=self.tokens, notes=self.notes, **values,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Ready:
    """A contender that ran once and agreed."""

    call: Call
    held: bool
    error: float | None
    peak_bytes: int | None


@dataclass(slots=True)
class Bench:
    """Where cases run and what they add to. `deadline_s` is a moment of the monotonic clock after which none starts.

    ready_s: the longest that a contender may take to get ready (compile); `target_s`: what a case's timing should take.
    """

    device: torch.device
    ops: Ops
    small: bool
    deadline_s: float
    report: Report
    ready_s: float = 90.0
    target_s: float = 1.0
    clock: DeviceClock = field(default_factory=CpuClock)
    _dead: dict[str, str] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left_s(self) -> float:
        return self.deadline_s - time.monotonic()

    def sets(self, set_bytes: int, most: int = MOST_SETS) -> int:
        """How many sets of inputs to rotate through, so that twice the L2 passes before one comes round again."""
        return max(2, min(most, 1 + -(-2 * l2_bytes(self.device) // max(set_bytes, 1))))

    def compare(self, task: BenchTask, offers: Sequence[Offer]) -> list[BenchRow]:
        """One row per contender, added to the report: measured in turns with the others, or why not."""
        admitted = {offer.name: self._admit(task, offer) for offer in offers}
        ready = {name: one for name, one in admitted.items() if isinstance(one, _Ready)}
        seconds = self._taking_turns(task, ready)
        made = []
        for offer in offers:
            one = admitted[offer.name]
            if isinstance(one, BenchRow):
                made.append(one)
                continue
            taken = seconds[offer.name]
            facts = {"error": one.error, "peak_bytes": one.peak_bytes}
            if taken:
                made.append(task.row(offer, MEASURED, time=Stats.of(taken), **facts))
            else:
                made.append(task.row(offer, SKIPPED, reason=NO_TIME, **facts))
        self.report.rows += made
        return made

    def _admit(self, task: BenchTask, offer: Offer) -> _Ready | BenchRow:
        """A contender that is ready to be timed, or the row that says why it is not."""
        if self.left_s <= 0:
            return task.row(offer, SKIPPED, reason=NO_TIME)
        try:
            return self._prepare(task, offer)
        except (AbsentError, ModuleNotFoundError) as missing:
            return task.row(offer, ABSENT, reason=_told(missing))
        except Exception as error:  # a peer may fail in any way, and so may a kernel that no GPU has run yet
            self._forget(offer, error)
            return task.row(offer, FAILED, reason=_told(error))

    def _prepare(self, task: BenchTask, offer: Offer) -> _Ready:
        """Build, run and compare a contender; its peak of memory where the case asks for it."""
        if offer.name in self._dead:
            raise AbsentError(self._dead[offer.name])
        with within(min(self.ready_s, self.left_s)):
            call = offer.build()
            out = call(0)
            self.clock.wait()
        error = None
        if task.check is not None:
            error = task.check.error(out)
            if not error <= task.check.tolerance:
                raise DisagreementError(
                    f"is {error:.2g} off the float64 reference, {task.check.tolerance:.2g} is allowed"
                )
        del out
        return _Ready(call, offer.held, error, self._peak(call) if task.peak else None)

    def _peak(self, call: Call) -> int | None:
        if not self.cuda:
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call(0)
        self.clock.wait()
        return torch.cuda.max_memory_allocated(self.device) - before

    def _forget(self, offer: Offer, error: Exception) -> None:
        """A peer that was not ready in time is not waited for again; ours is, for its next case is another kernel."""
        if _was_late(error) and not offer.ours:
            self._dead[offer.name] = f"given up: {_told(error)} before"
        if isinstance(error, torch.OutOfMemoryError) and self.cuda:
            torch.cuda.empty_cache()
        self.clock.wait()  # raises where the device itself is lost

    def _taking_turns(self, task: BenchTask, ready: Mapping[str, _Ready]) -> dict[str, list[float]]:
        """Seconds of each contender's executions, in rounds whose order changes."""
        names = list(ready)
        taken: dict[str, list[float]] = {name: [] for name in names}
        if not names:
            return taken
        holds = {name: self._launch_s(one.call, task.sets) if one.held else 0.0 for name, one in ready.items()}
        warm = task.sets * task.set_bytes < 2 * l2_bytes(self.device)
        turn, rounds, done = 0, task.rounds, 0
        started = time.monotonic()
        while done < rounds and self.left_s > 0:
            marks = []
            for name in (*names[done % len(names) :], *names[: done % len(names)]):
                if warm:
                    self.clock.cool()
                self.clock.hold(holds[name])
                begin = self.clock.mark()
                ready[name].call(turn % task.sets)
                marks.append((name, begin, self.clock.mark()))
                turn += 1
                if not ready[name].held:
                    self.clock.wait()
            self.clock.wait()
            for name, begin, end in marks:
                taken[name].append(self.clock.seconds(begin, end))
            done += 1
            round_s = (time.monotonic() - started) / done
            rounds = min(task.rounds, max(3, int(self.target_s / max(round_s, 1e-6))))
        return taken

    def _launch_s(self, call: Call, sets: int) -> float:
        """How long to hold the device: what the host takes to launch, and a margin. Warms up on the way."""
        if not self.cuda:
            return 0.0
        taken = []
        for turn in range(3):
            started = time.perf_counter()
            call(turn % sets)
            taken.append(time.perf_counter() - started)
            self.clock.wait()
        return 1.5 * statistics.median(taken) + HOLD_MARGIN_S


def _was_late(error: BaseException) -> bool:
    """Compilers wrap what ends them in errors of their own."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, LateError):
        seen = seen.__cause__ or seen.__context__
    return seen is not None or LateError.__name__ in str(error)


def _told(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    kind = "" if isinstance(error, AbsentError | LateError | DisagreementError) else f"{type(error).__name__}: "
    return f"{kind}{lines[0][:200] if lines else 'no message'}"
