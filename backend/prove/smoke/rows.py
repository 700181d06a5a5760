"""The lines of what works row by row: norms, the gated activation, products with 8-bit weights, drawing tokens."""

from __future__ import annotations

import torch

from backend.model.weights import QuantWeight, Weight, quantised
from backend.prove.smoke.case import EXACT, SmokeCase, SmokeGround, SmokeResult, differing, distance, generator
from backend.torch_ops import norms
from backend.torch_ops.sampling import sample as drawn_by_twin

FP8_ACTIVATIONS = 6e-2
"""What quantising activations to fp8 may cost beside float64 of the dequantised weight."""
DRAWN_OTHERWISE = 0.05
"""The share of rows whose draw may fall on the other side of a border of two tokens."""
VOCAB = 8192


def cases() -> list[SmokeCase]:
    return [
        SmokeCase("RMSNorm with residual", _norm),
        SmokeCase("RMSNorm of heads", _head_norm),
        SmokeCase("SiLU and multiply", _silu),
        SmokeCase("sampling, greedy", lambda ground: _sample(ground, 0.0, 0, 1.0)),
        SmokeCase("linear, fp8 weight (_scaled_mm)", lambda ground: _linear(ground, 16, "fp8")),
        SmokeCase("linear, int8 weight", lambda ground: _linear(ground, 16, "int8")),
        SmokeCase("sampling, temperature", lambda ground: _sample(ground, 0.8, 0, 1.0)),
        SmokeCase("sampling, top-k and top-p", lambda ground: _sample(ground, 0.8, 50, 0.95)),
        SmokeCase("linear, 1 row", lambda ground: _linear(ground, 1, "")),
        SmokeCase("linear, fp8 weight, 300 rows", lambda ground: _linear(ground, 300, "fp8")),
        SmokeCase("linear, int8 weight, 300 rows", lambda ground: _linear(ground, 300, "int8")),
        SmokeCase("linear, fp8 weight, 1 row", lambda ground: _linear(ground, 1, "fp8")),
        SmokeCase("linear, int8 weight, 1 row", lambda ground: _linear(ground, 1, "int8")),
    ]


def _random(ground: SmokeGround, seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed)).to(ground.kind)


def _norm(ground: SmokeGround) -> SmokeResult:
    x, residual, weight = _random(ground, 1, 65, 4096), _random(ground, 2, 65, 4096), _random(ground, 3, 4096)
    given = (x.to(ground.device), weight.to(ground.device))
    out, total = ground.ops.rms_norm(*given, 1e-5, residual.to(ground.device))
    wanted, added = norms.rms_norm(x.double(), weight.double(), 1e-5, residual.double())
    return SmokeResult(max(distance(out, wanted), distance(total, added)), ground.tolerance)


def _head_norm(ground: SmokeGround) -> SmokeResult:
    heads, _, dim = ground.heads
    x, weight = _random(ground, 4, 65, heads, dim), _random(ground, 5, dim)
    out = ground.ops.head_norm(x.to(ground.device), weight.to(ground.device), 1e-5)
    return SmokeResult(distance(out, norms.head_norm(x.double(), weight.double(), 1e-5)), ground.tolerance)


def _silu(ground: SmokeGround) -> SmokeResult:
    x = _random(ground, 6, 65, 2 * 1408)
    out = ground.ops.silu_and_mul(x.to(ground.device))
    gate, up = x.double().chunk(2, dim=-1)
    return SmokeResult(distance(out, gate * torch.sigmoid(gate) * up), ground.tolerance)


def _linear(ground: SmokeGround, rows: int, kind: str) -> SmokeResult:
    x, plain = _random(ground, 7, rows, 1024), _random(ground, 8, 768, 1024)
    weight: Weight = plain.to(ground.device)
    expected = plain
    if kind:
        packed = quantised(plain, kind)
        weight = QuantWeight(packed.data.to(ground.device), packed.scale.to(ground.device))
        expected = packed.dequantised(torch.float64)
    out = ground.ops.linear(x.to(ground.device), weight)
    tolerance = FP8_ACTIVATIONS if kind == "fp8" else ground.tolerance
    return SmokeResult(distance(out, x.double() @ expected.double().T), tolerance)


def _sample(ground: SmokeGround, temperature: float, top_k: int, top_p: float) -> SmokeResult:
    rows = 64
    logits = torch.randn((rows, VOCAB), generator=generator(11)) * 3
    logits = logits.to(ground.kind)
    how = {
        "temperature": torch.full((rows,), temperature),
        "top_k": torch.full((rows,), top_k, dtype=torch.int32),
        "top_p": torch.full((rows,), top_p),
        "seeds": torch.arange(rows, dtype=torch.int64) * 7919,
        "positions": torch.arange(rows, dtype=torch.int32) + 3,
    }
    out = ground.ops.sample(logits.to(ground.device), **{name: value.to(ground.device) for name, value in how.items()})
    # Greedy is held to its definition; the draws to the twin, by tokens.
    wanted = logits.max(-1).values if temperature == 0 else drawn_by_twin(logits, **how)
    if temperature == 0:
        return SmokeResult(differing(logits.gather(1, out.cpu()[:, None])[:, 0], wanted), EXACT, "share of rows")
    return SmokeResult(float((out.cpu() != wanted).double().mean()), DRAWN_OTHERWISE, "share of rows")
