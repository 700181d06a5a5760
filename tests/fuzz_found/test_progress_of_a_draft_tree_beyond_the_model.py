"""progress, found by seed 3651: a request was preempted for slots of drafts beyond the model's length, for ever.

The tree's 63 drafts were given slots although the model has 57 positions and the cache 80 tokens.
"""

from __future__ import annotations

from fuzz.case import Case, Row, Steps
from fuzz.check import broken

CASE = Case(
    settings={
        "model": "tiny-llama",
        "policy": "speculative",
        "speculation.drafter": "eagle",
        "speculation.k": 4,
        "speculation.tree": "3,2,3,2",
        "engine.max_num_batched_tokens": 5,
        "engine.max_model_len": 57,
        "kv.block_tokens": 8,
        "kv.blocks": 10,
    },
    rows=(Row(0.0, 26, 1),),
    cost=Steps(base_s=0.0009765625),
)


def test_drafts_have_no_slots_beyond_the_models_length() -> None:
    assert broken(CASE, "progress") == ""
