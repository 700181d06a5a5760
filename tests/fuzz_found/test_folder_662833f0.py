"""folder, found by seed 6033.

the terminal shows a number that is none
"""

from __future__ import annotations

from fuzz.case import Case, Steps
from fuzz.check import broken

CASE = Case(
    settings={
        "model": "nemotron-3-nano-30b-a3b",
    },
    cost=Steps(base_s=0.0009765625, per_token_s=0.0, per_context_token_s=0.0, host_s=0.0),
)


def test_folder_662833f0() -> None:
    assert broken(CASE, "folder") == ""
