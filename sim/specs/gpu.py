"""What a GPU is, as numbers from its data sheet. It knows no seconds, no model and no files."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sim.specs.checks import check_amount, check_count
from sim.specs.parallel import Parallel
from traces.schema import InputError

MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


_BYTES_PER_S, _FLOPS_PER_S = (1e6, 1e18), (1e6, 1e21)
PHYSICAL = {
    "memory_bytes_per_s": _BYTES_PER_S,
    "pcie_bytes_per_s": _BYTES_PER_S,
    "link_bytes_per_s": _BYTES_PER_S,
    "network_bytes_per_s": _BYTES_PER_S,
    "fp16_flops_per_s": _FLOPS_PER_S,
    "bf16_flops_per_s": _FLOPS_PER_S,
    "fp8_flops_per_s": _FLOPS_PER_S,
    "fp32_flops_per_s": _FLOPS_PER_S,
    "watts": (1e-3, 1e6),
    "usd_per_gpu_hour": (1e-6, 1e6),
}
"""What a device of any kind can have at least and at most: what is beyond is another unit, or a slip."""
MAY_BE_0 = (
    "link_bytes_per_s", "network_bytes_per_s", "bf16_flops_per_s", "fp8_flops_per_s", "watts", "usd_per_gpu_hour",
)  # fmt: skip
ASSUMED_NODE_GPUS = 8
"""GPUs of one node where a GPU's file says nothing: most servers hold so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """One GPU, from its data sheet: dense FLOP/s (no structured sparsity) with fp32 accumulation, 0 where it has none.

    Link rates are for one direction; `link_bytes_per_s` is the GPU-to-GPU fabric (NVLink, Infinity Fabric), 0 where
    GPUs talk over PCIe. `watts` is the board power, 0 where it is not known. `usd_per_gpu_hour` is the list price of a
    cloud, without discounts, that was true in `price_month` (such as 2025-06); 0 where none is known.
    `node_gpus` GPUs talk over the fabric, or over PCIe within one machine (0: not known, `ASSUMED_NODE_GPUS` are
    assumed); `link` is what the fabric is called. `generation` is that of the chip, by which a card without kernel
    tables takes another's (`sim.cost.fits`). Without `peer_access` what GPUs send each other over PCIe goes through
    host memory. Beyond a node, each has `network_bytes_per_s` of the network, one way; 0
    where none is known, and then no group of GPUs may be larger than a node. `sources` says
    for a field where its number is from, `source` for all others; `efficiency` holds (name, value, source) of the
    constants of `sim.cost.efficiency` known to differ on this GPU.
    Raises InputError, in one sentence, when a number cannot be right.
    """

    name: str
    description: str
    source: str
    memory_bytes: int
    memory_bytes_per_s: float
    fp16_flops_per_s: float
    bf16_flops_per_s: float
    fp8_flops_per_s: float
    fp32_flops_per_s: float
    sms: int
    l2_bytes: int
    pcie_bytes_per_s: float
    link_bytes_per_s: float
    watts: float
    usd_per_gpu_hour: float = 0.0
    price_month: str = ""
    node_gpus: int = 0
    link: str = ""
    generation: str = ""
    peer_access: bool = True
    network_bytes_per_s: float = 0.0
    sources: tuple[tuple[str, str], ...] = ()
    efficiency: tuple[tuple[str, float, str], ...] = ()

    def __post_init__(self) -> None:
        where = f"GPU {self.name!r}"
        check_count(where, "memory_bytes", self.memory_bytes, least=2**20, most=2**50)
        check_count(where, "sms", self.sms, least=1, most=10**6)
        check_count(where, "l2_bytes", self.l2_bytes, least=0, most=2**40)
        check_count(where, "node_gpus", self.node_gpus, least=0, most=10**5)
        for key, (least, most) in PHYSICAL.items():
            check_amount(where, key, getattr(self, key), least, most, zero=key in MAY_BE_0)
        if self.link and not self.link_bytes_per_s:
            raise InputError(
                f"{where}: link = {self.link!r} names a fabric, and link_bytes_per_s = 0 says there is none"
            )
        if bool(self.price_month) != bool(self.usd_per_gpu_hour):
            raise InputError(f"{where}: usd_per_gpu_hour and price_month belong together: a price is true for a month")
        if self.price_month and not MONTH.fullmatch(self.price_month):
            raise InputError(f"{where}: price_month = {self.price_month!r} must be a month such as 2025-06")

    def computes(self, dtype: str) -> bool:
        """Whether it has matrix units for `dtype`."""
        return bool(getattr(self, f"{dtype}_flops_per_s"))

    def flops_per_s(self, dtype: str) -> float:
        """Dense FLOP/s of matrix products in `dtype`; InputError where the GPU has no units for it."""
        rate: float = getattr(self, f"{dtype}_flops_per_s")
        if rate == 0:
            raise InputError(
                f"GPU {self.name!r} has no {dtype} matrix units; choose another type, such as --set dtype=fp16"
            )
        return rate

    @property
    def peer_bytes_per_s(self) -> float:
        """One-way rate to another GPU of the same machine: the fabric where there is one, else PCIe."""
        return self.link_bytes_per_s or self.pcie_bytes_per_s

    @property
    def peer_link(self) -> str:
        """What `peer_bytes_per_s` is the rate of."""
        return (self.link or "fabric") if self.link_bytes_per_s else "PCIe"

    def nodes(self, gpus: int) -> int:
        """The fewest nodes over which a group of so many GPUs spreads evenly."""
        fewest = -(-gpus // (self.node_gpus or ASSUMED_NODE_GPUS))
        return next(nodes for nodes in range(fewest, gpus + 1) if gpus % nodes == 0)

    def check_group(self, parallel: Parallel) -> None:
        """Raise InputError where a replica's GPUs need several nodes and no network between these is known."""
        gpus, nodes = parallel.gpus, self.nodes(parallel.gpus)
        if nodes > 1 and not self.network_bytes_per_s:
            most = self.node_gpus or ASSUMED_NODE_GPUS
            held = f"a node holds {most}" if self.node_gpus else f"a node is assumed to hold {most}"
            plain = gpus == parallel.tp
            needs, choose = ("needs", "tp up to") if plain else (f"({gpus} GPUs) needs", "a replica of at most")
            raise InputError(
                f"{parallel} {needs} {nodes} nodes, since {held}, and no network between nodes is known of GPU "
                f"{self.name!r}; choose {choose} {most}{'' if plain else ' GPUs'}, or a TOML file of the GPU that says "
                f"network_bytes_per_s{'' if self.node_gpus else ' or node_gpus'}"
            )

    def group_note(self, parallel: Parallel) -> str:
        """A sentence about a replica that needs several nodes; "" within one."""
        gpus, nodes = parallel.gpus, self.nodes(parallel.gpus)
        if nodes == 1:
            return ""
        each = gpus // nodes
        assumed = "" if self.node_gpus else f" (a node is assumed to hold {ASSUMED_NODE_GPUS} GPUs)"
        plain = gpus == parallel.tp
        whose, do = (f"TP {gpus}", "sum up") if plain else (f"A replica of {gpus} GPUs ({parallel})", "send each other")
        return (
            f"{whose} spans {nodes} nodes of {each}{assumed}: what its GPUs {do} crosses the network, at most "
            f"{self.network_bytes_per_s / 1e9:.3g} GB/s for each GPU; {self.peer_link} has "
            f"{self.peer_bytes_per_s / 1e9:.3g} GB/s."
        )

    def source_of(self, key: str) -> str:
        """Where the number `key` is from."""
        if key == "node_gpus" and not self.node_gpus:
            return f"not in the GPU's file; {ASSUMED_NODE_GPUS} are assumed"
        return dict(self.sources).get(key, self.source)
