"""The model: its logits are those of a plain float64 forward and of transformers, however its work is cut and mixed."""

from __future__ import annotations

import json
import os
import random
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the live backend needs torch")
pytest.importorskip("safetensors", reason="checkpoints are safetensors files")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kit import (
    BLOCK_TOKENS,
    FAMILIES,
    Story,
    config_of,
    greedy,
    step,
    story,
    tensors_of,
    write_checkpoint,
)
from model_reference import reference_logits
from torch import Tensor

from backend.cache.kvcache import KvCache
from backend.model.layers import ExpertMlp, _grouped, _one_by_one
from backend.model.loader import load_checkpoint, random_model
from backend.model.model import DecodePart, ForwardBatch, Model, PrefillPart
from backend.ops import for_device
from sim.catalog import load_model

BLOCKS = 64
TOLERANCE = 1e-4
"""Largest difference of a logit, whose magnitudes are around 3; fp32 rounding alone gives about 1e-5."""


def some_tokens(count: int, seed: int) -> list[int]:
    return [random.Random(seed * 1000 + at).randrange(128) for at in range(count)]


def shuffled_blocks(seed: int) -> list[int]:
    return random.Random(seed).sample(range(1, BLOCKS + 1), BLOCKS)


def new_cache(model: Model) -> KvCache:
    """A cache whose every element is NaN: what is read before it is written shows."""
    cache = KvCache.allocate(model.spec, BLOCKS, BLOCK_TOKENS, model.device)
    for layer in cache.layers:
        for tensor in layer.tensors():
            tensor.fill_(float("nan"))
    return cache


def rows(item: Story) -> Tensor:
    return torch.stack(item.logits)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).abs().max().item() <= tolerance


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """(name, config, tensors, the model loaded from them)."""
    config = config_of(request.param)
    tensors = tensors_of(config, seed=7)
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), config, tensors)
    return request.param, config, tensors, load_checkpoint(folder)


def test_every_family_agrees_with_the_plain_float64_forward(family: tuple[Any, ...]) -> None:
    _, config, tensors, model = family
    free, cache = shuffled_blocks(1), new_cache(model)
    whole, chunked, stepped = (story(some_tokens(count, count), free) for count in (23, 19, 14))
    # One batch after another: a whole prompt; chunks beside a decode; decodes of one and of three tokens, padded.
    step(model, cache, [(whole, 21), (chunked, 5), (stepped, 6)])
    step(model, cache, [(chunked, 9)], [whole, stepped], padding=2)
    step(model, cache, [], [stepped, whole])
    step(model, cache, [(chunked, 2)], [stepped], width=3)
    step(model, cache, [], [chunked, stepped], width=3, padding=1)
    for item in (whole, chunked, stepped):
        assert item.computed == len(item.tokens)
        assert_close(rows(item), reference_logits(config, tensors, item.tokens))


def small_model() -> Model:
    return random_model(load_model("tiny-llama"), seed=3)


@pytest.fixture(scope="module")
def tiny() -> Model:
    return small_model()


@given(data=st.data())
@settings(max_examples=15)
def test_logits_depend_neither_on_chunks_nor_on_blocks_nor_on_batch_mates(tiny: Model, data: st.DataObject) -> None:
    """One request alone, whole, in blocks 1, 2, ...; and again cut at random, among others, in blocks at random.

    Not exact on a CPU: a matrix product sums in an order that depends on how many rows it has.
    """
    prompt = some_tokens(data.draw(st.integers(1, 18), label="prompt"), seed=11)
    alone = story(prompt, list(range(BLOCKS, 0, -1)))
    step(tiny, new_cache(tiny), [(alone, len(prompt))])

    free, cache = shuffled_blocks(data.draw(st.integers(0, 99), label="blocks")), new_cache(tiny)
    again = story(prompt, free)
    mates = [story(some_tokens(24, seed=20 + at), free) for at in range(data.draw(st.integers(0, 3), label="mates"))]
    while again.computed < len(prompt):
        left = len(prompt) - again.computed
        chunk = data.draw(st.integers(1, left), label="chunk")
        jobs = [(mate, data.draw(st.integers(1, 3))) for mate in mates if mate.computed < 20]
        jobs.insert(data.draw(st.integers(0, len(jobs)), label="place"), (again, chunk))
        decodes = chunk == 1 and data.draw(st.booleans(), label="decode")
        step(tiny, cache, [job for job in jobs if not (decodes and job[0] is again)], [again] if decodes else [])
    assert_close(rows(again), rows(alone))


def test_the_same_batch_gives_the_same_bits(tiny: Model) -> None:
    """What changes no shape changes no bit: other tokens beside it, other block ids, another row of the batch."""
    prompt, found = some_tokens(13, seed=5), []
    for mate_seed, block_seed in ((1, 1), (2, 2), (1, 3)):
        free, cache = shuffled_blocks(block_seed), new_cache(tiny)
        mine, mate = story(prompt, free), story(some_tokens(13, seed=mate_seed), free)
        step(tiny, cache, [(mine, 12), (mate, 12)])
        step(tiny, cache, [], [mine, mate])
        found.append(rows(mine))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_prefix_computed_by_another_request_serves_as_ones_own(tiny: Model) -> None:
    """Shared blocks (prefix hits, forks): the second request reads the first one's cache and computes the rest."""
    free, cache = shuffled_blocks(4), new_cache(tiny)
    first = story(some_tokens(16, seed=8), free)
    step(tiny, cache, [(first, 16)])
    tail = some_tokens(5, seed=9)
    second = Story([*first.tokens[:12], *tail], [*first.table[:3], free.pop(), free.pop()], computed=12)
    step(tiny, cache, [(second, 5)])
    alone = story(second.tokens, free)
    step(tiny, cache, [(alone, 17)])
    assert_close(rows(second), rows(alone)[12:])


def test_swapped_and_copied_blocks_give_the_same_bits(tiny: Model) -> None:
    """Out to the host and back into other blocks; and a fork that copies the block it writes to."""
    free, cache = shuffled_blocks(6), new_cache(tiny)
    host = cache.host(8)
    item = story(some_tokens(14, seed=3), free)
    step(tiny, cache, [(item, 10)])
    child = Story([*item.tokens[:10], *some_tokens(4, seed=4)], [*item.table[:2], free.pop(), free.pop()], computed=10)
    twin = Story(list(child.tokens), list(item.table), computed=10)
    ids = torch.tensor([item.table[:3], [3, 5, 8], [free.pop() for _ in range(3)]], dtype=torch.int32)
    for layer, away in zip(cache.layers, host.layers, strict=True):
        tiny.ops.copy_blocks(layer, torch.tensor([item.table[2]]), torch.tensor([child.table[2]]))
        tiny.ops.swap_out(layer, away, ids[0], ids[1])
    step(tiny, cache, [], [item], width=4)
    step(tiny, cache, [], [child], width=4)
    step(tiny, cache, [], [twin], width=4)
    assert torch.equal(rows(child), rows(twin))

    back = Story(list(item.tokens), [*ids[2].tolist(), free.pop()], computed=10)
    for layer, away in zip(cache.layers, host.layers, strict=True):
        tiny.ops.swap_in(layer, away, ids[2], ids[1])
    step(tiny, cache, [], [back], width=4)
    assert torch.equal(rows(back), rows(item)[10:])


def test_logits_are_made_for_the_rows_that_are_asked_for(tiny: Model) -> None:
    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    def forward(asked: Tensor | None) -> Tensor:
        part = PrefillPart(ints(0, 3), ints(3), ints(1)[None], 3)
        batch = ForwardBatch(ints(5, 6, 7), ints(0, 1, 2), ints(4, 5, 6), asked, part, None)
        return tiny.forward(batch, new_cache(tiny))

    everything = forward(None)
    assert everything.shape == (3, tiny.spec.vocab)
    assert_close(forward(ints(2, 0)), everything[[2, 0]], 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.35), ("fp16", 0.05)])
def test_sixteen_bit_models_stay_near_the_float64_forward(tmp_path: Path, dtype: str, tolerance: float) -> None:
    config = config_of("qwen3")
    tensors = {name: tensor.bfloat16() for name, tensor in tensors_of(config, seed=2).items()}
    model = load_checkpoint(write_checkpoint(tmp_path, config, tensors), dtype=dtype)
    item = story(some_tokens(20, seed=1), shuffled_blocks(1))
    cache = new_cache(model)
    step(model, cache, [(item, 17)])
    step(model, cache, [], [item], width=3)
    assert model.dtype == cache.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert_close(rows(item), reference_logits(config, tensors, item.tokens), tolerance)


@pytest.mark.parametrize(("kv_dtype", "tolerance"), [("bf16", 0.05), ("int8", 0.15), ("fp8", 0.5)])
def test_a_narrower_cache_gives_nearly_the_same_logits(tiny: Model, kv_dtype: str, tolerance: float) -> None:
    prompt, free, found = some_tokens(20, seed=6), shuffled_blocks(3), []
    for name in ("fp32", kv_dtype):
        item = story(prompt, list(free))
        cache = KvCache.allocate(tiny.spec, BLOCKS, BLOCK_TOKENS, dtype=name)
        step(tiny, cache, [(item, 11)])
        step(tiny, cache, [(item, 7)])
        step(tiny, cache, [], [item], width=2)
        found.append(rows(item))
    assert 0 < (found[1] - found[0]).abs().mean().item() < tolerance


def test_the_kernels_run_the_model_as_torch_does(tmp_path: Path) -> None:
    """Prefill, a chunk beside a decode, and drafts, on Triton's kernels interpreted by numpy."""
    pytest.importorskip("triton", reason="the kernels need triton")
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled where there is a GPU, and the tests marked gpu run them")
    config = {**config_of("qwen3"), "num_hidden_layers": 1, "head_dim": 64, "hidden_size": 128}
    plain = load_checkpoint(write_checkpoint(tmp_path, config, tensors_of(config)))
    found = []
    for model in (plain, Model(plain.spec, plain.config, plain.weights, for_device("interpret"))):
        free, cache = shuffled_blocks(7), new_cache(model)
        first, second = story(some_tokens(11, seed=1), free), story(some_tokens(8, seed=2), free)
        step(model, cache, [(first, 7), (second, 3)])
        step(model, cache, [(second, 3)], [first], padding=1)
        step(model, cache, [], [first, second], width=2)
        found.append(torch.cat([rows(first), rows(second)]))
    assert_close(found[1], found[0])


def test_grouped_experts_equal_experts_one_by_one() -> None:
    """The launch that CUDA graphs capture against the loop that other devices run, with experts that nobody visits."""
    made = torch.Generator().manual_seed(1)
    gate_up, down = torch.randn(5, 64, 32, generator=made) / 6, torch.randn(5, 32, 32, generator=made) / 6
    weights = ExpertMlp(torch.zeros(5, 32), gate_up.bfloat16(), down.bfloat16(), 2, True)
    hidden, ends = torch.randn(12, 32, generator=made).bfloat16(), torch.tensor([3, 3, 8, 12, 12])
    ops = small_model().ops
    assert_close(_grouped(ops, hidden, weights, ends), _one_by_one(ops, hidden, weights, ends), 0.03)


@pytest.fixture(scope="module")
def transformers() -> Any:
    """The oracle, offline; the tests that need it are skipped where it is not installed."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers", reason="transformers, the oracle, is not installed")


def name_experts_as_published(path: Path) -> None:
    """Published Qwen3-MoE checkpoints say num_experts, which transformers 5 renames when it saves one."""
    table = json.loads(path.read_text())
    if table["model_type"] == "qwen3_moe" and "num_experts" not in table:
        table["num_experts"] = table.pop("num_local_experts")
        path.write_text(json.dumps(table))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_checkpoints_saved_by_transformers_give_its_logits_and_its_tokens(
    transformers: Any, name: str, tmp_path: Path
) -> None:
    config = config_of(name)
    kind = config.pop("model_type")
    torch.manual_seed(13)
    oracle = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **config))
    with torch.no_grad():
        for parameter_name, parameter in oracle.named_parameters():
            parameter.normal_(1.0 if "norm" in parameter_name else 0.0, 0.15)
    oracle.eval().save_pretrained(tmp_path, max_shard_size="60KB")
    name_experts_as_published(tmp_path / "config.json")
    model = load_checkpoint(tmp_path)

    free, cache = shuffled_blocks(2), new_cache(model)
    prompts = [some_tokens(count, seed=count) for count in (17, 9, 12)]
    stories = [story(prompt, free, more=8) for prompt in prompts]
    tokens = greedy(model, cache, stories, new_tokens=8, chunk=7)
    for prompt, item, generated in zip(prompts, stories, tokens, strict=True):
        ids = torch.tensor([prompt])
        expected = oracle.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
        assert generated == expected[0, len(prompt) :].tolist()
        with torch.no_grad():
            logits = oracle(torch.tensor([item.tokens[:-1]])).logits[0]
        assert_close(rows(item), logits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["llama3", "qwen3", "qwen3-moe", "mistral"])
def test_on_a_gpu_every_family_stays_near_the_float64_forward(name: str, tmp_path: Path) -> None:
    config = {**config_of(name), "head_dim": 64}
    tensors = {key: tensor.bfloat16() for key, tensor in tensors_of(config, seed=7).items()}
    model = load_checkpoint(write_checkpoint(tmp_path, config, tensors), "cuda", dtype="bf16")
    free, cache = shuffled_blocks(1), new_cache(model)
    first, second = story(some_tokens(21, seed=1), free), story(some_tokens(12, seed=2), free)
    step(model, cache, [(first, 17), (second, 5)])
    step(model, cache, [(second, 5)], [first], padding=2)
    step(model, cache, [], [first, second], width=2)
    assert model.graphable
    for item in (first, second):
        expected = reference_logits(config, tensors, item.tokens[: item.computed])
        assert (rows(item).double() - expected).abs().mean().item() < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_captured_decode_gives_the_same_bits() -> None:
    model = random_model(load_model("tiny-llama").with_dtypes(dtype="bf16"), "cuda", seed=3)

    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device="cuda")

    cache = KvCache.allocate(model.spec, BLOCKS, 16, "cuda")
    decode = DecodePart(1, ints(1, 1), ints(1, 2)[:, None])
    batch = ForwardBatch(ints(5, 6), ints(0, 0), ints(16, 32), None, None, decode)
    for _ in range(3):
        expected = model.forward(batch, cache)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = model.forward(batch, cache)
    with torch.inference_mode():  # the forward pass gives a tensor of this mode, which nothing else may write
        captured.zero_()
    graph.replay()
    assert torch.equal(captured, expected)
