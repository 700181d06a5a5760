"""Models and GPUs by name, from the TOML files beside this one or from the user's own. It computes nothing from them.

A name is a file: adding `gpus/NAME.toml` adds a GPU. Names are matched without regard to case and separators.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from sim.specs.model import GpuSpec, ModelSpec
from traces import documents, files
from traces.schema import InputError

__all__ = ["from_hf_config", "gpu_rows", "load_gpu", "load_model", "model_rows", "names"]

Kind = Literal["models", "gpus"]
Spec = TypeVar("Spec", ModelSpec, GpuSpec)
Row = dict[str, str | int | float | None]

_FOLDER = Path(__file__).parent
_TYPES: Mapping[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}


def names(kind: Kind) -> list[str]:
    """Names of all models or GPUs of the catalog, sorted."""
    return sorted(path.stem for path in (_FOLDER / kind).glob("*.toml"))


def load_gpu(name: str) -> GpuSpec:
    """A GPU by catalog name or alias, or from a TOML file of the user's; InputError names the known ones."""
    path = user_path(name)
    if path is not None and (path.suffix == ".toml" or files.is_file(path)):
        return _read_gpu(path)
    return _read_gpu(_find("gpus", name))


def from_hf_config(path: str | Path) -> ModelSpec:
    """The model that a Hugging Face `config.json` describes, named after its folder.

    Raises InputError naming the file and the key when the architecture is unknown, a key is missing or of the wrong
    type, or the file asks for what is not modelled.
    """
    from sim.catalog import hf  # noqa: PLC0415 - as below

    return hf.from_hf_config(path)


def load_model(name: str) -> ModelSpec:
    """A model by catalog name or alias, a TOML file of the user's, a Hugging Face config.json (or its folder), or the
    name `owner/model` of a checkpoint in the local Hugging Face cache, which the catalog's own names precede."""
    path = user_path(name)
    if path is not None and files.is_dir(path) and files.is_file(path / "config.json"):
        return from_hf_config(path / "config.json")
    if path is not None and path.suffix == ".json":
        return from_hf_config(path)
    if path is not None and (path.suffix == ".toml" or files.is_file(path)):
        return _read_model(path)
    if _known("models", name) is None and (cached := _cached(name)) is not None:
        return replace(from_hf_config(cached), name=name.rsplit("/", 1)[-1])
    return _read_model(_find("models", name))


def model_rows() -> list[Row]:
    """The catalog's models, one dict each: name, size, shape, KV bytes per token, source."""
    return [_model_row(load_model(name)) for name in names("models")]


def gpu_rows() -> list[Row]:
    """The catalog's GPUs, one dict each: name, memory, rates, node, watts and price (None: not known), source."""
    return [_gpu_row(load_gpu(name)) for name in names("gpus")]


def _model_row(model: ModelSpec) -> Row:
    return {
        "name": model.name,
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "layers": model.layers,
        "heads": model.heads,
        "kv_heads": model.kv_heads,
        "experts": model.experts,
        "max_context_tokens": model.max_context_tokens,
        "dtype": model.dtype,
        "weight_bytes": model.weight_bytes,
        "kv_bytes_per_token": model.kv_bytes_per_token,
        "state_bytes": model.state_bytes,
        "source": model.source,
    }


def _gpu_row(gpu: GpuSpec) -> Row:
    return {
        "name": gpu.name,
        "description": gpu.description,
        "memory_bytes": gpu.memory_bytes,
        "memory_bytes_per_s": gpu.memory_bytes_per_s,
        "fp16_flops_per_s": gpu.fp16_flops_per_s,
        "bf16_flops_per_s": gpu.bf16_flops_per_s,
        "fp8_flops_per_s": gpu.fp8_flops_per_s,
        "link": gpu.peer_link,
        "link_bytes_per_s": gpu.link_bytes_per_s,
        "peer_bytes_per_s": gpu.peer_bytes_per_s,
        "node_gpus": gpu.node_gpus,
        "network_bytes_per_s": gpu.network_bytes_per_s or None,
        "watts": gpu.watts or None,
        "usd_per_gpu_hour": gpu.usd_per_gpu_hour or None,
        "price_month": gpu.price_month,
        "source": gpu.source,
    }


def user_path(name: str) -> Path | None:
    """The path that `name` means: it has a known ending, or a separator, or a config.json; None for a catalog name."""
    path = Path(name)
    if path.suffix in {".toml", ".json"} or (re.search(r"[/\\]", name) and files.exists(path)):
        return path
    return path if files.is_dir(path) and files.is_file(path / "config.json") and not _known("models", name) else None


def _cached(name: str) -> Path | None:
    """The config.json of a checkpoint in the local cache: that of the revision `main`, else the only one that is there.

    huggingface_hub keeps `models--owner--name/{refs,snapshots}` in $HF_HUB_CACHE, or `hub` of $HF_HOME.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return None
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    folder = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}"
    snapshots = folder / "snapshots"
    if files.is_file(folder / "refs" / "main"):
        revision = files.text(folder / "refs" / "main", 200).strip()
        path = snapshots / revision / "config.json"
        if re.fullmatch(r"[\w.-]+", revision) and files.is_file(path):
            return path
    found = sorted(snapshots.glob("*/config.json")) if files.is_dir(snapshots) else []
    return found[0] if len(found) == 1 else None


def _known(kind: Kind, name: str) -> str | None:
    if name in names(kind):  # which spares reading all the others' files
        return name
    index = _index(kind)
    return index.get(_key(name)) or index.get(_key(name.rsplit("/", 1)[-1]))


def _find(kind: Kind, name: str) -> Path:
    stem = _known(kind, name)
    if stem is None:
        noun = "model" if kind == "models" else "GPU"
        hint = (
            "a TOML file or a Hugging Face config.json (or its name in the local cache)"
            if kind == "models"
            else "a TOML file"
        )
        near = get_close_matches(_key(name), _index(kind), 1, 0.6)
        nearest = f"; the nearest is {_index(kind)[near[0]]}" if near else ""
        raise InputError(f"unknown {noun} {name!r}; known are {', '.join(names(kind))}, or the path of {hint}{nearest}")
    return _FOLDER / kind / f"{stem}.toml"


@lru_cache(maxsize=2)
def _index(kind: Kind) -> Mapping[str, str]:
    """Every spelling of a name (normalised) to the file's stem; an alias `owner/name` also stands for `name`."""
    index: dict[str, str] = {}
    for stem in names(kind):
        path = _FOLDER / kind / f"{stem}.toml"
        for alias in (stem, *documents.toml(path).get("aliases", [])):
            for spelling in (alias, alias.rsplit("/", 1)[-1]):
                if index.setdefault(_key(spelling), stem) != stem:
                    raise InputError(f"{path}: alias {alias!r} also names {index[_key(spelling)]!r}")
    return index


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9/]", "", name.lower())


def _read_model(path: Path) -> ModelSpec:
    """A model by the fields of ModelSpec, or by [config], the keys of its published config.json."""
    table = documents.toml(path)
    if "config" not in table:
        return _build(ModelSpec, path, table)
    config = _table(path, table, "config")
    table.pop("aliases", None)
    if set(table) != {"name", "source"} or not all(isinstance(text, str) for text in table.values()):
        raise InputError(f"{path}: beside [config] there must be the texts name and source, and aliases if any")
    from sim.catalog.hf import from_table  # noqa: PLC0415 - families by the dozen, for a config alone
    from sim.catalog.hf_config import Config  # noqa: PLC0415

    return from_table(Config(path, config, "config."), **table)


def _read_gpu(path: Path) -> GpuSpec:
    table = documents.toml(path)
    sources = _table(path, table, "sources")
    known = [item.name for item in fields(GpuSpec) if item.name not in {"name", "description", "source"}]
    for key, text in sources.items():
        if key not in known or not isinstance(text, str):
            raise InputError(f"{path}: [sources] {key!r} must be a text about one of {', '.join(known)}")
    table["sources"] = tuple(sources.items())
    table["efficiency"] = tuple(
        (key, *_constant(path, key, entry)) for key, entry in _table(path, table, "efficiency").items()
    )
    return _build(GpuSpec, path, table)


def _constant(path: Path, key: str, entry: object) -> tuple[float, str]:
    if isinstance(entry, dict) and set(entry) == {"value", "source"}:
        value, source = entry["value"], entry["source"]
        if isinstance(value, int | float) and not isinstance(value, bool) and isinstance(source, str):
            return _number(path, key, value), source
    raise InputError(f"{path}: [efficiency.{key}] must hold a number `value` and a text `source`, nothing else")


def _number(path: Path, key: str, value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{path}: {key} is too large") from None


def _table(path: Path, table: dict[str, Any], key: str) -> dict[str, Any]:
    found = table.pop(key, {})
    if not isinstance(found, dict):
        raise InputError(f"{path}: {key} must be a table, [{key}]")
    return found


def _build(spec: type[Spec], path: Path, table: dict[str, Any]) -> Spec:
    """The checked spec from a table that has exactly its fields; those with a default may be left out."""
    aliases = table.pop("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise InputError(f"{path}: aliases must be a list of texts")
    wanted = {item.name: item for item in fields(spec)}
    unknown = sorted(set(table) - set(wanted))
    if unknown:
        raise InputError(f"{path}: unknown key {unknown[0]!r}; known are {', '.join(wanted)}, aliases")
    missing = [key for key, item in wanted.items() if item.default is MISSING and key not in table]
    if missing:
        raise InputError(f"{path}: key {missing[0]!r} is missing")
    for key, value in table.items():
        types = _TYPES.get(str(wanted[key].type))
        if types and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            raise InputError(f"{path}: {key} = {value!r} must be of type {wanted[key].type}")
        if types == _TYPES["float"]:
            table[key] = _number(path, key, value)
    try:
        return spec(**table)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
