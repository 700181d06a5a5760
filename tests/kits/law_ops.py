"""The CPU's operations with a clock of their own: they do their work, and take what a law says, on any machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from bench_kit import HOST_S, LAUNCH_S, PAIRS_PER_S, ROWS_PER_S
from torch import Tensor

from backend.live.live import Live
from backend.model.model import Model
from calibrate import harness, measure


def _linear(x: Tensor, weight: Tensor) -> float:
    return 2e-5 + len(x) * weight.shape[0] * weight.shape[1] / ROWS_PER_S


def _prefill(q: Tensor, cache: Any, tables: Tensor, q_starts: Tensor, kv_lens: Tensor, **_: Any) -> float:
    new = q_starts.diff().double()
    return 3e-5 + float((new * (kv_lens - 0.5 * new)).sum()) / PAIRS_PER_S


def _decode(q: Tensor, cache: Any, tables: Tensor, kv_lens: Tensor, **_: Any) -> float:
    return 3e-5 + int(kv_lens.sum()) / (PAIRS_PER_S / 20)


LAWS: dict[str, Callable[..., float]] = {
    "linear": _linear,
    "rms_norm": lambda x, *_: 1e-5 + x.numel() / 1e9,
    "silu_and_mul": lambda x: 1e-5 + x.numel() / 2 / 1e9,
    "rope_cache_write": lambda q, k, v, *_: 1e-5 + (q.numel() + k.numel() + v.numel()) / 1e9,
    "prefill_attention": _prefill,
    "decode_attention": _decode,
    "plan_decode": lambda *_, **how: 0.0,
    "sample": lambda logits, **_: 5e-5 + logits.numel() / 1e9,
    "copy_blocks": lambda cache, there, to: 1e-5 + len(there) / 1e6,
    "swap_out": lambda cache, host, there, to: 1e-5 + len(there) / 5e5,
    "swap_in": lambda cache, host, there, to: 1e-5 + len(there) / 5e5,
}
"""Seconds of each operation, those of `bench_kit.LawBench`, by what the operation itself is given."""


class LawOps:
    """Operations that take `now_s` further."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.now_s = inner, 0.0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._inner, name)

        def timed(*args: Any, **how: Any) -> Any:
            result = call(*args, **how)
            self.now_s += LAWS[name](*args, **how)
            return result

        return timed


@contextmanager
def told_time() -> Iterator[None]:
    """Within, the thread's clock is that of the laws; launching and the host take what `LawBench` says too."""
    made = harness.random_model
    clocks: list[LawOps] = []
    launch, plan = Live._launch, Live._plan

    def model(*args: Any, **how: Any) -> Model:
        built = made(*args, **how)
        clocks.append(LawOps(built.ops))
        built.ops = clocks[-1]
        return built

    def launched(self: Live, packed: Any, batch: Any) -> Tensor:
        decodes = [entry for entry in batch.entries if entry.tokens == 1]
        tokens = sum(entry.tokens for entry in batch.entries) - len(decodes)
        clocks[-1].now_s += LAUNCH_S + 1e-6 * len(decodes) + 1e-8 * tokens
        return launch(self, packed, batch)

    def planned(self: Live, batch: Any) -> Any:
        clocks[-1].now_s += HOST_S + 2e-6 * len(batch.entries)
        return plan(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "random_model", model)
        patch.setattr(Live, "_launch", launched)
        patch.setattr(Live, "_plan", planned)
        patch.setattr("time.thread_time", lambda: clocks[-1].now_s if clocks else 0.0)
        patch.setattr(measure, "SHORT_REPEATS", 1)
        yield
