"""Drawing the next token of each row in plain torch, and the counter-based generator that every path draws from.

The rule is `backend.kernels.sample`'s, whose module says it in full. It knows no requests.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from traces.schema import InputError

Words = npt.NDArray[np.uint64]

ROUNDS = 10
# Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC'11), table 2 and section 4.3: philox4x32's constants.
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
WORD = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def philox4x32(counter: tuple[Words, ...], key: tuple[Words, ...]) -> tuple[Words, ...]:
    """Philox 4x32-10: four 32-bit words per counter of four and key of two, all held in uint64 arrays."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        low, high = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (high >> HALF) ^ c1 ^ k0, high & WORD, (low >> HALF) ^ c3 ^ k1, low & WORD
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def philox_uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """`tl.rand(seed, position)` bit for bit: fp32 [S] in [0, 1), for int64 seeds (any sign) and positions >= 0."""
    seed, position = (values.cpu().numpy().astype(np.int64).view(np.uint64) for values in (seeds, positions))
    zero = np.zeros_like(seed)
    word = philox4x32((position & WORD, position >> HALF, zero, zero), (seed & WORD, seed >> HALF))[0]
    signed = word.astype(np.uint32).view(np.int32)
    folded = np.where(signed < 0, ~signed, signed)
    return torch.from_numpy(folded.astype(np.float32) * np.float32(4.6566127342e-10))


def check_rows(logits: Tensor, **parameters: Tensor) -> None:
    """Raises InputError unless logits are [S, V] with dense rows and each parameter is a dense [S]."""
    if logits.ndim != 2 or not logits.shape[1] or logits.stride(-1) != 1:
        raise InputError(f"logits have shape {tuple(logits.shape)}; wanted are dense rows [S, V]")
    for name, values in parameters.items():
        if values.shape != logits.shape[:1] or not values.is_contiguous():
            raise InputError(
                f"{name} has shape {tuple(values.shape)}; the logits call for a dense ({logits.shape[0]},)"
            )


def sample(
    logits: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor, positions: Tensor
) -> Tensor:
    """The next token of each row of logits [S, V], int64 [S]; -1 for a row with NaN or +inf, or of nothing but -inf.

    All parameters are [S]: temperature 0 takes the highest logit, the lowest index among equals; top_k 0 and top_p 1
    are off; a row that uses neither is not sorted. Rows are drawn one at a time: torch's vectorised loops treat the end
    of an array apart, so that in one call for all of them a row's last bits would depend on its neighbours.
    """
    check_rows(logits, temperature=temperature, top_k=top_k, top_p=top_p, seeds=seeds, positions=positions)
    tokens = logits.argmax(-1) if len(logits) else torch.empty(0, dtype=torch.int64)
    peaks = logits.amax(-1) if len(logits) else torch.empty(0)
    uniforms = philox_uniform(seeds, positions).tolist()
    for row in temperature.nonzero().flatten().tolist():
        if peaks[row].isfinite():
            k, p = int(top_k[row]), float(top_p[row])
            tokens[row] = _draw(logits[row].float(), float(temperature[row]), k, p, uniforms[row])
    return torch.where(peaks.isfinite(), tokens, -1)


def _draw(row: Tensor, temperature: float, top_k: int, top_p: float, uniform: float) -> int:
    masses = torch.exp((row - row.max()) / temperature).double()
    if 0 < top_k < len(row) or top_p < 1:
        order = torch.sort(row, descending=True, stable=True).indices[: top_k or len(row)]
        if top_p < 1:
            reached = masses[order].cumsum(0)
            order = order[: int((reached < top_p * reached[-1]).sum()) + 1]
        kept = torch.zeros_like(masses)
        kept[order] = masses[order]
        masses = kept
    running = masses.cumsum(0)
    crossed = int(torch.searchsorted(running, uniform * float(running[-1]), right=True))
    return min(crossed, int(masses.nonzero()[-1]))
