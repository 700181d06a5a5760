"""A server of vLLM's own front-end parts, whose engine makes tokens up: run where vLLM is installed, by `__main__.py`.

It leaves out: chat templates, middleware, the ZMQ sockets, loggers, and the engine's input thread.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from vllm.entrypoints.openai.completion import protocol
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.metrics.stats import IterationStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

CHUNK = 128


def tokenizer_of(text: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokeniser, trained on a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train([str(text)], trainers.BpeTrainer(vocab_size=8000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=made)


TOKENIZER = tokenizer_of(Path(sys.argv[1]) / "text.txt")
OUTPUTS = OutputProcessor(TOKENIZER, log_stats=True)
ENCODE, DECODE, ENCODE_REQUEST = MsgpackEncoder(), MsgpackDecoder(EngineCoreOutputs), MsgpackEncoder()
LEFT: dict[str, int] = {}
"""Tokens that each request still gets."""
WAITS: dict[str, float] = {"rows": 0, "step_s": 0.02}
COUNTS = dict.fromkeys(("steps", "outputs", "requests", "prompt_tokens", "engine_s", "process_outputs_s"), 0.0)


async def engine() -> None:
    """A token for each request in each step, encoded as the engine sends it; its own seconds are counted apart."""
    while True:
        if not LEFT or len(LEFT) < WAITS["rows"]:
            await asyncio.sleep(0.001)
            continue
        WAITS["rows"] = 0
        began_s = time.thread_time()
        made = []
        for name in list(LEFT):
            LEFT[name] -= 1
            ends = FinishReason.LENGTH if not LEFT[name] else None
            token = random.randrange(100, len(TOKENIZER))
            made.append(EngineCoreOutput(request_id=name, new_token_ids=[token], finish_reason=ends))
            if ends is not None:
                del LEFT[name]
        frames = ENCODE.encode(EngineCoreOutputs(outputs=made, timestamp=time.monotonic()))
        COUNTS["engine_s"] += time.thread_time() - began_s
        # From here on as `AsyncLLM.output_handler` does.
        outputs, stats = DECODE.decode(frames), IterationStats()
        for start in range(0, len(outputs.outputs), CHUNK):
            began_s = time.thread_time()
            OUTPUTS.process_outputs(outputs.outputs[start : start + CHUNK], outputs.timestamp, stats)
            COUNTS["process_outputs_s"] += time.thread_time() - began_s
            if start + CHUNK < len(outputs.outputs):
                await asyncio.sleep(0)
        COUNTS["steps"] += 1
        COUNTS["outputs"] += len(outputs.outputs)
        await asyncio.sleep(WAITS["step_s"])


@asynccontextmanager
async def with_engine(app: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(engine())
    yield
    task.cancel()


app = FastAPI(lifespan=with_engine)
pool = ThreadPoolExecutor(1)


@app.post("/v1/completions")
async def completions(request: protocol.CompletionRequest) -> Any:
    COUNTS["requests"] += 1
    name = f"cmpl-{COUNTS['requests']:.0f}"
    kind = RequestOutputKind.DELTA
    params = SamplingParams(max_tokens=request.max_tokens, output_kind=kind, ignore_eos=True, temperature=0.0)
    ids = (await asyncio.get_running_loop().run_in_executor(pool, TOKENIZER, request.prompt))["input_ids"]
    COUNTS["prompt_tokens"] += len(ids)
    core = EngineCoreRequest(
        request_id=name, external_req_id=name, prompt_token_ids=ids, mm_features=None, sampling_params=params,
        pooling_params=None, arrival_time=time.time(), lora_request=None, cache_salt=None, data_parallel_rank=None,
    )  # fmt: skip
    queue = RequestOutputCollector(kind, name)
    OUTPUTS.add_request(core, request.prompt, None, 0, queue)
    ENCODE_REQUEST.encode(core)
    LEFT[name] = request.max_tokens
    created = int(time.time())

    async def streamed() -> AsyncIterator[str]:
        done = False
        while not done:
            result = queue.get_nowait() or await queue.get()
            done = result.finished
            for output in result.outputs:
                choice = protocol.CompletionResponseStreamChoice(
                    index=0, text=output.text, logprobs=None, finish_reason=output.finish_reason,
                    stop_reason=output.stop_reason, prompt_token_ids=None, token_ids=None,
                )  # fmt: skip
                chunk = protocol.CompletionStreamResponse(
                    id=name, object="text_completion", created=created, model="m", choices=[choice]
                )
                yield f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(streamed(), media_type="text/event-stream")


@app.get("/stats")
async def stats(rows: int = 0, step_s: float = 0.02) -> dict[str, float]:
    WAITS.update(rows=rows, step_s=step_s)
    return {**COUNTS, "thread_s": time.thread_time(), "process_s": time.process_time()}


uvicorn.run(
    app, host="127.0.0.1", port=8765, log_level="warning", loop="uvloop", http="httptools",
    timeout_keep_alive=3600, backlog=4096,
)  # fmt: skip
