"""How GPUs share one replica: each kind of parallelism with its number of GPUs. It knows no model and no link."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sim.specs.checks import check_count
from traces.schema import InputError


@dataclass(frozen=True, slots=True)
class Parallel:
    """GPUs that share each layer (`tp`), the layers (`pp`), the requests (`dp`) and the experts (`ep`)."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            check_count("parallel", field.name, value, least=1)
            if field.name != "tp" and value != 1:
                raise InputError(f"parallel.{field.name} is {value}; only parallel.tp may differ from 1")


SINGLE = Parallel()
"""One GPU."""
