"""Lets the V1 scheduler of an installed vLLM decide, for whoever asks over standard input and output.

A script of its own: it runs in the environment that has vLLM, on a machine without a GPU, and imports nothing of ours.
Requests go into vLLM's own `Scheduler` or `AsyncScheduler` with vLLM's own KV cache manager; what a model would have
sampled is made up, so that every request makes exactly its output. One JSON object a line, both ways:

    {"start": SETTINGS}                       ->  {"vllm": VERSION}
    {"schedule": {"add": [REQUEST, ...]}}     ->  {"shares": [[id, tokens, computed before], ...], "free": blocks,
                                                   "admitted": [id, ...], "preempted": [...], "samples": [...],
                                                   "drafts": [[id, drafts], ...], "running": [...], "waiting": [...]}
    {"update": {"accepted": [drafts, ...],    ->  {"first": [id, ...], "ended": [id, ...], "free": blocks}
                "proposed": [drafts, ...]}}   (both left out without drafts)
    {"abort": id}                             ->  {"free": blocks}

A step is scheduled before the last one's output is taken in where SETTINGS has async_scheduling; `update` takes in the
oldest, and tells of each that samples how many of its drafts were right, and how many it has for its next step. What
cannot be done is {"error": SENTENCE}. Written against vLLM 0.19 and 0.33.
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from types import SimpleNamespace
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # whatever prints goes to the log; the answers alone go up

# ruff: noqa: E402  (answers go up before anything can print, and `vllm_config` silences and stands in)
from vllm_config import NEWER, config_of, groups_of

# isort: split
import vllm
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

OWN_TOKENS = 1 << 44
"""From here on token ids are a request's own; below they are those of prefix units."""


def token_ids(request: dict[str, Any], start: int, end: int) -> list[int]:
    """The tokens of a request from `start` to before `end`: equal where prefix ids say so, else nobody else's."""
    ids, unit, known = request["prefix"] or ([], 1, 0)
    named = min(len(ids) * unit, known)
    own = OWN_TOKENS + (request["id"] << 24)
    return [ids[at // unit] * unit + at % unit if at < named else own + at for at in range(start, end)]


def adapter_of(request: dict[str, Any]) -> LoRARequest | None:
    """The adapter that a request asks for by its number, from 1 on."""
    number = request.get("adapter", 0)
    return LoRARequest(f"adapter-{number}", number, f"/adapter-{number}") if number else None


class Driver:
    """One scheduler and its requests."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.preempted: list[int] = []
        self.scheduler = self._class(settings["async_scheduling"])(
            vllm_config=config_of(settings),
            kv_cache_config=groups_of(settings),
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
        self.under_way: deque[tuple[Any, list[int]]] = deque()
        """(vLLM's output of a step, who samples in it)."""
        self.most_drafts = 0
        if settings["speculative"] and not settings["async_scheduling"]:
            self.most_drafts = settings["speculative"]["num_speculative_tokens"]

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
            lora_request=adapter_of(asked),
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
        drafts = [[int(id), len(drafted)] for id, drafted in out.scheduled_spec_decode_tokens.items()]
        if shares:
            self.under_way.append((out, samples))
        else:
            self.scheduler.update_from_output(out, self._output(out, {}))
        admitted = [*(request.req_id for request in out.scheduled_new_reqs), *cached.resumed_req_ids]
        queue = self.scheduler.kv_holding_waiting if NEWER else self.scheduler.skipped_waiting
        return {
            "shares": shares,
            "admitted": [int(id) for id in admitted],
            "preempted": list(self.preempted),
            "samples": samples,
            "drafts": drafts,
            "running": [int(request.request_id) for request in self.scheduler.running],
            "waiting": [int(request.request_id) for request in (*queue, *self.scheduler.waiting)],
            "free": self.free,
        }

    def _output(self, out: Any, sampled: dict[int, int]) -> ModelRunnerOutput:
        """What a model would have made of a step: so many tokens of each that samples."""
        ids = list(out.num_scheduled_tokens)
        tokens = [self._sample(int(id), sampled[int(id)]) if int(id) in sampled else [] for id in ids]
        return ModelRunnerOutput(ids, {id: at for at, id in enumerate(ids)}, sampled_token_ids=tokens)

    def _sample(self, id: int, count: int) -> list[int]:
        if id not in self.asked:
            return []  # scheduled once more before its end was known
        asked = self.asked[id]
        at = asked["prompt"] + self.sampled[id]
        self.sampled[id] += count
        return token_ids(asked, at, at + count)

    def update(self, accepted: list[int] | None = None, proposed: list[int] | None = None) -> dict[str, Any]:
        first, ended = [], []
        out, samples = self.under_way.popleft()
        sampled = {id: 1 + right for id, right in zip(samples, accepted or [0] * len(samples), strict=True)}
        for group in self.scheduler.update_from_output(out, self._output(out, sampled)).values():
            for output in group.outputs:
                id = int(output.request_id)
                if output.new_token_ids and self.live[id].num_output_tokens == len(output.new_token_ids):
                    first.append(id)
                if output.finish_reason is not None:
                    ended.append(id)
        for id in ended:
            del self.live[id], self.asked[id], self.sampled[id]
        if self.most_drafts and proposed:
            self._propose({id: count for id, count in zip(samples, proposed, strict=True) if id in self.live})
        return {"first": first, "ended": ended, "free": self.free}

    def _propose(self, counts: dict[int, int]) -> None:
        """Hand over drafts of a synchronous step; an asynchronous scheduler has placeholders of its own."""
        drafts = []
        for id, count in counts.items():
            at = self.live[id].num_tokens
            drafts.append(token_ids(self.asked[id], at, at + min(count, self.most_drafts)))
        self.scheduler.update_draft_token_ids(DraftTokenIds(list(map(str, counts)), drafts))

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
    return driver, driver.update(**told) if what == "update" else driver.abort(told)


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
