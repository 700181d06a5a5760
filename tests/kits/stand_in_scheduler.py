"""A small scheduler that speaks as `sim/engines/drivers/vllm_v1.py` does: first come first served, nothing cached.

Drafts are verified where steps follow one another.

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
        self.drafting = bool(settings["speculative"])

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.size)

    def schedule(self, add: list[dict[str, Any]]) -> dict[str, Any]:
        self.waiting += [{**asked, "computed": 0, "made": 0, "drafts": 0, "held": 0} for asked in add]
        left, shares, admitted = self.settings["max_num_batched_tokens"], [], []
        for req in [*self.running, *self.waiting]:
            known = req["prompt"] + req["made"] + req["drafts"]
            tokens = min(known - req["computed"], left)
            more = max(0, self.blocks(req["computed"] + tokens) - req["held"])
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
            req["held"] += more
        samplers = [req for req, _, _ in shares if req["computed"] >= req["prompt"] + req["made"]]
        drafts = []
        for req in samplers:
            if drafted := req["computed"] - req["prompt"] - req["made"]:
                drafts.append([req["id"], drafted])
            req["made"] += 0 if self.drafting else 1
        if shares:
            self.batches.append([(req, req["made"]) for req in samplers])
        return {
            "shares": [[req["id"], tokens, past] for req, tokens, past in shares],
            "admitted": admitted,
            "preempted": [],
            "samples": [req["id"] for req in samplers],
            "drafts": drafts,
            "running": [req["id"] for req in self.running],
            "waiting": [req["id"] for req in self.waiting],
            "free": self.free,
        }

    def update(self, accepted: list[int] | None = None, proposed: list[int] | None = None) -> dict[str, Any]:
        batch = self.batches.pop(0)
        if self.drafting:
            assert accepted is not None
            assert proposed is not None
            return self.verified([req for req, _ in batch], accepted, proposed)
        ended = [req for req, made in batch if made == req["output"]]
        for req in ended:
            self.running.remove(req)
            self.free += req["held"]
        first = [req["id"] for req, made in batch if made == 1]
        return {"first": first, "ended": [req["id"] for req in ended], "free": self.free}

    def verified(self, samplers: list[dict[str, Any]], accepted: list[int], proposed: list[int]) -> dict[str, Any]:
        first, ended = [], []
        for req, right, drafts in zip(samplers, accepted, proposed, strict=True):
            first += [] if req["made"] else [req["id"]]
            req["made"] = min(req["made"] + 1 + right, req["output"])
            req["computed"] = min(req["computed"], req["prompt"] + req["made"] - 1)
            req["drafts"] = drafts
            if req["made"] == req["output"]:
                ended.append(req["id"])
                self.running.remove(req)
                self.free += req["held"]
        return {"first": first, "ended": ended, "free": self.free}


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
            said = scheduler.schedule(told["add"]) if what == "schedule" else scheduler.update(**told)
        if number == at:
            said = {"error": "KeyError: no such block"} if fault == "refuses" else said
            if fault == "babbles":
                print("Segmentation fault", flush=True)
                continue
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
