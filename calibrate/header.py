"""What a journal begins with: of what its lines are measurements, and all that fitting a profile to them needs.

So a journal can be fitted on a machine that has neither the device nor torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from calibrate.cases import Density, Range
from sim.specs.model import ModelSpec
from traces.schema import InputError

CPU = "cpu"
NOT_COMPARED = ("date", "memory_bytes")
"""What may differ where a journal is gone on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """`gpu` is the device's name in the catalog ("cpu" of a CPU), `device` what it calls itself; `specs` are by "model,
    KV type", `groups` numbers of GPUs whose collectives are measured. `asked` are the settings as they were given,
    `product_sha256` is of Foretoken's own sources.
    """

    gpu: str
    device: str
    memory_bytes: int
    date: str
    limits: Range
    density: Density
    specs: Mapping[str, ModelSpec]
    seed: int
    asked: Mapping[str, Any]
    software: Mapping[str, str]
    product_sha256: str
    groups: tuple[int, ...] = ()

    @property
    def synchronous(self) -> bool:
        """Whether the host itself computes."""
        return self.gpu == CPU

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def of(cls, told: Any, path: Path) -> Header:
        """The header from a journal's first line.

        Raises:
            InputError: something is missing there, or is no header.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(told, dict) or set(told) | {"groups"} != names:
            raise InputError(f"{path}: begins with no header of a calibration that this version of foretoken knows")
        try:
            parts = {
                "limits": Range(**told["limits"]),
                "density": Density(**told["density"]),
                "specs": {str(name): ModelSpec(**spec) for name, spec in told["specs"].items()},
                "groups": tuple(map(int, told.get("groups", ()))),
            }
        except (TypeError, AttributeError, ValueError):
            raise InputError(f"{path}: limits, density, specs or groups of its header are of another form") from None
        return cls(**{**told, **parts})

    def compared(self) -> Iterator[tuple[str, Any]]:
        """(key, value) of all that must be as before where a journal is gone on with."""
        told = self.plain()
        for name in NOT_COMPARED:
            del told[name]
        # In whole, a difference in one of fifty numbers of a model would be a screen of text.
        told["specs"] = sha256(json.dumps(told["specs"], sort_keys=True).encode()).hexdigest()[:16]
        yield from told.pop("asked").items()
        yield from told.pop("software").items()
        yield from told.items()
