"""The queue of requests that wait for admission: first come first served, or ordered by a policy's key."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from sim.engine.request import Request


class WaitingQueue(Protocol):
    """What the engine needs of a queue. Iterating is safe while the request just yielded is taken out."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Request]: ...
    def add(self, req: Request) -> None: ...
    def put_back(self, req: Request) -> None:
        """Return a preempted request, ahead of the others where the order allows it."""
        ...

    def remove(self, req: Request) -> None: ...


class ArrivalQueue(deque[Request]):
    """First come, first served; a preempted request goes to the front (vLLM V1, `FCFSRequestQueue`)."""

    add = deque.append
    put_back = deque.appendleft

    def __iter__(self) -> Iterator[Request]:
        at = 0
        while at < len(self):
            req = self[at]
            yield req
            if at < len(self) and self[at] is req:
                at += 1

    def remove(self, req: Request) -> None:
        if self[0] is req:
            self.popleft()
        else:
            super().remove(req)


class KeyedQueue:
    """Ordered by `key(request)`, ties by arrival and then by id; preempted requests return to their place."""

    __slots__ = ("_key", "_sorted")

    def __init__(self, key: Callable[[Request], Any]) -> None:
        self._key = key
        self._sorted: list[tuple[Any, float, int, Request]] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def __iter__(self) -> Iterator[Request]:
        items, at = self._sorted, 0
        while at < len(items):
            req = items[at][3]
            yield req
            if at < len(items) and items[at][3] is req:
                at += 1

    def add(self, req: Request) -> None:
        insort(self._sorted, self._item(req))

    put_back = add

    def remove(self, req: Request) -> None:
        del self._sorted[bisect_left(self._sorted, self._item(req))]

    def _item(self, req: Request) -> tuple[Any, float, int, Request]:
        return (self._key(req), req.arrival_s, req.id, req)


def waiting_queue(key: Callable[[Request], Any] | None) -> WaitingQueue:
    """The queue of a policy: by its key, or else first come, first served."""
    return KeyedQueue(key) if key else ArrivalQueue()
