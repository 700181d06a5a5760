"""Which requests of a trace an engine can serve at all, and why it cannot serve the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sim.engine.protocol import ServingEngine
from sim.engine.request import Request
from sim.serving.assemble import Parts
from sim.serving.pool import Pool, models_asked, served_names
from sim.serving.workload import samples
from sim.specs.fleet import PREFILL
from traces.schema import InputError, Trace


def admissible_in_all(
    pools: Sequence[Pool], trace: Trace, engines: Sequence[ServingEngine], *, fails: bool = False
) -> tuple[np.ndarray, dict[int, str]]:
    """`admissible` in every pool, given an engine of each; one that computes prompts alone is asked for one token.

    Where replicas fail it may be asked for any, behind those that a client has.
    """
    if any(pool.role == PREFILL for pool in pools) and samples(trace.table, pools[0].parts.scenario.workload):
        raise InputError(
            "a request asks for several sequences (samples), and between pools of the roles prefill and decode one "
            "alone is handed over"
        )
    if fails and samples(trace.table, pools[0].parts.scenario.workload):
        raise InputError(
            "a request asks for several sequences (samples), and what becomes of them when their replica dies is not "
            "modelled"
        )
    asked = models_asked(trace.table, pools)
    rejected = {} if asked is None else _unknown_models(trace, asked, pools)
    sent_rows = np.ones(len(trace.table), bool)
    sent_rows[list(rejected)] = False
    for pool, engine in zip(pools, engines, strict=True):
        table, mine = trace.table, np.arange(len(sent_rows))
        if asked is not None:
            of_pool = np.array(asked) == pool.parts.model.name
            table, mine = table[of_pool], np.flatnonzero(of_pool)
        if not len(mine):
            continue
        if pool.role == PREFILL and not fails:
            table = table.assign(output_tokens=np.ones(len(table), np.int64))
        own = trace if table is trace.table else replace(trace, requests=table)  # type: ignore[arg-type]
        rows, refused = admissible(pool.parts, own, engine)
        sent_rows[mine] &= rows
        rejected = {**{int(mine[at]): why for at, why in refused.items()}, **rejected}
    if not sent_rows.any():
        raise InputError(f"{trace.path or trace.name}: no request can be served: {next(iter(rejected.values()))}")
    return sent_rows, rejected


def _unknown_models(trace: Trace, asked: Sequence[str], pools: Sequence[Pool]) -> dict[int, str]:
    """Why the requests are rejected whose model no pool serves; raises InputError unless such are to be left out."""
    names, known = np.asarray(trace.table["model"], object), ", ".join(served_names(pools))
    unknown = [place for place, model in enumerate(asked) if not model]
    if unknown and not pools[0].parts.scenario.workload.skip_bad:
        raise InputError(
            f"{trace.path or trace.name} line {np.asarray(trace.table['source_row'])[unknown[0]]}: its model is "
            f"{names[unknown[0]]!r}, which no pool serves; known: {known} (pools.NAME.serves); --skip-bad leaves "
            "such requests out"
        )
    return {place: f"no pool serves its model {names[place]!r}" for place in unknown}


def admissible(parts: Parts, trace: Trace, engine: ServingEngine) -> tuple[np.ndarray, dict[int, str]]:
    """Which requests can be served at all, as an engine of these parts has it, and why the others cannot.

    Raises:
        InputError: one cannot, and the scenario does not say to skip such.
    """
    table = trace.table
    prompt, output = np.asarray(table["prompt_tokens"]), np.asarray(table["output_tokens"])
    total = prompt + output
    longest = int(np.argmax(total))
    sequences = samples(table, parts.scenario.workload)
    most = max(sequences) if sequences else 1

    beams = (lambda count: [1] * count) if parts.scenario.workload.beam_search else None

    def refusal(index: int, size: int) -> str | None:
        req = Request(index, 0.0, int(prompt[index]), int(output[index]))
        return engine.refusal(req.split(size, beams) if size > 1 else req)

    # No allocator holds more than twice what a request uses, but one that reserves alike for all.
    roomy = (
        2 * most * int(total[longest]) <= parts.memory.tokens
        and parts.limits.chunked_prefill
        and not parts.traits["keeps_nothing"]
    )
    rejected: dict[int, str] = {}
    if refusal(longest, most) or not roomy:
        sizes = sequences or [1] * len(table)
        rejected = {index: reason for index, size in enumerate(sizes) if (reason := refusal(index, size))}
    if rejected and not parts.scenario.workload.skip_bad:
        index, reason = next(iter(rejected.items()))
        others = f" (and {len(rejected) - 1} more)" if len(rejected) > 1 else ""
        raise InputError(
            f"{trace.path or trace.name} line {np.asarray(table['source_row'])[index]}: the request can never be served"
            f"{others}: {reason}; --skip-bad leaves such requests out"
        )
    sent_rows = np.ones(len(table), bool)
    sent_rows[list(rejected)] = False
    if not sent_rows.any():
        raise InputError(f"{trace.path or trace.name}: no request can be served: {next(iter(rejected.values()))}")
    return sent_rows, rejected
