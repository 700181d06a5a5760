"""What 18 runs of vLLM with 8 users tell of a front end: TTFT's error by `request_s` and by tokens of a step.

Of `../shared/measured/silicon_h100_qwen3_32b_vllm`, the lowest concurrency; ten requests a user from the start.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim import api

TABLE = Path(__file__).resolve().parents[3] / "shared/measured/silicon_h100_qwen3_32b_vllm/silicon.csv"
USERS, EACH = 8, 10


def mean_ttft_s(row: Any, folder: Path, **settings: Any) -> float:
    count = USERS * EACH
    path = folder / "equal.csv"
    lengths = {"prompt_tokens": int(row.isl), "output_tokens": int(row.osl)}
    pd.DataFrame({"arrival_s": np.zeros(count), **lengths}).to_csv(path, index=False)
    scenario = {"engine.preset": "vllm-0.19", "engine.max_model_len": 8192, "front_end.name": "vllm-0.33", **settings}
    result = api.run(trace=str(path), concurrency=USERS, model="qwen3-32b", gpu="h100", tp=int(row.tp_size), **scenario)
    return float(result.requests.ttft_s.mean())


def main() -> None:
    if not TABLE.exists():
        sys.exit(f"{TABLE} is not there")
    table = pd.read_csv(TABLE)
    runs = list(table[(table.gemm_quant_mode != "fp8") & (table.batch_size == USERS)].itertuples())
    measured_s = np.array([run.silicon_ttft_ms for run in runs]) / 1e3
    with tempfile.TemporaryDirectory() as folder:
        for tokens in (2048, 8192):
            for request_s in (0.0, 0.0025, 0.005):
                settings = {"engine.max_num_batched_tokens": tokens, "front_end.request_s": request_s}
                found_s = np.array([mean_ttft_s(run, Path(folder), **settings) for run in runs])
                error = found_s / measured_s - 1
                sys.stdout.write(
                    f"{tokens} tokens a step, request_s {request_s:g}: mean error {np.abs(error).mean():.1%}, bias "
                    f"{error.mean():+.1%}, {1e3 * np.median(measured_s - found_s):+.1f} ms missing at the median\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
