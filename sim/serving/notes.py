"""What a run says of its front end and of its KV accounting, in sentences: how it was done, and what it cannot show."""

from __future__ import annotations

from collections.abc import Iterator

from sim.engine.pages import mixed_layers
from sim.load import MIXED
from sim.results.units import seconds
from sim.serving.assemble import Parts
from sim.serving.memory import why_alike
from traces.table import Columns


def front_end_notes(parts: Parts) -> Iterator[str]:
    """What stands before the engine, and whose latencies are whose."""
    scenario, front_end = parts.scenario, parts.scenario.front_end
    if not front_end.on:
        if scenario.dp > 1 and parts.preset.front_end:
            yield (
                "No front end is modelled before ranks that share requests: clients see what the engines do, when they "
                "do it."
            )
        return
    processes = f"{front_end.processes:,} process{'' if front_end.processes == 1 else 'es'}"
    costs = ", ".join(
        f"{seconds(value)} {what}"
        for what, value in (
            ("a request", front_end.request_s),
            ("a prompt token", front_end.prompt_token_s),
            ("a step", front_end.step_s),
            ("an output", front_end.output_s),
            ("to send it", front_end.stream_s),
            ("on the way each way", front_end.latency_s),
        )
        if value
    )
    yield (
        f"Front end {front_end.name} before each replica: {processes}, {costs or 'which cost nothing'}. ttft_s, tpot_s,"
        " itl_s and e2e_s are what a client sees, engine_ttft_s and so on what the engine does."
    )


def kv_notes(parts: Parts, requests: Columns) -> Iterator[str]:
    """Of a run of these parts on these requests (a trace's table)."""
    if parts.allocators == MIXED:
        yield _by_kind(parts)
    elif parts.engine_class is None:
        yield from _alike(parts)
    if parts.scenario.allocator.name == "prefix" and parts.engine_class is None:
        if parts.layout.state_blocks:
            yield (
                f"No prefix can be found: layers of {parts.model.name} keep a state of all tokens so far, and of no "
                "earlier token alone."
            )
        elif not {"prefix_blocks", "token_ids"} & set(requests):
            yield (
                "No request can hit what another has cached: the trace tells no prefixes, neither as block ids nor as "
                "token ids."
            )


def _by_kind(parts: Parts) -> str:
    """The groups of a model's layers, what a slot is, and how much fits."""
    layout, pool = parts.layout, parts.pool
    kinds = [
        f"{group.blocks:,} of a window of {group.window_tokens:,} tokens"
        if group.window_tokens
        else f"{group.blocks:,} of all tokens"
        for group in layout.groups
    ]
    state = f", and {_blocks(layout.state_blocks)} for the state of a running sequence" if layout.state_blocks else ""
    longest = pool.max_request_tokens
    each = layout.most_blocks(pool.blocks_for(longest), 2 if parts.drafter is not None else 1)
    return (
        f"KV is kept by kind of layer, a block for each group of layers: {' and '.join(kinds)}{state}. A slot of the "
        f"KV figures is a token in one group; a sequence of {longest:,} tokens holds at most {_blocks(each)}, and "
        f"{pool.blocks / each:,.1f} such sequences fit at once."
    )


def _alike(parts: Parts) -> Iterator[str]:
    """Where a model's layers are not alike and its KV is counted as if they were."""
    layers, state_bytes = mixed_layers(parts.model.kv_kinds(parts.parallel))
    kept = parts.traits["keeps_nothing"]
    if not layers or kept:
        return
    why = why_alike(parts.scenario)
    if any(each.window_tokens for each in layers) and not parts.layout.recent_tokens:
        yield f"KV of every layer is counted as if it kept every token, windows or not: {why}."
    if state_bytes:
        yield f"The state of a sequence is set aside for all {parts.limits.max_num_seqs:,} seats: {why}."


def _blocks(number: int) -> str:
    return f"{number:,} block{'' if number == 1 else 's'}"
