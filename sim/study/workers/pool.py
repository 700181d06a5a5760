"""One function over many items, on the cores of this machine or on a Ray cluster. It does not know what they mean."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from sim.study.workers.cores import cores
from traces.late import import_numpy
from traces.schema import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerLostError(RuntimeError):
    """A worker ended before it had answered: killed, out of memory, or its machine went away."""


def each(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int | None = None,
    executor: str = "processes",
    fresh: bool = False,
    lost: Callable[[str], Result] | None = None,
) -> Generator[tuple[int, Result], None, None]:
    """Yield (index of the item, what `function` makes of it) as they finish, in whatever order that is.

    `items` are taken as workers become free. Closing the iterator early, or Ctrl-C, ends the workers; so does the
    end of this process, however it comes.

    Args:
        function: one that its module names (it is pickled), which returns what can be pickled. What it raises is
            raised here and ends everything; a failure that should not is a result.
        workers: so many at once; None for one on each core. With one, "processes" runs in this process.
        executor: "processes", "ray" (on this machine) or "ray://host:port" (a cluster's client port).
        fresh: never in this process, so that modules are imported as their files are now.
        lost: gives the result of an item whose worker was lost, from the reason in words.

    Raises:
        InputError: an unknown executor, or a Ray that is not installed or cannot be reached.
        WorkerLostError: a worker was lost, and there is no `lost`.
    """
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers; there must be at least 1")
    given = or_raise if lost is None else lost
    if executor == "processes":
        count = workers or cores()
        if count == 1 and not fresh:
            return ((index, function(item)) for index, item in enumerate(items))
        return _in_processes(function, items, count, given)
    if executor == "ray" or executor.startswith("ray://"):
        from sim.study.workers.ray_cluster import on_ray  # noqa: PLC0415

        return on_ray(function, items, workers, executor, given)
    raise InputError(f"executor {executor!r}; known: processes, ray, ray://host:port")


def or_raise(reason: str) -> Any:
    raise WorkerLostError(reason)


@dataclass(slots=True)
class Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    index: int = -1
    """The item that it works on."""


def _in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], count: int, lost: Callable[[str], Result]
) -> Generator[tuple[int, Result], None, None]:
    """One pipe to each worker, so that it is known which item a killed worker had; a new one takes its place."""
    waiting = enumerate(items)
    busy: dict[Connection, Worker] = {}
    try:
        # One by one: the next is started when there is an item for it.
        for index, item in waiting:
            hand(busy, start(function), index, item)
            if len(busy) == count:
                break
        while busy:
            for pipe in [ready for ready in connection.wait(list(busy)) if isinstance(ready, Connection)]:
                answer, worker = answer_of(busy.pop(pipe), lost)
                for index, item in waiting:
                    hand(busy, worker or start(function), index, item)
                    break
                else:
                    if worker is not None:
                        stop(worker)
                yield answer
    finally:
        for worker in busy.values():
            stop(worker)


def answer_of(worker: Worker, lost: Callable[[str], Any]) -> tuple[tuple[int, Any], Worker | None]:
    """((index of the item, its result), the worker unless it was lost)."""
    try:
        raised, result = worker.pipe.recv()
    except (EOFError, OSError):
        return (worker.index, lost(_end_of(worker))), None
    if raised:
        stop(worker)
        raise result
    return (worker.index, result), worker


def hand(busy: dict[Connection, Worker], worker: Worker, index: int, item: Any) -> None:
    worker.index = index
    busy[worker.pipe] = worker
    with suppress(BrokenPipeError, ConnectionResetError):  # it was killed just now: reading its answer will tell
        worker.pipe.send(item)


def start(function: Callable[[Any], Any]) -> Worker:
    """A fresh interpreter, not `multiprocessing`'s, which would run the user's script once more in each worker.

    It looks for modules where this process does and nowhere else: not where the user happens to stand (-P).
    """
    ours, theirs = connection.Pipe()
    paths = [path or os.getcwd() for path in sys.path]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", f"from sim.study.workers.pool import serve; serve({theirs.fileno()})"],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,  # Ctrl-C is for this process, which ends its workers
    )
    theirs.close()  # so that the end of the worker reads as the end of the pipe
    worker = Worker(process, ours)
    with suppress(BrokenPipeError, ConnectionResetError):
        ours.send(function)
    return worker


def stop(worker: Worker) -> None:
    worker.pipe.close()
    worker.process.kill()  # it holds nothing that needs an orderly end
    worker.process.wait()


def _end_of(worker: Worker) -> str:
    """In words, how a worker ended that closed its pipe without an answer."""
    worker.pipe.close()
    code = worker.process.wait()
    if code >= 0:
        return f"the worker process ended by itself (exit code {code}) before it had an answer"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"the worker process was killed ({name}{hint}) before it had an answer"


def serve(file_descriptor: int) -> None:
    """A worker's life: a function, then items in, (whether it raised, result) out, until the pipe is closed."""
    import_numpy()
    pipe = Connection(file_descriptor)
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, items), daemon=True).start()
    function = items.get()
    while True:
        item = items.get()
        try:
            answer = False, function(item)
        except Exception as error:
            answer = True, error
        with suppress(BrokenPipeError, ConnectionResetError):
            pipe.send(answer)


def _receive(pipe: Connection, items: queue.SimpleQueue[Any]) -> None:
    """Take in what is sent; the worker ends at once when the other side has gone, for nobody would read its answer."""
    while True:
        try:
            items.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(0)
        except Exception:  # what cannot be unpickled here, such as a function of the user's script
            traceback.print_exc()
            os._exit(1)
