"""Links that KV is sent over, shared evenly by what is under way. It knows no request and no engine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping

from sim.serving.clock import Clock, Event


class Transfer:
    """Bytes under way from one place to another."""

    __slots__ = ("arrived", "bytes_left", "called_off", "source", "target")

    def __init__(self, source: Hashable, target: Hashable, size: float, arrived: Callable[[], None]) -> None:
        self.source = source
        self.target = target
        self.bytes_left = size
        self.arrived = arrived
        self.called_off = False


class Links:
    """Each place has one link that it sends and one that it receives by; a transfer has the smaller of its two shares.

    A share is the link's rate over the transfers on it (processor sharing), from one start or end of a transfer to the
    next. What another link keeps a transfer from using is nobody's.

    Args:
        bytes_per_s: the rate of each place's two links, by place; `math.inf` for what takes no time.
        latency_s: from the asking to the first byte.
    """

    def __init__(self, clock: Clock, bytes_per_s: Mapping[Hashable, float], latency_s: float) -> None:
        self._clock = clock
        self._rate = bytes_per_s
        self._latency_s = latency_s
        self._transfers: list[Transfer] = []
        self._sending: Counter[Hashable] = Counter()
        self._receiving: Counter[Hashable] = Counter()
        self._since_s = 0.0
        self._next: Event | None = None

    def send(self, source: Hashable, target: Hashable, size: float, arrived: Callable[[], None]) -> Transfer:
        """Send so many bytes; `arrived()` is called when the last one is there, never before this returns."""
        transfer = Transfer(source, target, size, arrived)
        if self._latency_s:
            self._clock.call_at(self._clock.now + self._latency_s, lambda event: self._begin(transfer))
        else:
            self._begin(transfer)
        return transfer

    def call_off(self, transfer: Transfer) -> None:
        """Send nothing more of what has not arrived; its shares of the links are others' from now on."""
        transfer.called_off = True
        if transfer in self._transfers:
            self._pass_time()
            self._end(transfer)
            self._wait()

    def _begin(self, transfer: Transfer) -> None:
        if transfer.called_off:
            return
        self._pass_time()
        self._transfers.append(transfer)
        self._sending[transfer.source] += 1
        self._receiving[transfer.target] += 1
        self._wait()

    def _share(self, transfer: Transfer) -> float:
        source, target = transfer.source, transfer.target
        return min(self._rate[source] / self._sending[source], self._rate[target] / self._receiving[target])

    def _pass_time(self) -> None:
        passed_s = self._clock.now - self._since_s
        self._since_s = self._clock.now
        if passed_s > 0.0:
            for transfer in self._transfers:
                transfer.bytes_left -= passed_s * self._share(transfer)

    def _left_s(self, transfer: Transfer) -> float:
        share = self._share(transfer)
        return 0.0 if math.isinf(share) else max(0.0, transfer.bytes_left) / share

    def _wait(self) -> None:
        """Be woken when the next transfer ends, and never before."""
        if self._transfers:
            first_s = min(map(self._left_s, self._transfers))
            self._next = self._clock.call_at(self._clock.now + first_s, self._ended)
        else:
            self._next = None

    def _ended(self, event: Event) -> None:
        if event is not self._next:
            return
        self._pass_time()
        soonest = min(self._transfers, key=self._left_s)
        left_s = self._left_s(soonest)
        done = [transfer for transfer in self._transfers if self._left_s(transfer) <= left_s]
        for transfer in done:
            self._end(transfer)
        self._wait()
        for transfer in done:
            if not transfer.called_off:  # by what another's arrival has led to
                transfer.arrived()

    def _end(self, transfer: Transfer) -> None:
        self._transfers.remove(transfer)
        self._sending[transfer.source] -= 1
        self._receiving[transfer.target] -= 1
