"""Ours beside `transformers.generate` on this CPU: `python -m tests.benchmarks.cpu_generate`.

The same requests, all sent at once: a live run of ours, engine and packing included, and a greedy `generate`, in turns,
both on one thread, in CPU seconds of that thread, so that what a shared machine gives to others does not count. The
ratio is of tokens a second, the median of the turns' own ratios; 1.0 is as fast as transformers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
import transformers

from backend.live.live import Live
from sim import api, scenario
from traces.rows import from_frame

SMALL = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32000,
    "max_position_embeddings": 4096, "tie_word_embeddings": False, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
"""43 million parameters: what a step's products take on a CPU is some milliseconds a row."""
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Stopwatch:
    """The thread's seconds from the first step of a live run to its last, whatever lies between them."""

    def __init__(self) -> None:
        self.seconds = self.begun = 0.0
        plain = Live.execute

        def execute(live: Live, batch: Any) -> Any:
            begun = time.thread_time()
            outcome = plain(live, batch)
            self.begun = self.begun or begun
            self.seconds = time.thread_time() - self.begun
            return outcome

        Live.execute = execute  # type: ignore[method-assign]


def ours(watch: Stopwatch, folder: Path, dtype: str, sequences: int, prompt: int, output: int) -> float:
    settings: dict[str, Any] = {
        "executor": "live", "device": "cpu", "model": str(folder), "dtype": dtype, "kv.dtype": "auto",
        "kv.blocks": sequences * -(-(prompt + output + 1) // 16) + 1, "kv.block_tokens": 16,
        "engine.max_num_seqs": sequences, "engine.max_num_batched_tokens": max(sequences * prompt, 2048),
        "engine.max_model_len": prompt + output + 1,
    }  # fmt: skip
    frame = pd.DataFrame({"arrival_s": [0.0] * sequences, "prompt_tokens": prompt, "output_tokens": output})
    watch.begun = 0.0
    api.simulate(scenario.build({}, settings), trace=from_frame(frame, name="wave", synthetic=True))
    return watch.seconds


def peer(dtype: str, sequences: int, prompt: int, output: int) -> Callable[[], float]:
    config = transformers.LlamaConfig(**SMALL, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = transformers.LlamaForCausalLM(config).to(TYPES[dtype]).eval()
    prompts = torch.randint(config.vocab_size, (sequences, prompt))
    how: dict[str, Any] = {"do_sample": False, "min_new_tokens": output, "max_new_tokens": output}

    def generate() -> float:
        begun = time.thread_time()
        made = model.generate(prompts, attention_mask=torch.ones_like(prompts), **how)
        assert made.shape[1] == prompt + output
        return time.thread_time() - begun

    return generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", choices=list(TYPES), default="fp32")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    watch = Stopwatch()
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(SMALL))
        for batch in chosen.batches:
            sizes = chosen.dtype, batch, chosen.prompt_tokens, chosen.output_tokens
            generate, ratios, seconds = peer(*sizes), [], []
            generate()
            for turn in range(chosen.turns):
                # Who goes first changes with every turn.
                theirs = generate() if turn % 2 else 0.0
                mine = ours(watch, Path(folder), *sizes)
                theirs = theirs or generate()
                ratios.append(theirs / mine)
                seconds.append((mine, theirs))
            told = "; ".join(f"{mine:.2f} {theirs:.2f}" for mine, theirs in seconds)
            print(
                f"{chosen.dtype} batch {batch}, {chosen.prompt_tokens}+{chosen.output_tokens}: "
                f"{statistics.median(ratios):.2f} of transformers' tokens a second (ours, theirs in CPU s: {told})"
            )


if __name__ == "__main__":
    main()
