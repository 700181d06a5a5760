"""A small scheduler that speaks as `sim/engines/drivers/vllm_v1.py` does: first come first served, nothing cached.

`python tests/kits/stand_in_scheduler.py [dies|hangs|babbles|refuses AT]`: it misbehaves at its AT-th question.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


class Scheduler:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.size = settings, settings["block_size"]
        self.free = settings["num_gpu_blocks"] - 1
        self.waiting: list[dict[str, Any]] = []
        self.running: list[dict[str, Any]] = []
        self.batches: list[list[tuple[dict[str, Any], int]]] = []

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.size)

    def schedule(self, add: list[dict[str, Any]]) -> dict[str, Any]:
        self.waiting += [{**asked, "computed": 0, "made": 0} for asked in add]
        left, shares, admitted = self.settings["max_num_batched_tokens"], [], []
        for req in [*self.running, *self.waiting]:
            known = req["prompt"] + req["made"]
            tokens = min(known - req["computed"], left)
            more = self.blocks(req["computed"] + tokens) - self.blocks(req["computed"])
            new = req not in self.running
            if new and (len(self.running) >= self.settings["max_num_seqs"] or self.blocks(known) > self.free):
                break
            if tokens <= 0 or more > self.free or req["made"] >= req["output"]:
                continue
            if new:
                self.waiting.remove(req)
                self.running.append(req)
                admitted.append(req["id"])
            shares.append((req, tokens, req["computed"]))
            self.free, left, req["computed"] = self.free - more, left - tokens, req["computed"] + tokens
        samplers = [req for req, _, _ in shares if req["computed"] == req["prompt"] + req["made"]]
        for req in samplers:
            req["made"] += 1
        if shares:
            self.batches.append([(req, req["made"]) for req in samplers])
        return {
            "shares": [[req["id"], tokens, past] for req, tokens, past in shares],
            "admitted": admitted,
            "preempted": [],
            "samples": [req["id"] for req in samplers],
            "running": [req["id"] for req in self.running],
            "waiting": [req["id"] for req in self.waiting],
            "free": self.free,
        }

    def update(self) -> dict[str, Any]:
        batch = self.batches.pop(0)
        ended = [req for req, made in batch if made == req["output"]]
        for req in ended:
            self.running.remove(req)
            self.free += self.blocks(req["computed"])
        first = [req["id"] for req, made in batch if made == 1]
        return {"first": first, "ended": [req["id"] for req in ended], "free": self.free}


def main() -> None:
    fault, at = (sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 2 else ("", 0)
    scheduler = None
    for number, line in enumerate(sys.stdin, 1):
        if number == at and fault == "dies":
            sys.exit("out of memory, said the scheduler")
        if number == at and fault == "hangs":
            time.sleep(10**6)
        ((what, told),) = json.loads(line).items()
        if what == "start":
            scheduler, said = Scheduler(told), {"vllm": "0.33.0"}
        else:
            assert scheduler is not None
            said = scheduler.schedule(told["add"]) if what == "schedule" else scheduler.update()
        if number == at:
            said = {"error": "KeyError: no such block"} if fault == "refuses" else said
            if fault == "babbles":
                print("Segmentation fault", flush=True)
                continue
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
