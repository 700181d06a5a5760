"""What `sim trace info` shows of a trace: counts, rate, spread of gaps, lengths, sessions, reusable prefixes."""

from __future__ import annotations

from typing import Any

import numpy as np

from traces.late import pd
from traces.reuse import KV_BLOCK_TOKENS, reuse
from traces.schema import Trace


def describe(trace: Trace) -> dict[str, Any]:
    """Plain numbers. Times in seconds; rate = (requests - 1) / span; `cv` is of the gaps between sorted arrivals;
    percentiles by linear interpolation; `prefix` and `sessions` are None where the trace has none; `turns` is what the
    length of a later turn is in the file, whole or new.
    """
    requests = trace.requests
    return {
        "name": trace.name,
        "kind": trace.kind,
        "synthetic": trace.synthetic,
        "requests": len(trace),
        "arrivals": _arrivals(trace) if trace.has_arrivals else None,
        "prompt_tokens": _spread(requests["prompt_tokens"]),
        "output_tokens": _spread(requests["output_tokens"]),
        "sessions": _sessions(requests) if "session" in requests else None,
        "turns": trace.turns or None,
        "prefix": _prefix(requests),
        "models": requests["model"].nunique() if "model" in requests else None,
        "adapters": requests.loc[requests["adapter"] != "", "adapter"].nunique() if "adapter" in requests else None,
        "dropped": trace.dropped,
        "dropped_reasons": dict(trace.dropped_reasons),
        "notes": list(trace.notes),
    }


def _arrivals(trace: Trace) -> dict[str, float | int | None]:
    times = trace.requests["arrival_s"].to_numpy()
    gaps = np.diff(times)
    moving = trace.span_s > 0
    return {
        "span_s": trace.span_s,
        "rate_per_s": len(gaps) / trace.span_s if moving else None,
        "cv": float(gaps.std() / gaps.mean()) if moving else None,
        "distinct_times": len(np.unique(times)),
    }


def _spread(tokens: pd.Series) -> dict[str, float]:
    p50, p90, p99 = np.percentile(tokens, [50, 90, 99])
    found = {"mean": tokens.mean(), "p50": p50, "p90": p90, "p99": p99, "max": tokens.max()}
    return {name: float(value) for name, value in found.items()}


def _sessions(requests: pd.DataFrame) -> dict[str, float | int]:
    named = requests[requests["session"] != ""]
    sizes = named.groupby("session").size().to_numpy() if len(named) else np.zeros(1, dtype=np.int64)
    later = named["after"] >= 0 if "after" in named else pd.Series(dtype=bool)
    return {
        "sessions": len(sizes) if len(named) else 0,
        "requests": len(named),
        "turns_mean": float(sizes.mean()),
        "turns_max": int(sizes.max()),
        "think_p50_s": float(named["think_s"][later].median()) if later.any() else 0.0,
    }


def _prefix(requests: pd.DataFrame) -> dict[str, float | int | None] | None:
    found = reuse(requests)
    if found is None:
        return None
    return {
        "block_tokens": found.block_tokens,
        "blocks": found.blocks,
        "reused_blocks": found.reused_blocks,
        "reused_block_share": found.reused_blocks / found.blocks if found.blocks else 0.0,
        "tokens": found.tokens,
        "reused_tokens": found.reused_tokens,
        "reused_token_share": found.reused_tokens / found.tokens,
        "covered_prompts": found.covered_prompts,
        "kv_block_tokens": KV_BLOCK_TOKENS,
        "kv_reused_tokens": found.kv_reused_tokens,
        "kv_reused_token_share": found.kv_reused_tokens / found.tokens,
    }
