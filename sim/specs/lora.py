"""The settings of low-rank adapters (LoRA), named as in vLLM. It knows no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sim.specs.bounds import Bound
from sim.specs.settings import Where, check, setting
from traces.schema import InputError

ALL = "all"
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers that an adapter may change, by their names in a checkpoint."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM 0.33 makes slots for (`config/lora.py`, `MaxLoRARanks`)."""

_ON = Where("lora.max_loras is set", lambda scenario: scenario.lora.max_loras)


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Adapters that requests may ask for, and the memory that there is for them."""

    max_loras: int = setting(
        0, "Adapters of the requests that run, at most: each has a slot on the GPU.", Bound(0, 10_000, "LoRA is off")
    )
    max_cpu_loras: int = setting(
        0,
        "Adapters in host memory, at most, those that have a slot included.",
        Bound(0, 1_000_000, "lora.max_loras"),
        where=_ON,
    )
    max_lora_rank: int = setting(16, "Rank that slots are made for.", Bound(1, RANKS[-1]), where=_ON)
    modules: str = setting(
        ALL,
        "Linear layers that slots are made for, with + between them: q_proj, k_proj, v_proj, o_proj, gate_proj, "
        "up_proj, down_proj; all is every one that the model has.",
        where=_ON,
    )
    rank: int = setting(0, "Rank of the adapters.", Bound(0, RANKS[-1], "lora.max_lora_rank"), where=_ON)
    ranks: Mapping[str, float] = setting(
        {}, "Rank of adapters that have another, by name.", Bound(1, RANKS[-1]), where=_ON
    )
    disk_gb_per_s: float = setting(
        3.0,
        "Rate at which an adapter that host memory has not is read, in 1e9 bytes.",
        Bound(1e-6, 1e9, infinite="takes no time"),
        where=_ON,
    )
    disk_latency_s: float = setting(0.0, "Seconds that reading one takes beside its bytes.", Bound(0.0, 1e3), where=_ON)

    def __post_init__(self) -> None:
        check("lora", self)
        if not self.on:
            return
        if self.max_cpu_loras and self.max_cpu_loras < self.max_loras:
            raise InputError(
                f"lora.max_cpu_loras is {self.max_cpu_loras} and lora.max_loras {self.max_loras}: host memory has "
                "every adapter that has a slot, and so at least as many"
            )
        told = {"rank": float(self.rank), **{f"ranks.{name}": rank for name, rank in self.ranks.items()}}
        for key, rank in told.items():
            if rank > self.max_lora_rank:
                raise InputError(
                    f"lora.{key} is {rank:g}, above lora.max_lora_rank, {self.max_lora_rank}, that slots are made for"
                )
        if self.max_lora_rank not in RANKS:
            known = ", ".join(map(str, RANKS))
            raise InputError(f"lora.max_lora_rank is {self.max_lora_rank}; vLLM makes slots for ranks of {known}")
        for name, rank in self.ranks.items():
            if rank != int(rank):
                raise InputError(f"lora.ranks.{name} is {rank}; a rank is a whole number")
        if self.modules != ALL:
            for name in self.named:
                if name not in MODULES:
                    raise InputError(f"lora.modules names {name!r}; known: {ALL}, or some of {', '.join(MODULES)}")

    @property
    def on(self) -> bool:
        return self.max_loras > 0

    @property
    def kept(self) -> int:
        """Adapters in host memory, at most."""
        return self.max_cpu_loras or self.max_loras

    @property
    def named(self) -> tuple[str, ...]:
        """The modules that slots are made for, in the order of `MODULES` where it is all of them."""
        return MODULES if self.modules == ALL else tuple(dict.fromkeys(self.modules.split("+")))

    def rank_of(self, adapter: str) -> int:
        """The rank of an adapter by its name."""
        return int(self.ranks.get(adapter, self.rank or self.max_lora_rank))
