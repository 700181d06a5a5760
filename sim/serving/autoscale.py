"""Orders and releases the replicas of a pool by what they have to do.

As Kubernetes' horizontal pod autoscaler for metrics with an average value: so many replicas as share the whole of the
metric at the target, nothing within the tolerance, more at once, and fewer when no look of the last `cooldown_s`
(its stabilisation window) has asked for more than that.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

from sim.results.presence import ABSENT, DOWN, DRAINS, SERVES
from sim.serving.clock import Clock, Event
from sim.serving.lifecycle import Lifecycle
from sim.specs.operations import KV, OUTSTANDING, QUEUE, RATE, AutoscaleSettings


class Autoscaler:
    """Scales the replicas of one pool.

    Args:
        indices: their numbers, of as many as there may be; the first `start` serve.
        over: whether all requests have ended; then nothing more is done.
    """

    def __init__(
        self,
        clock: Clock,
        settings: AutoscaleSettings,
        indices: Sequence[int],
        start: int,
        lifecycle: Lifecycle,
        over: Callable[[], bool],
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._indices = indices
        self._lifecycle = lifecycle
        self._over = over
        self._asked = deque([(0.0, start)])
        """(when, replicas) of the looks of the last `cooldown_s`, each asking for more than those behind it."""
        self._sent = 0
        for index in indices[start:]:
            lifecycle.leave_out(index)
        self._next()

    def _next(self) -> None:
        self._clock.call_at(self._clock.now + self._settings.interval_s, self._look, first=True)

    def _look(self, event: Event) -> None:
        if self._over():
            return
        settings, members = self._settings, self._lifecycle.members
        wanted = self._wanted()
        now_s = self._clock.now
        while self._asked and self._asked[-1][1] <= wanted:
            self._asked.pop()
        self._asked.append((now_s, wanted))
        while self._asked[0][0] < now_s - settings.cooldown_s:
            self._asked.popleft()
        have = [index for index in self._indices if members[index].state in (SERVES, DOWN)]
        if wanted > len(have):
            absent = [index for index in self._indices if members[index].state == ABSENT]
            for index in absent[: wanted - len(have)]:
                self._lifecycle.order(index, settings.delay_s)
        elif (least := self._asked[0][1]) < len(have):
            self._take_away(have, len(have) - least)
        self._next()

    def _wanted(self) -> int:
        """Replicas that would each have the target."""
        settings, members = self._settings, self._lifecycle.members
        whole = self._measured()
        have = sum(members[index].state in (SERVES, DOWN) for index in self._indices)
        wanted = math.ceil(whole / settings.target)
        if have and abs(whole / have / settings.target - 1.0) <= settings.tolerance:
            wanted = have
        return min(max(wanted, settings.min), settings.max)

    def _measured(self) -> float:
        """The metric, of all replicas together."""
        members = [self._lifecycle.members[index] for index in self._indices]
        seen = [member.cluster.snapshot(member.place) for member in members]
        held = len(members[0].cluster.held)
        metric = self._settings.metric
        if metric == OUTSTANDING:
            return sum(one.outstanding for one in seen) + held
        if metric == RATE:
            sent, self._sent = self._sent, sum(one.sent for one in seen) + held
            return (self._sent - sent) / self._settings.interval_s
        serving = [(member, one) for member, one in zip(members, seen, strict=True) if member.state in (SERVES, DRAINS)]
        if metric == QUEUE:
            return sum(len(member.replica.engine.waiting) for member, _ in serving) + held
        assert metric == KV
        return sum(1.0 - one.free_kv for _, one in serving)

    def _take_away(self, have: Sequence[int], count: int) -> None:
        """Release so many: first those that do not serve yet, the last ordered first, then those of high numbers."""
        members = self._lifecycle.members
        for index in sorted(have, key=lambda index: (members[index].state == SERVES, -index))[:count]:
            if members[index].state == SERVES:
                self._lifecycle.drain(index, lambda index=index: self._lifecycle.release(index))  # type: ignore[misc]
            else:
                self._lifecycle.release(index)
