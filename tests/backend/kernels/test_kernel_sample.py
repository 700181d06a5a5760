"""Sampling: the generator's published vectors, the rule's edges, its distribution, and rows that do not see others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl
from ops_kit import IMPLEMENTATIONS, implementation, place

from backend.kernels import _common
from backend.kernels.sample import kept_masses, sample_reference
from backend.ops import Ops
from backend.torch_ops.sampling import philox4x32, philox_uniform
from traces.schema import InputError

DRAWS = 6000


@pytest.fixture(params=IMPLEMENTATIONS)
def name(request: pytest.FixtureRequest) -> str:
    implementation(request.param)
    return str(request.param)


@pytest.fixture
def ops(name: str) -> Ops:
    return implementation(name)


@pytest.fixture
def device(name: str) -> torch.device:
    return place(name)


def settings_of(
    rows: int,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    seed: int = 7,
) -> dict[str, Tensor]:
    """Parameters of `rows` rows that differ in their positions, 0 and on."""

    def column(value: float | Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(value, dtype=dtype).expand(rows).contiguous()

    return {
        "temperature": column(temperature, torch.float32),
        "top_k": column(top_k, torch.int32),
        "top_p": column(top_p, torch.float32),
        "seeds": column(seed, torch.int64),
        "positions": torch.arange(rows, dtype=torch.int32),
    }


def drawn(ops: Ops, device: torch.device, logits: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    return ops.sample(logits.to(device), **{key: value.to(device) for key, value in parameters.items()}).cpu()


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    """Known answers of Random123's kat_vectors for philox4x32 with 10 rounds."""

    def arrays(values: tuple[int, ...]) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint64]], ...]:
        return tuple(np.array([value], dtype=np.uint64) for value in values)

    assert tuple(int(word[0]) for word in philox4x32(arrays(counter), arrays(key))) == words


@triton.jit
def _uniform_kernel(seeds, positions, out, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.rand(tl.load(seeds + at), tl.load(positions + at).to(tl.int64)))


def test_both_paths_draw_the_same_uniform() -> None:
    generator = torch.Generator().manual_seed(1)
    seeds = torch.randint(-(2**63), 2**63 - 1, (4096,), generator=generator)
    positions = torch.randint(0, 2**31 - 1, (4096,), generator=generator, dtype=torch.int32)
    out = torch.empty(4096, device=_common.DEVICE)
    _uniform_kernel[(1,)](seeds.to(_common.DEVICE), positions.to(_common.DEVICE), out, BLOCK=4096)
    assert torch.equal(out.cpu(), philox_uniform(seeds, positions))
    assert len(set(out.tolist())) > 4080


def test_the_uniform_is_uniform_along_positions_and_along_seeds() -> None:
    many, one = torch.arange(20000), torch.full((20000,), 3)
    for uniform in (philox_uniform(one, many), philox_uniform(many, one)):
        assert 0 <= float(uniform.min()) < float(uniform.max()) < 1
        assert stats.kstest(uniform.numpy(), "uniform").pvalue > 0.01
        assert abs(float(np.corrcoef(uniform[1:].numpy(), uniform[:-1].numpy())[0, 1])) < 0.03


def test_greedy_takes_the_lowest_of_equals(ops: Ops, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.kernels.sample.CHUNK", 8)
    logits = torch.full((5, 21), -3.0)
    logits[0, [20, 9, 10]] = 2.0
    logits[1, 0] = logits[1, 20] = 0.5
    logits[2] = -torch.inf
    logits[2, 17] = -1e30
    logits[3, [3, 4]] = torch.tensor([0.0, -0.0])
    parameters = settings_of(5, temperature=0.0, top_k=3, top_p=0.2)
    assert drawn(ops, device, logits, parameters).tolist() == [9, 0, 17, 3, 0]


def test_rows_agree_with_float64(ops: Ops, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.kernels.sample.CHUNK", 16)
    for vocab, seed in ((37, 1), (1, 3)):
        logits = 3 * torch.randn(9, vocab, generator=torch.Generator().manual_seed(seed))
        logits[:, ::5] = logits[:, :1].clone()  # ties, on either side of every cut
        parameters = settings_of(
            9,
            temperature=[1.0, 0.0, 0.5, 2.0, 1.0, 1.3, 1e-5, 1.0, 0.7],
            top_k=[0, 0, 0, 5, 3, 0, 0, vocab, 1],
            top_p=[1.0, 1.0, 1.0, 1.0, 0.7, 0.6, 1.0, 0.9, 0.1],
            seed=seed,
        )
        assert torch.equal(drawn(ops, device, logits, parameters), sample_reference(logits, **parameters)), vocab


def test_equal_logits_are_kept_from_the_lowest_index(ops: Ops, device: torch.device, name: str) -> None:
    """Eight alike: top-k 3 keeps 0 to 2; top-p 0.5 exactly 4 (the one that reaches p is kept), 0.51 five, 0 one."""
    cases = [(3, 1.0, 3), (0, 0.5, 4), (0, 0.51, 5), (0, 0.0, 1), (4, 0.5, 2)]
    logits = torch.zeros(10, 8)
    logits[:, ::2] = -0.0
    top_k, top_p, kept = zip(*cases, *cases, strict=True)
    for seed in range(20 if device.type == "cuda" or name == "cpu" else 1):
        parameters = settings_of(10, top_k=top_k, top_p=top_p, seed=seed)
        uniform = philox_uniform(parameters["seeds"], parameters["positions"])
        expected = (uniform * torch.tensor(kept)).long()
        assert torch.equal(drawn(ops, device, logits, parameters), expected)


def test_the_logits_type_may_be_the_models(ops: Ops, device: torch.device) -> None:
    logits = torch.randn(4, 33, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    parameters = settings_of(4, temperature=[0.0, 1.0, 1.0, 0.8], top_k=[0, 0, 4, 0], top_p=[1, 1, 1, 0.8])
    assert torch.equal(drawn(ops, device, logits, parameters), sample_reference(logits, **parameters))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
def test_broken_rows_give_no_token_and_leave_the_others_alone(ops: Ops, device: torch.device) -> None:
    logits = torch.zeros(5, 6)
    logits[1, 3], logits[2], logits[3, 2] = torch.nan, -torch.inf, torch.inf
    logits[4, :5] = -torch.inf
    for temperature, top_k in ((0.0, 0), (1.0, 0), (1.0, 2)):
        parameters = settings_of(5, temperature=temperature, top_k=top_k)
        tokens = drawn(ops, device, logits, parameters)
        assert tokens[1:].tolist() == [-1, -1, -1, 5]
        assert int(tokens[0]) == int(sample_reference(logits[:1], **{k: v[:1] for k, v in parameters.items()}))


def test_a_row_does_not_see_its_neighbours(ops: Ops, device: torch.device) -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(4))
    parameters = settings_of(6, temperature=[0.0, 1.0, 1.5, 0.4, 1.0, 1.0], top_k=[0, 0, 0, 0, 8, 0])
    together = drawn(ops, device, logits, parameters)
    order = torch.tensor([3, 0, 5, 1])
    some = {key: value[order] for key, value in parameters.items()}
    assert torch.equal(drawn(ops, device, logits[order], some), together[order])
    parameters["positions"] = parameters["positions"] + 1
    assert not torch.equal(drawn(ops, device, logits, parameters), together)


@settings(max_examples=30)
@given(st.integers(2, 40), st.floats(0.1, 3.0), st.integers(0, 45), st.floats(0.01, 1.0), st.integers(0, 10**6))
def test_only_kept_tokens_are_drawn(vocab: int, temperature: float, top_k: int, top_p: float, seed: int) -> None:
    row = torch.randn(vocab, generator=torch.Generator().manual_seed(seed))
    kept = kept_masses(row, temperature, top_k, top_p)
    assert 1 <= int((kept > 0).sum()) <= (min(top_k, vocab) or vocab)
    tokens = implementation("cpu").sample(row.expand(20, -1), **settings_of(20, temperature, top_k, top_p, seed))
    # A cut within rounding of p may fall on either side of one token in fp32.
    whole = torch.softmax(row.double() / temperature, 0)
    edge = kept_masses(row, temperature, top_k, min(top_p * (1 + 1e-5), 1.0))
    assert ((kept > 0) | (edge > 0) | (whole < 1e-6))[tokens].all()


def pvalue_of(tokens: Tensor, probabilities: Tensor) -> float:
    """Of Pearson's chi-square; tokens expected fewer than 8 times are taken together."""
    expected = probabilities / probabilities.sum() * len(tokens)
    seen = torch.bincount(tokens, minlength=len(expected)).double()
    if bool((seen[expected == 0] > 0).any()):
        return 0.0
    rare = (expected < 8) & (expected > 0)
    common = expected >= 8
    pairs = [(seen[common], expected[common])]
    if float(expected[rare].sum()) >= 1:
        pairs.append((seen[rare].sum()[None], expected[rare].sum()[None]))
    observed, wanted = (torch.cat(parts).numpy() for parts in zip(*pairs, strict=True))
    return float(stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.7, 9, 1.0), (1.2, 12, 0.7)]
)
def test_tokens_are_drawn_with_their_probabilities(temperature: float, top_k: int, top_p: float) -> None:
    row = 1.5 * torch.randn(24, generator=torch.Generator().manual_seed(11))
    logits = row.expand(DRAWS, -1)
    tokens = implementation("cpu").sample(logits, **settings_of(DRAWS, temperature, top_k, top_p, seed=3))
    right = kept_masses(row, temperature, top_k, top_p)
    assert pvalue_of(tokens, right) > 0.01
    wrong = [
        kept_masses(row, temperature * 1.3, top_k, top_p),
        kept_masses(row, temperature, top_k // 3 or 14, top_p),
        kept_masses(row, temperature, top_k, top_p - 0.15),
        right.roll(1),
    ]
    assert max(pvalue_of(tokens, rule) for rule in wrong) < 1e-4
    # The token that crosses p is kept: a rule that drops it cannot have drawn these.
    if top_p < 1:
        dropped = right.clone()
        order = torch.argsort(row, descending=True)
        dropped[order[int((right > 0).sum()) - 1]] = 0
        assert pvalue_of(tokens, dropped) == 0.0


def test_parameters_that_do_not_fit_are_refused(ops: Ops, device: torch.device) -> None:
    parameters = settings_of(3)
    with pytest.raises(InputError, match=r"top_k has shape \(2,\); the logits call for a dense \(3,\)"):
        drawn(ops, device, torch.zeros(3, 4), parameters | {"top_k": torch.zeros(2, dtype=torch.int32)})
    with pytest.raises(InputError, match=r"logits have shape \(3, 0\)"):
        drawn(ops, device, torch.zeros(3, 0), parameters)
    assert drawn(ops, device, torch.zeros(0, 4), settings_of(0)).tolist() == []
