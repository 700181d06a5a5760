"""Builds the modules that a run spends its time in with mypyc where FORETOKEN_COMPILE=1 asks for it; else nothing.

The compiled modules come from the very files that Python runs otherwise (CONTRIBUTING.md).
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from typing import Any

from setuptools import setup

MYPYC = "mypy[mypyc]==2.4.1"
NUMPY = "numpy>=1.26"
"""Read for its types: names of arrays are no types where it is not there."""
ENGINE = (
    "adapters ahead batch drafting engine flight foreseeing groups host lockstep lost memory names request roster runs "
    "shapes staged step tally tiers tokens verifying"
)
COST = "attention contexts gemm interpolation kernels layers lookup operations planes profiled roofline splits step"
SERVING = "cluster executor front_end replica source"
SPECULATION = "acceptance adaptive drafters"
COMPILED = [
    *(f"sim/engine/{name}.py" for name in ENGINE.split()),
    "sim/allocators/paged.py",
    "sim/allocators/prefix.py",
    *(f"sim/cost/{name}.py" for name in COST.split()),
    "sim/policies/chunked.py",
    "sim/results/requests.py",
    "sim/results/steps.py",
    *(f"sim/serving/{name}.py" for name in SERVING.split()),
    *(f"sim/speculation/{name}.py" for name in SPECULATION.split()),
]


def asked() -> bool:
    """Whether the compiled build is asked for."""
    value = os.environ.get("FORETOKEN_COMPILE", "")
    if value not in ("", "0", "1"):
        sys.exit(f"FORETOKEN_COMPILE is {value!r}; it must be 1 (compiled), or 0 or unset (pure Python)")
    return value == "1"


def extensions() -> list[Any]:
    """The compiled modules; none while pip asks what building them needs, and what they are: it asks thrice."""
    if sys.argv[1:2] in (["egg_info"], ["dist_info"]):
        return []
    try:
        from mypyc.build import mypycify  # noqa: PLC0415 - there only where it was asked for
    except ImportError:
        sys.exit(f"FORETOKEN_COMPILE=1 needs {MYPYC}, which is not installed here")
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if sys.platform != "win32" and shutil.which(compiler) is None:
        sys.exit(f"FORETOKEN_COMPILE=1 needs a C compiler, and there is no {compiler!r} here (set CC, or leave it out)")
    # The project's own settings are for checking: this reads what is compiled, beside numpy alone.
    return mypycify(["--config-file=", "--ignore-missing-imports", *COMPILED], debug_level="0", group_name="foretoken")


if asked():
    setup(ext_modules=extensions(), setup_requires=[MYPYC, NUMPY])
else:
    setup()
