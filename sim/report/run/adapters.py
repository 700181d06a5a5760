"""What a run's terminal lines and page say of adapters (LoRA). It computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sim.results.units import count, count_of, number, seconds, size_of

Summary = Mapping[str, Any]
_SHOWN = 3
"""Adapters that the terminal names, those with most requests."""


def adapter_lines(summary: Summary) -> Iterator[tuple[str, str]]:
    """(label, a line) for the terminal; nothing of a run without adapters."""
    told = summary.get("adapters")
    if not told:
        return
    step = told["per_step"]
    slots = f"{count_of(told['max_loras'], 'slot')} ({size_of(told['slot_bytes'])} of each GPU)"
    yield (
        "Adapters",
        f"{count_of(told['requests'], 'request')} asked for {count(told['asked'])}; {number(step['mean'])} in a step, "
        f"at most {count(step['max'])}, of {slots}",
    )
    yield (
        "Loads",
        f"{count(told['loads'])} ({count(told['disk_loads'])} from disk), for which steps waited "
        f"{seconds(told['load_s'])} in all; {count_of(told['deferred_requests'], 'request')} let others pass for want "
        "of a slot",
    )
    if named := _named(told)[:_SHOWN]:
        shown = (f"{name} {seconds(each['ttft_s']['p99'])}" for name, each in (*_base(told), *named))
        yield "TTFT p99", ", ".join(shown)


def adapter_panels(summary: Summary) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(title, rows) of the small tables of adapters."""
    told = summary.get("adapters")
    if not told:
        return
    step = told["per_step"]
    yield (
        "Adapters",
        [
            ("Asked for", f"{count(told['asked'])}, by {count_of(told['requests'], 'request')}"),
            ("Slots", f"{count(told['max_loras'])} of rank {count(told['max_lora_rank'])}"),
            ("Slots, of each GPU", size_of(told["slot_bytes"])),
            ("Kept in host memory", count(told["max_cpu_loras"])),
            ("In a step, mean and most", f"{number(step['mean'])}, {count(step['max'])}"),
            ("Loads", f"{count(told['loads'])}, {count(told['disk_loads'])} of them from disk"),
            ("Evicted from a slot", count(told["evictions"])),
            ("Steps waited for loads", seconds(told["load_s"])),
            ("Requests that let others pass", count(told["deferred_requests"])),
        ],
    )
    yield "Adapters, those with most requests", [(name, _each(each)) for name, each in (*_base(told), *_named(told))]


def _base(told: Summary) -> list[tuple[str, Summary]]:
    return [("none", told["each"][""])] if "" in told["each"] else []


def _named(told: Summary) -> list[tuple[str, Summary]]:
    return [(name, each) for name, each in told["each"].items() if name]


def _each(each: Summary) -> str:
    ttft, tpot = each["ttft_s"], each["tpot_s"]
    return (
        f"{count_of(each['requests'], 'request')}, {count_of(each['loads'], 'load')}; TTFT p50 {seconds(ttft['p50'])}, "
        f"p99 {seconds(ttft['p99'])}; TPOT p50 {seconds(tpot['p50'])}, p99 {seconds(tpot['p99'])}"
    )
