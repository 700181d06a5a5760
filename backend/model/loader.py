"""Models for the live backend: from a Hugging Face folder (config.json, safetensors), or seeded random weights.

Every byte of a checkpoint is copied once, from the mapped file into its slice of the fused parameter on the device;
quantised matrices pass through one unquantised matrix at a time. Pickles are never opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from backend.cache.memory import check_device, check_memory
from backend.model.checkpoint import CheckpointConfig, check_supported, read_config, without_checkpoint
from backend.model.model import Model
from backend.model.parameters import Parameter, Piece, assemble, parameters
from backend.model.weights import QUANT_DTYPES, Weight, quantised
from sim import catalog
from sim.catalog import from_hf_config
from sim.catalog.hf import stored_dtype
from sim.catalog.hf_config import Config
from sim.specs.model import ModelSpec
from traces import documents, files
from traces.schema import InputError

__all__ = ["CheckpointConfig", "load_checkpoint", "load_model", "random_model"]

SHIPPED = {name: Path(__file__).parents[1] / "pair" / name for name in ("byte-target", "byte-draft")}
"""The catalog's models whose weights come with this package."""

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_IGNORED = ("rotary_emb.inv_freq",)
"""Endings of tensors that old checkpoints hold and that are computed from config.json."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_checkpoint(
    folder: str | Path, device: torch.device | str = "cpu", *, dtype: str | None = None, weights: str = "auto"
) -> Model:
    """The model of a checkpoint's folder, its activations in `dtype` (as config.json says, where None).

    `weights` is "auto" (the same type), "fp8" or "int8" (quantised on the device, see `backend.model.weights`).
    Raises InputError, in one sentence, for a family that cannot be run, a folder of pickles, a missing or truncated
    file, a tensor that is missing, unexpected or of another shape or kind than config.json says, and too little memory.
    """
    path = Path(folder)
    own = stored_dtype(Config.read(path / "config.json"))
    spec = from_hf_config(path / "config.json").with_dtypes(dtype=dtype or own, weights=weights)
    config = read_config(path, spec)
    place = _prepare(spec, device)
    slots = {item.name: _Slot(item, spec, place) for item in parameters(spec, config)}
    wanted = {piece.name: (slot, piece) for slot in slots.values() for piece in slot.item.pieces}
    _fill(path, wanted, tied=spec.tied_embeddings)
    return Model(spec, config, assemble(spec, config, {name: slot.value() for name, slot in slots.items()}))


def load_model(name: str, spec: ModelSpec, device: torch.device | str = "cpu", *, seed: int = 0) -> Model:
    """The model that a user's `name` means, which `spec` describes (with the types that are wanted).

    A checkpoint's folder gives its weights and a model of the catalog those shipped with it; else, and for a folder
    that holds a config.json alone, they are random ones of `seed`. Raises InputError as the two functions below do.
    """
    folder = Path(name)
    if files.is_dir(folder) and any(folder.glob("*.safetensors")):
        return load_checkpoint(folder, device, dtype=spec.dtype, weights=spec.weights)
    if spec.name in SHIPPED and _as_listed(spec):
        return load_checkpoint(SHIPPED[spec.name], device, dtype=spec.dtype, weights=spec.weights)
    return random_model(spec, device, seed=seed)


def random_model(
    spec: ModelSpec, device: torch.device | str = "cpu", *, seed: int = 0, config: CheckpointConfig | None = None
) -> Model:
    """A model of `spec`'s shape with seeded normal weights, made on the device: same seed and device, same bits.

    They are scaled so that activations keep their size from layer to layer and logits spread by `LOGIT_SPREAD`; types
    are `spec.dtype` and `spec.weights`. Raises InputError for a model that cannot be run and for too little memory.
    """
    place = _prepare(spec, device)
    config = config or without_checkpoint(spec)
    generator = torch.Generator(place).manual_seed(seed)
    values: dict[str, Weight] = {}
    for item in parameters(spec, config):
        slot = _Slot(item, spec, place)
        slot.tensor().normal_(item.mean, item.spread, generator=generator)
        values[item.name] = slot.value()
    return Model(spec, config, assemble(spec, config, values))


def _as_listed(spec: ModelSpec) -> bool:
    """Whether it is the catalog's model of this name, in whatever types, and not the user's own."""
    return catalog.load_model(spec.name).with_dtypes(spec.dtype, spec.kv_dtype, spec.weights) == spec


def _prepare(spec: ModelSpec, device: torch.device | str) -> torch.device:
    """The device, after everything that can be refused before memory is touched."""
    check_supported(spec)
    if spec.weights not in ("auto", spec.dtype, *QUANT_DTYPES):
        raise InputError(
            f"model {spec.name!r}: weights {spec.weights!r} cannot be run with dtype {spec.dtype}; known are auto, "
            f"{', '.join(QUANT_DTYPES)}"
        )
    place = check_device(device)
    fewer = "use another device, a smaller model or dtype" + ("" if spec.weights != "auto" else ", or fp8 weights")
    check_memory(f"model {spec.name!r} in {spec.weight_dtype}", spec.weight_bytes, place, lambda _: fewer)
    return place


class _Slot:
    """A parameter being filled: its tensor is made when first needed, and quantised once all its pieces are there."""

    def __init__(self, item: Parameter, spec: ModelSpec, device: torch.device) -> None:
        self.item = item
        self._kind = spec.weights if item.matrix and spec.weights in QUANT_DTYPES else None
        self._dtype, self._device = DTYPES[spec.dtype], device
        self._missing = len(item.pieces)
        self._value: Weight | None = None
        self._tensor: Tensor | None = None

    def tensor(self) -> Tensor:
        """The whole parameter, unquantised, uninitialised at first."""
        if self._tensor is None:
            self._tensor = torch.empty(self.item.shape, dtype=self._dtype, device=self._device)
        return self._tensor

    def put(self, piece: Piece, value: Tensor) -> None:
        whole = self.tensor() if piece.expert is None else self.tensor()[piece.expert]
        whole[piece.rows].copy_(value)
        self._missing -= 1
        if self._missing == 0:
            self.value()

    def value(self) -> Weight:
        if self._value is None:
            tensor = self.tensor()
            self._value = tensor if self._kind is None else quantised(tensor, self._kind)
            self._tensor = None
        return self._value


_Target: TypeAlias = tuple[_Slot, Piece]


def _fill(folder: Path, wanted: Mapping[str, _Target], *, tied: bool) -> None:
    """Copies every tensor of every shard to its slot; all of `wanted` must be found and nothing else be there."""
    missing = dict(wanted)
    for shard, indexed in _shards(folder):
        try:
            with safe_open(shard, framework="pt", device="cpu") as file:
                for name in _names(shard, set(file.keys()), indexed, tied):
                    if name not in missing:
                        what = "there twice" if name in wanted else "none that config.json asks for"
                        raise InputError(f"{shard}: tensor {name!r} is {what}")
                    slot, piece = missing.pop(name)
                    slot.put(piece, _checked(shard, name, file.get_tensor(name), piece))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{shard}: not a whole safetensors file: {error}") from None
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{folder}: tensor {min(missing)!r}{others} of config.json's model is in no safetensors file")


def _names(shard: Path, there: set[str], indexed: set[str], tied: bool) -> list[str]:
    """The names of a shard's tensors that matter, sorted; all that the index says must be there."""
    if indexed - there:
        raise InputError(f"{shard}: tensor {min(indexed - there)!r} is missing, and the index says that it is here")
    return sorted(name for name in there if not name.endswith(_IGNORED) and not (tied and name == "lm_head.weight"))


def _checked(shard: Path, name: str, value: Tensor, piece: Piece) -> Tensor:
    if tuple(value.shape) != piece.shape:
        there, expected = list(value.shape), list(piece.shape)
        raise InputError(f"{shard}: tensor {name!r} is {there}, and config.json makes it {expected}")
    if value.dtype not in DTYPES.values():
        kind = str(value.dtype).removeprefix("torch.")
        raise InputError(f"{shard}: tensor {name!r} is {kind}; known are float32, float16, bfloat16")
    return value


def _shards(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """(file, tensors that the index says are in it) of each safetensors file of a checkpoint, in the order of names."""
    index = folder / "model.safetensors.index.json"
    if files.is_file(index):
        named: dict[str, set[str]] = {}
        for tensor, shard in _weight_map(index).items():
            named.setdefault(shard, set()).add(tensor)
        for shard in sorted(named):
            if not files.is_file(folder / shard):
                count = len(named[shard])
                raise InputError(f"{folder / shard}: missing, and {index.name} says that it has {count} tensors")
        yield from ((folder / shard, named[shard]) for shard in sorted(named))
        return
    single = folder / "model.safetensors"
    if not files.is_file(single):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        if pickles:
            raise InputError(
                f"{folder}: only pickled weights ({pickles[0]}), which are never opened because they run code; "
                "save the model as safetensors"
            )
        raise InputError(f"{folder}: neither model.safetensors nor model.safetensors.index.json is there")
    yield single, set()


def _weight_map(index: Path) -> dict[str, str]:
    try:
        table: Any = documents.json_file(index, files.MAX_RESULT_BYTES)
        shards = table["weight_map"]
        names = {str(tensor): str(shard) for tensor, shard in shards.items()}
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{index}: not an index of safetensors files (an object with a weight_map)") from None
    for shard in names.values():
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise InputError(f"{index}: weight_map names {shard!r}, which is not a safetensors file of this folder")
    return names
