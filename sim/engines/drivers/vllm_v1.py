"""Lets the V1 scheduler of an installed vLLM decide, for whoever asks over standard input and output.

A script of its own: it runs in the environment that has vLLM, on a machine without a GPU, and imports nothing of ours.
Requests go into vLLM's own `Scheduler` or `AsyncScheduler` with vLLM's own KV cache manager; what a model would have
sampled is made up, so that every request makes exactly its output. One JSON object a line, both ways:

    {"start": SETTINGS}                       ->  {"vllm": VERSION}
    {"schedule": {"add": [REQUEST, ...]}}     ->  {"shares": [[id, tokens, computed before], ...], "free": blocks,
                                                   "admitted": [id, ...], "preempted": [...], "samples": [...],
                                                   "running": [...], "waiting": [...]}
    {"update": {}}                            ->  {"first": [id, ...], "ended": [id, ...], "free": blocks}
    {"abort": id}                             ->  {"free": blocks}

A step is scheduled before the last one's output is taken in where SETTINGS has async_scheduling; `update` takes in the
oldest. What cannot be done is {"error": SENTENCE}. Written against vLLM 0.19 and 0.33.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import logging
import os
import sys
import types
from collections import deque
from types import SimpleNamespace
from typing import Any

os.environ["VLLM_LOGGING_LEVEL"] = "CRITICAL"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # whatever prints goes to the log; the answers alone go up


class AbsentModule(types.ModuleType):
    """A package that the scheduler names and never uses."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class AbsentFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        absent = name.partition(".")[0] == "xgrammar"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if absent else None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = AbsentModule(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: Any) -> None:
        pass


sys.meta_path.insert(0, AbsentFinder())
logging.disable(logging.ERROR)

# ruff: noqa: E402  (stand-ins and silence come first)
import torch
import vllm
from vllm.config import CacheConfig, ParallelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

NEWER = hasattr(VllmConfig, "num_lookahead_tokens")
"""Is it of the line of 0.33, and not of 0.19?"""
DERIVED = (
    "num_speculative_tokens",
    "num_lookahead_tokens",
    "num_prefill_lookahead_tokens",
    "num_hash_lookahead_tokens",
    "max_concurrent_batches",
    "max_in_flight_tokens",
)
"""Of the newer line: what vLLM's own configuration class works out from the rest."""
OWN_TOKENS = 1 << 44
"""From here on token ids are a request's own; below they are those of prefix units."""


def token_ids(request: dict[str, Any], start: int, end: int) -> list[int]:
    """The tokens of a request from `start` to before `end`: equal where prefix ids say so, else nobody else's."""
    ids, unit, known = request["prefix"] or ([], 1, 0)
    named = min(len(ids) * unit, known)
    own = OWN_TOKENS + (request["id"] << 24)
    return [ids[at // unit] * unit + at % unit if at < named else own + at for at in range(start, end)]


def scheduler_config(settings: dict[str, Any]) -> SchedulerConfig:
    newer = {key: settings[key] for key in ("watermark", "prefill_schedule_interval")} if NEWER else {}
    if NEWER:
        newer["long_prefill_token_threshold_adaptive"] = settings["long_prefill_token_threshold_adaptive"]
    return SchedulerConfig(
        max_model_len=settings["max_model_len"],
        is_encoder_decoder=False,
        max_num_batched_tokens=settings["max_num_batched_tokens"],
        max_num_seqs=settings["max_num_seqs"],
        enable_chunked_prefill=settings["enable_chunked_prefill"],
        long_prefill_token_threshold=settings["long_prefill_token_threshold"],
        scheduler_reserve_full_isl=settings["scheduler_reserve_full_isl"],
        policy=settings["policy"],
        async_scheduling=settings["async_scheduling"],
        **newer,
    )


def config_of(settings: dict[str, Any]) -> Any:
    """What the scheduler reads of a `VllmConfig`, which itself cannot be made without a model and a device."""
    cache = CacheConfig(block_size=settings["block_size"], enable_prefix_caching=settings["enable_prefix_caching"])
    cache.num_gpu_blocks = settings["num_gpu_blocks"]
    model = SimpleNamespace(
        is_encoder_decoder=False, max_model_len=settings["max_model_len"], enable_return_routed_experts=False
    )
    observability = SimpleNamespace(kv_cache_metrics=False, enable_mfu_metrics=False)
    absent = ("lora", "kv_events", "kv_transfer", "ec_transfer", "speculative")
    parts: dict[str, Any] = {f"{name}_config": None for name in absent}
    parts |= {
        "scheduler_config": scheduler_config(settings),
        "cache_config": cache,
        "parallel_config": ParallelConfig(),
        "model_config": model,
        "observability_config": observability,
    }
    if not NEWER:
        return SimpleNamespace(**parts)
    vars(model).update(
        uses_mrope=False,
        runner_type="generate",
        is_diffusion=False,
        supports_multimodal_inputs=False,
        return_sampling_mask=False,
    )
    vars(observability).update(
        per_request_spec_decode_metrics=None, enable_logging_iteration_details=False, kv_cache_metrics_sample=0.01
    )
    plain = type("PlainConfig", (SimpleNamespace,), {name: VllmConfig.__dict__[name] for name in DERIVED})
    return plain(
        **parts,
        diffusion_config=None,
        is_mm_encoder_only=False,
        use_v2_model_runner=True,
        aux_output_config=SimpleNamespace(enabled=False),
        ec_manager_config=SimpleNamespace(get_encoder_cache_manager_obj=lambda: None),
    )


class Driver:
    """One scheduler and its requests."""

    def __init__(self, settings: dict[str, Any]) -> None:
        spec = FullAttentionSpec(block_size=settings["block_size"], num_kv_heads=8, head_size=128, dtype=torch.bfloat16)
        groups = [KVCacheGroupSpec(["layers"], spec)]
        cache = KVCacheConfig(num_blocks=settings["num_gpu_blocks"], kv_cache_tensors=[], kv_cache_groups=groups)
        self.preempted: list[int] = []
        self.scheduler = self._class(settings["async_scheduling"])(
            vllm_config=config_of(settings),
            kv_cache_config=cache,
            structured_output_manager=SimpleNamespace(
                should_advance=lambda request: False,
                validate_tokens=lambda request, tokens: tokens,
                accept_tokens=lambda request, tokens: True,
            ),
            block_size=settings["block_size"],
            mm_registry=SimpleNamespace(supports_multimodal_inputs=lambda model_config: False),
        )
        self.hasher = None
        if settings["enable_prefix_caching"]:
            hashing = get_hash_fn_by_name("sha256")
            init_none_hash(hashing)
            ahead = (self.scheduler.num_hash_lookahead_tokens,) if NEWER else ()
            self.hasher = get_request_block_hasher(settings["block_size"], hashing, *ahead)
        self.asked: dict[int, dict[str, Any]] = {}
        self.live: dict[int, Request] = {}
        self.sampled: dict[int, int] = {}
        self.under_way: deque[tuple[Any, Any]] = deque()

    def _class(self, ahead: bool) -> type:
        """vLLM's scheduler, which tells in which order it preempts: its own output has a set of them."""
        driver = self

        class Telling(AsyncScheduler if ahead else Scheduler):
            def _preempt_request(self, request: Any, timestamp: float, **more: Any) -> None:
                driver.preempted.append(int(request.request_id))
                super()._preempt_request(request, timestamp, **more)

        return Telling

    @property
    def free(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def add(self, asked: dict[str, Any]) -> None:
        request = Request(
            request_id=str(asked["id"]),
            prompt_token_ids=token_ids(asked, 0, asked["prompt"]),
            sampling_params=SamplingParams(max_tokens=asked["output"], ignore_eos=True),
            pooling_params=None,
            arrival_time=asked["arrival"],
            priority=asked["priority"],
            block_hasher=self.hasher,
        )
        self.asked[asked["id"]], self.live[asked["id"]], self.sampled[asked["id"]] = asked, request, 0
        self.scheduler.add_request(request)

    def schedule(self, add: list[dict[str, Any]]) -> dict[str, Any]:
        for asked in add:
            self.add(asked)
        self.preempted.clear()
        out = self.scheduler.schedule()
        cached = out.scheduled_cached_reqs
        before = {request.req_id: request.num_computed_tokens for request in out.scheduled_new_reqs}
        before.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        shares = [[int(id), tokens, before[id]] for id, tokens in out.num_scheduled_tokens.items()]
        samples = [id for id, _, _ in shares if not self.live[id].is_prefill_chunk]
        ids = [str(id) for id, _, _ in shares]
        tokens = [self._sample(id) if id in samples else [] for id, _, _ in shares]
        made = ModelRunnerOutput(ids, {id: at for at, id in enumerate(ids)}, sampled_token_ids=tokens)
        if shares:
            self.under_way.append((out, made))
        else:
            self.scheduler.update_from_output(out, made)
        admitted = [*(request.req_id for request in out.scheduled_new_reqs), *cached.resumed_req_ids]
        queue = self.scheduler.kv_holding_waiting if NEWER else self.scheduler.skipped_waiting
        return {
            "shares": shares,
            "admitted": [int(id) for id in admitted],
            "preempted": list(self.preempted),
            "samples": samples,
            "running": [int(request.request_id) for request in self.scheduler.running],
            "waiting": [int(request.request_id) for request in (*queue, *self.scheduler.waiting)],
            "free": self.free,
        }

    def _sample(self, id: int) -> list[int]:
        asked = self.asked[id]
        at = asked["prompt"] + self.sampled[id]
        self.sampled[id] += 1
        return token_ids(asked, at, at + 1)

    def update(self) -> dict[str, Any]:
        first, ended = [], []
        for group in self.scheduler.update_from_output(*self.under_way.popleft()).values():
            for output in group.outputs:
                id = int(output.request_id)
                if output.new_token_ids and self.live[id].num_output_tokens == len(output.new_token_ids):
                    first.append(id)
                if output.finish_reason is not None:
                    ended.append(id)
        for id in ended:
            del self.live[id], self.asked[id], self.sampled[id]
        return {"first": first, "ended": ended, "free": self.free}

    def abort(self, id: int) -> dict[str, Any]:
        self.scheduler.finish_requests(str(id), RequestStatus.FINISHED_ABORTED)
        return {"free": self.free}


def answer(driver: Driver | None, question: dict[str, Any]) -> tuple[Driver | None, dict[str, Any]]:
    ((what, told),) = question.items()
    if what == "start":
        return Driver(told), {"vllm": vllm.__version__}
    if driver is None:
        return None, {"error": f"{what} before start"}
    if what == "schedule":
        return driver, driver.schedule(told["add"])
    return driver, driver.update() if what == "update" else driver.abort(told)


def main() -> None:
    driver: Driver | None = None
    for line in sys.stdin:
        try:
            driver, said = answer(driver, json.loads(line))
        except Exception as error:
            said = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:2000]}
        ANSWERS.write(json.dumps(said) + "\n")
        ANSWERS.flush()


if __name__ == "__main__":
    main()
