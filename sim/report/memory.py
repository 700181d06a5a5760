"""The card of `sim memory` as text. It computes nothing: `sim.cost.footprint` did."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.cost.footprint import Footprint, Placement
from sim.results.units import NONE, count, count_of, size_of


def memory_view(card: Footprint) -> RenderableType:
    """The whole card, for a console of 80 columns and more."""
    types = f"{card.weights} weights, {card.dtype} activations, {card.kv_dtype} KV"
    batch = f"{count_of(card.batch, 'sequence')} of {count(card.tokens)} tokens"
    title = Text(f"{card.model}: {types}; {batch}", style="bold", overflow="fold")
    notes = Text(_notes(card), style="dim")
    return Group(title, "", _formulas(card), "", _gpus(card), "", notes)


def _formulas(card: Footprint) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    one = f"{count(card.tokens)} tokens x {count(card.kv_bytes_per_token)} B"
    rows = [
        ("Weights", card.weight_bytes, card.weight_formula),
        ("KV a token", card.kv_bytes_per_token, f"{card.kv_formula} = {count(card.kv_bytes_per_token)} B"),
        ("KV a sequence", card.kv_bytes_per_sequence, one),
    ]
    if card.kv_attended_formula:
        rows.append(("in its windows", card.kv_attended_bytes, card.kv_attended_formula))
    if card.state_bytes_per_sequence:
        rows.append(("State a sequence", card.state_bytes_per_sequence, "whatever its length; in blocks while it runs"))
    held = f"{count_of(card.batch, 'sequence')} x {size_of(card.kv_bytes_per_sequence)}"
    rows.append(("KV of the batch", card.kv_bytes, held))
    peak = f"of a GPU, estimated: a step of {count(card.step_tokens)} tokens, or sampling {count(card.seats)}"
    rows.append(("Activations", card.activation_bytes, f"{peak} sequences"))
    for name, value, formula in rows:
        table.add_row(name, size_of(value), formula)
    return table


def _gpus(card: Footprint) -> Table:
    """A row for each GPU: what one sequence needs, and what the batch needs."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("\nGPU", overflow="fold")
    heads = ["\nmemory", "one\nTP", "\nholds"] if card.batch > 1 else ["\nmemory"]
    least = [] if card.batch > 1 else ["at\nleast"]  # beside the columns of one sequence there is no room for it
    for head in (*heads, "batch\nTP", "\nholds", "weights\na GPU", "KV room\na GPU", *least):
        table.add_column(head, justify="right", no_wrap=True)
    for fit in card.gpus:
        first = _placed(fit.least) if card.batch > 1 else []
        batch, sizes = fit.batch, [NONE, NONE, NONE]
        if batch is not None:
            sizes = [size_of(each) for each in (batch.weight_bytes, batch.kv_bytes, batch.kv_low_bytes)]
        table.add_row(fit.gpu, size_of(fit.memory_bytes), *first, *_placed(fit.batch), *sizes[: 2 + len(least)])
    return table


def _placed(placed: Placement | None) -> list[str]:
    """TP, with nodes and the GPUs of each where there are several, and how many sequences it holds."""
    if placed is None:
        return [NONE, NONE]
    gpus = placed.tp * placed.pp * placed.dp
    spread = f" ({placed.nodes}x{gpus // placed.nodes})" if placed.nodes > 1 else ""
    return [f"{placed.tp}{spread}", count(placed.sequences)]


def _accounting(card: Footprint) -> str:
    whose = f", with {card.engine}'s defaults on each GPU" if card.engine else ""
    return f"By what {card.accounting} does at its start{whose}" if card.accounting else f"Room for KV{whose}"


def _notes(card: Footprint) -> str:
    """What the table rests on, and why rows are empty."""
    which = "one sequence, or the batch" if card.batch > 1 else "the batch"
    least = "" if card.batch > 1 else "; at least: where all that is estimated is at its most"
    placed = next((each for fit in card.gpus for each in (fit.batch, fit.least) if each is not None), None)
    others = [
        f"{value} {what}"
        for value, what in ((placed.pp, "stages of layers"), (placed.dp, "ranks, whose KV is their own")) if value > 1
    ] if placed else []  # fmt: skip
    if placed and placed.ep > 1:
        others.append("whole experts placed over all GPUs")
    beside = f" Each TP with {' and '.join(others)}." if others else ""
    texts = [
        f"TP: the fewest GPUs that hold {which}; (2x8) are 2 nodes of 8. Holds: sequences of so many tokens at once. "
        f"{_accounting(card)}: {card.gpu_memory_utilization:g} of the memory, less weights, activations and what CUDA "
        f"and NCCL take, in blocks of {card.block_tokens} tokens{least}.{beside}"
    ]
    if card.kv_attended_formula:
        texts.append(
            "What no window attends is given back, in blocks of a group of layers each; a sequence counts its windows "
            f"and the {count(card.step_tokens)} tokens of a step beside them."
        )
    if card.counted:
        texts.append(f"Parameters: {card.counted}.")
    reasons: dict[str, list[str]] = {}
    for fit in card.gpus:
        if fit.why:
            reasons.setdefault(fit.why, []).append(fit.gpu)
    texts += [f"{', '.join(gpus)}: {why}." for why, gpus in reasons.items()]
    return "\n".join(texts)
