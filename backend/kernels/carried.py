"""A cache of compiled kernels that is carried to a machine: what it was made with, and how Triton reads it there.

It compiles nothing (`backend.kernels.warm` does). Triton's own cache names its files by absolute paths, so that one
that was moved is not hit; a carried one names them within their folder, and is given paths where it is put.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend

from traces import documents, files
from traces.schema import InputError
from traces.version import product_version

SCHEMA = "foretoken-kernels/1"
MANIFEST = "manifest.json"
GROUP = "__grp__"
"""How Triton begins the name of the file that lists a kernel's files."""


def versions(sm: int) -> dict[str, Any]:
    """What decides whether compiled kernels of this compute capability serve here; `compiler` is the part of Triton's
    own key that is no kernel's: its code and library, ptxas and the environment."""
    key: str = import_module("triton.runtime.cache").triton_key()
    environment = sorted(import_module("triton._C.libtriton").get_cache_invalidating_env_vars().items())
    compiler = f"{key}-{make_backend(GPUTarget('cuda', sm, 32)).hash()}-{environment}"
    return {
        "schema": SCHEMA,
        "sm": sm,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "foretoken": product_version(),
        "source": _source(),
        "compiler": hashlib.sha256(compiler.encode()).hexdigest(),
    }


def _source() -> str:
    """A digest of the kernels' source."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + files.content(path) + b"\0")
    return digest.hexdigest()


def seal(folder: Path, sm: int) -> dict[str, Any]:
    """Make a cache that Triton has filled one that can be carried; its manifest, written last."""
    groups = list(folder.glob(f"*/{GROUP}*"))
    for group in groups:
        names = {name: Path(path).name for name, path in _children(group).items()}
        group.write_text(json.dumps({"child_paths": names}), encoding="utf-8")
    manifest = {**versions(sm), "kernels": len(groups), "bytes": sum(path.stat().st_size for path in _all(folder))}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def check(folder: Path, sm: int) -> None:
    """Raises InputError, in one sentence, where a carried cache is none, is not whole, or is of other versions."""
    where = files.named(folder)
    if not files.is_file(folder / MANIFEST):
        raise InputError(f"{where} is no carried cache of kernels, for it has no {MANIFEST}")
    made, here = documents.json_file(folder / MANIFEST), versions(sm)
    if not isinstance(made, dict) or made.get("schema") != SCHEMA:
        raise InputError(f"{where}/{MANIFEST} has not the schema {SCHEMA}")
    again = "make it again with python -m backend.kernels.warm"
    for name, about in _ABOUT.items():
        if made.get(name) != here[name]:
            was, now = (about.format(**{key: _word(facts.get(key)) for key in here}) for facts in (made, here))
            raise InputError(f"the cache {where} was made {was}, and here it is {now}: {again}")
    whole = [group for group in folder.glob(f"*/{GROUP}*") if _is_whole(group)]
    if len(whole) != made.get("kernels"):
        raise InputError(f"the cache {where} has {len(whole)} of its {made.get('kernels')} kernels: {again}")


_ABOUT = {
    "sm": "for sm_{sm}",
    "triton": "by triton {triton}",
    "compiler": "by triton {triton}'s build for Python {python} (compiler {compiler})",
    "source": "of foretoken {foretoken}'s kernels (source {source})",
}
"""What has to be the same, and the words for it."""


def _word(value: object) -> str:
    """A fact of a manifest in a sentence; of a digest the beginning."""
    return str(value)[:12]


def put(folder: Path, target: Path) -> None:
    """Copy a carried cache to a new folder, which Triton hits as its cache (TRITON_CACHE_DIR)."""
    shutil.copytree(folder, target)
    for group in target.glob(f"*/{GROUP}*"):
        paths = {name: str((group.parent / file).resolve()) for name, file in _children(group).items()}
        group.write_text(json.dumps({"child_paths": paths}), encoding="utf-8")


def _is_whole(group: Path) -> bool:
    return all(files.is_file(group.parent / Path(name).name) for name in _children(group).values())


def _children(group: Path) -> dict[str, str]:
    """The files that a kernel's list names. Raises InputError."""
    found = documents.json_file(group)
    children = found.get("child_paths") if isinstance(found, dict) else None
    if not isinstance(children, dict) or not all(isinstance(path, str) for path in children.values()):
        raise InputError(f"{files.named(group)} lists no files of a kernel")
    return children


def _all(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
