"""The user's own code, by `package.module:object`. Importing a module runs it, so the user has to want it.

What a file says is no such word: `sim.scenario.read` refuses it there. It does not know what the object is for.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

from traces.schema import InputError

USERS: set[str] = set()
"""Modules that were imported because the user named them: what fails in them is not ours."""


def imported(name: str, refusal: str) -> tuple[ModuleType, Any]:
    """The module and the object of `package.module:object`.

    Raises InputError that begins with `refusal`: there is no such thing, the module fails, or it is one of Python's
    own, of which none can hold a part of a simulation and many do harm.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise InputError(f"{refusal}: expected package.module:object")
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise InputError(f"{refusal}: {module_name} is a module of Python itself, and holds nothing of the kind")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script does not look where the user stands
    USERS.add(module_name)
    try:
        module = importlib.import_module(module_name)
        return module, getattr(module, attribute)
    except Exception as error:  # the module is the user's, and importing it may do anything
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{refusal}: {told}") from None
