"""Which of many replicas has least of something, without a look at all of them at each choice. It routes nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import Any

from sim.engine.batch import Batch
from sim.engine.flight import Flight, ObservedReplica, Observer
from sim.engine.request import Adapter, Request
from sim.serving.snapshot import Snapshot

MEMORY = "taken KV"
"""The share of KV blocks that somebody holds, then the unfinished requests."""
IDLE = "idle"
"""The most unfinished requests are the least of it."""

_KEYS: dict[str, Callable[[Snapshot], Any]] = {
    "outstanding": attrgetter("outstanding"),
    "outstanding_tokens": attrgetter("outstanding_tokens"),
    IDLE: lambda replica: -replica.outstanding,
    MEMORY: lambda replica: (-replica.free_kv, replica.outstanding),
}


def least(replicas: Sequence[Snapshot], what: str) -> Snapshot:
    """The first of the replicas that have least `outstanding`, `outstanding_tokens`, `MEMORY` or `IDLE`."""
    if isinstance(replicas, Lineup):
        return replicas.least(what)
    return min(replicas, key=_KEYS[what])


def holders(replicas: Sequence[Snapshot], req: Request) -> Sequence[Snapshot]:
    """Those, in their order, whose cache may hold the beginning of a prompt: the others hold nothing of it."""
    ids = () if req.prefix is None else req.prefix.ids
    return replicas.sent(ids[0]) if isinstance(replicas, Lineup) and len(ids) else replicas


def having(replicas: Sequence[Snapshot], req: Request) -> Sequence[Snapshot]:
    """Those, in their order, that may have the adapter of a request which asks for one: the others have it not."""
    return replicas.sent(req.adapter) if isinstance(replicas, Lineup) and req.adapter else replicas


class SentTo:
    """Where requests were sent that leave something there: the first block of their prompt, or their adapter.

    Whatever a replica has of either came there with a request, and what it has lost it may have again.
    """

    def __init__(self, *, prefixes: bool, adapters: bool) -> None:
        self._prefixes = prefixes
        self._adapters = adapters
        self._places: dict[int | Adapter, set[int]] = {}

    def add(self, req: Request, place: int) -> None:
        """Take note that a request is sent there."""
        if self._prefixes and req.prefix is not None and len(req.prefix.ids):
            self._places.setdefault(req.prefix.ids[0], set()).add(place)
        if self._adapters and req.adapter is not None:
            self._places.setdefault(req.adapter, set()).add(place)

    def places(self, what: int | Adapter) -> Collection[int]:
        """Where requests with this first block or adapter were sent."""
        return self._places.get(what, ())


class Lineup(list[Snapshot]):
    """What a router sees: snapshots in their order, and which of them is first by what they have least of.

    Args:
        sent: where requests with something to be found again were sent; None: unknown.
    """

    def __init__(self, replicas: Iterable[Snapshot], sent: SentTo | None = None) -> None:
        super().__init__(replicas)
        self._sent = sent
        self._first: dict[str, Snapshot] = {}
        self._places = {replica.index: replica for replica in self}

    def sent(self, what: int | Adapter) -> Sequence[Snapshot]:
        """Those, in their order, that a request with this first block or adapter was sent to; where that is unknown
        all."""
        if self._sent is None:
            return self
        places = self._places
        return [places[place] for place in sorted(self._sent.places(what)) if place in places]

    def least(self, what: str) -> Snapshot:
        """The first of those that have least of it."""
        if what not in self._first:
            self._first[what] = min(self, key=_KEYS[what])
        return self._first[what]

    def changed(self, replica: Snapshot) -> None:
        """Take note that a request came there, or has left."""

    def polled(self) -> None:
        """Take note that all were looked at."""
        self._first.clear()


class LineupNow(Lineup):
    """Of snapshots that are what their replicas are now.

    Args:
        touched: places of the replicas whose memory may have changed, which whoever changes it adds to; None: unknown.
        falls: whether the free blocks of the replica at a place never rise within a batch's repeats.
    """

    def __init__(
        self,
        replicas: Iterable[Snapshot],
        touched: set[int] | None,
        falls: Callable[[int], bool],
        sent: SentTo | None = None,
    ) -> None:
        super().__init__(replicas, sent)
        self._touched = touched
        self._falls = falls
        self._by_count: dict[str, _ByCount] = {}
        self._ranks: list[_ByCount] = []
        self._by_memory: _ByMemory | None = None

    def least(self, what: str) -> Snapshot:
        if what != MEMORY:
            ranks = self._by_count.get(what)
            if ranks is None:
                ranks = self._by_count[what] = _ByCount(self, _KEYS[what])
                self._ranks.append(ranks)
            return ranks.first()
        if self._touched is None:
            return min(self, key=_KEYS[what])
        if self._by_memory is None:
            self._by_memory = _ByMemory(self, self._touched, self._falls)
        return self._by_memory.first()

    def changed(self, replica: Snapshot) -> None:
        place = replica.index
        for ranks in self._ranks:
            if place in ranks.by_place:
                heap = ranks.heap
                heappush(heap, (ranks.key(replica), place))
                if len(heap) > ranks.most:
                    ranks.fill()
        if self._touched is not None:
            self._touched.add(place)


class _ByCount:
    """By a number that is changed by whoever tells so: a heap in which what is no longer true is passed over.

    Whoever changes it (`LineupNow.changed`) adds to the heap, and fills it anew when it has more than `most`.
    """

    __slots__ = ("by_place", "heap", "key", "most")

    def __init__(self, replicas: Sequence[Snapshot], key: Callable[[Snapshot], int]) -> None:
        self.by_place = {replica.index: replica for replica in replicas}
        self.key = key
        self.heap: list[tuple[int, int]] = []
        self.most = 8 * len(self.by_place) + 64
        self.fill()

    def fill(self) -> None:
        """Let it hold each replica once, as it is now."""
        self.heap = [(self.key(replica), place) for place, replica in self.by_place.items()]
        heapify(self.heap)

    def first(self) -> Snapshot:
        """The first of those that have least, by their places."""
        heap, key, by_place = self.heap, self.key, self.by_place
        while True:
            number, place = heap[0]
            replica = by_place[place]
            if key(replica) == number:
                return replica
            heappop(heap)


class _ByMemory:
    """By the share of free KV, which is asked of a replica where it may be the largest and not elsewhere.

    A question ends a replica's span of steps. Before it is asked, what was free when the span began is the most that
    can be free now, and who has less than another has for certain is left alone.
    """

    def __init__(self, replicas: Sequence[Snapshot], touched: set[int], falls: Callable[[int], bool]) -> None:
        self._by_place = {replica.index: replica for replica in replicas}
        self._touched = touched
        self._falls = falls
        self._keys: dict[int, tuple[float, int, int]] = {}
        """By place: (- share of free KV, unfinished requests, place), of which the share is true or the most."""
        self._true: set[int] = set()
        self._heap: list[tuple[float, int, int]] = []
        touched.update(self._by_place)

    def _rank(self, place: int, replica: Snapshot) -> None:
        key = self._keys[place] = (-replica.free_kv_unsettled, replica.outstanding, place)
        heappush(self._heap, key)

    def first(self) -> Snapshot:
        touched, heap, by_place = self._touched, self._heap, self._by_place
        for place in touched:
            if place in by_place:
                self._true.discard(place)
                if self._falls(place):
                    self._rank(place, by_place[place])
                else:
                    # Somewhere ahead of all until it is asked.
                    key = self._keys[place] = (-2.0, 0, place)
                    heappush(heap, key)
        touched.clear()
        if len(heap) > 8 * len(by_place) + 64:
            heap[:] = self._keys.values()
            heapify(heap)
        while True:
            key = heap[0]
            place = key[2]
            if self._keys[place] != key:
                heappop(heap)
                continue
            replica = by_place[place]
            if place in self._true:
                return replica
            replica.settle()
            touched.discard(place)  # a span that ends now has told so
            self._true.add(place)
            self._rank(place, replica)


class Touches(Observer):
    """Tells which replicas' memory may have changed.

    Args:
        place_of: by number of a replica, or of a rank of it, its place.
    """

    def __init__(self) -> None:
        self.place_of: dict[int, int] = {}
        self.touched: set[int] = set()

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        self.touched.add(self.place_of[replica.index])

    def sealed(self, replica: ObservedReplica, flight: Flight) -> None:
        self.touched.add(self.place_of[replica.index])

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        self.touched.add(self.place_of[replica.index])
