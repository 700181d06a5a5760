"""Low-rank adapters (LoRA) of one engine: which are in its slots, which in host memory, and who may be admitted.

As vLLM 0.33 does it (`Scheduler.schedule`, `max_loras`; `lora/worker_manager.py`): the adapters of all running requests
have a slot each, a waiting request for whose adapter none is left lets those behind it pass, and an adapter without a
slot takes that of the one which was used longest ago. It knows no bytes and no seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from sim.engine.queues import WaitingQueue
from sim.engine.request import Adapter, Request


class AdapterLoad(NamedTuple):
    """An adapter that a step puts into a slot before it computes, from host memory or from `disk`, in place of another
    (None: of none)."""

    adapter: Adapter
    disk: bool
    evicted: Adapter | None


class Adapters:
    """The slots of one engine, and the host memory behind them, which has what is in a slot too.

    Attributes:
        slots: adapters that the requests which run may have, all together.
        deferred: waiting requests for whose adapter no slot was left when they were asked last.
        skipped: how many requests were ever deferred.
        evictions: how many adapters ever had to leave a slot.
    """

    def __init__(self, slots: int, kept: int, running: Collection[Request]) -> None:
        assert 0 < slots <= kept
        self.slots = slots
        self.deferred: set[Request] = set()
        self.skipped = 0
        self.evictions = 0
        self._kept_most = kept
        self._running = running
        self._used: dict[Adapter, None] | None = None
        self._slots: OrderedDict[Adapter, None] = OrderedDict()
        self._kept: OrderedDict[Adapter, None] = OrderedDict()

    @property
    def resident(self) -> Collection[Adapter]:
        """The adapters that have a slot, the one that was used longest ago first."""
        return self._slots.keys()

    @property
    def used(self) -> dict[Adapter, None]:
        """The adapters of the requests that run, those of a step in the making included."""
        if self._used is None:
            self._used = {req.adapter: None for req in self._running if req.adapter is not None}
        return self._used

    def changed(self) -> None:
        """Who runs has changed."""
        self._used = None

    def fit(self, req: Request) -> bool:
        """May the request run beside those that do?"""
        return req.adapter is None or req.adapter in self.used or len(self.used) < self.slots

    def admit(self, req: Request) -> None:
        """The request runs from now on."""
        self.deferred.discard(req)
        if self._used is not None and req.adapter is not None:
            self._used[req.adapter] = None

    def defer(self, req: Request) -> None:
        """Note that a request that does not fit has been passed."""
        if req not in self.deferred:
            self.deferred.add(req)
            self.skipped += 1

    def serve(self) -> list[AdapterLoad]:
        """Give a slot to each adapter of those that run; returns who had none, as they are to be loaded."""
        self.use()
        return [self._load(adapter) for adapter in self.used if adapter not in self._slots]

    def use(self) -> None:
        """Note that the adapters of those that run, so far as they are here, were used last."""
        slots, kept = self._slots, self._kept
        for adapter in self.used:
            for known in (slots, kept):
                if adapter in known:
                    known.move_to_end(adapter)

    def _load(self, adapter: Adapter) -> AdapterLoad:
        slots, kept = self._slots, self._kept
        evicted = slots.popitem(last=False)[0] if len(slots) == self.slots else None
        self.evictions += evicted is not None
        disk = adapter not in kept
        if disk and len(kept) == self._kept_most:
            kept.popitem(last=False)
        slots[adapter] = kept[adapter] = None
        kept.move_to_end(adapter)  # both in one order, so that what has a slot is the last to leave the host
        return AdapterLoad(adapter, disk, evicted)


class FittingQueue:
    """A waiting queue as a policy sees it where there are adapters: those for which no slot is left are passed.

    Nobody is passed while the step `is_full`: whoever is asked then is refused, and ends the asking.
    """

    def __init__(self, queue: WaitingQueue, adapters: Adapters, is_full: Callable[[], bool]) -> None:
        self._queue = queue
        self._adapters = adapters
        self._is_full = is_full
        self.add: Callable[[Request], None] = queue.add
        self.put_back: Callable[[Request], None] = queue.put_back
        self.remove: Callable[[Request], None] = queue.remove

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Request]:
        adapters = self._adapters
        for req in self._queue:
            if adapters.fit(req) or self._is_full():
                yield req
            else:
                adapters.defer(req)
