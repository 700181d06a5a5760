"""The settings of a fleet: what a pool is for, how KV is sent between pools, and how old what a router sees is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sim.specs.bounds import Bound
from sim.specs.settings import Where, check, setting

PREFILL, DECODE, BOTH = "prefill", "decode", "both"
ROLES = (BOTH, PREFILL, DECODE)
_POOLS_OF_ROLES = Where(
    "a pool has the role prefill", lambda scenario: any(pool.role == "prefill" for pool in scenario.pools.values())
)


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """What routers see."""

    poll_s: float = setting(
        0.0,
        "Seconds between two looks at the replicas, in which what a router sees ages.",
        Bound(0.0, 1e6, "no age"),
        where=Where("there are several replicas", lambda scenario: scenario.replicas > 1 or scenario.pools),
    )

    def __post_init__(self) -> None:
        check("routing", self)


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """How KV comes from the pools that compute prompts to those that decode."""

    gb_per_s: float = setting(
        0.0,
        "Rate of a GPU's link to other replicas, each way, in 1e9 bytes.",
        Bound(1e-6, 1e9, "not set", infinite="takes no time"),
        where=_POOLS_OF_ROLES,
    )
    latency_s: float = setting(0.0, "From the asking to the first byte.", Bound(0.0, 1e3), where=_POOLS_OF_ROLES)
    by_layer: bool = setting(
        False, "Send each layer's KV when it is computed, instead of all after the prompt.", where=_POOLS_OF_ROLES
    )
    min_prompt_tokens: int = setting(
        0, "Shorter prompts are computed where they are decoded.", Bound(0, 10**9, "none"), where=_POOLS_OF_ROLES
    )

    def __post_init__(self) -> None:
        check("transfer", self)

    @property
    def bytes_per_s(self) -> float:
        """Of a GPU's link."""
        return math.inf if math.isinf(self.gb_per_s) else self.gb_per_s * 1e9
