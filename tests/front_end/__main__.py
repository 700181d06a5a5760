"""Measures the front end of an installed vLLM: starts `server.py` in its environment, sends requests, fits the costs.

DIR is the environment that `sim engine vllm==0.33.0` made, with `uvicorn httptools uvloop tokenizers` beside it; here
aiohttp is needed. Takes some minutes, without a GPU. CPU seconds are counted, so that other work matters little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
URL = "http://127.0.0.1:8765"
STEPS = 120


async def one(session: Any, prompt: str, output: int) -> None:
    body = {"model": "m", "prompt": prompt, "max_tokens": output, "stream": True, "temperature": 0.0}
    async with session.post(f"{URL}/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
        async for _ in response.content.iter_any():
            pass


async def counted(session: Any, prompts: list[str], output: int, rows: int) -> dict[str, float]:
    """What the server's counters grew by while it answered; with `rows` no step before so many requests are there."""
    pause_s = 0.05 if rows > 100 else 0.02

    async def counters(**query: float) -> dict[str, float]:
        async with session.get(f"{URL}/stats", params=query) as response:
            return dict(await response.json())

    before = await counters(rows=rows, step_s=pause_s)
    await asyncio.gather(*(one(session, prompt, output) for prompt in prompts))
    after = await counters()
    return {name: value - before[name] for name, value in after.items()}


async def measured(words: list[str]) -> dict[str, float]:
    import aiohttp

    def prompts(count: int, length: int) -> list[str]:
        starts = [random.Random(number).randrange(len(words) - length) for number in range(count)]
        return [" ".join(words[at : at + length]) for at in starts]

    timeout, connector = aiohttp.ClientTimeout(total=900), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        for _ in range(2400):  # importing vLLM takes a while
            try:
                await counted(session, [], 1, 0)
                break
            except aiohttp.ClientError:
                await asyncio.sleep(0.5)
        await counted(session, prompts(50, 50), 5, 0)
        whole = [await counted(session, prompts(100, length), 1, 0) for length in (20, 700, 2800) for _ in range(2)]
        steps = [await counted(session, prompts(rows, 20), STEPS, rows) for rows in (1, 8, 64, 256) for _ in range(2)]
    # A request costs so much, and each of its tokens; all threads counted, since the tokeniser's is one too.
    x = np.array([[run["requests"], run["prompt_tokens"]] for run in whole])
    request_s, token_s = np.linalg.lstsq(x, np.array([run["process_s"] for run in whole]), rcond=None)[0]
    # A step costs so much and each of its outputs: `process_outputs`, then all else of the loop, which sends them.
    x = np.array([[run["steps"], run["outputs"]] for run in steps])
    loop_s = np.array([run["thread_s"] - run["engine_s"] - run["requests"] * request_s for run in steps])
    step_s, both_s = np.linalg.lstsq(x, loop_s, rcond=None)[0]
    output_s = sum(run["process_outputs_s"] for run in steps) / sum(run["outputs"] for run in steps)
    found = {"request_s": request_s, "prompt_token_s": token_s, "step_s": step_s, "output_s": output_s}
    return {name: float(value) for name, value in (found | {"stream_s": both_s - output_s}).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Path, required=True, help="environment of sim engine")
    engine = parser.parse_args().engine
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((HERE.parents[1] / "docs").glob("*.md")))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text.txt").write_text(text, encoding="utf-8")
        server = subprocess.Popen([engine / "bin/python", HERE / "server.py", folder], stdout=sys.stderr)
        try:
            found = asyncio.run(measured(text.split()))
        finally:
            server.terminate()
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
