"""The result file of SGLang's bench_serving: a line of JSON for each run, with `--output-details` or without.

Source: sglang/benchmark/serving.py and datasets/common.py. Requests come at a Poisson rate, at once, or as a trace had
them ("trace"); no version writes down when each came. With the data set `random` the lengths are drawn evenly from
`random_range_ratio` times a length to that length.
"""

from __future__ import annotations

from typing import Any

from sim.validate.against import bench
from sim.validate.against.rows import RandomLengths, ResultFile, ToolRun, maybe
from traces.schema import MAX_TOKENS

ABOUT = "the result of SGLang's bench_serving"
MEASURED_AT = "client"


def detect(file: ResultFile) -> bool:
    return any(
        bench.is_result(record) and "dataset_name" in record and "num_prompts" not in record for record in file.sample()
    )


def runs(file: ResultFile) -> list[ToolRun]:
    return [
        bench.run(where, record, lengths=_lengths(record), more="--output-details")
        for where, record in bench.results(file)
    ]


def _lengths(record: dict[str, Any]) -> RandomLengths | None:
    if not str(record.get("dataset_name")).startswith("random"):
        return None
    prompt, output = (maybe(record, f"random_{side}_len") for side in ("input", "output"))
    ratio = maybe(record, "random_range_ratio")
    if not (1 <= prompt <= MAX_TOKENS and 1 <= output <= MAX_TOKENS and 0 <= ratio <= 1):
        return None
    least = [max(int(most * ratio), 1) for most in (prompt, output)]
    return RandomLengths((least[0], int(prompt)), (least[1], int(output)))
