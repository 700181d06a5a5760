"""spans, found by seed 654: in a span that was planned while somebody ended, his adapter counted as used to its end.

Planned one by one, all steps but the first use the adapters of those who are left alone. Here two requests ran, the
second ended first, and the adapter of the first is to be found when it is asked for again.
"""

from __future__ import annotations

from fuzz.case import Case, Row, Steps
from fuzz.check import broken

LENGTHS = ((1, 1), (1, 1), (1, 22), (30, 39), (56, 12), (33, 16), (25, 29), (60, 27), (34, 26), (52, 4), (12, 19))
MORE = ((29, 27), (53, 30), (20, 16), (29, 26), (39, 37), (26, 27), (32, 10))
CASE = Case(
    settings={
        "seed": 2,
        "replicas": 2,
        "router": "adapter-affinity",
        "engine.max_model_len": 59,
        "concurrency": 2,
        "workload.skip_bad": True,
        "lora.max_loras": 2,
        "workload.adapters": 9,
    },
    rows=tuple(Row(0.0, prompt, output) for prompt, output in (*LENGTHS, *MORE)),
    cost=Steps(base_s=0.0009765625),
)


def test_an_adapter_is_used_as_long_as_its_request_runs() -> None:
    assert broken(CASE, "spans") == ""
