"""How engines count their memory, out of the `[[memory]]` sections of their files. It computes no bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sim.specs.accounting import MIB, Accounting, Amount, GraphMemory, LocalMemory


def accounting(table: Mapping[str, Any]) -> Accounting:
    """A section `[[memory]]`: what each key means is said at the field of `Accounting`, `_mib` are mebibytes.

    A number is exact; three are what is expected, the least and the most. Raises KeyError for a key that is missing.
    """
    graphs, local = table.get("graphs"), table.get("local", ())
    return Accounting(
        name=table["name"],
        logits=tuple((row["rows"], _amount(row["bytes"])) for row in table["logits"]),
        sampled_states=table["sampled_states"],
        kept_logit_bytes=table.get("kept_logit_bytes", 0.0),
        sm_logit_bytes=table.get("sm_logit_bytes", 0),
        local=tuple(LocalMemory(tuple(row["gpus"]), _amount(row["thread_bytes"]), row["sm_threads"]) for row in local),
        context=_amount(table["context_mib"], MIB),
        collectives=_amount(table["collectives_mib"], MIB),
        graphs=None if graphs is None else _graphs(graphs),
        null_blocks=table.get("null_blocks", 0),
    )


def _graphs(table: Mapping[str, Any]) -> GraphMemory:
    most = tuple(table.get("most_tokens_of", {}).items())
    return GraphMemory(table["most_tokens"], most, _amount(table["layer_mib"], MIB), _amount(table["whole_mib"], MIB))


def _amount(told: float | Sequence[float], unit: int = 1) -> Amount:
    if isinstance(told, int | float):
        return Amount.exact(told * unit)
    return Amount.of(*(each * unit for each in told))
