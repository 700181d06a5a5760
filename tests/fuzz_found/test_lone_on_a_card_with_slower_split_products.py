"""lone, found by seed 96: of products with few rows, those of a B200 that are split take longer than an H100's.

The tables say so. The law held cards to each other whose tables differ; it now takes the kernels of one for both.
"""

from __future__ import annotations

from fuzz.case import Case, Row
from fuzz.check import broken

CASE = Case(settings={"model": "tiny-llama", "lora.max_loras": 1, "workload.adapters": 1}, rows=(Row(0.0, 2, 1),))


def test_a_card_is_held_to_another_by_the_same_kernels() -> None:
    assert broken(CASE, "lone") == ""
