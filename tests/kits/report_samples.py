"""Small made-up runs that obey the contract of the result tables, for the tests of metrics and reports.

A toy server: first come first served, whole prompts mixed with decoding, paged KV without preemption. Nothing
here is a prediction of anything.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from sim.results import metrics
from sim.results.kv import KvFacts
from sim.results.percentiles import Itl, distribution, itl_from_segments, merge_itl

CAPACITY_TOKENS, BLOCK_TOKENS, SLOTS = 40_000, 16, 48
STEP_COLUMNS = [
    "replica", "step", "repeats", "start_s", "end_s", "prefill_requests", "prefill_tokens",
    "prefill_past_tokens", "decode_requests", "decode_context_tokens", "draft_tokens", "padding_tokens",
    "device_s", "host_s", "running", "waiting", "preempted", "swapped_bytes", "copied_bytes", "kv_used_tokens",
    "kv_shared_tokens",
    "kv_reserved_tokens", "kv_internal_tokens", "kv_external_tokens", "kv_free_tokens", "kv_saved_tokens",
    "kv_used_mean_tokens", "kv_reserved_mean_tokens", "kv_internal_mean_tokens", "kv_free_mean_tokens",
]  # fmt: skip
INPUTS = {
    "trace": "toy", "trace_kind": "own", "profile": None, "model": "tiny-llama", "gpu": "toy-gpu", "seed": 0,
    "version": "0.1.0", "synthetic": True, "notes": ["Arrivals are Poisson draws, not recorded times."],
}  # fmt: skip


@dataclass
class Run:
    """What the engine hands over: the two tables, the gaps, the summary."""

    requests: pd.DataFrame
    steps: pd.DataFrame
    itl: Itl
    summary: dict[str, Any] = field(default_factory=dict)


def _step_s(tokens: int, decodes: int) -> float:
    return 0.008 + 2.5e-5 * tokens + 6e-5 * decodes


def _serve(arrival_s: np.ndarray, prompt: np.ndarray, output: np.ndarray, replica: int) -> tuple[list, list, Any]:
    """One replica: rows of steps, (scheduled, first token, finish) times per request, its ITL."""
    now, clock, spans, head = 0.0, [], [], 0
    first, last = np.full(len(prompt), -1), np.full(len(prompt), -1)
    scheduled = np.full(len(prompt), np.nan)
    running: list[tuple[int, int]] = []  # (last step, request)
    tokens_at_zero = 0  # sum over running of (KV tokens held after step k) - k
    while head < len(prompt) or running:
        if not running:
            now = max(now, arrival_s[head])
        admitted = []
        room = CAPACITY_TOKENS - sum(prompt[r] + output[r] for _, r in running)
        while head < len(prompt) and arrival_s[head] <= now and len(running) + len(admitted) < SLOTS:
            room -= prompt[head] + output[head]
            if room < 0:
                break
            admitted.append(head)
            head += 1
        step, decodes, prefill = len(clock), len(running), int(prompt[admitted].sum()) if admitted else 0
        context = tokens_at_zero + decodes * step
        for r in admitted:
            scheduled[r], first[r], last[r] = now, step, step + output[r] - 1
            heapq.heappush(running, (int(last[r]), r))
            tokens_at_zero += int(prompt[r]) - step
        repeats = 1 if admitted else running[0][0] - step + 1
        seconds = _step_s(prefill, decodes)
        if not admitted and head < len(prompt) and len(running) < SLOTS:
            repeats = min(repeats, max(1, int(np.ceil((arrival_s[head] - now) / seconds))))
        clock.extend(now + seconds * np.arange(1, repeats + 1))
        used = tokens_at_zero + len(running) * (len(clock) - 1)
        grown = len(running) * (repeats - 1) / 2
        internal = sum(-(prompt[r] + len(clock) - 1 - first[r]) % BLOCK_TOKENS for _, r in running)
        waiting = int(np.searchsorted(arrival_s, now, side="right")) - head
        spans.append(
            (
                replica,
                step,
                repeats,
                now,
                clock[-1],
                len(admitted),
                prefill,
                0,
                decodes,
                context,
                0,
                0,
                seconds * repeats * 0.9,
                seconds * repeats * 0.1,
                len(running),
                waiting,
                0,
                0,
                0,
                used,
                0,
                0,
                internal,
                0,
                CAPACITY_TOKENS - used - internal,
                0,
                used - grown,
                0,
                internal,
                CAPACITY_TOKENS - used - internal + grown,
            )
        )
        now = clock[-1]
        while running and running[0][0] == len(clock) - 1:
            _, r = heapq.heappop(running)
            tokens_at_zero -= int(prompt[r]) - int(first[r])
    ends = np.array(clock)
    times = [scheduled, ends[first], ends[last]]
    return spans, times, itl_from_segments(ends, first, last, np.empty(0))


def _longest_gaps(requests: pd.DataFrame, steps: pd.DataFrame) -> np.ndarray:
    """An upper bound of each request's longest gap is enough here: the longest step while it ran."""
    gaps = np.full(len(requests), np.nan)
    step_s = ((steps["end_s"] - steps["start_s"]) / steps["repeats"]).to_numpy()
    for i, row in enumerate(requests.itertuples()):
        if row.output_tokens > 1 and row.status == "completed":
            mine = (steps["end_s"] > row.first_token_s + 1e-9) & (steps["start_s"] < row.finish_s - 1e-9)
            gaps[i] = step_s[mine & (steps["replica"] == row.replica)].max()
    return gaps


def make_run(count: int = 300, rate: float = 4.0, replicas: int = 1, seed: int = 0, slo: str = "", **extra: Any) -> Run:
    """A run of `count` requests at `rate` per second, the last of them rejected when count > 10."""
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / rate, count)) if count else np.empty(0)
    arrival_s = arrival_s - arrival_s[:1].sum()
    prompt = np.maximum(1, rng.lognormal(5.5, 1.0, count).astype(np.int64)).clip(max=8000)
    output = np.maximum(1, rng.lognormal(4.3, 0.9, count).astype(np.int64)).clip(max=1500)
    rejected = np.arange(count) == count - 1 if count > 10 else np.zeros(count, dtype=bool)
    times, spans, parts = np.full((3, count), np.nan), [], []
    for replica in range(replicas):
        mine = np.flatnonzero((np.arange(count) % replicas == replica) & ~rejected)
        if len(mine):
            rows, found, part = _serve(arrival_s[mine], prompt[mine], output[mine], replica)
            spans += rows
            parts.append(part)
            times[:, mine] = found
    scheduled, first, finish = times
    requests = pd.DataFrame(
        {
            "request": np.arange(count),
            "arrival_s": arrival_s,
            "prompt_tokens": prompt,
            "output_tokens": output,
            "status": np.where(rejected, "rejected", "completed"),
            "reason": np.where(rejected, "needs 99,999 tokens of KV, the pool has 40,000", ""),
            "replica": np.arange(count) % replicas,
            "first_scheduled_s": scheduled,
            "first_token_s": first,
            "finish_s": finish,
            "queue_s": scheduled - arrival_s,
            "ttft_s": first - arrival_s,
            "tpot_s": np.where(output > 1, (finish - first) / np.maximum(output - 1, 1), np.nan),
            "e2e_s": finish - arrival_s,
            "max_itl_s": np.nan,
            "preemptions": 0,
            "prefix_hit_tokens": 0,
            "prefix_hit_blocks": 0,
            "prefix_blocks": 0,
            "samples": 1,
        }
    )
    steps = pd.DataFrame(sorted(spans, key=lambda row: row[3]), columns=STEP_COLUMNS)
    if count <= 1000:
        requests["max_itl_s"] = _longest_gaps(requests, steps) if count else np.empty(0)
    run = Run(requests, steps, merge_itl(parts))
    run.summary = metrics.summarise(
        requests,
        steps,
        distribution(*run.itl),
        KvFacts(CAPACITY_TOKENS, BLOCK_TOKENS, replicas),
        slo=metrics.parse_slo(slo) if slo else (),
        source_seconds={"roofline": float(steps["device_s"].sum())},
        simulator={
            "wall_s": 0.5,
            "cpu_s": 0.5,
            "steps": int(steps["repeats"].sum()),
            "events": len(steps),
            "requests_per_cpu_s": count / 0.5,
        },
        inputs={**INPUTS, **extra},
    )
    return run
