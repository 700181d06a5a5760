"""What a run of several pools says of each of them, for the terminal and for the page; nothing of a run without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sim.results.units import count, count_of, dollars, percent, seconds, size_of
from traces.late import pd

Summary = Mapping[str, Any]


def pool_words(pool: Mapping[str, Any]) -> str:
    """`4 x h100 (TP 2, 2 replicas)`, of a pool as a summary's inputs have it; its model first, of several."""
    gpus = pool["tp"] * pool.get("pp", 1) * pool.get("dp", 1) * (1 if pool.get("scales") else pool["replicas"])
    many = f"{count(gpus)} x " if gpus > 1 else ""
    model = f"{pool['model']} on " if pool.get("model") else ""
    return f"{model}{many}{pool['gpu']} ({', '.join(split_words(pool))}, {replicas_words(pool)})"


def split_words(inputs: Mapping[str, Any]) -> list[str]:
    """`TP 2`, `DP 8` and so on: how GPUs share a replica, as inputs have it."""
    return [f"{key.upper()} {inputs[key]}" for key in ("tp", "pp", "dp", "ep") if inputs.get(key)]


def replicas_words(inputs: Mapping[str, Any]) -> str:
    """`2 replicas`, or `1 to 8 replicas by queue` where autoscaling decides."""
    if scales := inputs.get("scales"):
        least, most = scales
        return f"{count(least)} to {count_of(most, 'replica')} by {inputs['scales_by']}"
    return count_of(inputs["replicas"], "replica")


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


def model_lines(summary: Summary) -> Iterator[tuple[str, str]]:
    """(model, a line) of each, where there are several."""
    for model, own in (summary.get("models") or {}).items():
        met = f", {percent(own['goodput']['fraction'])} within the SLO" if "goodput" in own else ""
        yield (
            model,
            f"{count_of(own['requests']['total'], 'request')}, TTFT p99 {seconds(own['ttft_s']['p99'])}, "
            f"TPOT p99 {seconds(own['tpot_s']['p99'])}{met}",
        )


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
    if summary.get("models"):
        yield "By model", list(model_lines(summary))
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


MOST_ROUTED = 16
"""Replicas that the table of routing shares names."""


def routing_panels(summary: Summary, requests: pd.DataFrame) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(title, rows) of the requests that each replica answered; nothing of a lone one."""
    if (summary["inputs"].get("replicas") or 1) < 2:
        return
    answered = requests["replica"][requests["status"] == "completed"].value_counts().sort_index()
    names = replica_names(summary)
    total = int(answered.sum())
    most = answered.sort_values(ascending=False, kind="stable")[:MOST_ROUTED].sort_index()
    rows = [
        (names[replica] if names else f"Replica {replica}", f"{count(times)} ({percent(times / total)})")
        for replica, times in zip(most.index.tolist(), most.tolist(), strict=True)
    ]
    if len(answered) > MOST_ROUTED:
        rows.append(
            (
                f"{count(len(answered) - MOST_ROUTED)} others",
                f"at most {count(int(answered.sort_values().iloc[-MOST_ROUTED]))} each",
            )
        )
    yield "Requests by replica", rows


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
