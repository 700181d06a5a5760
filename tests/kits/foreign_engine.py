"""Another's scheduler (FCFS, chunked prefill, the newest preempted, as in vLLM V1), and an engine made of it."""

from __future__ import annotations

from sim.engine.batch import Batch, Committed, Entry, Limits, Outcome, Shape
from sim.engine.memory import KvPool, Usage
from sim.engine.protocol import Counts
from sim.engine.request import Request, Seat
from sim.engine.tokens import TokenClock


class Scheduler:
    def __init__(self, seats: int, budget: int, block_tokens: int, blocks: int) -> None:
        self.seats, self.budget, self.block_tokens, self.free = seats, budget, block_tokens, blocks
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.held: dict[Request, int] = {}

    def add_request(self, req: Request) -> None:
        self.waiting.append(req)

    def schedule(self) -> tuple[list[Entry], list[Request]]:
        left, shares, preempted = self.budget, {}, []
        for req in list(self.running):
            tokens = min(req.known - req.computed, left)
            while tokens and req in self.running and not self._allocate(req, req.computed + tokens):
                victim = self.running.pop()
                left += shares.pop(victim, 0)
                self.free += self.held.pop(victim)
                victim.computed, victim.preemptions = 0, victim.preemptions + 1
                self.waiting.insert(0, victim)
                preempted.append(victim)
            if tokens and req in self.running:
                shares[req], left = tokens, left - tokens
        while self.waiting and not preempted and left and len(self.running) < self.seats:
            req = self.waiting[0]
            tokens = min(req.known, left)
            if -(-req.known // self.block_tokens) > self.free or not self._allocate(req, tokens):
                break
            self.running.append(self.waiting.pop(0))
            shares[req], left = tokens, left - tokens
        return [Entry(req, tokens, req.computed) for req, tokens in shares.items()], preempted

    def update(self, ended: Request) -> None:
        self.running.remove(ended)
        self.free += self.held.pop(ended)

    def _allocate(self, req: Request, tokens: int) -> bool:
        held = self.held.get(req, 0)
        more = max(0, -(-tokens // self.block_tokens) - held)
        if more > self.free:
            return False
        self.free, self.held[req] = self.free - more, held + more
        return True


class Foreign:
    """`Scheduler` as an engine of a scenario: `engine.name = "foreign_engine:Foreign"`."""

    def __init__(self, limits: Limits, pool: KvPool) -> None:
        self.scheduler = Scheduler(limits.max_num_seqs, limits.max_num_batched_tokens, pool.block_tokens, pool.blocks)
        self.waiting, self.running, self.pool = self.scheduler.waiting, self.scheduler.running, pool
        self.tokens, self.wake_s = TokenClock(), None

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def refusal(self, req: Request) -> str | None:
        return None if self.pool.blocks_for(req.final_kv_tokens) <= self.pool.blocks else "it is too long"

    def add(self, req: Request) -> None:
        req.seat = Seat()
        self.scheduler.add_request(req)

    def abort(self, req: Request) -> bool:
        self.waiting.remove(req) if req in self.waiting else self.scheduler.update(req)
        return True

    def plan(self, now_s: float) -> Batch:
        entries, preempted = self.scheduler.schedule()
        batch = Batch(self.tokens.next_step, now_s, entries, 0, preempted)
        decodes = [entry.past + 1 for entry in entries if entry.tokens == 1 and entry.past]
        prefills = tuple((tokens, past) for _, tokens, past in entries if not (tokens == 1 and past))
        batch.shape = Shape(prefills, len(decodes), sum(decodes))
        batch.running, batch.waiting = len(self.running), len(self.waiting)
        self.tokens.next_step += bool(entries)
        for req, tokens, past in entries:
            req.computed += tokens
            if past == 0 and req.preemptions == 0:
                req.first_scheduled_s = now_s
            if req.computed == req.known:
                req.known += 1
                self.tokens.give(req, batch.first_step)
                batch.first_tokens += [req] if req.generated == 1 else []
                batch.finishing += [req] if req.generated == req.output_tokens else []
        return batch

    def seal(self, batch: Batch, repeats: int) -> None:
        pass

    def commit(self, batch: Batch, outcome: Outcome, end_s: float) -> Committed:
        for req in batch.first_tokens:
            req.first_token_s = end_s
        for req in batch.finishing:
            req.finished, req.finish_s = True, end_s
            self.tokens.close(req)
            self.scheduler.update(req)
        return Committed(batch.first_tokens, batch.finishing, batch.finishing)

    def usage(self) -> Usage:
        used, held = sum(req.computed for req in self.running), sum(self.scheduler.held.values())
        return Usage(used, 0, held * self.pool.block_tokens - used, 0, 0, self.scheduler.free * self.pool.block_tokens)

    def counts(self) -> Counts:
        return Counts(len(self.waiting), len(self.running), self.usage().used, self.scheduler.free)

    def cached_tokens(self, req: Request) -> int:
        return 0
