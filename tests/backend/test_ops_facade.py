"""The facade: every implementation has every operation, with one signature, and all agree with float64."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from patience import PATIENCE_S
from torch import Tensor

pytest.importorskip("triton")

from ops_kit import IMPLEMENTATIONS, STORAGE, implementation, ints, moved, place, poisoned, same_bits

from backend import ops
from backend.cache.kvcache import LayerCache
from backend.kernels import _common
from backend.kernels.cache_write import stored_values
from backend.kernels.linear import linear_reference
from backend.kernels.rms_norm import head_norm_reference, rms_norm_reference
from backend.kernels.rope import rope_cache_write_reference
from backend.kernels.sample import sample_reference
from backend.kernels.silu_and_mul import silu_and_mul_reference
from backend.model.weights import QuantWeight, quantised
from backend.ops import KERNEL_FILES, TORCH_FILES, Ops
from traces.schema import InputError

ROOT = Path(__file__).resolve().parents[2]
NAMES = [name for name, value in vars(Ops).items() if inspect.isfunction(value) and not name.startswith("_")]


@pytest.mark.parametrize("package", ["kernels", "torch_ops"])
@pytest.mark.parametrize("name", NAMES)
def test_every_implementation_has_the_facades_signature(name: str, package: str) -> None:
    files = KERNEL_FILES if package == "kernels" else TORCH_FILES
    module = __import__(f"backend.{package}.{files[name]}", fromlist=[name])
    wanted = list(inspect.signature(getattr(Ops, name)).parameters.values())[1:]
    found = list(inspect.signature(getattr(module, name)).parameters.values())
    assert [(p.name, p.kind, p.default) for p in found[: len(wanted)]] == [(p.name, p.kind, p.default) for p in wanted]
    assert all(extra.default is not inspect.Parameter.empty for extra in found[len(wanted) :])


def test_the_tables_name_the_operations_of_the_facade() -> None:
    assert sorted(KERNEL_FILES) == sorted(TORCH_FILES) == sorted(NAMES)
    with pytest.raises(AttributeError, match="no operation 'fly'; known are prefill_attention"):
        ops.for_device("cpu").fly  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("device", ["tpu", "cuda0", "", "mps"])
def test_unknown_devices_are_refused_with_the_known(device: str) -> None:
    with pytest.raises(InputError, match=f"device '{device}' is unknown; known are cpu, cuda, interpret"):
        ops.for_device(device)


def test_devices_may_be_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ops.for_device(torch.device("cpu")) is ops.for_device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_common, "INTERPRETED", False)
    assert ops.for_device("cuda:1") is ops.for_device(torch.device("cuda"))


def test_a_device_that_is_not_there_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch sees no CUDA device here; known are cpu, interpret"):
        ops.for_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_common, "INTERPRETED", True)
    with pytest.raises(InputError, match="unset TRITON_INTERPRET"):
        ops.for_device("cuda")
    monkeypatch.setattr(_common, "INTERPRETED", False)
    with pytest.raises(InputError, match="set TRITON_INTERPRET=1"):
        ops.for_device("interpret")


def test_another_package_that_lacks_is_no_missing_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> None:
        raise ModuleNotFoundError("no numpy", name="numpy")

    monkeypatch.setattr("importlib.import_module", find)
    with pytest.raises(ModuleNotFoundError, match="no numpy"):
        ops._kernels("interpret")


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from backend import ops
from traces.schema import InputError
known = ops.for_device("cpu")
normed, _ = known.rms_norm(torch.ones(2, 4), torch.ones(4), 0.0)
known.decode_attention, known.sample, known.copy_blocks, known.linear
try:
    ops.for_device("interpret")
except InputError as refusal:
    print(normed.sum().item(), refusal)
"""


def test_the_cpu_needs_no_triton_and_the_others_say_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=PATIENCE_S,
    )
    assert (
        done.stdout == "8.0 device 'interpret' needs the package triton, which is not installed; cpu does without\n"
    ), done


def attended(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, sinks: int) -> tuple[Tensor, Tensor]:
    """Attention of the last rows q [Q, H, D] of a sequence of keys [K, G, D], a query at a time, float64."""
    outs, sums = [], []
    group = q.shape[1] // k.shape[1]
    for at, row in enumerate(q, start=len(k) - len(q)):
        seen = [key for key in range(at + 1) if window == 0 or key > at - window or key < sinks]
        keys, values = (x[seen].repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
        scores = (keys @ row[:, :, None])[..., 0] * scale
        outs.append((torch.softmax(scores, -1)[:, None] @ values)[:, 0])
        sums.append(torch.logsumexp(scores, -1))
    return torch.stack(outs), torch.stack(sums)


def slots_of(table: Tensor, length: int, block_tokens: int) -> list[int]:
    """Slots of the first `length` tokens of a sequence."""
    return [int(table[at // block_tokens]) * block_tokens + at % block_tokens for at in range(length)]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("storage", STORAGE)
def test_a_ragged_step_agrees_with_float64_from_rope_to_attention(name: str, storage: torch.dtype) -> None:
    """Three sequences, their blocks scattered, all else poison: written, then read as a chunk and as decoding."""
    known, device = implementation(name), place(name)
    heads, kv_heads, dim, block_tokens = 4, 2, 16, 4
    tables = torch.tensor([[3, 7, 0], [1, 0, 0], [8, 2, 5]], dtype=torch.int32)
    lengths, fresh = (5, 1, 9), (3, 1, 2)
    before = poisoned(storage, blocks=8, block_tokens=block_tokens, heads=kv_heads, dim=dim)
    slots = ints(*(slot for table, length in zip(tables, lengths, strict=True) for slot in slots_of(table, length, 4)))
    generator = torch.Generator().manual_seed(storage.itemsize)
    q, k, v = (torch.randn(15, count, dim, generator=generator) for count in (heads, kv_heads, kv_heads))
    turns = torch.rand(15, dim // 2, generator=generator) * 6
    cache = moved(before, device)
    given = [x.to(device) for x in (q, k, v, turns.cos(), turns.sin())]
    rotated = known.rope_cache_write(*given, cache, slots.to(device))
    wanted, _ = rope_cache_write_reference(q, k, v, turns.cos(), turns.sin(), before, slots)
    torch.testing.assert_close(rotated.cpu().double(), wanted, rtol=1e-5, atol=1e-5)
    stored = [values.flatten(0, 1) for values in stored_values(moved(cache, torch.device("cpu")))]
    ends = [sum(lengths[: at + 1]) for at in range(3)]
    for window, sinks in ((0, 0), (3, 1)):
        chunks = torch.cat([rotated[end - new : end] for end, new in zip(ends, fresh, strict=True)])
        parts = []
        for row, (length, end, new) in enumerate(zip(lengths, ends, fresh, strict=True)):
            keys, values = (x[slots_of(tables[row], length, block_tokens)] for x in stored)
            queries = rotated[end - new : end].cpu().double()
            parts.append(attended(queries, keys, values, 0.3, window, sinks))
        out, lse = known.prefill_attention(
            chunks, cache, tables.to(device), ints(0, 3, 4, 6, device=device), ints(*lengths, device=device),
            max_q=3, scale=0.3, window=window, sinks=sinks,
        )  # fmt: skip
        for got, expected in zip((out, lse), (torch.cat(some) for some in zip(*parts, strict=True)), strict=True):
            torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-4, atol=1e-4)
        last = rotated[[end - 1 for end in ends] + [0]][:, None].contiguous()
        padded = torch.cat((tables, torch.zeros(1, 3, dtype=torch.int32))).to(device)
        out, lse = known.decode_attention(
            last, cache, padded, ints(*lengths, 0, device=device), scale=0.3, window=window, sinks=sinks
        )
        for row, (expected_out, expected_lse) in enumerate(parts):
            torch.testing.assert_close(out[row, 0].cpu().double(), expected_out[-1], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(lse[row, 0].cpu().double(), expected_lse[-1], rtol=1e-4, atol=1e-4)
        assert not out[3].any()
        assert (lse[3] == -torch.inf).all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_row_operation_agrees_with_float64(name: str, seed: int) -> None:
    known, device = implementation(name), place(name)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    rows, width = [(5, 48), (1, 33)][seed]
    x, residual, weight = normal(rows, width), normal(rows, width), normal(width)
    heads, gates, logits = normal(rows, 3, 10), normal(rows, 2 * width), normal(rows, 29)
    plain = normal(13, width)
    int8 = quantised(plain, "int8")
    parameters = {
        "temperature": torch.linspace(0, 1.5, rows),
        "top_k": ints(*([0, 4, 0, 6, 0][:rows])),
        "top_p": torch.tensor([1.0, 1.0, 0.8, 0.7, 1.0][:rows]),
        "seeds": torch.arange(rows) - 2,
        "positions": torch.arange(rows, dtype=torch.int32) * 1000,
    }
    there = {key: value.to(device) for key, value in parameters.items()}
    normed, total = known.rms_norm(x.to(device), weight.to(device), 1e-6, residual.to(device))
    found = {
        "normed": (normed, rms_norm_reference(x, weight, 1e-6, residual)[0]),
        "total": (total, x.double() + residual.double()),
        "heads": (
            known.head_norm(heads.to(device), weight[:10].to(device), 1e-6),
            head_norm_reference(heads, weight[:10], 1e-6),
        ),
        "gated": (known.silu_and_mul(gates.to(device)), silu_and_mul_reference(gates)),
        "product": (known.linear(x.to(device), plain.to(device)), linear_reference(x, plain)),
        "int8": (
            known.linear(x.to(device), QuantWeight(int8.data.to(device), int8.scale.to(device))),
            linear_reference(x, int8),
        ),
        "tokens": (known.sample(logits.to(device), **there), sample_reference(logits, **parameters)),
    }
    for key, (got, expected) in found.items():
        torch.testing.assert_close(
            got.cpu().double(), expected.double(), rtol=2e-5, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_standard_attention_agrees_with_float64(name: str) -> None:
    known, device = implementation(name), place(name)
    q, k, v = (torch.randn(19, count, 16, generator=torch.Generator().manual_seed(count)) for count in (4, 2, 2))
    expected, _ = attended(q.double(), k.double(), v.double(), 0.25, 0, 0)
    out = known.standard_attention(q.to(device), k.to(device), v.to(device))
    torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("storage", STORAGE)
def test_all_implementations_store_the_same_bits(storage: torch.dtype) -> None:
    """A cache written, copied, swapped out and back in: whoever did it, the bytes are equal."""
    generator = torch.Generator().manual_seed(3)
    k, v = (torch.randn(4, 2, 8, generator=generator) * 50 for _ in range(2))
    ends: list[LayerCache] = []
    for name in ("cpu", "cuda" if torch.cuda.is_available() else "interpret"):
        known, device = implementation(name), place(name)
        cache = moved(poisoned(storage, scale=0.3), device)
        host = moved(LayerCache.allocate(3, 3, 2, 8, dtype=storage), torch.device("cpu"), pinned=name == "cuda")
        known.cache_write(k.to(device), v.to(device), cache, ints(3, 4, 11, -1, device=device))
        known.copy_blocks(cache, ints(1, device=device), ints(2, device=device))
        known.swap_out(cache, host, ints(2, 3, device=device), ints(1, 3, device=device))
        known.swap_in(cache, host, ints(4, 1, device=device), ints(1, 3, device=device))
        ends.append(cache)
    assert same_bits(*ends)
