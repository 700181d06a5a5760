"""The result file of `vllm bench serve --save-result --save-detailed`: one JSON object with a list for each quantity.

Written from vLLM's source (vllm/benchmarks/serve.py: input_lens, output_lens, start_times, ttfts, itls, errors, all in
seconds), not yet tried on a file of a real run. A request that failed has no output tokens, whatever its error says.
"""

from collections.abc import Iterator
from itertools import repeat
from typing import Any

from sim.validate.against import Row

ABOUT = "the detailed result of vllm bench serve"
LISTS = ("input_lens", "output_lens", "ttfts", "itls")
NEAR = 0.01


def detect(document: Any) -> bool:
    return isinstance(document, dict) and all(isinstance(document.get(key), list) for key in LISTS)


def rows(document: Any) -> Iterator[Row]:
    if not isinstance(document.get("start_times"), list):
        raise ValueError("there are no start_times, which tell when each request came; a newer vLLM writes them")
    count, promised = len(document["ttfts"]), document.get("num_prompts")
    if promised is not None and promised != count:
        raise ValueError(f"it says num_prompts {promised} and holds {count} requests: some are missing")
    _check_unit(document)
    errors = document.get("errors") or repeat("", count)
    columns = (document[key] for key in LISTS)
    for number, (start_s, error, prompt, output, ttft_s, gaps_s) in enumerate(
        zip(document["start_times"], errors, *columns, strict=True)
    ):
        gaps = [float(gap) for gap in gaps_s]
        failed = error or ("" if output else "no output tokens")
        e2e_s = float(ttft_s) + sum(gaps)
        yield Row(
            f"request {number}", float(start_s), int(prompt), int(output), float(ttft_s), e2e_s, gaps_s=gaps,
            failed=failed,
        )  # fmt: skip


def _check_unit(document: Any) -> None:
    """The mean that the file tells in ms must be that of its single values in seconds."""
    stated_ms = document.get("mean_ttft_ms")
    pairs = zip(document["ttfts"], document["output_lens"], strict=True)
    ttfts_s = [float(ttft) for ttft, output in pairs if output]
    if stated_ms is None or not ttfts_s:
        return
    mean_ms = 1e3 * sum(ttfts_s) / len(ttfts_s)
    if abs(mean_ms - stated_ms) > NEAR * max(abs(stated_ms), 1.0):
        raise ValueError(f"mean_ttft_ms is {stated_ms:g}, and its ttfts make {mean_ms:g} ms if they are seconds")
