"""What a policy sees of one step: the queues, the budget, and two verbs, `grant` and `evict`. It is shown no memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from sim.engine.batch import Entry, Swap
from sim.engine.request import Group, Request

if TYPE_CHECKING:
    from sim.engine.engine import Engine
    from sim.engine.queues import WaitingQueue


class Policy(Protocol):
    """Decides what each step computes: a function of a `Step`, or an object where it must remember something.

    An object may also have these attributes, each optional:
    `queue_key(request)`: the order of the waiting queue (default: arrival, preempted requests first);
    `victim(running)`: whom to preempt when the KV cache is full (default: the newest of the running list);
    `scans_by_place`: True lets a victim that stood before the asker, and had got nothing in this step, cost the next in
    the running list its turn (vLLM 0.19 keeps its place in that list as a number; mended by 0.33);
    `holds_finished`: True keeps the seat and the memory of a finished request until no request runs;
    `every_step`: True where the decision depends on the time or on counters, so that no step may be repeated unasked;
    `async_by_default`: True where the next step is planned while the current one runs, unless the user says otherwise.
    """

    def __call__(self, step: Step) -> None: ...


class Step:
    """One scheduling decision in the making. Each verb takes effect at once; a refused verb changes nothing."""

    __slots__ = (
        "_engine",
        "_scans_by_place",
        "_victim",
        "advanced",
        "budget_tokens",
        "entries",
        "evicted",
        "now_s",
        "padded",
        "passed",
        "swaps",
        "tokens_left",
        "waiting",
        "wake_s",
    )

    def __init__(self, engine: Engine, policy: Policy) -> None:
        self._engine = engine
        self._victim: Callable[[Collection[Request]], Request] = getattr(policy, "victim", None) or _newest
        self._scans_by_place: bool = getattr(policy, "scans_by_place", False)
        self.budget_tokens = engine.limits.max_num_batched_tokens
        self.waiting: WaitingQueue = engine.waiting
        """Requests not admitted, in queue order; granting the one just seen takes it out safely."""
        self.swaps: list[Swap] = []
        """What moves to the host or back before the next batch computes; whoever makes the batch takes them out."""
        self.begin(0.0)

    def begin(self, now_s: float) -> None:
        """Forget the last decision."""
        self.now_s = now_s
        self.tokens_left = self.budget_tokens
        self.entries: list[Entry] = []
        self.evicted: list[Request] = []
        self.passed: Collection[Request] = ()
        self.advanced = False
        self.padded: tuple[int, int] | None = None
        self.wake_s: float | None = None

    @property
    def running(self) -> Collection[Request]:
        """Admitted requests that have not finished, in admission order.

        Ask `computed` and `generated` of this step for their progress: a request's own counters stand still while
        it decodes in lockstep with others. Granting one by one what `advance_running` would grant costs time.
        """
        return self._engine.running.keys()

    @property
    def seats_left(self) -> int:
        """Sequences that may still be admitted; those that admitted requests will fork have their seats already."""
        engine = self._engine
        return engine.limits.max_num_seqs - len(engine.running) - len(engine.held) - engine.seats_promised

    @property
    def prefilling(self) -> bool:
        """Does a running request still have more than one token to compute, its repetitions without a cache aside?"""
        forgets = self._engine.forgets
        return any(req.known - req.computed > 1 and not (forgets and req.generated) for req in self._engine.loose)

    def computed(self, req: Request) -> int:
        """KV tokens that the request has by now, this step's included."""
        lockstep = self._engine.lockstep
        return lockstep.computed(req) if req in lockstep else req.computed

    def generated(self, req: Request) -> int:
        """Output tokens of the request so far, those of batches in flight included, this step's not."""
        if req not in self._engine.lockstep:
            return req.generated
        return self.computed(req) + (0 if self.advanced else 1) - req.prompt_tokens

    def grant(self, req: Request, most: int = 0, *, whole: bool = False) -> int:
        """Compute up to `most` more tokens of a request in this step (0: as many as the budget allows).

        A waiting request is admitted by its first grant. `whole` takes all its pending tokens or none; only the
        first grant of a step may be cut by the budget, else a prompt above the budget could never run.

        Returns:
            The tokens granted; 0 where budget, seats or memory refused, or where the request has had its share of
            this step or was evicted in it, and then nothing changed.
        """
        engine = self._engine
        if req.granted_step == engine.next_step or req.drained or req in self.evicted:
            return 0
        if req.seq < 0:
            return self._admit(req, most, whole)
        if req in engine.lockstep:
            if self.advanced:
                return 0
            engine.scatter()
        if req.group is not None and req.group.searching:
            return self._grant_beams(req.group)
        tokens = self._cut(req.pending, most, whole, drafts=req.drafts)
        return tokens if tokens and self._grow(req, tokens) else 0

    def evict(self, req: Request) -> None:
        """Preempt a running request: its KV is dropped and it waits to be computed anew, tokens sampled included.

        Its share of this step is taken back, and so is that of requests admitted on top of KV that it would have
        computed in this step. The beams of a search go together, and it goes on from the first of them.

        Raises:
            ValueError: the request is not running.
        """
        engine = self._engine
        if req not in engine.running:
            raise ValueError(f"{req} is not running")
        group = req.group
        if group is not None and group.searching:
            for other in group.members[1:]:
                if other in engine.running:
                    self._withdraw(other)
                    engine.disband(other)
            req = group.members[0]
            dependents = self._withdraw(req)
            engine.preempt(req, swap=False)
            req.seats = group.size
        else:
            dependents = self._withdraw(req)
            engine.preempt(req)
        self.evicted.append(req)
        for other in dependents:
            if other in engine.running:
                self.evict(other)

    def _withdraw(self, req: Request) -> list[Request]:
        """Take a running request out of the step and all lists but `running`; returns who builds on its share."""
        engine = self._engine
        dependents: list[Request] = []
        if req in engine.lockstep:
            engine.leave_lockstep(req)
            if self.advanced:
                req.withdrawn_tokens = 1
                req.computed -= 1
                req.known -= 1
                self.tokens_left += 1
        else:
            if req in engine.loose:
                engine.loose.remove(req)
            for at, entry in enumerate(self.entries):
                if entry.request is req:
                    dependents = self._dependents(entry)
                    req.computed = entry.past
                    req.withdrawn_tokens = entry.tokens
                    req.granted_step = -1
                    self.tokens_left += entry.tokens
                    del self.entries[at]
                    break
        return dependents

    def advance_running(self, most: int = 0) -> None:
        """Serve the running list in admission order, at most `most` tokens each (0: no such limit).

        Where memory runs out the policy's victim is preempted, again and again, until the asker fits or is itself
        the victim, which ends the serving (vLLM V1, `Scheduler.schedule`). A request may get nothing when the
        budget is gone.
        """
        engine = self._engine
        if not self.advanced:
            tokens = engine.advance_lockstep(self.tokens_left)
            if tokens:
                self.tokens_left -= tokens
                self.advanced = True
            else:
                engine.scatter()
        for req in tuple(engine.loose):
            if self.tokens_left <= 0:
                break
            if req.granted_step == engine.next_step or req.seq < 0 or req in self.passed:
                continue
            if not self._serve(req, most):
                return

    def _serve(self, req: Request, most: int) -> bool:
        """Give a running request its share, preempting for it; False where it had to give way itself."""
        if req.group is not None and req.group.searching:
            asking, tokens = req.group.members, req.pending
            if len(asking) * tokens > self.tokens_left:
                return True
        else:
            asking, tokens = [req], self._cut(req.pending, most, whole=False, drafts=req.drafts)
            if not tokens:
                return True
        passed = 0
        for one in asking:
            while not self._engine.allocator.grow(one, tokens):
                victim = self._victim(self._engine.running)
                passed += self._scans_by_place and victim.seq < one.seq and not self._has_share(victim)
                self.evict(victim)
                if one.seq < 0:
                    return False
        if passed:
            behind = [other for other in self.running if other.seq > req.seq]
            self.passed = {*self.passed, *behind[:passed]}
        for one in asking:
            self._enter(one, tokens)
        return True

    def _has_share(self, req: Request) -> bool:
        """Does a running request compute anything in this step, so far?"""
        if req in self._engine.lockstep:
            return self.advanced
        return req.granted_step == self._engine.next_step

    def pad(self, rows: int, context_tokens: int) -> None:
        """Say that the step computes `rows` equal rows, whoever of them is still alive (static batching).

        `context_tokens` is the padded KV length of each row after this step.
        """
        self.padded = (rows, context_tokens)

    def wake_at(self, time_s: float) -> None:
        """Ask to be called again at that time where nothing else happens before."""
        self.wake_s = time_s if self.wake_s is None else min(self.wake_s, time_s)

    def swap(self, req: Request, blocks: Sequence[int], *, out: bool) -> None:
        """Note that these blocks of a request move to the host or back, in order with the copies asked for so far."""
        self.swaps.append(Swap(req, list(blocks), out, len(self._engine.copies_asked)))

    def _dependents(self, entry: Entry) -> list[Request]:
        """Requests whose share of this step builds on blocks that `entry` was to fill."""
        table, block_tokens = self._engine.allocator.table, self._engine.allocator.pool.block_tokens
        uncomputed = set(table(entry.request)[entry.past // block_tokens :])
        return [
            other.request
            for other in self.entries
            if other.request is not entry.request
            and not uncomputed.isdisjoint(table(other.request)[: other.past // block_tokens])
        ]

    def _grant_beams(self, group: Group) -> int:
        """A token for each beam or for none; blocks that some of them got in vain wait for the next attempt."""
        beams, tokens = group.members, group.members[0].pending
        if len(beams) * tokens > self.tokens_left:
            return 0
        if not all(self._engine.allocator.grow(one, tokens) for one in beams):
            return 0
        for one in beams:
            self._enter(one, tokens)
        return len(beams) * tokens

    def _grow(self, req: Request, tokens: int) -> bool:
        if not self._engine.allocator.grow(req, tokens):
            return False
        self._enter(req, tokens)
        return True

    def _cut(self, pending: int, most: int, whole: bool, *, drafts: int = 0) -> int:
        tokens = min(pending, most) if most else pending
        if tokens <= self.tokens_left:
            return tokens
        if whole and (self.entries or self.advanced):
            return 0
        # Drafts are cut even where prompts are not (vLLM V1, `Scheduler.schedule`, the running list).
        return self.tokens_left if drafts or self._engine.limits.chunked_prefill else 0

    def _admit(self, req: Request, most: int, whole: bool) -> int:
        engine = self._engine
        if self.tokens_left <= 0 or self.seats_left < req.seats:
            return 0
        hit = req.swapped_tokens or engine.allocator.match(req)
        tokens = self._cut(req.known - hit, most, whole)
        if tokens <= 0:
            return 0
        req.computed = hit
        if not engine.allocator.admit(req, tokens):
            req.computed = 0
            return 0
        engine.enter(req, hit, self.now_s)
        self._enter(req, tokens)
        return tokens

    def _enter(self, req: Request, tokens: int) -> None:
        self.entries.append(Entry(req, tokens, req.computed))
        req.computed += tokens
        req.granted_step = self._engine.next_step
        self.tokens_left -= tokens


def _newest(running: Collection[Request]) -> Request:
    return next(reversed(running))  # type: ignore[call-overload,no-any-return]
