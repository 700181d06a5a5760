"""A device of known laws, for tests of calibration: what `calibrate.harness.Harness` is to a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from calibrate.cases import Case
from calibrate.journal import Operation
from calibrate.measure import Reading, Sample
from sim.cost.tables import Value
from sim.specs.model import ModelSpec
from sim.specs.parallel import SINGLE

ROWS_PER_S, PAIRS_PER_S, LAUNCH_S, HOST_S, TIMING_S = 2e11, 4e9, 2e-4, 3e-4, 5e-6


@dataclass(slots=True)
class LawBench:
    """Matrices cost 20 us and their products at `ROWS_PER_S`, attention 30 us and its pairs; decode rows follow their
    mean context for 1 - `uneven` of the way to the longest. `noise` is relative, `spoil` makes single points wrong."""

    spec: ModelSpec
    noise: float = 0.0
    uneven: float = 0.0
    seed: int = 0
    spoil: Callable[[str, dict[str, Value]], float] = field(default=lambda _table, _row: 1.0)
    stop_after: int | None = None
    runs: int = 0
    troubles: tuple[str, ...] = ()

    @contextmanager
    def prepared(self, case: Case, number: int, *, timed: bool) -> Iterator[Callable[[], Sample]]:
        def run() -> Sample:
            self.runs += 1
            if self.stop_after is not None and self.runs > self.stop_after:
                raise KeyboardInterrupt
            rng = np.random.default_rng([self.seed, self.runs])
            readings = list(self._readings(case, rng)) if timed else []
            timed_s = sum(one.seconds for one in readings)
            work_s = sum(one.seconds for one in self._readings(case, rng))
            beside_s = LAUNCH_S + 1e-6 * len(case.decodes) + 1e-8 * sum(new for new, _ in case.prefills)
            timed_s += beside_s + len(readings) * TIMING_S
            host_s = HOST_S + 2e-6 * (len(case.decodes) + len(case.prefills))
            return Sample(readings, timed_s, work_s + beside_s, host_s)

        yield run

    def moves(self) -> Iterator[Reading]:
        for moved in (2**14, 2**16, 2**18):
            yield Reading(Operation("copy", (("bytes", moved),)), 1e-5 + moved / 1e10)
            for way in ("out", "in"):
                yield Reading(Operation("swap", (("direction", way), ("bytes", moved))), 1e-5 + moved / 5e9)

    def _readings(self, case: Case, rng: np.random.Generator) -> Iterator[Reading]:
        spec = self.spec
        tokens = len(case.decodes) + sum(new for new, _ in case.prefills)
        rows = len(case.decodes) + len(case.prefills)

        def reading(table: str, row: dict[str, Value], seconds: float) -> Reading:
            noisy = seconds * float(np.exp(self.noise * rng.standard_normal())) * self.spoil(table, row)
            return Reading(Operation(table, tuple(row.items())), noisy)

        def gemm(k: int, n: int, size: int) -> Reading:
            row: dict[str, Value] = {"dtype": "fp32", "weight_dtype": "fp32", "k": k, "n": n, "tokens": size}
            return reading("gemm", row, 2e-5 + size * k * n / ROWS_PER_S)

        def small(op: str, width: int, size: int, kv_dtype: str = "none") -> Reading:
            row: dict[str, Value] = {"op": op, "dtype": "fp32", "kv_dtype": kv_dtype, "width": width, "tokens": size}
            return reading("elementwise", row, 1e-5 + size * width / 1e9)

        heads: dict[str, Value] = {"dtype": "fp32", "kv_dtype": spec.kv_dtype, "heads": spec.heads}
        heads |= {"kv_heads": spec.kv_heads, "head_dim": spec.head_dim, "window": 0}
        for _ in range(spec.layers):
            yield from (gemm(one.k, one.n, tokens) for one in (*spec.attention_gemms(SINGLE), *spec.mlp_gemms(SINGLE)))
            yield from (small("norm", spec.hidden, tokens), small("norm", spec.hidden, tokens))
            yield small("rope_kv_write", (spec.heads + 2 * spec.kv_heads) * spec.head_dim, tokens, spec.kv_dtype)
            yield small("activation", spec.ffn, tokens)
            if case.prefills:
                new, past = case.prefills[0]
                point: dict[str, Value] = {"sequences": len(case.prefills), "past_tokens": past, "new_tokens": new}
                pairs = sum(new * (past + 0.5 * new) for new, past in case.prefills)
                if len(set(case.prefills)) == 1:
                    yield reading("prefill_attention", {**heads, **point}, 3e-5 + pairs / PAIRS_PER_S)
                else:
                    yield Reading(Operation("other", ()), 3e-5 + pairs / PAIRS_PER_S)
            if case.decodes:
                mean, most = sum(case.decodes) / len(case.decodes), max(case.decodes)
                seen = len(case.decodes) * (mean + self.uneven * (most - mean))
                point = {"width": 1, "sequences": len(case.decodes), "mean_context_tokens": round(mean)}
                row = {**heads, **point, "max_context_tokens": most}
                yield reading("decode_attention", row, 3e-5 + seen / (PAIRS_PER_S / 20))
        yield small("norm", spec.hidden, rows)
        yield gemm(spec.hidden, spec.vocab, rows)
        yield reading("sampling", {"vocab": spec.vocab, "rows": rows}, 5e-5 + rows * spec.vocab / 1e9)
