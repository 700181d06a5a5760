"""The result file of `vllm bench serve --save-result --save-detailed`: one JSON object with a list for each quantity.

Written from vLLM's source (vllm/benchmarks/serve.py: input_lens, output_lens, start_times, ttfts, itls, errors, all in
seconds), not yet tried on a file of a real run.
"""

from collections.abc import Iterator
from itertools import repeat
from typing import Any

from sim.validate.against import Row

ABOUT = "the detailed result of vllm bench serve"
LISTS = ("input_lens", "output_lens", "ttfts", "itls")


def detect(document: Any) -> bool:
    return isinstance(document, dict) and all(isinstance(document.get(key), list) for key in LISTS)


def rows(document: Any) -> Iterator[Row]:
    if not isinstance(document.get("start_times"), list):
        raise ValueError("there are no start_times, which tell when each request came; a newer vLLM writes them")
    errors = document.get("errors") or repeat("", len(document["ttfts"]))
    columns = (document[key] for key in LISTS)
    for number, (start_s, error, prompt, output, ttft_s, gaps_s) in enumerate(
        zip(document["start_times"], errors, *columns, strict=True)
    ):
        gaps = [float(gap) for gap in gaps_s]
        where, e2e_s = f"request {number}", float(ttft_s) + sum(gaps)
        yield Row(where, float(start_s), int(prompt), int(output), float(ttft_s), e2e_s, gaps_s=gaps, failed=error)
