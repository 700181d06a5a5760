"""What a run's terminal lines and page say of KV that came from tiers below the GPUs. It computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sim.results.units import count, count_of, percent, seconds, size_of

Tiers = Mapping[str, Mapping[str, Any]]


def tier_lines(kv: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, a line): all loads beside what they saved, and each tier; nothing of a run without tiers."""
    tiers: Tiers | None = kv.get("tiers")
    if not tiers:
        return
    every = tiers["all"]
    yield (
        "KV tiers",
        f"{count_of(every['loads'], 'load')} of {count(every['hit_tokens'])} tokens took "
        f"{seconds(every['load_s'])} in all, and computing them {seconds(every['saved_s'])}",
    )
    for name, tier in _each(tiers):
        yield (
            name.capitalize(),
            f"{count(tier['hit_tokens'])} tokens ({size_of(tier['bytes'])}) in {count_of(tier['loads'], 'load')}, p50 "
            f"{seconds(tier['load_s']['p50'])}, p99 {seconds(tier['load_s']['p99'])}; at most "
            f"{percent(tier['peak_used'])} of {count(tier['capacity_tokens'])} tokens used",
        )


def tier_panels(kv: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(title, rows) of the small table of KV tiers."""
    tiers: Tiers | None = kv.get("tiers")
    if not tiers:
        return
    every = tiers["all"]
    rows = [
        ("Loads", count(every["loads"])),
        ("Tokens loaded", count(every["hit_tokens"])),
        ("Seconds of loads, in all", seconds(every["load_s"])),
        ("Seconds that computing them would take", seconds(every["saved_s"])),
    ]
    for name, tier in _each(tiers):
        label = name.capitalize()
        rows += [
            (f"{label}: capacity", f"{count(tier['capacity_tokens'])} tokens"),
            (f"{label}: used at the peak", percent(tier["peak_used"])),
            (f"{label}: tokens loaded", f"{count(tier['hit_tokens'])} ({size_of(tier['bytes'])})"),
            (
                f"{label}: a load, p50 and p99",
                f"{seconds(tier['load_s']['p50'])}, {seconds(tier['load_s']['p99'])}",
            ),
            (f"{label}: tokens evicted", count(tier["evicted_tokens"])),
        ]
    yield "KV tiers", rows


def _each(tiers: Tiers) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((name, tier) for name, tier in tiers.items() if name != "all")
