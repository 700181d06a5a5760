"""What 86 runs of vLLM in closed loops of equal requests tell of a front end and of lockstep: the errors of mean TTFT
and TPOT, by how the server is taken to have been started. `python -m tests.front_end.silicon [USERS ...]`

Of `../shared/measured/silicon_h100_qwen3_32b_vllm`, whose file tells neither the budget of a step nor how many requests
there were. The tool that it is from (AIConfigurator 0.12.0) starts its servers with max_num_batched_tokens = isl +
users + 1500 (`generator/rule_plugin/benchmark/vllm.rule`) and sends each user 20 requests, all users at once
(`backend_templates/benchmark/bench_run.sh.j2`, after a warm-up). vLLM was 0.12, which plans a step when the last has
ended unless told otherwise (asynchronous scheduling is the default from 0.14 on). Nothing here is fitted.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim import api

TABLE = Path(__file__).resolve().parents[3] / "shared/measured/silicon_h100_qwen3_32b_vllm/silicon.csv"
EACH = 20
Settings = dict[str, Any]
SETUPS: dict[str, Callable[[Any], Settings]] = {
    "as `vllm serve` does today: 8,192 tokens a step, asynchronous": lambda row: {
        "engine.max_num_batched_tokens": 8192
    },
    "as its tool starts 0.12": lambda row: {
        "engine.max_num_batched_tokens": int(row.isl + row.batch_size) + 1500,
        "engine.async_scheduling": False,
    },
}


def means(row: Any, folder: Path, **settings: Any) -> tuple[float, float]:
    """Mean TTFT and TPOT of a run, in seconds."""
    users = int(row.batch_size)
    path = folder / "equal.csv"
    lengths = {"prompt_tokens": int(row.isl), "output_tokens": int(row.osl)}
    pd.DataFrame({"arrival_s": np.zeros(users * EACH), **lengths}).to_csv(path, index=False)
    longest = int(row.isl + row.osl) + 1500
    scenario = {"engine.preset": "vllm-0.19", "engine.max_model_len": longest, **settings}
    result = api.run(trace=str(path), concurrency=users, model="qwen3-32b", gpu="h100", tp=int(row.tp_size), **scenario)
    return float(result.requests.ttft_s.mean()), float(result.requests.tpot_s.mean())


def main(users: list[int]) -> None:
    if not TABLE.exists():
        sys.exit(f"{TABLE} is not there")
    table = pd.read_csv(TABLE)
    table = table[(table.gemm_quant_mode != "fp8") & (table.batch_size.isin(users) if users else True)]
    measured_s = table[["silicon_ttft_ms", "silicon_tpot_ms"]].to_numpy() / 1e3
    with tempfile.TemporaryDirectory() as folder:
        for name, setup in SETUPS.items():
            for front_end in ("off", "vllm-0.33"):
                found_s = [
                    means(row, Path(folder), **setup(row), **{"front_end.name": front_end})
                    for row in table.itertuples()
                ]
                error = np.array(found_s) / measured_s - 1
                told = [
                    f"{what} mean error {np.abs(own).mean():.1%}, bias {own.mean():+.1%}"
                    for what, own in zip(("TTFT", "TPOT"), error.T, strict=True)
                ]
                sys.stdout.write(f"{name}, front end {front_end}, {len(table)} runs: {'; '.join(told)}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
