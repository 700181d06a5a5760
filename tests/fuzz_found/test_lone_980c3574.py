"""lone, found by seed 832.

on b200 instead of a10g first_token_s is np.float64(0.00019845509273314473) and was np.float64(0.0001626658805
2659523); on b200 instead of a10g finish_s is np.float64(0.00019845509273314473) and was np.float64(0.00016266
588052659523); on h100 instead of a10g first_token_s is np.float64(0.00019891913907484266) and was np.float64(
0.00016266588052659523); on h100 instead of a10g finish_s is np.float6
"""

from __future__ import annotations

from fuzz.case import Case
from fuzz.check import broken

CASE = Case(
    settings={
        "model": "tiny-llama",
        "gpu": "a10g",
        "weights": "fp8",
        "cost.efficiency": {"host_step_s": 0.0, "launch_s": 1e-05},
        "dtype": "fp16",
    },
)


def test_lone_980c3574() -> None:
    assert broken(CASE, "lone") == ""
