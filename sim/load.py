"""A name is a file: finds a policy, an allocator or a router by name, and binds its parameters strictly."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import entry_points
from typing import Any

from sim.bounds import PARAMETER
from traces.schema import InputError


def names(package: str) -> list[str]:
    """The names that `load` knows in a package: its modules, then what installed distributions add, sorted."""
    folder = importlib.import_module(package)
    own = {module.name.replace("_", "-") for module in pkgutil.iter_modules(folder.__path__)}
    return sorted(own | {point.name for point in _entry_points(package)})


def load(package: str, name: str) -> Callable[..., Any]:
    """The object that a name stands for: `sjf` is `Sjf` or `sjf` in the package's file `sjf.py`.

    Otherwise the name is an entry point of the group `foretoken.<package's last part>`, or `package.module:object`.

    Raises:
        InputError: the name is unknown; the sentence lists the known ones.
    """
    kind = package.rpartition(".")[2]
    stem = name.replace("-", "_")
    folder = importlib.import_module(package)
    if any(module.name == stem for module in pkgutil.iter_modules(folder.__path__)):
        module = importlib.import_module(f"{package}.{stem}")
        camel = "".join(part.capitalize() for part in stem.split("_"))
        return getattr(module, camel, None) or getattr(module, stem)  # type: ignore[no-any-return]
    for point in _entry_points(package):
        if point.name == name:
            return point.load()  # type: ignore[no-any-return]
    if ":" in name:
        return _by_path(name, kind)
    raise InputError(f"unknown name {name!r} in {kind}; known: {', '.join(names(package))}, or package.module:object")


def build(package: str, name: str, given: Mapping[str, Any], *first: object) -> Any:
    """Load `name` and give it its parameters: a class is called with `first` and them, a function is bound to them.

    What takes `**parameters` hands them on to a part of its own, which checks them.

    Raises:
        InputError: an unknown parameter, or a value of another type than the parameter's default.
    """
    kind = {"policies": "policy", "allocators": "allocator", "routers": "router"}[package.rpartition(".")[2]]
    target = load(package, name)
    if not callable(target):
        raise InputError(f"{kind} {name!r} is a {type(target).__name__} and cannot be called")
    parameters = inspect.signature(target).parameters
    known = {key: one for key, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY}
    hands_on = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    for key, value in given.items():
        if key not in known and hands_on:
            continue
        if key not in known:
            have = ", ".join(known) or "none"
            raise InputError(f"{kind} {name!r} has no parameter {key!r}; it has: {have}")
        _check_type(f"{kind}.{key}", value, known[key].default)
    if inspect.isclass(target):
        return target(*first, **given)
    return partial(target, **given) if given else target


def _check_type(key: str, value: Any, default: Any) -> None:
    if default is None or default is inspect.Parameter.empty:
        return
    accepted: tuple[type, ...] = (int, float) if isinstance(default, float) else (type(default),)
    if not isinstance(value, accepted) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise InputError(f"{key} is {value!r}; it must be of type {type(default).__name__}, such as {default!r}")
    if isinstance(value, int | float):
        PARAMETER.check(key, value)


def _entry_points(package: str) -> list[Any]:
    return list(entry_points(group=f"foretoken.{package.rpartition('.')[2]}"))


def _by_path(name: str, kind: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise InputError(f"cannot load {name!r} from {kind}: expected package.module:object")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script does not look where the user stands
    try:
        return getattr(importlib.import_module(module_name), attribute)  # type: ignore[no-any-return]
    except Exception as error:  # the module is the user's, and importing it may do anything
        raise InputError(f"cannot load {name!r} from {kind}: {type(error).__name__}: {error}") from None
