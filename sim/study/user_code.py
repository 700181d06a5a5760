"""Which files the code of a user's own is in: a module and all that it imports. It runs nothing of it.

What Python, the installed distributions and this product bring is left out, but for the distribution of the module
itself. What code imports by a name that it computes, and what files it opens, cannot be seen.
"""

from __future__ import annotations

import ast
import os
import pkgutil
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib import invalidate_caches
from importlib.machinery import ModuleSpec
from pathlib import Path

import traces
from traces import files
from traces.schema import InputError

INSTALLED = ("site-packages", "dist-packages")


def files_of(module: str) -> list[Path]:
    """The files of a module and of what it imports, directly or not, sorted; none where it is not there."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as where it is loaded
    invalidate_caches()  # of which files there are
    own = module.partition(".")[0]
    paths: set[Path] = set()
    names: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in names:
            continue
        names.add(name)
        spec = _spec(name)
        if spec is None:
            continue
        waiting.extend(name[:at] for at, letter in enumerate(name) if letter == ".")  # the packages around it
        path = Path(spec.origin) if spec.origin and spec.has_location else None
        if path is None or not path.is_file() or not (name.partition(".")[0] == own or _is_users(path)):
            continue
        paths.add(path)
        if path.suffix == ".py":
            waiting.extend(_imports(path, name if spec.submodule_search_locations is not None else _parent(name)))
    return sorted(paths)


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is, found without importing the packages around it, as `importlib.util.find_spec` would."""
    where = None
    if parent := _parent(name):
        around = _spec(parent)
        if around is None or around.submodule_search_locations is None:
            return None
        where = list(around.submodule_search_locations)
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, where, None)
        except (AttributeError, ImportError, ValueError, OSError):
            continue
        if spec is not None:
            return spec
    return None


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _is_users(path: Path) -> bool:
    resolved = path.resolve()
    return not (set(INSTALLED) & set(resolved.parts) or any(resolved.is_relative_to(folder) for folder in _not_users()))


PRODUCT = ("traces", "sim", "backend", "calibrate")


@cache
def _not_users() -> tuple[Path, ...]:
    python = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    ours = Path(traces.__file__).parent.parent
    return (*(Path(folder).resolve() for folder in python), *((ours / name).resolve() for name in PRODUCT))


def _imports(path: Path, package: str) -> Iterator[str]:
    """The modules that a file names in any import, also within a function; `package` is where it stands."""
    try:
        tree = ast.parse(files.content(path))
    except (InputError, SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _from(node, package)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def _from(node: ast.ImportFrom, package: str) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, base] if base else above)
    if not base:
        return
    yield base
    for alias in node.names:
        if alias.name != "*":
            yield f"{base}.{alias.name}"
        elif (spec := _spec(base)) is not None:  # its __all__ may name modules
            yield from (
                f"{base}.{module.name}" for module in pkgutil.iter_modules(spec.submodule_search_locations or ())
            )
