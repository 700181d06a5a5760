"""A name is a file: finds a policy, an allocator or a router by name, and binds its parameters strictly."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, cast

from sim.specs.bounds import PARAMETER
from sim.specs.traits import check_traits, declared
from traces.code import imported
from traces.schema import InputError

MOVED = {
    "sim.step": "sim.engine.step",
    "sim.request": "sim.engine.request",
    "sim.memory": "sim.engine.memory",
    "sim.batch": "sim.engine.batch",
    "sim.queues": "sim.engine.queues",
    "sim.engine": "sim.engine.engine",
    "sim.specs": "sim.specs.model",
    "sim.replica": "sim.serving.replica",
    "sim.cluster": "sim.serving.cluster",
    "sim.executor": "sim.serving.executor",
}
"""Modules that users' own policies, allocators and routers may import, by where they were in version 0.1."""
OURS = "foretoken"
"""The engine of `sim.engine.engine`, by name."""
MIXED = "sim.allocators.mixed"
"""For layers that do not keep alike (`KvPool.layers`), by the same names as `sim.allocators`: `paged`, `prefix`."""
_KINDS = {
    "policies": "policy",
    "allocators": "allocator",
    "mixed": "allocator",
    "routers": "router",
    "engines": "engine",
}
_TAKES = {"policy": ("step",), "router": ("request", "replicas")}
_METHODS = {
    "allocator": ("refusal", "match", "admit", "grow", "release", "table", "usage"),
    "engine": ("refusal", "add", "abort", "plan", "seal", "commit", "usage", "counts", "cached_tokens"),
}
_TOGETHER = (("join", "leave", "headroom", "step", "advance"), ("fork", "owns_tail"))
"""Methods of an allocator that mean something only together: serving many steps at once, and forking."""
_PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_SHAPES = {
    "policy": "a policy is a function of a step, or a class whose objects are such (docs/policies.md)",
    "allocator": "an allocator is a class with the methods of sim.engine.memory.Allocator (docs/allocators.md)",
    "engine": "an engine is a class like sim.engine.protocol.ServingEngine, called with limits and a pool",
    "router": "a router is a function of a request and the replicas, or a class whose objects are such",
}


def names(package: str) -> list[str]:
    """The names that `load` knows in a package: its modules, then what installed distributions add, sorted."""
    own = {name.replace("_", "-") for name in _modules(package)}
    return sorted(own | {point.name for point in _entry_points(package)})


def _modules(package: str) -> dict[str, str]:
    """The product's own modules of a package of parts, by name; of its engines there is one."""
    if package == "sim.engines":
        return {OURS: "sim.engine.wiring"}
    folders = importlib.import_module(package).__path__
    return _listed(package, tuple((folder, os.stat(folder).st_mtime_ns) for folder in folders))


@lru_cache
def _listed(package: str, folders: tuple[tuple[str, int], ...]) -> dict[str, str]:
    """The modules in these folders of a package, as long as nothing comes or goes there."""
    modules = (module for module in pkgutil.iter_modules([folder for folder, _ in folders]) if not module.ispkg)
    return {module.name: f"{package}.{module.name}" for module in modules}


def installed(engine: str) -> bool:
    """Does an engine's name tell another's scheduler, by its version (`vllm==0.33.0`)?"""
    return "==" in engine


def load(package: str, name: str) -> Callable[..., Any]:
    """The object that a name stands for: `sjf` is `Sjf` or `sjf` in the package's file `sjf.py`.

    Otherwise the name is an entry point of the group `foretoken.<package's last part>`, or `package.module:object`.

    Raises:
        InputError: the name is unknown; the sentence lists the known ones.
    """
    kind = package.rpartition(".")[2]
    stem = name.replace("-", "_")
    modules = _modules(package)
    if stem in modules:
        module = importlib.import_module(modules[stem])
        camel = ("Mixed" if package == MIXED else "") + "".join(part.capitalize() for part in stem.split("_"))
        return getattr(module, camel, None) or getattr(module, stem)  # type: ignore[no-any-return]
    for point in _entry_points(package):
        if point.name == name:
            return _of_kind(point.load(), name, kind)
    if ":" in name:
        return _of_kind(_by_path(name, kind), name, kind)
    raise InputError(f"unknown name {name!r} in {kind}; known: {', '.join(names(package))}, or package.module:object")


def plug_in(package: str, name: str) -> tuple[str, dict[str, str]] | None:
    """(its module, name and version of the distribution that brings it) of what a name stands for; None: the product's.

    A `package.module:object` names no distribution. Nothing is imported.
    """
    if name.replace("-", "_") in _modules(package):
        return None
    for point in _entry_points(package):
        if point.name == name:
            told = {} if point.dist is None else {point.dist.name: point.dist.version}
            return point.module, told
    return (name.partition(":")[0], {}) if ":" in name else None


@lru_cache(maxsize=256)
def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Of each part once: every replica of a fleet is given its own policy and allocator."""
    return inspect.signature(target).parameters


def keywords(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What a scenario may set of a part, by name: its keyword-only parameters.

    mypyc tells those of a compiled class, where one is a number, as positional ones with a default.
    """
    compiled = inspect.isclass(target) and not inspect.isfunction(target.__init__)
    return {
        key: one
        for key, one in _parameters(target).items()
        if one.kind is inspect.Parameter.KEYWORD_ONLY
        or (compiled and one.kind is inspect.Parameter.POSITIONAL_ONLY and one.default is not inspect.Parameter.empty)
    }


def find(package: str, name: str, given: Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """(the object that a name stands for, what it declares of itself by trait), once its parameters are checked.

    Nothing of it is called or built. What takes `**parameters` hands them on to a part of its own, which checks them.

    Raises:
        InputError: an unknown parameter, a value of another type than the parameter's default, or a trait of the part
            that is misspelt or of another kind (`sim.specs.traits`).
    """
    kind = _KINDS[package.rpartition(".")[2]]
    target = load(package, name)
    parameters = _parameters(target)
    known = keywords(target)
    hands_on = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    for key, value in given.items():
        if key not in known and hands_on:
            continue
        if key not in known:
            have = ", ".join(known) or "none"
            raise InputError(f"{kind} {name!r} has no parameter {key!r}; it has: {have}")
        _check_type(f"{kind}.{key}", value, known[key].default)
    check_traits(target, kind, name)
    return target, declared(target, kind)


def build(package: str, name: str, given: Mapping[str, Any], *first: object) -> Any:
    """Find `name` and give it its parameters: a class is called with `first` and them, a function is bound to them.

    Raises as `find`, and InputError where the object made declares a trait wrongly.
    """
    target, _ = find(package, name, given)
    if not inspect.isclass(target):
        return partial(target, **given) if given else target
    part = target(*first, **given)
    check_traits(part, _KINDS[package.rpartition(".")[2]], name)
    return part


def _check_type(key: str, value: Any, default: Any) -> None:
    if default is None or default is inspect.Parameter.empty:
        return
    accepted: tuple[type, ...] = (int, float) if isinstance(default, float) else (type(default),)
    if not isinstance(value, accepted) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise InputError(f"{key} is {value!r}; it must be of type {type(default).__name__}, such as {default!r}")
    if isinstance(value, int | float):
        PARAMETER.check(key, value)


def _entry_points(package: str) -> list[Any]:
    from importlib.metadata import entry_points  # noqa: PLC0415 - slow, and asked of others' parts alone

    return list(entry_points(group=f"foretoken.{package.rpartition('.')[2]}"))


def _by_path(name: str, kind: str) -> Callable[..., Any]:
    try:
        module, target = imported(name, f"cannot load {name!r} from {kind}")
    except InputError as error:
        moved = [f"{old} is {new} now" for old, new in MOVED.items() if f"'{old}'" in str(error)]
        raise InputError("; ".join([str(error), *moved])) from None
    _check_current(module)
    return cast("Callable[..., Any]", target)


def _of_kind(target: Any, name: str, kind: str) -> Callable[..., Any]:
    """What was found by name, once it is known to be of the kind; nothing of it is called before.

    Raises:
        InputError: it is no class and no function, or one that could not be used so.
    """
    noun = _KINDS[kind]
    if not callable(target):
        raise InputError(f"{noun} {name!r} is a {type(target).__name__} and cannot be called")
    try:
        lacks = _lacks(target, noun)
    except (TypeError, ValueError):  # what is written in C tells no signature
        lacks = "takes what no one can tell beforehand"
    if lacks:
        raise InputError(f"{noun} {name!r} {lacks}; {_SHAPES[noun]}")
    return cast("Callable[..., Any]", target)


def _lacks(target: Callable[..., Any], noun: str) -> str:
    """Why a class or function cannot be such a part, or ""."""
    if not inspect.isclass(target) and not inspect.isfunction(target):
        return f"is a {type(target).__name__}, no class and no Python function"
    if noun in _METHODS:
        missing = [name for name in _METHODS[noun] if not callable(getattr(target, name, None))]
        for together in _TOGETHER if noun == "allocator" else ():
            lacking = [name for name in together if not callable(getattr(target, name, None))]
            if not missing and lacking and len(lacking) < len(together):
                return f"has some of the methods {', '.join(together)} and not {lacking[0]}"
        return f"has no method {missing[0]}" if missing else ""
    names = _TAKES[noun]
    called: Any = target
    if inspect.isclass(target):
        if not inspect.isfunction(called := getattr(target, "__call__", None)):  # noqa: B004 - of its objects, not its own
            return "is a class whose objects cannot be called"
        names = ("self", *names)
    try:
        inspect.signature(called).bind(*names)
    except TypeError as error:
        return f"cannot be called with {', '.join(_TAKES[noun])} ({error})"
    given = [one for one in inspect.signature(called).parameters.values() if one.kind in _PLACED][: len(names)]
    return "" if len(given) == len(names) else f"does not take {', '.join(_TAKES[noun])} one by one"


_IMPORTED: dict[str, tuple[object, tuple[int, int]]] = {}
"""By module its import (another one after a reload), and size and time of its file when it was first asked for."""


def _check_current(module: ModuleType) -> None:
    """Refuse a module whose file is another than this process runs: the numbers would be those of the old code."""
    path = getattr(module, "__file__", None)
    try:
        seen = os.stat(path) if path else None
    except OSError:
        return
    if seen is None:
        return
    stamp = seen.st_size, seen.st_mtime_ns
    known = _IMPORTED.get(module.__name__)
    if known is None or known[0] is not module.__spec__:
        _IMPORTED[module.__name__] = module.__spec__, stamp
    elif known[1] != stamp:
        raise InputError(f"{path} has changed since it was imported; start Python again, or reload the module")
