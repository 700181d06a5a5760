"""Live runs of tiny models under watch: memory that nobody holds is poisoned before every step.

The reference shares no code with the backend: a float64 forward of the whole text, no cache and no batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from engine_kit import Setup, workload
from model_kit import config_of, tensors_of, write_checkpoint
from torch import Tensor

from backend.cache.kvcache import KvCache
from backend.live.graphs import Recorder
from backend.live.live import Live
from backend.live.prompts import Prompts
from backend.live.sampling import Sampling
from backend.model.loader import load_checkpoint
from backend.model.model import Model
from sim.engine.batch import Batch, Limits, Outcome
from sim.engine.engine import Engine
from sim.engine.memory import KvPool
from sim.engine.request import SAMPLE_BITS, Request
from sim.load import names
from sim.results.steps import StepLog
from sim.routers.round_robin import RoundRobin
from sim.serving.clock import Clock
from sim.serving.cluster import Cluster
from sim.serving.executor import Executor
from sim.serving.replica import Replica
from sim.serving.source import RequestSource, Workload

VOCAB = 128
STEP_S = 0.001


@cache
def tiny(family: str = "llama", window: int = 0, sinks: int = 0) -> Model:
    """A model of two layers with random weights, all layers with `window` (0: the family's own) and `sinks`."""
    with TemporaryDirectory() as folder:
        model = load_checkpoint(write_checkpoint(Path(folder), config_of(family), weights(family)))
    if not window:
        return model
    layers = len(model.config.windows)
    return Model(model.spec, model.config, model.weights, windows=(window,) * layers, sinks=sinks)


@cache
def weights(family: str) -> Mapping[str, Tensor]:
    """The tensors of `tiny`, by their names in a checkpoint."""
    return tensors_of(config_of(family), seed=11)


def reference_logits(family: str, tokens: Sequence[int], window: int = 0, sinks: int = 0) -> Tensor:
    """Logits [T, vocab] of a whole text in float64, for Llama and what differs from it by a window alone."""
    config = config_of(family)
    w = {name: tensor.double() for name, tensor in weights(family).items()}
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    count = len(tokens)
    at = torch.arange(count)
    seen = at[:, None] >= at
    if window:
        seen &= (at > at[:, None] - window) | (at < sinks)
    turns = at[:, None].double() * 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    cos, sin = turns.cos()[:, None], turns.sin()[:, None]

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * w[f"{name}.weight"]

    def turned(x: Tensor) -> Tensor:
        first, second = x[..., : width // 2], x[..., width // 2 :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    x = w["model.embed_tokens.weight"][list(tokens)]
    for layer in range(config["num_hidden_layers"]):
        own = f"model.layers.{layer}"
        h = norm(x, f"{own}.input_layernorm")
        q, k, v = ((h @ w[f"{own}.self_attn.{name}_proj.weight"].T).view(count, -1, width) for name in "qkv")
        q, k, v = turned(q), turned(k).repeat_interleave(heads // groups, 1), v.repeat_interleave(heads // groups, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / width**0.5
        shares = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", shares, v).reshape(count, -1)
        x = x + out @ w[f"{own}.self_attn.o_proj.weight"].T
        h = norm(x, f"{own}.post_attention_layernorm")
        gate, up = (h @ w[f"{own}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate * gate.sigmoid() * up) @ w[f"{own}.mlp.down_proj.weight"].T
    return norm(x, "model.norm") @ w["lm_head.weight"].T


def check_greedy(prompt: Sequence[int], answer: Sequence[int], logits: Callable[[Sequence[int]], Tensor]) -> None:
    """Each token of the answer is the best after all before it, and by far enough that fp32 can tell."""
    scores = logits([*prompt, *answer[:-1]])[len(prompt) - 1 :]
    best = scores.topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > 1e-4, "two tokens are too close for a test; take another seed"
    assert scores.argmax(-1).tolist() == list(answer)


def facts(engine: Engine, setup: Setup) -> dict[str, Any]:
    """What an executor is told of the engine whose batches it runs."""
    return {
        "most_sequences": engine.limits.max_num_seqs,
        "appends": getattr(engine.allocator, "appends", False),
        "host_blocks": setup.host_blocks,
    }


class Watched:
    """Runs a live executor's steps in a fixed time each, on memory that holds NaN wherever nobody holds it."""

    def __init__(self, live: Live, cache: KvCache, engine: Engine, step_s: float) -> None:
        self._live, self._cache, self._engine, self._step_s = live, cache, engine, step_s
        self.further: list[KvCache] = []
        """Caches of the same blocks, such as a drafter's."""
        self.results: list[Outcome] = []
        self.copied = self.swapped = self.evicted = self.padded = 0

    def execute(self, batch: Batch) -> Outcome:
        self._poison(batch)
        result = self._live.execute(batch)
        self.results.append(result)
        self.copied += len(batch.copies)
        self.swapped += len(batch.swaps)
        self.evicted += len(batch.evicted)
        self.padded += batch.padding_tokens
        return replace(result, seconds=[self._step_s], device_s=[self._step_s], host_s=0.0)

    def _poison(self, batch: Batch) -> None:
        engine = self._engine
        if engine.forgets:
            return
        kept = {block for req in (*engine.running, *engine.roster.held) for block in engine.allocator.table(req)}
        kept |= {source for source, _ in batch.copies}
        kept |= {block for swap in batch.swaps for block in swap.blocks}
        kept |= set(getattr(engine.allocator, "findable", ()))  # a prefix that stays findable
        free = [block for block in range(self._cache.blocks + 1) if block not in kept]
        for one in (self._cache, *self.further):
            poison(one, free)


def poison(cache: KvCache, blocks: Sequence[int]) -> None:
    """Make these blocks unusable: whoever reads them shows."""
    for layer in cache.layers:
        for tensor in layer.tensors():
            if tensor.ndim and tensor.dtype.is_floating_point:
                tensor[list(blocks)] = float("nan")


@dataclass
class Served:
    """What a live run left behind."""

    answers: dict[int, list[int]]
    """Tokens of each sequence, by its id."""
    prompts: dict[int, list[int]]
    requests: dict[int, Request]
    """The finished ones by id; of a request for several sequences the first."""
    engine: Engine
    live: Live
    cache: KvCache
    executor: Watched
    log: StepLog


@dataclass
class Deployment:
    """A model behind an engine, and how it draws."""

    setup: Setup = field(default_factory=Setup)
    model: Model = field(default_factory=tiny)
    sampling: Sampling = field(default_factory=Sampling)
    step_s: float = STEP_S
    seed: int = 3
    given: Sequence[Any] | None = None
    recorder: Recorder | None = None
    """Records decode steps as graphs, where it is given."""
    stop: Sequence[int] = ()
    further: list[KvCache] = field(default_factory=list)
    """Caches that are watched beside the target's; filled by `executor`."""

    def executor(self, cache: KvCache, engine: Engine, prompts: Prompts) -> Live:
        return Live(self.model, cache, prompts, self.sampling, stop=self.stop, **facts(engine, self.setup))

    def serve(self, workload: Workload, wrap: Callable[[Executor], Executor] = lambda inner: inner) -> Served:
        """Serve all requests live, on the virtual clock; `wrap` may look over the executor's shoulder."""
        clock, log, engine = Clock(), StepLog(1), replace(self.setup, spans=False).engine()
        finished: dict[int, Request] = {}

        def take(req: Request) -> None:
            finished[req.id] = req
            source.finished(req)

        pool = engine.allocator.pool
        blocks = pool.blocks
        if engine.forgets:
            blocks = pool.blocks_for(engine.limits.max_num_batched_tokens) + engine.limits.max_num_seqs
        cache = KvCache.allocate(self.model.spec, blocks, pool.block_tokens, self.model.device)
        poison(cache, range(blocks + 1))
        prompts = Prompts(VOCAB, self.seed, self.given)
        live = self.executor(cache, engine, prompts)
        if self.recorder is not None:
            limits = engine.limits
            live.capture(self.recorder, limits.max_num_seqs, pool.max_request_tokens, limits.max_num_batched_tokens)
        watched = Watched(live, cache, engine, self.step_s)
        watched.further = self.further
        replica = Replica(clock, engine, wrap(watched), on_finish=take, observer=log)
        source = RequestSource(clock, workload, Cluster([replica], RoundRobin()).submit)
        source.start()
        clock.run()
        assert len(finished) == len(workload)
        texts = {id: (prompt, tokens.tolist()) for id, prompt, tokens in live.sequences.outputs()}
        answers = {id: tokens[prompt:] for id, (prompt, tokens) in texts.items()}
        asked = {id: tokens[:prompt] for id, (prompt, tokens) in texts.items()}
        return Served(answers, asked, finished, engine, live, cache, watched, log)


POLICIES = [name for name in names("sim.policies") if name != "speculative"]
ALLOCATORS = [name for name in names("sim.allocators") if name not in ("windowed", "contiguous")]
LIMITS = Limits(max_num_seqs=6, max_num_batched_tokens=48)
POOL = KvPool(48, 4, 40)
SCANT = KvPool(28, 4, 40)
TIGHT = KvPool(12, 4, 40)
# Prompts of one token, of a whole block, on either side of one; answers of one token; arrivals one by one and at once.
ROWS = [
    (0.0, 1, 25),
    (0.0, 4, 1),
    (0.0, 17, 22),
    (0.001, 8, 19),
    (0.002, 30, 9),
    (0.002, 3, 30),
    (0.01, 12, 13),
    (0.011, 5, 26),
    (0.02, 26, 11),
    (0.02, 16, 18),
]
PRIORITIES = [0, 2, 1, 0, 1, 2, 0, 0, 1, 2]
STATIC = {"batch_size": 6, "timeout_s": 0.003}


# Swapping and a findable prefix exclude one another.
MEMORY = [("paged", 0), ("paged", 5), ("paged", 90), ("prefix", 0)]


def work(**columns: Any) -> Workload:
    return workload(ROWS, priority=PRIORITIES, **columns)


def setup(policy: str = "chunked", allocator: str = "paged", **settings: Any) -> Setup:
    parameters = STATIC if policy == "static" else {}
    return Setup(policy, allocator, parameters, **{"pool": POOL, "limits": LIMITS, **settings})


def check_all(served: Served, rows: Sequence[Sequence[float]], **attention: int) -> None:
    """Every sequence of a greedy run has its length, and each token is the best one."""
    logits = partial(reference_logits, "llama", **attention)
    for id, answer in served.answers.items():
        assert len(answer) == rows[id % (1 << SAMPLE_BITS)][2]
        check_greedy(served.prompts[id], answer, logits)
