"""What the terms of a step's price are made of: the one table of their names. It knows no seconds."""

from __future__ import annotations

from collections.abc import Mapping

PRODUCTS, ATTENTION, ELEMENTWISE, ADAPTERS, COMMUNICATION, MOVES, DRAFTING, LAUNCHING, HOST, REST = KINDS = (
    "products", "attention", "elementwise", "adapters", "communication", "memory moves", "drafting", "launching",
    "host", "rest",
)  # fmt: skip
"""`REST` is what a price that was measured or fitted as a whole tells no further."""
NAMED: Mapping[str, tuple[str, ...]] = {
    ATTENTION: ("prefill attention", "decode attention", "verify attention", "mixed attention", "attention"),
    ELEMENTWISE: (
        "embedding", "norms", "final norm", "latent norms", "query and key norms", "rope", "activation",
        "shared expert activation", "expert activation", "expert routing", "expert combine", "KV write", "sampling",
        "short convolution", "elementwise",
    ),
    ADAPTERS: ("adapter shrink", "adapter expand"),
    COMMUNICATION: ("all-reduce", "logits gather", "expert dispatch", "expert return", "stage hand-over"),
    MOVES: ("block copies", "swap", "offload wait", "adapter load"),
    DRAFTING: ("drafting", "draft heads", "draft prefill"),
    LAUNCHING: ("launches", "launch gaps"),
    HOST: ("host",),
    REST: ("rest", "device"),
}  # fmt: skip
_KIND_OF = {name: kind for kind, names in NAMED.items() for name in names}


def kind_of(term: str) -> str:
    """The kind of a term of `StepCost.explain`, one of `KINDS`.

    What no other kind names is a product with one of the model's matrices, whose names families give.
    """
    return _KIND_OF.get(term, PRODUCTS)
