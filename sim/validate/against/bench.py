"""What `vllm bench serve` and SGLang's bench_serving share: lists of single requests in seconds, statistics in ms.

Source: vllm/benchmarks/serve.py and sglang/benchmark/serving.py, which grew out of one script. A request that failed
has an error; one that was answered with no tokens has none, and counts in the tools' own means, its first token after
the seconds that its entry says (0 where none ever came).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sim.validate.against.rows import (
    ANY_COUNT,
    SECONDS,
    Key,
    NotJson,
    Omitted,
    RandomLengths,
    ResultFile,
    Row,
    SentLoad,
    StatedValue,
    ToolRun,
    checked,
    maybe,
    seconds_list,
)
from traces.fields import BadRow, broken, real, shown

LISTS = ("input_lens", "output_lens", "ttfts", "itls")
MEASURES = {"ttft": "ttft_s", "tpot": "tpot_s", "itl": "itl_s", "e2el": "e2e_s", "e2e_latency": "e2e_s"}
STATISTIC = re.compile(rf"(mean|median|max|p\d+(?:\.\d+)?)_({'|'.join(MEASURES)})_ms")
RATES = {
    "requests_per_s": ("request_throughput", "completed"),
    "output_tokens_per_s": ("output_throughput", "total_output_tokens"),
}
"""By our name: the tools' own, and the count that it is of, over `duration`."""
NEAR = 0.01


def results(file: ResultFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, result) of each benchmark of the file; raises BadRow for a line that is none."""
    for where, record in file.records:
        if isinstance(record, NotJson):
            raise BadRow(f"{where} is not JSON ({record.reason})")
        if not isinstance(record, dict):
            raise BadRow(f"{where} is {shown(record)}; it must be an object of keys and values")
        yield where, record


def is_result(record: Mapping[str, Any]) -> bool:
    """Whether an object has what both tools write."""
    return has_lists(record) or isinstance(record.get("mean_ttft_ms"), (int, float))


def has_lists(record: Mapping[str, Any]) -> bool:
    return all(isinstance(record.get(key), list) for key in LISTS)


def stated(record: Mapping[str, Any]) -> dict[Key, StatedValue]:
    """The statistics that a result has, those in ms as seconds."""
    found: dict[Key, StatedValue] = {}
    for key in record:
        value = maybe(record, key)
        if (match := STATISTIC.fullmatch(key)) and value >= 0:
            name, measure = match.groups()
            statistic = "p50" if name == "median" else name
            found[MEASURES[measure], statistic] = StatedValue.exact(value / 1e3)
    if (duration_s := maybe(record, "duration")) > 0:
        found["duration_s", "all"] = StatedValue.exact(duration_s)
    for rate, (name, counted) in RATES.items():
        value = maybe(record, name) if record.get(name) is not None else maybe(record, counted) / duration_s
        if value > 0:
            found["throughput", rate] = StatedValue.exact(value)
    return found


def mean_tokens(record: Mapping[str, Any]) -> tuple[float, float]:
    """(prompt, output) tokens of a request that was answered; NaN where the result does not say."""
    completed = maybe(record, "completed")
    if not completed > 0:
        return math.nan, math.nan
    return maybe(record, "total_input_tokens") / completed, maybe(record, "total_output_tokens") / completed


def load(record: Mapping[str, Any], cv: float = 1.0) -> SentLoad:
    """What the tool was asked for: `request_rate` ("inf" or a number) and `max_concurrency`."""
    rate = real(record.get("request_rate"))
    told = math.inf if record.get("request_rate") in ("inf", math.inf) else float(rate or 0.0)
    users = real(record.get("max_concurrency"))
    return SentLoad(max(told, 0.0), cv, int(users) if users and users >= 1 else 0)


def run(
    where: str, record: dict[str, Any], cv: float = 1.0, lengths: RandomLengths | None = None, more: str = ""
) -> ToolRun:
    """One benchmark; `more` is the option that writes down each request. Raises BadRow as `rows` does."""
    detailed = has_lists(record)
    found = rows(record) if detailed else []
    timed = detailed and isinstance(record.get("start_times"), list)
    completed = maybe(record, "completed")
    return ToolRun(
        label=label(where, record),
        rows=found,
        load=None if timed else load(record, cv),
        stated=stated(record),
        answered=int(completed) if completed > 0 else 0,
        mean_tokens=mean_tokens(record),
        lengths=lengths,
        more="" if detailed else f"{more} writes down each request",
        notes=("The tool's own mean TTFT counts the answers of no tokens too.",) if counts_empty(record, found) else (),
    )


def label(where: str, record: Mapping[str, Any]) -> str:
    """The rate and the concurrency that were asked for, and where the result stands."""
    asked = [
        f"{name} {record[key]}"
        for key, name in (("request_rate", "rate"), ("max_concurrency", "concurrency"))
        if record.get(key) is not None
    ]
    return f"{', '.join(asked) or 'a run'} ({where})"


def rows(record: Mapping[str, Any]) -> list[Row | Omitted]:
    """The requests of a result with lists, in the order in which they were sent.

    Raises:
        BadRow: the lists are not of the same requests, or their unit is not seconds.
    """
    count = len(record["ttfts"])
    starts: list[Any] = record["start_times"] if isinstance(record.get("start_times"), list) else [None] * count
    for key in (*LISTS, "errors", "start_times"):
        values = record.get(key)
        if isinstance(values, list) and len(values) != count and (values or key in LISTS):
            raise BadRow(f"{key} has {len(values)} entries and ttfts has {count}: they are not of the same requests")
    promised = record.get("num_prompts")
    if promised is not None and promised != count:
        raise BadRow(f"num_prompts is {shown(promised)}, and it holds {count} requests")
    errors = record.get("errors") or [""] * count
    if not isinstance(errors, list):
        raise BadRow(f"errors is {shown(errors)}; it must be a list")
    found = [_row(number, record, errors[number], starts[number]) for number in range(count)]
    _check_unit(record, errors, found)
    return found


def _row(number: int, record: Mapping[str, Any], error: Any, start: Any) -> Row | Omitted:
    where = f"request {number}"
    if error:
        return Omitted(where, "failed", str(error))
    one = {key.removesuffix("s"): record[key][number] for key in LISTS}
    try:
        prompt, output = (_entry(one, key, ANY_COUNT) for key in ("input_len", "output_len"))
        ttft_s = _entry(one, "ttft", SECONDS)
        start_s = math.nan if start is None else _entry({"start_time": start}, "start_time", SECONDS)
        gaps = seconds_list(one, "itl")
        return checked(Row(where, start_s, prompt, output, ttft_s, ttft_s + sum(gaps), gaps_s=gaps))
    except BadRow as bad:
        return Omitted(where, "bad", str(bad))


def _entry(one: Mapping[str, Any], key: str, kind: Any) -> Any:
    try:
        return kind.parse(one[key])
    except BadRow as rule:
        raise broken(key, one[key], rule) from None


def _ttfts_s(record: Mapping[str, Any], kept: Sequence[bool]) -> list[float]:
    return [float(value) for value, keep in zip(record["ttfts"], kept, strict=True) if keep and real(value) is not None]


def _means_ms(record: Mapping[str, Any], errors: Sequence[Any], found: Sequence[Row | Omitted]) -> list[float]:
    """The mean of the first tokens, in ms if the list is in seconds: of answers with tokens, and of all answers."""
    groups = ([isinstance(row, Row) for row in found], [not error for error in errors])
    lists = (_ttfts_s(record, kept) for kept in groups)
    return [1e3 * float(np.mean(values)) for values in lists if values]


def _check_unit(record: Mapping[str, Any], errors: Sequence[Any], found: Sequence[Row | Omitted]) -> None:
    """The mean that the result tells in ms must be that of its single values in seconds."""
    stated_ms = maybe(record, "mean_ttft_ms")
    means_ms = _means_ms(record, errors, found)
    if math.isnan(stated_ms) or not means_ms or any(isinstance(row, Omitted) and row.why == "bad" for row in found):
        return
    if not any(_near(mean_ms, stated_ms) for mean_ms in means_ms):
        raise BadRow(f"mean_ttft_ms is {stated_ms:g}, and its ttfts make {means_ms[0]:g} ms if they are seconds")


def _near(mean_ms: float, stated_ms: float) -> bool:
    return abs(mean_ms - stated_ms) <= NEAR * max(abs(stated_ms), 1.0)


def counts_empty(record: Mapping[str, Any], found: Sequence[Row | Omitted]) -> bool:
    """Whether the tool's own mean counts answers of no tokens, which are left out here."""
    stated_ms = maybe(record, "mean_ttft_ms")
    if not any(isinstance(row, Omitted) and row.why == "empty" for row in found):
        return False
    with_tokens = _ttfts_s(record, [isinstance(row, Row) for row in found])
    return bool(with_tokens) and stated_ms >= 0 and not _near(1e3 * float(np.mean(with_tokens)), stated_ms)
