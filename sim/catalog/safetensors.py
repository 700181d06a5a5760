"""What the weights of a checkpoint take, from the headers of its safetensors files: names, types and sizes, no weights.

Format: 8 bytes that count the header's (little endian), then JSON of each tensor's `dtype`, `shape` and `data_offsets`
(github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sim.specs.dtypes import DTYPE_BYTES
from sim.specs.model import ModelSpec
from traces import documents, files
from traces.schema import InputError

MAX_HEADER_BYTES = 100 * 2**20
"""As the format's own reader allows."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,9})\.")
_FURTHER = re.compile(r"(?:^|\.)mtp(?:\.|_)")
_VISUAL = re.compile(r"(?:^|\.)(?:vision|visual|audio)")
_FLOATS = {"F32": 4, "F64": 8, "F16": 2, "BF16": 2}


def checkpoint_bytes(folder: Path, spec: ModelSpec) -> int:
    """Bytes that the weights in a folder's safetensors files take in memory as an engine loads them; 0 without files.

    Plain weights are loaded in the model's type; what is quantised, and its scales, as it is stored. Tensors of layers
    that predict further tokens are left out, as they are elsewhere.

    Raises:
        InputError: a file that is no safetensors file, or one that is named and is not there.
    """
    paths = _files(folder)
    total = 0
    for path in paths:
        for name, kind, held in _tensors(path):
            layer = _LAYER.search(name)
            if _FURTHER.search(name) or (layer and not _VISUAL.search(name) and int(layer.group(1)) >= spec.layers):
                continue
            wide = kind in _FLOATS and not name.endswith(("_scale", "_scale_inv", "scales", "absmax"))
            total += held // _FLOATS[kind] * DTYPE_BYTES[spec.dtype] if wide else held
    return total


def has_weights(folder: Path) -> bool:
    """Whether safetensors files lie in the folder."""
    return bool(_files(folder))


def _files(folder: Path) -> list[Path]:
    """The files that the index names, all of which must be there; else those in the folder."""
    index = folder / "model.safetensors.index.json"
    if not files.is_file(index):
        single = folder / "model.safetensors"
        return [single] if files.is_file(single) else []
    table = documents.json_file(index)
    weight_map = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index}: weight_map must be an object of names of files")
    names = sorted(set(weight_map.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise InputError(f"{index}: weight_map names {outside[0][:80]!r}, which is no file of this folder")
    paths = [folder / name for name in names]
    there = [path for path in paths if files.is_file(path)]
    # A copy of the small files alone says nothing of the weights; some of them without the others is a broken one.
    if there and len(there) < len(paths):
        missing = next(path for path in paths if path not in there)
        raise InputError(f"{index}: {missing.name} is named and not there, beside {len(there)} that are")
    return there


def _tensors(path: Path) -> Iterator[tuple[str, str, int]]:
    """(name, type, bytes) of each tensor."""
    with files.opened(path) as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
            raise InputError(f"{path}: is no safetensors file (its header would have {length:,} bytes)")
        text = file.read(length)
    table = documents.json_of(text, f"{path}: header")
    if len(text) < length or not isinstance(table, dict):
        raise InputError(f"{path}: is no safetensors file (its header is cut off, or no object)")
    for name, entry in table.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        kind = entry.get("dtype") if isinstance(entry, dict) else None
        if (
            not isinstance(kind, str)
            or not isinstance(offsets, list)
            or len(offsets) != 2
            or any(isinstance(at, bool) or not isinstance(at, int) for at in offsets)
            or not 0 <= offsets[0] <= offsets[1] <= 2**50
        ):
            raise InputError(f"{path}: tensor {name[:80]!r} has no dtype and data_offsets of two rising numbers")
        yield name, kind, offsets[1] - offsets[0]
