"""A small hand-written file of every trace format, and the requests that it stands for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """`requests` are (arrival_s, prompt_tokens, output_tokens) in order of arrival."""

    file: str
    text: str
    requests: list[tuple[float, int, int]]
    format: str | None = None  # named where it cannot be detected
    timed: bool = True


def jsonl(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def chat(*texts: str, **extra: Any) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"content": text, "role": roles[place % 2], **extra} for place, text in enumerate(texts)]


def battle(tstamp: float | None, *texts: str, **extra: Any) -> dict[str, Any]:
    """A battle whose two sides hold the same texts."""
    record = {
        "question_id": f"{len(texts):032x}",
        "model_a": "chatglm-6b",
        "model_b": "koala-13b",
        "winner": "tie",
        "judge": "arena_user_1",
        "conversation_a": chat(*texts),
        "conversation_b": chat(*texts),
        "turn": len(texts) // 2,
        "anony": True,
        "language": "English",
        "tstamp": tstamp,
    }
    if tstamp is None:
        del record["tstamp"]
    return record | extra


def weka(*requests: dict[str, Any], name: str = "trace_1", block: int = 64) -> str:
    top = {"id": name, "models": ["m"], "block_size": block, "hash_id_scope": "local", "requests": list(requests)}
    return json.dumps(top)


def weka_request(t: float, tokens: int, out: int, **extra: Any) -> dict[str, Any]:
    ids = list(range(1, tokens // 64 + 1))
    return {"t": t, "type": "n", "model": "m", "in": tokens, "out": out, "hash_ids": ids} | extra


def answer(created: int, prompt: int, output: int) -> dict[str, Any]:
    """What an OpenAI-like interface answers."""
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    choices = [{"index": 0, "message": {"role": "assistant", "content": "?"}}]
    top = {"id": "chatcmpl-1", "object": "chat.completion", "created": created, "model": "m"}
    return {**top, "choices": choices, "usage": usage}


def span(start: str, prompt: int, output: int, **attributes: str) -> dict[str, Any]:
    """A span of OTLP's JSON that takes 100 ms; 64-bit numbers stand as texts there."""
    counts = {"gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": output}
    found = [{"key": key, "value": {"intValue": str(value)}} for key, value in counts.items()]
    found += [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()]
    return {"startTimeUnixNano": start, "endTimeUnixNano": str(int(start) + 10**8), "attributes": found}


RAG_PARTS = {"sys_prompt": [1], "passages_ids": [2, 3], "history": [], "web_search": [], "user_input": [4]}
NO_TIMES = [(0.0, 10, 5), (0.0, 20, 6)]

SAMPLES = {
    "azure-2023": Sample(
        "azure23.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n"
        "2023-11-16 18:15:50.9951690,396,109",
        [(0.0, 374, 44), (4.314579, 396, 109)],
    ),
    "azure-2024": Sample(
        "azure24.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,10,5\n"
        "2024-05-10 00:00:01.509930+00:00,20,6\n",
        [(0.0, 10, 5), (1.5, 20, 6)],
    ),
    "burstgpt-v1": Sample(
        "burst1.csv",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
        "45,ChatGPT,1087,0,1087,API log\n118,GPT-4,417,276,693,Conversation log\n",
        [(0.0, 472, 18), (113.0, 417, 276)],
    ),
    "burstgpt-v2": Sample(
        "burst2.csv",
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "19440110.0,s1,2.5,GPT-4,10,5,15,Conversation log\n19440120.0,,,ChatGPT,30,7,37,API log\n"
        "19440130.0,s1,1.0,GPT-4,20,6,26,Conversation log\n",
        [(0.0, 10, 5), (10.0, 30, 7), (20.0, 20, 6)],
    ),
    "mooncake": Sample(
        "mooncake.jsonl",
        jsonl(
            {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]},
            {"timestamp": 3000, "input_length": 512, "output_length": 6, "hash_ids": [0]},
        ),
        [(0.0, 700, 5), (3.0, 512, 6)],
    ),
    "aiperf": Sample(
        "aiperf.jsonl",
        jsonl(
            {"session_id": "x", "timestamp": 1000, "input_length": 10, "output_length": 5},
            {"session_id": "x", "delay": 500, "input_length": 30, "output_length": 6},
            {"timestamp": 1200, "text_input": "a" * 41, "output_length": 7},
        ),
        [(0.0, 10, 5), (0.2, 11, 7), (0.5, 30, 6)],
    ),
    "bailian": Sample(
        "bailian.jsonl",
        jsonl(
            {
                **{"chat_id": 55, "parent_chat_id": -1, "timestamp": 1.0, "input_length": 33, "output_length": 5},
                **{"type": "text", "turn": 1, "hash_ids": [7, 8, 9]},
            },
            {
                **{"chat_id": 159, "parent_chat_id": 55, "timestamp": 61.0, "input_length": 64, "output_length": 6},
                **{"type": "text", "turn": 2, "hash_ids": [7, 8, 10, 11]},
            },
        ),
        [(0.0, 33, 5), (60.0, 64, 6)],
    ),
    "sharegpt": Sample(
        "sharegpt.json",
        json.dumps(
            [
                {
                    "id": "one",
                    "conversations": [
                        {"from": "human", "value": "a" * 40},
                        {"from": "gpt", "value": "b" * 20},
                        {"from": "human", "value": "c" * 8},
                        {"from": "gpt", "value": "d" * 4},
                    ],
                },
                {"id": "two", "conversations": [{"from": "gpt", "value": "b" * 20}]},
            ],
            indent=2,
        ),
        [(0.0, 10, 5), (0.0, 17, 1)],
        timed=False,
    ),
    "arena": Sample(
        "chats.jsonl",
        jsonl(
            battle(1682351600.5, "a" * 40, "b" * 20, "c" * 8, "d" * 4),
            battle(1682351591.0, "e" * 12, "f" * 9),
        ),
        [(0.0, 3, 3), (0.0, 3, 3), (9.5, 10, 5), (9.5, 10, 5), (69.5, 17, 1), (69.5, 17, 1)],
    ),
    "vidur": Sample(
        "vidur.csv",
        "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n4.314579,396,109\n",
        [(0.0, 374, 44), (4.314579, 396, 109)],
    ),
    "vidur-lengths": Sample(
        "vidur_lengths.csv",
        "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n10,5,15,2.0\n20,6,26,3.3\n",
        NO_TIMES,
        timed=False,
    ),
    "splitwise": Sample(
        "splitwise.csv",
        "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
        "0,0,0,0.5,1,10,5\n1,0,0,1.75,1,20,6\n",
        [(0.0, 10, 5), (1.25, 20, 6)],
    ),
    "llmservingsim": Sample(
        "llmservingsim.jsonl",
        jsonl(
            {
                **{"input_toks": 3, "output_toks": 2, "arrival_time_ns": 500_000_000},
                **{"input_tok_ids": [1, 2, 3], "output_tok_ids": [4, 5]},
            },
            {
                "session_id": "s",
                "arrival_time_ns": 1_500_000_000,
                "sub_requests": [
                    {"input_toks": 20, "output_toks": 6, "tool_duration_ns": 0},
                    {"input_toks": 40, "output_toks": 7, "tool_duration_ns": 250_000_000},
                ],
            },
            {"input_toks": 5, "output_toks": 1, "arrival_time_ns": 1_600_000_000},
        ),
        [(0.0, 3, 2), (1.0, 20, 6), (1.1, 5, 1), (1.25, 40, 7)],
    ),
    "blockhash": Sample(
        "blockhash.jsonl",
        jsonl(
            {"request_id": "r", "input_toks": 33, "output_toks": 2, "arrival_time_ns": 7, "block16_hash_ids": [0, 1]}
        ),
        [(0.0, 33, 2)],
    ),
    "ragpulse": Sample(
        "ragpulse.jsonl",
        jsonl(
            {
                **{"timestamp": "82", "input_length": 100, "output_length": 5},
                **{"hash_ids": RAG_PARTS, "session_id": "u1"},
            },
            {
                **{"timestamp": "93", "input_length": 120, "output_length": 6},
                **{"hash_ids": RAG_PARTS, "session_id": "u1"},
            },
        ),
        [(0.0, 100, 5), (11.0, 120, 6)],
    ),
    "weka": Sample(
        "weka.json",
        weka(
            weka_request(0.0, 130, 5, api_time=2.0, think_time=0.0),
            {"t": 10.0, "type": "subagent", "agent_id": "a1", "requests": [weka_request(1.0, 64, 3)]},
            weka_request(20.0, 200, 6, api_time=1.0, think_time=18.0),
        ),
        [(0.0, 130, 5), (11.0, 64, 3), (20.0, 200, 6)],
    ),
    "vllm-timed": Sample(
        "timed.jsonl",
        jsonl(
            {"timestamp": 0.25, "input_length": 33, "output_length": 5, "hash_ids": [0, 1, 2]},
            {"timestamp": 1.5, "input_length": 16, "output_length": 6, "hash_ids": [0]},
        ),
        [(0.0, 33, 5), (1.25, 16, 6)],
        format="vllm_timed",
    ),
    "own-csv": Sample(
        "own.csv",
        "arrival_s,prompt_tokens,output_tokens,session,turn,after,think_s,prefix_blocks,prefix_block_tokens\n"
        "0.5,33,5,s,0,-1,0.0,0 1,16\n1.5,64,6,s,1,0,0.25,0 1 2 3,16\n",
        [(0.5, 33, 5), (1.5, 64, 6)],
    ),
    "own-jsonl": Sample(
        "own.jsonl",
        jsonl(
            {"arrival_s": 0.0, "prompt_tokens": 10, "output_tokens": 5, "priority": 2},
            {"arrival_s": 1.5, "prompt_tokens": 20, "output_tokens": 6},
        ),
        [(0.0, 10, 5), (1.5, 20, 6)],
    ),
    "batch-sent": Sample(
        "batch_input.jsonl",
        jsonl(
            {
                **{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"},
                "body": {"model": "m", "messages": chat("a" * 40), "max_tokens": 5},
            },
            {
                **{"custom_id": "2", "method": "POST", "url": "/v1/completions"},
                "body": {"model": "m", "prompt": "b" * 77, "max_tokens": 6},
            },
        ),
        [(0.0, 10, 5), (0.0, 20, 6)],
        timed=False,
    ),
    "batch-answered": Sample(
        "batch_output.jsonl",
        jsonl(
            {
                "id": "b1",
                "custom_id": "1",
                "error": None,
                "response": {"status_code": 200, "body": answer(1_711_652_795, 10, 5)},
            },
            {"id": "b2", "custom_id": "2", "error": {"code": "x"}, "response": None},
            {
                "id": "b3",
                "custom_id": "3",
                "error": None,
                "response": {"status_code": 200, "body": answer(1_711_652_793, 20, 6)},
            },
        ),
        [(0.0, 20, 6), (2.0, 10, 5)],
    ),
    "openai-answers": Sample(
        "answers.jsonl",
        jsonl(answer(1_711_652_795, 10, 5), answer(1_711_652_797, 20, 6)),
        [(0.0, 10, 5), (2.0, 20, 6)],
    ),
    "openai-pairs": Sample(
        "pairs.jsonl",
        jsonl(
            {
                "timestamp": "2026-01-01T00:00:00Z",
                "request": {"model": "m", "messages": chat("a" * 40)},
                "response": {"choices": [{"message": {"role": "assistant", "content": "b" * 18}}]},
            },
            {
                "timestamp": "2026-01-01T00:00:01.5Z",
                "request": {"body": {"model": "m", "messages": chat("a" * 4)}},
                "response": {"body": answer(1, 20, 6)},
            },
        ),
        [(0.0, 10, 5), (1.5, 20, 6)],
    ),
    "openai-sent": Sample(
        "sent.jsonl",
        jsonl(
            {"model": "m", "messages": chat("a" * 40), "max_completion_tokens": 5},
            {"model": "m", "input": "b" * 80, "max_output_tokens": 6},
        ),
        NO_TIMES,
        timed=False,
    ),
    "otlp": Sample(
        "otlp.json",
        json.dumps(
            {
                "resourceSpans": [
                    {
                        "scopeSpans": [
                            {"spans": [span("1731000000500000000", 20, 6), span("1731000000000000000", 10, 5)]}
                        ]
                    }
                ]
            },
            indent=1,
        ),
        [(0.0, 10, 5), (0.5, 20, 6)],
    ),
    "otel-flat": Sample(
        "spans.jsonl",
        jsonl(
            {"name": "GET", "start_time": "2026-01-01T00:00:00Z", "attributes": {"http.method": "GET"}},
            {
                "start_time": "2026-01-01T00:00:01Z",
                "attributes": {"gen_ai.usage.prompt_tokens": 10, "gen_ai.usage.completion_tokens": 5},
            },
            {
                "start_time": "2026-01-01T00:00:03.5Z",
                "attributes": {"llm.token_count.prompt": 20, "llm.token_count.completion": 6},
            },
        ),
        [(0.0, 10, 5), (2.5, 20, 6)],
    ),
    "genai-perf": Sample(
        "inputs.json",
        json.dumps(
            {
                "data": [
                    {"payload": [{"model": "m", "messages": chat("a" * 40), "stream": True, "max_tokens": 5}]},
                    {"payload": [{"model": "m", "messages": chat("b" * 80), "stream": True, "max_tokens": 6}]},
                ]
            }
        ),
        NO_TIMES,
        timed=False,
    ),
    "litellm": Sample(
        "spend_logs.csv",
        "request_id,call_type,spend,total_tokens,prompt_tokens,completion_tokens,startTime,endTime,completionStartTime,"
        "model,user,status,session_id\n"
        "a,acompletion,0.1,15,10,5,2026-01-01T00:00:00.000Z,2026-01-01T00:00:01.000Z,,m,u,success,s\n"
        "b,acompletion,0,0,0,0,2026-01-01T00:00:02.000Z,2026-01-01T00:00:02.100Z,,m,u,failure,s\n"
        "c,acompletion,0.1,26,20,6,2026-01-01T00:00:03.250Z,2026-01-01T00:00:04.000Z,,m,u,success,s\n",
        [(0.0, 10, 5), (3.25, 20, 6)],
    ),
    "helicone": Sample(
        "helicone.jsonl",
        jsonl(
            {
                **{"request_id": "a", "request_created_at": "2026-01-01T00:00:00+00:00", "delay_ms": 900},
                **{"response_created_at": "2026-01-01T00:00:00.9+00:00", "response_status": 200, "request_model": "m"},
                **{"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "time_to_first_token": 70},
            },
            {
                **{"request_id": "b", "request_created_at": "2026-01-01T00:00:01+00:00", "delay_ms": 9},
                **{"response_created_at": "2026-01-01T00:00:01.9+00:00", "response_status": 429, "request_model": "m"},
                **{"prompt_tokens": None, "completion_tokens": None, "total_tokens": None, "time_to_first_token": None},
            },
            {
                **{"request_id": "c", "request_created_at": "2026-01-01T00:00:02+00:00", "delay_ms": 800},
                **{"response_created_at": "2026-01-01T00:00:02.8+00:00", "response_status": 200, "request_model": "m"},
                **{"prompt_tokens": 20, "completion_tokens": 6, "total_tokens": 26, "time_to_first_token": 80},
            },
        ),
        [(0.0, 10, 5), (2.0, 20, 6)],
    ),
    "blis": Sample(
        "trace_data.csv",
        "request_id,client_id,tenant_id,slo_class,session_id,round_index,input_tokens,output_tokens,model,deadline_us,"
        "server_input_tokens,arrival_time_us,send_time_us,first_chunk_time_us,last_chunk_time_us,num_chunks,status,"
        "error_message,finish_reason,think_time_us\n"
        "0,c,t,batch,s,0,10,5,m,0,10,500000,500100,510000,600000,5,ok,,stop,0\n"
        "1,c,t,batch,s,1,20,6,m,0,20,2000000,2000100,2010000,2600000,6,ok,,stop,1000000\n",
        [(0.0, 10, 5), (1.5, 20, 6)],
    ),
    "vllm-log": Sample(
        "server.log",
        "INFO 08-21 10:00:00 [api_server.py:1] vLLM API server version 0.10.0\n"
        "INFO 08-21 10:00:05 [logger.py:41] Received request cmpl-a-0: prompt: 'a\\'" + "b" * 38 + "', params: "
        "SamplingParams(n=1, temperature=1.0, max_tokens=5, min_tokens=0), prompt_token_ids: None, lora_request: None\n"
        "(APIServer pid=7) INFO 08-21 10:00:07 [logger.py:41] Received request chatcmpl-b: prompt: None, params: "
        "SamplingParams(n=2, max_tokens=6), prompt_token_ids: [" + ", ".join(["7"] * 20) + "], lora_request: None.\n",
        [(0.0, 10, 5), (2.0, 20, 6)],
    ),
    "common-csv": Sample(
        "common.csv",
        "timestamp,prompt_tokens,output_tokens\n1.5,10,5\n3,20,6\n",
        [(0.0, 10, 5), (1.5, 20, 6)],
    ),
    "common-jsonl": Sample(
        "common.jsonl",
        jsonl(
            {"createdAtMs": 1_731_000_000_700, "inputTokens": 10, "outputTokens": 5},
            {"createdAtMs": 1_731_000_001_000, "inputTokens": "20", "outputTokens": 6},
        ),
        [(0.0, 10, 5), (0.3, 20, 6)],
    ),
    "own-lengths": Sample("lengths.csv", "prompt_tokens,output_tokens\n10,5\n20,6\n", NO_TIMES, timed=False),
}
KINDS = {
    "azure-2023": "azure",
    "azure-2024": "azure",
    "burstgpt-v1": "burstgpt",
    "burstgpt-v2": "burstgpt",
    "aiperf": "mooncake",
    "arena": "chatbot_arena",
    "vidur-lengths": "vidur",
    "blockhash": "llmservingsim",
    "vllm-timed": "vllm_timed",
    "batch-sent": "openai_batch",
    "batch-answered": "openai_batch",
    "openai-answers": "openai_log",
    "openai-pairs": "openai_log",
    "openai-sent": "openai_log",
    "otlp": "otel",
    "otel-flat": "otel",
    "vllm-log": "vllm_log",
    "genai-perf": "genai_perf",
    "litellm": "common",
    "helicone": "common",
    "blis": "common",
    "common-csv": "common",
    "common-jsonl": "common",
    "own-csv": "foretoken",
    "own-jsonl": "foretoken",
    "own-lengths": "foretoken",
}
