"""Trains the small byte-level target and draft of `backend/pair` on the standard library's sources, on one CPU core.

    python -m backend.pair.train --out DIR [--steps N]

The target learns the next byte; the draft learns the target's distribution of it (distillation), which is what makes
drafts accepted. It knows nothing of serving: it has a differentiable forward of its own, and the model's loader
reads what it wrote.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from safetensors.torch import save_file
from torch import Tensor

from backend.model.rope import RopeSpec, angles
from backend.pair.corpus import BOS, EOS, VOCAB, document, sources
from sim.cli.guard import guarded

CONTEXT_TOKENS = 2048
SHORT_TOKENS, STEP_TOKENS = 256, 2048
"""Windows are short first, because attention then costs little, and as long as the context at the end."""
LONG_FROM = 0.8
NORM_EPS = 1e-5

Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """A Llama's sizes, and how it is trained."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    steps: int
    peak_rate: float


TARGET = NetworkShape(layers=4, hidden=192, heads=6, kv_heads=2, head_dim=32, ffn=512, steps=1600, peak_rate=2.5e-3)
DRAFT = NetworkShape(layers=1, hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=352, steps=1600, peak_rate=4e-3)


def initial(shape: NetworkShape, seed: int) -> Weights:
    """Seeded weights by their checkpoint's names; what a layer adds starts small, the deeper the model the smaller."""
    generator = torch.Generator().manual_seed(seed)
    quiet = (2 * shape.layers) ** -0.5

    def matrix(rows: int, columns: int, scale: float = 1.0) -> Tensor:
        return torch.randn(rows, columns, generator=generator).mul(columns**-0.5 * scale)

    weights = {"model.embed_tokens.weight": torch.randn(VOCAB, shape.hidden, generator=generator) * 0.02}
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for at in range(shape.layers):
        own = f"model.layers.{at}"
        weights |= {
            f"{own}.input_layernorm.weight": torch.ones(shape.hidden),
            f"{own}.self_attn.q_proj.weight": matrix(queries, shape.hidden),
            f"{own}.self_attn.k_proj.weight": matrix(keys, shape.hidden),
            f"{own}.self_attn.v_proj.weight": matrix(keys, shape.hidden),
            f"{own}.self_attn.o_proj.weight": matrix(shape.hidden, queries, quiet),
            f"{own}.post_attention_layernorm.weight": torch.ones(shape.hidden),
            f"{own}.mlp.gate_proj.weight": matrix(shape.ffn, shape.hidden),
            f"{own}.mlp.up_proj.weight": matrix(shape.ffn, shape.hidden),
            f"{own}.mlp.down_proj.weight": matrix(shape.hidden, shape.ffn, quiet),
        }
    weights["model.norm.weight"] = torch.ones(shape.hidden)
    return {name: value.requires_grad_() for name, value in weights.items()}


def forward(shape: NetworkShape, weights: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits [B, T, vocab] of `tokens` [B, T], each after all before it: Llama's arithmetic, differentiable."""
    rows, length = tokens.shape
    rope = RopeSpec().frequencies(shape.head_dim, tokens.device)
    cos, sin = angles(torch.arange(length), rope, 1.0)

    def norm(value: Tensor, name: str) -> Tensor:
        return F.rms_norm(value, (shape.hidden,), weights[f"{name}.weight"], NORM_EPS)

    def heads(value: Tensor, name: str, *, turned: bool = True) -> Tensor:
        split = F.linear(value, weights[f"{name}.weight"]).view(rows, length, -1, shape.head_dim).transpose(1, 2)
        return _rotated(split, cos, sin) if turned else split

    hidden = F.embedding(tokens, weights["model.embed_tokens.weight"])
    for at in range(shape.layers):
        own, attention = f"model.layers.{at}", f"model.layers.{at}.self_attn"
        normed = norm(hidden, f"{own}.input_layernorm")
        q, k = heads(normed, f"{attention}.q_proj"), heads(normed, f"{attention}.k_proj")
        v, group = heads(normed, f"{attention}.v_proj", turned=False), shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(rows, length, -1)
        hidden = hidden + F.linear(mixed, weights[f"{attention}.o_proj.weight"])
        normed = norm(hidden, f"{own}.post_attention_layernorm")
        gate, up = (F.linear(normed, weights[f"{own}.mlp.{name}_proj.weight"]) for name in ("gate", "up"))
        hidden = hidden + F.linear(F.silu(gate) * up, weights[f"{own}.mlp.down_proj.weight"])
    return F.linear(norm(hidden, "model.norm"), weights["model.embed_tokens.weight"])


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def windows(stream: npt.NDArray[np.int64], steps: int, seed: int) -> Iterator[Tensor]:
    """[B, T + 1] random cuts of the stream for each step, `STEP_TOKENS` tokens to predict in each."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        length = SHORT_TOKENS if step < LONG_FROM * steps else CONTEXT_TOKENS
        starts = rng.integers(len(stream) - length, size=STEP_TOKENS // length)
        yield torch.from_numpy(np.stack([stream[start : start + length + 1] for start in starts]))


def train(
    shape: NetworkShape, stream: npt.NDArray[np.int64], seed: int, teacher: tuple[NetworkShape, Weights] | None
) -> Weights:
    """Weights after `shape.steps` steps of AdamW with a cosine rate, towards a `teacher`'s distribution if given."""
    weights = initial(shape, seed)
    matrices = [value for value in weights.values() if value.dim() > 1]
    vectors = [value for value in weights.values() if value.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=shape.peak_rate, betas=(0.9, 0.95), fused=True)
    started, smoothed = time.perf_counter(), 0.0
    for step, window in enumerate(windows(stream, shape.steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = shape.peak_rate * _share(step, shape.steps)
        logits = forward(shape, weights, window[:, :-1]).flatten(0, 1)
        loss = F.cross_entropy(logits, _goal(window, teacher))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([*matrices, *vectors], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        smoothed = loss.item() if step == 0 else 0.98 * smoothed + 0.02 * loss.item()
        if step % 100 == 99:
            spent = time.perf_counter() - started
            _say(
                f"step {step + 1} of {shape.steps}, {spent:.0f} s, {smoothed / math.log(2):.3f} bits (mean of the last)"
            )
    return {name: value.detach() for name, value in weights.items()}


def _share(step: int, steps: int) -> float:
    """Of the peak rate: up in the first 3 % of the steps, then down along a cosine to a twentieth."""
    rise = max(1.0, 0.03 * steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def _goal(window: Tensor, teacher: tuple[NetworkShape, Weights] | None) -> Tensor:
    """What cross entropy compares with: the next tokens, or the teacher's distribution of them."""
    if teacher is None:
        return window[:, 1:].flatten()
    with torch.no_grad():
        return forward(*teacher, window[:, :-1]).flatten(0, 1).softmax(dim=-1)


def bits_per_byte(shape: NetworkShape, weights: Weights, texts: Mapping[str, bytes], length: int) -> float:
    """Mean over all next tokens, in windows of `length` tokens that start with no past."""
    nats, count = 0.0, 0
    with torch.no_grad():
        for window in _windows_in_order(texts, length):
            logits = forward(shape, weights, window[:, :-1]).flatten(0, 1)
            nats += F.cross_entropy(logits, window[:, 1:].flatten(), reduction="sum").item()
            count += logits.shape[0]
    return nats / count / math.log(2)


def agreement(
    target: tuple[NetworkShape, Weights], draft: tuple[NetworkShape, Weights], texts: Mapping[str, bytes]
) -> float:
    """Share of positions of held-out text where both find the same token likeliest."""
    same, count = 0, 0
    with torch.no_grad():
        for window in _windows_in_order(texts, SHORT_TOKENS):
            best = [forward(*model, window[:, :-1]).argmax(dim=-1) for model in (target, draft)]
            same += int((best[0] == best[1]).sum())
            count += best[0].numel()
    return same / count


def _windows_in_order(texts: Mapping[str, bytes], length: int) -> Iterator[Tensor]:
    for text in texts.values():
        tokens = torch.from_numpy(document(text))
        for start in range(0, len(tokens) - length, length):
            yield tokens[None, start : start + length + 1]


def save(folder: Path, shape: NetworkShape, weights: Weights) -> Weights:
    """Writes model.safetensors in 16 bits and config.json; the weights as they will be read back.

    They are computed with in fp32: 16-bit floats are slow on CPUs, and these weights are small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rounded = {name: value.half().contiguous() for name, value in weights.items()}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": RopeSpec().theta,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "dtype": "float32",
        "byte_level": True,
    }
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return {name: value.float() for name, value in rounded.items()}


def main(arguments: list[str] | None = None) -> None:
    """Trains both and writes DIR/byte-target, DIR/byte-draft and DIR/training.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, help=f"of each model; {TARGET.steps} and {DRAFT.steps} unless given")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    texts, held = sources(held=False), sources(held=True)
    stream = np.concatenate([document(text) for text in texts.values()])
    report: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seed": options.seed,
        "trained_on": {"files": len(texts), "bytes": sum(map(len, texts.values()))},
        "held_out": {"files": len(held), "bytes": sum(map(len, held.values()))},
    }
    teacher: tuple[NetworkShape, Weights] | None = None
    for name, usual in (("byte-target", TARGET), ("byte-draft", DRAFT)):
        shape = replace(usual, steps=options.steps or usual.steps)
        started = time.perf_counter()
        weights = save(options.out / name, shape, train(shape, stream, options.seed, teacher))
        report[name] = {
            **asdict(shape),
            "parameters": sum(value.numel() for value in weights.values()),
            "seconds": round(time.perf_counter() - started),
            "held_out_bits_per_byte": round(bits_per_byte(shape, weights, held, SHORT_TOKENS), 3),
            "held_out_bits_per_byte_2048": round(bits_per_byte(shape, weights, held, CONTEXT_TOKENS), 3),
        }
        _say(json.dumps({name: report[name]}))
        if teacher is not None:
            report["argmax_agreement"] = round(agreement(teacher, (shape, weights), held), 3)
        teacher = shape, weights
    (options.out / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201  (a script's progress)


if __name__ == "__main__":
    guarded(main)
