"""One function over many items on Ray, started here or found at an address. Only this file knows Ray."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Generator, Iterable
from importlib import import_module
from importlib.metadata import version
from typing import Any, TypeVar
from urllib.parse import urlsplit

from sim.study.workers.cores import cores
from traces.schema import InputError
from traces.version import product_version

Item = TypeVar("Item")
Result = TypeVar("Result")

REACH_S = 5.0
"""How long an address has to answer."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing here reports to anyone
    # Ray reads both when it is imported, tries three times, and by itself takes half a minute to give up.
    "RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S": "2",
    "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "3",
}
STORE_BYTES = 100 * 2**20
"""Ray's own memory on this machine, instead of a third of all: items and results are small."""


def on_ray(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int | None,
    address: str,
    lost: Callable[[str], Result],
) -> Generator[tuple[int, Result], None, None]:
    """`sim.study.workers.pool.each` on Ray; `address` is "ray" or "ray://host:port"."""
    ray = _connected(address, workers)
    try:
        _check_version(ray, address)
        count = workers or int(ray.cluster_resources().get("CPU", 1))

        def call(item: Item) -> Result:  # a plain function, which is all that Ray takes
            return function(item)

        task = ray.remote(num_cpus=1, max_retries=0)(call)
        waiting = enumerate(items)
        busy: dict[Any, int] = {}
        while True:
            for index, item in waiting:
                busy[task.remote(item)] = index
                if len(busy) >= 2 * count:  # one to work on and one to come, so that no worker waits for this loop
                    break
            if not busy:
                return
            (done,), _ = ray.wait(list(busy), num_returns=1)
            index = busy.pop(done)
            yield index, _result(ray, done, lost)
    finally:
        ray.shutdown()


def _result(ray: Any, done: Any, lost: Callable[[str], Any]) -> Any:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        text = str(error).strip().splitlines()
        return lost(f"its Ray worker was lost before it had an answer ({type(error).__name__}: {text[0]})")


def _connected(address: str, workers: int | None) -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray = _module("ray")
    if ray.is_initialized():
        raise InputError("Ray is in use in this process already; call ray.shutdown() first")
    quiet = {"log_to_driver": False, "logging_level": "error"}
    if address == "ray":
        ray.init(
            address="local",
            num_cpus=workers or cores(),
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            **quiet,
        )
        return ray
    _reach(address)
    _module("grpc")  # which Ray needs to reach a cluster
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of it raises too
            ray.init(address, **quiet)
    except Exception as error:
        fault = str(error).strip().splitlines()[0]
        hint = "a cluster that asks for a token needs RAY_AUTH_MODE=token here too"
        raise InputError(f"no Ray answers at {address}: {fault} ({hint})") from None
    return ray


def _module(name: str) -> Any:
    """An optional module, by name so that its types need not be there either."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise InputError(f"executor ray needs {name}, which is not installed; pip install 'foretoken[ray]'") from None


def _reach(address: str) -> None:
    """Refuse an address where nothing answers, with the reason that the system gives."""
    try:
        place = urlsplit(address)
        host, port = place.hostname, place.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise InputError(f"executor {address!r}: expected ray://host:port, such as ray://10.0.0.1:10001")
    try:
        socket.create_connection((host, port), timeout=REACH_S).close()
    except OSError as error:
        raise InputError(f"no Ray answers at {address}: {error.strerror or error}") from None


def _check_version(ray: Any, address: str) -> None:
    """Refuse a cluster that would compute something else."""
    own = product_version()
    try:
        theirs = ray.get(ray.remote(num_cpus=1, max_retries=0)(version).remote("foretoken"))
    except ray.exceptions.RayTaskError:
        theirs = "not installed"
    if theirs != own:
        raise InputError(f"foretoken is {own} here and {theirs} on the workers of {address}; install the same there")
