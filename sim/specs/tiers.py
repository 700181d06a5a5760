"""The settings of KV tiers: memory below the GPUs' that keeps what a prefix cache evicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from sim.specs.bounds import Bound
from sim.specs.settings import Where, check, setting
from traces.schema import InputError

HOST, DISK, STORE = "host", "disk", "store"
TIERS = (HOST, DISK, STORE)
"""The fastest first: what one has no room for falls to the next."""

_SIZE = Bound(0.0, 1e9, "none")
_RATE = Bound(1e-6, 1e9, "not set", infinite="takes no time")
_LATENCY = Bound(0.0, 1e3)
_HOST = Where("tiers.host_gib is set", lambda scenario: scenario.tiers.host_gib)
_DISK = Where("tiers.disk_gib is set", lambda scenario: scenario.tiers.disk_gib)
_STORE = Where("tiers.store_gib is set", lambda scenario: scenario.tiers.store_gib)


class TierSize(NamedTuple):
    """One tier that is there."""

    name: str
    gib: float
    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class TierSettings:
    """Where KV that the prefix cache evicts goes, and is loaded from when it is asked for again."""

    host_gib: float = setting(0.0, "Host memory per GPU for KV that was evicted.", _SIZE)
    host_gb_per_s: float = setting(0.0, "Rate of a GPU's loads from the host, in 1e9 bytes.", _RATE, where=_HOST)
    host_latency_s: float = setting(0.0, "From the asking to the first byte.", _LATENCY, where=_HOST)
    disk_gib: float = setting(0.0, "Disk of a replica, for what its host has no room for.", _SIZE)
    disk_gb_per_s: float = setting(0.0, "Rate of a replica's loads from its disk, in 1e9 bytes.", _RATE, where=_DISK)
    disk_latency_s: float = setting(0.0, "From the asking to the first byte.", _LATENCY, where=_DISK)
    store_gib: float = setting(
        0.0, "A store of all replicas of a pool, for what the tiers above have no room for.", _SIZE
    )
    store_gb_per_s: float = setting(0.0, "Rate of all loads from the store, in 1e9 bytes.", _RATE, where=_STORE)
    store_latency_s: float = setting(0.0, "From the asking to the first byte.", _LATENCY, where=_STORE)

    def __post_init__(self) -> None:
        check("tiers", self)
        for tier in self.sizes:
            if not tier.bytes_per_s:
                raise InputError(
                    f"tiers.{tier.name}_gib is {tier.gib:g} and tiers.{tier.name}_gb_per_s is not set: its KV is "
                    "loaded over a link of so many 1e9 bytes per second (50 for PCIe Gen5, 7 for an NVMe disk, 12 for "
                    "100 Gbit/s; inf takes no time)"
                )

    @property
    def on(self) -> bool:
        return bool(self.sizes)

    @property
    def sizes(self) -> list[TierSize]:
        """The tiers that are there, the fastest first."""
        sizes = []
        for name in TIERS:
            gib, rate, latency_s = (getattr(self, f"{name}_{what}") for what in ("gib", "gb_per_s", "latency_s"))
            if gib:
                sizes.append(TierSize(name, gib, math.inf if math.isinf(rate) else rate * 1e9, latency_s))
        return sizes
