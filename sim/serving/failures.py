"""Makes replicas die and come back, and restarts them in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from sim.results.presence import DRAINS, SERVES
from sim.serving.clock import Clock, Event
from sim.serving.lifecycle import Lifecycle
from sim.serving.pool import Pool
from sim.serving.workload import stream
from sim.specs.operations import FailureSettings
from traces.schema import InputError


def scheduled(settings: FailureSettings, pools: Sequence[Pool]) -> list[tuple[int, float, float]]:
    """(replica, when it dies, seconds until it serves) of the schedule.

    Raises:
        InputError: it names a pool or a replica that does not exist.
    """
    first, known = 0, {}
    for pool in pools:
        known[pool.name] = (first, pool)
        first += pool.count
    found = []
    for number, outage in enumerate(settings.schedule, 1):
        if outage.pool not in known:
            raise InputError(
                f"outage {number} of failures.schedule is of pool {outage.pool!r}; "
                + (f"known: {', '.join(known)}" if list(known) != [""] else "the scenario has no pools: leave it out")
            )
        start, pool = known[outage.pool]
        if outage.replica >= pool.count:
            where = f"pools.{pool.name} has" if pool.name else "there are"
            raise InputError(
                f"outage {number} of failures.schedule is of replica {outage.replica}, and {where} {pool.count}, "
                "counted from 0"
            )
        found.append((start + outage.replica, outage.at_s, outage.down_s))
    return found


class Failures:
    """What fails of a fleet.

    Args:
        over: whether all requests have ended; then nothing more is done.
    """

    def __init__(
        self,
        clock: Clock,
        settings: FailureSettings,
        pools: Sequence[Pool],
        lifecycle: Lifecycle,
        seed: int,
        over: Callable[[], bool],
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._lifecycle = lifecycle
        self._over = over
        for index, at_s, down_s in scheduled(settings, pools):
            clock.call_at(at_s, partial(self._dies, index, down_s), first=True)
        if settings.mtbf_s:
            self._draws = [stream(seed, "failures", index) for index in range(len(lifecycle.members))]
            for index in range(len(lifecycle.members)):
                self._draw(index, 0.0)
        if settings.restart_at_s:
            clock.call_at(settings.restart_at_s, partial(self._restart, 0), first=True)

    def _dies(self, index: int, down_s: float, event: Event) -> None:
        if not self._over() and self._lifecycle.members[index].state in (SERVES, DRAINS):
            self._lifecycle.die(index)
            self._lifecycle.serve_in(index, down_s)

    # ---- drawn ------------------------------------------------------------------------------------------------------

    def _draw(self, index: int, from_s: float) -> None:
        """A replica serves from then on: draw when it dies, and for how long."""
        up_s, down_s = self._draws[index].exponential((self._settings.mtbf_s, self._settings.mttr_s)).tolist()
        self._clock.call_at(from_s + up_s, partial(self._drawn, index, down_s), first=True)

    def _drawn(self, index: int, down_s: float, event: Event) -> None:
        if not self._over():
            self._dies(index, down_s, event)
            self._draw(index, self._clock.now + down_s)

    # ---- restarts in turn -------------------------------------------------------------------------------------------

    def _restart(self, index: int, event: Event | None = None) -> None:
        """Restart the first replica from this one on that serves; then the next."""
        members = self._lifecycle.members
        while index < len(members) and members[index].state != SERVES:
            index += 1
        if index == len(members) or self._over():
            return
        if self._settings.restart_drains:
            self._lifecycle.drain(index, partial(self._down, index))
        else:
            self._lifecycle.die(index)
            self._down(index)

    def _down(self, index: int) -> None:
        restart_s = self._settings.restart_s
        self._lifecycle.serve_in(index, restart_s)
        self._clock.call_at(self._clock.now + restart_s, partial(self._restart, index + 1))
