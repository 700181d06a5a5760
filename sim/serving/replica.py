"""One replica in simulated time: plans batches, lets an executor say how long they take, commits them when they end.

This is the whole coupling of the engine to SimPy. It knows no policy, no memory and no trace.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from sim.engine.engine import Engine
from sim.engine.flight import Flight, Listener, ear_of
from sim.engine.lost import lost
from sim.engine.protocol import ServingEngine
from sim.engine.request import Request
from sim.serving.clock import Clock, Event
from sim.serving.executor import Executor
from sim.serving.progress import NoProgressError, Preempting

MOST_EMPTY_PLANS = 100
"""A policy that so often in a row preempts all that it granted will do so for ever."""


PRICED_AHEAD = 512
"""Steps of a span that are priced where the clock's next event is mostly another replica's: the router alone knows who
comes here, and when, and to price a step in vain takes a hundredth of what planning a span anew takes."""


class Replica:
    """Drives one engine.

    Args:
        depth: batches in flight at most. 1: the next step is planned when the last one has ended. 2: it is planned
            while that one runs (async scheduling; vLLM V1, `EngineCore.step_with_batch_queue`).
        on_finish: called with each finished request at its finish time.
        index: its number among the replicas of a clock: what falls on one moment happens in this order.
        alone: no other replica is on the clock, so that its next event is the next that can cut a span.
    """

    def __init__(
        self,
        clock: Clock,
        engine: ServingEngine,
        executor: Executor,
        *,
        depth: int = 1,
        on_finish: Callable[[Request], None],
        observer: Listener,
        index: int = 0,
        alone: bool = True,
    ) -> None:
        self.clock = clock
        self.engine = engine
        self.executor = executor
        self.index = index
        self._depth = depth
        self._alone = alone
        self._on_finish = on_finish
        self._tell_idle, self._tell_planned = ear_of(observer, "idle"), ear_of(observer, "planned")
        self._tell_sealed, self._tell_committed = ear_of(observer, "sealed"), ear_of(observer, "committed")
        self._tell_died, self._tell_renewed = ear_of(observer, "died"), ear_of(observer, "renewed")
        self._before_plan = ear_of(observer, "before_plan") if observer.ears("before_plan") else None
        self._flights: list[Flight] = []
        self._stalled = False
        self._empty_plans = 0
        self._preempting = Preempting()
        self._wake = Event(self._woken)
        self._wake_s = 0.0
        self._last_decode_s = 0.0
        self.moving = 0
        """Requests here whose KV is awaited, or is being sent: what they hold will be of use, or free."""

    @property
    def flights(self) -> Sequence[Flight]:
        """Batches under way, the oldest first."""
        return self._flights

    @property
    def outstanding(self) -> int:
        """Requests here that have not finished."""
        return len(self.engine.waiting) + len(self.engine.running)

    def submit(self, req: Request) -> None:
        """Take a request now; it is seen by the next planning, at a step boundary."""
        self.engine.add(req)
        self.wake()

    def wake(self) -> None:
        """Plan anew as soon as a step may begin: something has changed."""
        if not self._flights:
            now_s = self.clock.now
            if self._wake.number is None or self._wake_s > now_s:
                self._wake_at(now_s)
            return
        self._cut(self._flights[-1], self.clock.now)

    def settle(self) -> None:
        """Bring the engine's counts to this moment: a span under way ends with the step that an arrival would see."""
        if self._flights:
            last = self._flights[-1]
            self._cut(last, self.clock.now)
            if not last.sealed and len(last.times_s) > 2:
                self._seal(last)

    def die(self) -> list[Request]:
        """Stop in the middle of a step; returns the unfinished requests, as they are to be sent again.

        What steps have put out by now is out. The step that runs has taken its time until now and gives nothing.
        """
        engine, flights, now_s = self.engine, self._flights, self.clock.now
        assert isinstance(engine, Engine)
        while flights and flights[0].output_s <= now_s:
            self._commit(flights.pop(0))
        tokens = engine.tokens
        out_step, next_step = tokens.committed_step, tokens.next_step
        for flight in flights:
            first_step, repeats = flight.batch.first_step, len(flight.times_s) - 1
            begun = bisect_left(flight.times_s, now_s, 0, repeats)
            next_step = first_step + begun
            if not begun:
                break
            if begun < repeats:
                flight.cut(begun)
            if not flight.sealed:
                self._seal(flight)
            out = flight.stop(now_s)
            out_step = first_step + out - 1 if out else out_step
            self._tell_committed(self, flight)
        flights.clear()
        self._wake.number = None
        self._stalled, self._empty_plans = False, 0
        unfinished = lost(engine, out_step)
        tokens.next_step = next_step
        self.moving = 0
        self._tell_died(self)
        return unfinished

    def renew(self, engine: ServingEngine) -> None:
        """Serve with this engine, which has nothing yet; the one before has no requests."""
        assert not self._flights
        engine.tokens.go_on(self.engine.tokens)
        self.engine = engine
        self._stalled = False
        self._tell_renewed(self)

    def _cut(self, flight: Flight, now_s: float) -> None:
        """Let a span end before the first step that is planned after this moment."""
        times_s = flight.times_s
        if flight.sealed or len(times_s) == 2:
            return
        repeats = bisect_left(times_s, now_s, 1) if self._depth == 1 else bisect_left(times_s, now_s) + 1
        if repeats < len(times_s) - 1:
            flight.cut(repeats)
            if len(self._flights) == 1:
                self._wake_at(times_s[-self._depth])

    def _woken(self, event: Event) -> None:
        """Commit and plan all that is due now, then sleep until something will be."""
        event.number, now_s, flights = None, self._wake_s, self._flights
        while True:
            if flights:
                due_s = flights[0].output_s
                if due_s <= now_s:
                    self._commit(flights.pop(0))
                    continue
                if len(flights) < self._depth and not self._stalled:
                    plan_s = flights[-1].times_s[-2]
                    if plan_s <= now_s:
                        self._plan(now_s)
                        continue
                    due_s = plan_s if plan_s < due_s else due_s
                self._wake_s = due_s
                if self.clock.sleep(event, due_s, self.index):
                    return
                now_s = due_s
                continue
            if self._stalled:
                self._stalled = False
                if self.engine.wake_s is not None:
                    self._wake_at(self.engine.wake_s)
            elif self.engine.busy or self._ask_for_work():
                self._plan(now_s)
                continue
            return

    def _ask_for_work(self) -> bool:
        self._tell_idle(self)
        return self.engine.busy

    def _plan(self, now_s: float) -> None:
        flights, engine = self._flights, self.engine
        start_s = now_s
        if flights:
            last = flights[-1]
            if not last.sealed:
                self._seal(last)
            end_s = last.times_s[-1]
            if end_s > now_s:
                start_s = end_s
        if self._before_plan is not None:
            self._before_plan(self)
        if flights and not (engine.running or engine.waiting):
            self._stalled = True  # drafts were right: what is under way is of requests that have ended (vLLM V1)
            return
        batch = engine.plan(now_s)
        self._tell_planned(self, batch)
        if batch.empty:
            self._empty_plans += 1
            if batch.evicted and not flights and self._empty_plans < MOST_EMPTY_PLANS:
                return  # the memory of those that were preempted may serve another plan at once
            self._stalled = True
            if not flights and engine.wake_s is None and not self.moving:
                head = next(iter(engine.waiting), None)
                raise NoProgressError(
                    f"at {now_s:.6f} s the policy computes nothing and nothing runs; first waits {head}"
                )
            return
        self._empty_plans = 0
        if batch.repeats > 4 and self._last_decode_s > 0.0:
            # Pricing more of a span's steps than those before something is likely to cut it would be wasted; and a span
            # of too few is planned anew for nothing.
            gap_s = self.clock.peek() - start_s
            ahead = 1.25 * gap_s / self._last_decode_s + 4 if gap_s > 0.0 else 4.0
            if not self._alone and ahead < PRICED_AHEAD:
                ahead = float(PRICED_AHEAD)
            if ahead < batch.repeats:
                batch.repeats = int(ahead)
        outcome = self.executor.execute(batch)
        if not batch.entries:
            self._last_decode_s = outcome.seconds[0]
        flights.append(Flight(batch, outcome, start_s))

    def _seal(self, flight: Flight) -> None:
        self.engine.seal(flight.batch, len(flight.times_s) - 1)
        flight.sealed = True
        if flight.batch.evicted:
            self._preempting.check(flight.batch, flight.times_s[0])
        self._tell_sealed(self, flight)

    def _commit(self, flight: Flight) -> None:
        if not flight.sealed:
            self._seal(flight)
        self._stalled = False
        flight.committed = committed = self.engine.commit(flight.batch, flight.outcome, flight.output_s)
        self._tell_committed(self, flight)
        if committed.finished:
            for req in committed.finished:
                self._on_finish(req)

    def _wake_at(self, time_s: float) -> None:
        wake = self._wake
        if wake.number is None or self._wake_s != time_s:
            self._wake_s = time_s
            self.clock.call(wake, time_s, self.index)
