"""How GPUs share one replica: each kind of parallelism with its number of GPUs. It knows no model and no link."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from sim.specs.checks import check_count
from traces.schema import InputError

MAX_TP = 64
MAX_PP = 64
MAX_DP = 1024


@dataclass(frozen=True, slots=True)
class Parallel:
    """GPUs that share each layer (`tp`), the layers (`pp`), the requests (`dp`) and the experts (`ep`).

    A replica has `dp` ranks, each a scheduler with a KV cache of its own over `tp` x `pp` GPUs. Routed experts are
    shared by all `tp` x `dp` GPUs of a stage: with `ep` 1 each expert is cut over them, else each GPU holds some whole
    ones, and `ep` is their number (vLLM: `--enable-expert-parallel`). `redundant` experts are held twice.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    redundant: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            check_count("parallel", field.name, getattr(self, field.name), least=0 if field.name == "redundant" else 1)
        if self.ep not in (1, self.tp * self.dp):
            raise InputError(
                f"ep is {self.ep}; it is 1 (each expert is cut over all GPUs) or tp x dp = {self.tp * self.dp} (whole "
                "experts are placed over them)"
            )
        if self.redundant and self.ep == 1:
            raise InputError(f"redundant_experts is {self.redundant}, and with ep = 1 no expert is on one GPU alone")

    @property
    def gpus(self) -> int:
        """Of a replica."""
        return self.tp * self.pp * self.dp

    @property
    def rank_gpus(self) -> int:
        """Of one of its `dp` ranks."""
        return self.tp * self.pp

    @property
    def expert_gpus(self) -> int:
        """GPUs of a stage, over which its routed experts are cut or placed."""
        return self.tp * self.dp

    @property
    def expert_cut(self) -> int:
        """GPUs over which each routed expert is cut."""
        return self.expert_gpus if self.ep == 1 else 1

    def held(self, experts: int) -> int:
        """Of so many experts of a layer those on the GPU with the most, copies included."""
        return -(-(experts + self.redundant) // self.ep)

    def expert_rows(self, visited: int) -> int:
        """Rows of routed experts on one GPU for each token of its rank, evenly spread, where a token visits so many."""
        return self.dp * visited if self.ep == 1 else -(-visited // self.tp)

    @property
    def alone(self) -> Parallel:
        """One rank of a model without experts, which needs no other."""
        return replace(self, dp=1, ep=1, redundant=0)

    def __str__(self) -> str:
        """`tp = 8, dp = 2, ep = 16`: what differs from 1, `tp` always."""
        told = [f"{name} = {value}" for name in ("pp", "dp", "ep") if (value := getattr(self, name)) > 1]
        return ", ".join([f"tp = {self.tp}", *told])


SINGLE = Parallel()
"""One GPU."""
