"""Would the engine start with these settings? Asked before anything runs, as engines ask it themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sim.engine.batch import Limits
from sim.engine.memory import Allocator
from sim.engine.request import Request
from traces.schema import InputError


def _budget_below_seats(limits: Limits, longest: int) -> str | None:
    if limits.max_num_batched_tokens >= limits.max_num_seqs:
        return None
    return (
        f"engine.max_num_batched_tokens is {limits.max_num_batched_tokens} and engine.max_num_seqs "
        f"{limits.max_num_seqs}: a step must have a token for each sequence"
    )


def _budget_below_prompt(limits: Limits, longest: int) -> str | None:
    if limits.chunked_prefill or limits.max_num_batched_tokens >= longest:
        return None
    return (
        f"engine.chunked_prefill is off, and engine.max_num_batched_tokens {limits.max_num_batched_tokens} is below "
        f"the longest prompt, {longest:,} tokens"
    )


REFUSALS: Mapping[str, Callable[[Limits, int], str | None]] = {
    "budget below seats": _budget_below_seats,
    "budget below the longest prompt without chunks": _budget_below_prompt,
}
"""What some engines refuse at their start, by the name that their file has for it (`EnginePreset.refuses`)."""

LONGEST = "longest context beyond the KV cache"
"""The same, asked of the allocator (`check_longest`)."""


def check_refusals(who: str, refuses: tuple[str, ...], limits: Limits, longest: int) -> None:
    """Raise InputError for the first of what an engine refuses."""
    for name in refuses:
        if name != LONGEST and (why := REFUSALS[name](limits, longest)) is not None:
            raise InputError(f"{who} would not start: {why}")


def check_longest(allocator: Allocator, longest: int, who: str) -> None:
    """Raise InputError where the KV cache cannot hold a request of `longest` tokens alone; says how many it can.

    As vLLM asks it (`v1/core/kv_cache_utils.py`, `check_enough_kv_cache_memory`). Costs a few look-ups.
    """

    def refusal(tokens: int) -> str | None:
        return allocator.refusal(Request(0, 0.0, tokens, 1))

    if (why := refusal(longest)) is None:
        return
    fits, above = 0, longest
    while above - fits > 1:
        middle = (fits + above) // 2
        fits, above = (fits, middle) if refusal(middle) else (middle, above)
    way = f"set engine.max_model_len={fits} or less" if fits > 1 else "no length fits"
    raise InputError(
        f"{who} would not start: a request of its longest context ({longest:,} tokens) does not fit the KV cache, as "
        f"{why}; {way}, give it more memory (kv.gpu_memory_utilization, tp, a larger GPU, a smaller kv.dtype), or "
        "simulate it all the same with kv.allow_short=true"
    )
