"""Processes that outlive a batch of items, for a question whose next items depend on the answers before them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Generic, TypeVar

from sim.study.workers.cores import cores
from sim.study.workers.pool import Worker, answer_of, each, hand, or_raise, start, stop

Item = TypeVar("Item")
Result = TypeVar("Result")


class OverError(Exception):
    """The time was over before all items had their result."""


class Crew(Generic[Item, Result]):
    """`sim.study.workers.pool.each` for one batch after another, on the same processes.

    Args:
        function, workers, executor: as of `each`; on Ray every batch is one call of it.
        over_s: when the time is over, by `time.monotonic()`; None for never.
    """

    def __init__(
        self,
        function: Callable[[Item], Result],
        *,
        workers: int | None = None,
        executor: str = "processes",
        over_s: float | None = None,
    ) -> None:
        self._function, self._workers, self._executor, self._over_s = function, workers, executor, over_s
        self._count = workers or cores()
        self._idle: list[Worker] = []
        self._busy: dict[Connection, Worker] = {}

    def __call__(self, items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        """Yield (index of the item, its result) as they finish.

        Raises what `function` raises, InputError and WorkerLostError as `each` does, and OverError when the time is
        over; what had no result then is lost. In this process an item that has begun is ended.
        """
        if self._executor != "processes" or self._count == 1:
            yield from self._by_each(items)
            return
        waiting = enumerate(items)
        try:
            self._fill(waiting)
            while self._busy:
                for pipe in self._ready():
                    answer, worker = answer_of(self._busy.pop(pipe), or_raise)
                    if worker is not None:
                        self._idle.append(worker)
                    self._fill(waiting)
                    yield answer
        except BaseException:
            self.close()
            raise

    def _by_each(self, items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        def until_over() -> Iterator[Item]:
            for item in items:
                self._check()
                yield item

        yield from each(self._function, until_over(), workers=self._workers, executor=self._executor)

    def _check(self) -> None:
        if self._over_s is not None and time.monotonic() >= self._over_s:
            raise OverError

    def _fill(self, waiting: Iterator[tuple[int, Item]]) -> None:
        """Hand items to as many as may work, and start them where there are too few."""
        while len(self._busy) < self._count:
            following = next(waiting, None)
            if following is None:
                return
            self._check()
            worker = self._idle.pop() if self._idle else start(self._function)
            hand(self._busy, worker, *following)

    def _ready(self) -> list[Connection]:
        left_s = None if self._over_s is None else max(0.0, self._over_s - time.monotonic())
        ready = connection.wait(list(self._busy), timeout=left_s)
        if not ready:
            raise OverError
        return [pipe for pipe in ready if isinstance(pipe, Connection)]

    def close(self) -> None:
        """End the processes, whatever they are at."""
        for worker in [*self._busy.values(), *self._idle]:
            stop(worker)
        self._busy.clear()
        self._idle.clear()

    def __enter__(self) -> Crew[Item, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
