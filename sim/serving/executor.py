"""Who supplies the seconds of a batch: a cost model here, real kernels in `backend`. The engine never asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from mypy_extensions import mypyc_attr

from sim.cost.step import HIDDEN, HostGap, StepCost, at_least, course_s
from sim.engine.batch import Batch, Courses, Outcome, Shape
from sim.engine.request import Request


class Executor(Protocol):
    """Runs a batch, really or not."""

    def execute(self, batch: Batch) -> Outcome: ...


class Accepting:
    """Says which drafts of a batch are right, as `draw(request, drafts)` has it.

    Of those wanted next, `found(request, drafts)` are proposed, which is asked after `draw`; all of them without it.
    """

    def __init__(
        self,
        inner: Executor,
        draw: Callable[[Request, int], int],
        found: Callable[[Request, int], int] | None = None,
    ) -> None:
        self._inner = inner
        self._draw = draw
        self._found = found

    def execute(self, batch: Batch) -> Outcome:
        outcome = self._inner.execute(batch)
        if not batch.sampled:
            return outcome  # of those in lockstep it was drawn when they joined
        accepted = [self._draw(sampled.request, sampled.drafts) if sampled.real else 0 for sampled in batch.sampled]
        if self._found is None:
            return replace(outcome, accepted=accepted)
        proposed = [self._found(sampled.request, sampled.next_drafts) for sampled in batch.sampled]
        return replace(outcome, accepted=accepted, proposed=proposed)


class OnTheWall:
    """Lets a step last until it has really ended, the time since it was planned included.

    Args:
        elapsed_s: real seconds since the run's start, whose simulated time is the same.
    """

    def __init__(self, inner: Executor, elapsed_s: Callable[[], float]) -> None:
        self._inner = inner
        self._elapsed_s = elapsed_s

    def execute(self, batch: Batch) -> Outcome:
        outcome = self._inner.execute(batch)
        seconds = self._elapsed_s() - batch.planned_s
        return replace(outcome, seconds=[seconds], host_s=seconds - outcome.device_s[0])


class Recorded:
    """Keeps what another executor was asked and what it answered, in the order of the steps.

    With `Replayed` it makes the twin of a run: the same seconds, another engine.
    """

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self.shapes: list[Shape] = []
        self.results: list[Outcome] = []

    def execute(self, batch: Batch) -> Outcome:
        outcome = self._inner.execute(batch)
        self.shapes.append(batch.shape)
        self.results.append(outcome)
        return outcome


@mypyc_attr(native_class=False)
class RecordEndedError(RuntimeError):
    """A replay asks for a step that was never recorded."""


class Replayed:
    """Gives each step, by its number, the seconds that the step of that number once took.

    Args:
        results: one for each step, as `Recorded` kept them.
    """

    def __init__(self, results: Sequence[Outcome]) -> None:
        self._results = results

    def execute(self, batch: Batch) -> Outcome:
        """As `Executor.execute`; a span is cut where the record ends. Raises RecordEndedError behind its end."""
        known = self._results[batch.first_step : batch.first_step + batch.repeats]
        if not known:
            raise RecordEndedError(f"the record ends before step {batch.first_step}")
        return Outcome(
            [outcome.seconds[0] for outcome in known],
            [outcome.device_s[0] for outcome in known],
            sum(outcome.host_s for outcome in known) / len(known),
            known[0].accepted,
            known[-1].ended,
            known[0].proposed,
            known[0].drafting_s,
        )


class Staged(Protocol):
    """What prices a step stage by stage (`sim.cost.pipeline`)."""

    def stages_s(self, shape: Shape) -> tuple[Sequence[tuple[float, float]], float]:
        """((device seconds, seconds to the next stage) of each stage, host seconds)."""
        ...


class Pipelined:
    """Prices batches that pass stages one after another, each stage free for the next batch when it has done one.

    The next batch may start when the first stage is free; the output is there when the last stage has done it. The
    host plans a batch before its first stage, and while stages are at others.
    """

    def __init__(self, cost: Staged) -> None:
        self._cost = cost
        self._free_s: list[float] = []

    def execute(self, batch: Batch) -> Outcome:
        stages, host_s = self._cost.stages_s(batch.shape)
        free_s = self._free_s or [0.0] * len(stages)
        start_s = max(batch.planned_s, free_s[0])
        time_s = batch.planned_s + host_s
        self._free_s = []
        for (device_s, sent_s), free in zip(stages, free_s, strict=True):
            left_s = max(time_s, free) + device_s
            self._free_s.append(left_s)
            time_s = left_s + sent_s
        device = sum(device_s + sent_s for device_s, sent_s in stages)
        first_s = self._free_s[0]
        return Outcome([first_s - start_s], [device], host_s, late_s=time_s - first_s)


class Predicted:
    """Prices a batch by a cost model.

    Args:
        cost: device and host seconds as pure functions of the batch's shape.
        overlap_host: the host prepares the next step while the device runs this one (async scheduling), so that a
            step takes the longer of the two instead of their sum.
        gap: what of the host's work the device waits for even then.
    """

    def __init__(self, cost: StepCost, *, overlap_host: bool, gap: HostGap = HIDDEN) -> None:
        self.cost = cost
        self.overlap_host = overlap_host
        self._gap = gap if overlap_host and gap != HIDDEN else None

    def execute(self, batch: Batch) -> Outcome:
        repeats, shape = batch.repeats, batch.shape
        if batch.courses is not None and repeats > 1:
            return self._along(batch.courses.until(repeats))
        device, host_s = self.cost.span_s(shape, repeats)
        if self.overlap_host:
            # Within a span context only grows, so only its first steps can be host-bound.
            seconds = device if device[0] >= host_s else at_least(device, host_s)
            if self._gap is not None:
                seconds = _each_more(seconds, self._gap.of(shape))
        else:
            seconds = _each_more(device, host_s) if host_s else device
        return Outcome(seconds, device, host_s)

    def _along(self, courses: Courses) -> Outcome:
        """One step after the other, each of its own shape; those behind one whose host seconds differ are left out."""
        device, host_s = course_s(self.cost, courses)
        if self.overlap_host:
            seconds = [max(device_s, host_s) for device_s in device]
            if self._gap is not None:
                seconds = _each_more(seconds, self._gap.of(courses.first))
        else:
            seconds = _each_more(device, host_s)
        return Outcome(seconds, device, host_s)


def _each_more(seconds: list[float], more_s: float) -> list[float]:
    """Each so much longer; a loop, since Python keeps what a comprehension refers to in cells."""
    longer: list[float] = []
    for one_s in seconds:
        longer.append(one_s + more_s)
    return longer
