"""What a run of several pools says of each of them, for the terminal and for the page; nothing of a run without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sim.results.units import count, count_of, dollars, percent, seconds, size_of

Summary = Mapping[str, Any]


def pool_words(pool: Mapping[str, Any]) -> str:
    """`4 x h100 (TP 2, 2 replicas)`, of a pool as a summary's inputs have it."""
    gpus = pool["tp"] * pool.get("pp", 1) * pool.get("dp", 1) * pool["replicas"]
    many = f"{count(gpus)} x " if gpus > 1 else ""
    return f"{many}{pool['gpu']} ({', '.join(split_words(pool))}, {count_of(pool['replicas'], 'replica')})"


def split_words(inputs: Mapping[str, Any]) -> list[str]:
    """`TP 2`, `DP 8` and so on: how GPUs share a replica, as inputs have it."""
    return [f"{key.upper()} {inputs[key]}" for key in ("tp", "pp", "dp", "ep") if inputs.get(key)]


def pool_lines(summary: Summary) -> Iterator[tuple[str, str]]:
    """(name, a line) of each pool."""
    for name, pool in (summary.get("pools") or {}).items():
        parts = [
            pool_words(summary["inputs"]["pools"][name]),
            *([] if pool["role"] == "both" else [pool["role"]]),
            f"busy {percent(pool['busy'])}",
            f"KV peak {percent(pool['kv']['peak_used'])}",
            *([f"queue p99 {seconds(pool['queue_s']['p99'])}"] if pool["role"] != "decode" else []),
        ]
        if pool["bill"]["usd"] is not None:
            parts.append(dollars(pool["bill"]["usd"]))
        yield name, ", ".join(parts)


def transfer_line(summary: Summary) -> str:
    """How KV went between the pools; "" where none did."""
    moved = summary.get("transfers")
    if not moved or not moved["count"]:
        return ""
    return (
        f"{count_of(moved['count'], 'transfer')} of KV, {size_of(moved['bytes'])}; waited for room "
        f"p99 {seconds(moved['wait_s']['p99'])}, under way p99 {seconds(moved['sending_s']['p99'])}"
    )


def pool_panels(summary: Summary) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(title, rows) of a small table for each pool, and one for what passed between them."""
    for name, pool in (summary.get("pools") or {}).items():
        binding = pool["binding"]
        yield (
            f"Pool {name}",
            [
                ("GPUs", pool_words(summary["inputs"]["pools"][name])),
                ("Role", pool["role"]),
                ("Requests", count(pool["requests"])),
                ("Steps ran", percent(pool["busy"])),
                *_queue(pool),
                ("Capacity of a replica", f"{count(pool['kv']['capacity_tokens'])} tokens"),
                ("KV used, mean and peak", f"{percent(pool['kv']['mean_used'])}, {percent(pool['kv']['peak_used'])}"),
                ("Prefix hits, by tokens", percent(pool["kv"]["prefix_hit_rate"])),
                ("Binds", binding["by"]),
                *([("Cost", dollars(pool["bill"]["usd"]))] if pool["bill"]["usd"] is not None else []),
            ],
        )
    if moved := summary.get("transfers"):
        waited, sent = moved["wait_s"], moved["sending_s"]
        yield (
            "KV between pools",
            [
                ("Transfers", count(moved["count"])),
                ("Bytes", size_of(moved["bytes"])),
                ("Waited for room, p50 and p99", f"{seconds(waited['p50'])}, {seconds(waited['p99'])}"),
                ("Under way, p50 and p99", f"{seconds(sent['p50'])}, {seconds(sent['p99'])}"),
            ],
        )


def _queue(pool: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How long requests waited for their first step; those that are decoded had it elsewhere."""
    queue = pool["queue_s"]
    if pool["role"] == "decode":
        return []
    return [("Queue, p50 and p99", f"{seconds(queue['p50'])}, {seconds(queue['p99'])}")]


def replica_names(summary: Summary) -> list[str]:
    """What the replicas are called, in their order: by pool; empty where there are no pools."""
    pools = summary["inputs"].get("pools") or {}
    return [f"{name} {number}" for name, pool in pools.items() for number in range(pool["replicas"])]
