"""What sharing saves, beside what Kwon et al. 2023 (vLLM) measured: section 6.3 and figure 15, OPT-13B, blocks of 16.

`pytest tests/allocators/test_published_sharing.py -s` shows ours beside theirs. A user gets a number of the table with

    sim trace synth requests alpaca.csv --count 150 --rate 1
        --prompt lognormal:median=11.7,sigma=1 --output lognormal:median=42.4,sigma=0.8
    sim run --trace alpaca.csv --model opt-13b --gpu a100-40 --concurrency 16 --set kv.blocks=40000
        --set workload.samples=6 --set workload.beam_search=true --json

as `kv.shared.saving_mean`, in filled slots (a few points more than in blocks where requests are short). ShareGPT's
medians are 97.8 and 245.5. Theirs were the data sets' own lengths; ours are lognormal with the means of figure 11, cut
at 1,020 tokens, since the lengths themselves were not published. Figure 15 counts "the number of blocks we saved by
sharing divided by the number of total blocks without sharing".
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

from sim import api, scenario
from sim.specs.workload import WorkloadSettings
from traces.rows import from_frame
from traces.schema import Trace

MEANS = {"Alpaca": (19.3, 58.4), "ShareGPT": (161.3, 338.1)}
PARALLEL = {("Alpaca", 2): 0.0609, ("Alpaca", 6): 0.0979, ("ShareGPT", 2): 0.162, ("ShareGPT", 6): 0.305}
BEAMS = {("Alpaca", 2): 0.3756, ("Alpaca", 6): 0.5516, ("ShareGPT", 2): 0.443, ("ShareGPT", 6): 0.663}


def like(name: str, requests: int) -> Trace:
    rng = np.random.default_rng(1)

    def lengths(mean: float, sigma: float) -> np.ndarray:
        drawn = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, requests)
        return np.clip(np.rint(drawn), 1, 1020).astype(int)

    prompt, output = MEANS[name]
    columns = {"prompt_tokens": lengths(prompt, 1.0), "output_tokens": lengths(output, 0.8)}
    return from_frame(pd.DataFrame({"arrival_s": np.zeros(requests), **columns}), name=name, synthetic=True)


@cache
def saving(name: str, samples: int, churn: float | None = None, requests: int = 0) -> float:
    """The share of blocks that sharing saves, in the mean over time; a beam search where a churn is given."""
    searches = {} if churn is None else {"workload.beam_search": True, "workload.beam_churn": churn}
    settings = {
        "model": "opt-13b",
        "gpu": "a100-40",
        "concurrency": 32,
        "kv.blocks": 40_000,
        "engine.max_num_seqs": 32 * samples,
        "workload.samples": samples,
        **searches,
    }
    count = {"Alpaca": 300, "ShareGPT": 40} if searches else {"Alpaca": 2000, "ShareGPT": 600}
    trace = like(name, requests or count[name])
    done = api.simulate(scenario.build({}, settings), trace=trace, hooks=api.Hooks(spans=False))
    steps = done.steps
    lasted_s, saved = steps["end_s"] - steps["start_s"], steps["kv_saved_tokens"]
    held = sum(steps[f"kv_{kind}_tokens"] for kind in ("used", "shared", "reserved", "internal"))
    # Whole blocks, as the paper counts; the summary's saving counts slots that hold data.
    return float((saved * lasted_s).sum() / ((held + saved) * lasted_s).sum())


@pytest.mark.parametrize(("name", "samples"), PARALLEL)
def test_parallel_sampling_saves_the_full_blocks_of_its_prompt(name: str, samples: int) -> None:
    """Nothing to tune. Over six seeds: ShareGPT 16.4 to 18.5 % and 27.4 to 30.8 %; Alpaca 7.0 to 8.0 % and 11.7 to
    13.4 %, 1 to 4 points above, since its mean prompt is little more than a block and the saving hangs on how the
    lengths scatter around that."""
    ours, theirs = saving(name, samples), PARALLEL[name, samples]
    print(f"parallel sampling {name:8} x {samples}: ours {ours:5.1%}, published {theirs:5.1%}")
    assert ours == pytest.approx(theirs, abs={"Alpaca": 0.04, "ShareGPT": 0.035}[name])


@pytest.mark.parametrize(("name", "samples"), BEAMS)
def test_beam_search_saves_most_of_what_it_would_take(name: str, samples: int) -> None:
    """How often a beam falls out is a parameter, since no logits are simulated that could say it.

    No value fits both data sets (400 and 100 requests, two seeds): 0.1 meets Alpaca (35.5 and 55.5 %) and leaves
    ShareGPT 3 and 10 points too high, 0.02 meets ShareGPT (42.7 and 66.8 %) and leaves Alpaca 14 and 18 too low. Over
    these four numbers 0.06 to 0.1 are off alike, 5.2 to 5.6 points in the root mean square; 0.05 is off by 6.1.
    """
    ours, theirs = saving(name, samples, WorkloadSettings().beam_churn), BEAMS[name, samples]
    print(f"beam search       {name:8} x {samples}: ours {ours:5.1%}, published {theirs:5.1%}")
    assert ours == pytest.approx(theirs, abs=0.12)
    assert ours > 1.5 * saving(name, samples)


def test_more_churn_shares_more() -> None:
    savings = [saving("Alpaca", 4, churn) for churn in (0.0, 0.02, 0.1, 0.5)]
    assert savings == sorted(savings)
    # Beams none of which ever falls out are parallel samples.
    assert savings[0] == pytest.approx(saving("Alpaca", 4, requests=300), rel=0.05)
