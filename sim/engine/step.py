"""What a policy sees of one step: the queues, the budget, and two verbs, `grant` and `evict`. It is shown no memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Protocol, cast

from sim.engine.adapters import Adapters
from sim.engine.ahead import BlocksAhead
from sim.engine.batch import Entry, Limits, Swap, entry_of
from sim.engine.groups import Groups, together
from sim.engine.host import DEVICE, HostMemory
from sim.engine.lockstep import Members
from sim.engine.memory import Allocator, LockstepAllocator
from sim.engine.queues import WaitingQueue
from sim.engine.request import Handover, Request
from sim.engine.roster import Roster
from sim.engine.rules import Rules
from sim.engine.tiers import Pieces, TieredAllocator, Tiers
from sim.engine.tokens import TokenClock


class Policy(Protocol):
    """Decides what each step computes: a function of a `Step`, or an object where it must remember something.

    An object may also have these attributes, each optional:
    `queue_key(request)`: the order of the waiting queue (default: arrival, preempted requests first);
    `victim(running)`: whom to preempt when the KV cache is full (default: the newest of the running list);
    `scans_by_place`: True lets a victim that stood before the asker, and had got nothing in this step, cost the next in
    the running list its turn (vLLM 0.19 keeps its place in that list as a number; mended by 0.33);
    `holds_finished`: True keeps the seat and the memory of a finished request until no request runs;
    `every_step`: True where the decision depends on the time or on counters, so that no step may be repeated unasked;
    `advances_all`: True says of the class that has it and decides that with nobody waiting and all who run decoding it
    calls `advance_running` with no limit and nothing else, so that it need not be asked; who inherits and decides
    otherwise is asked;
    `async_by_default`: True where the next step is planned while the current one runs, unless the user says otherwise.
    """

    def __call__(self, step: Step) -> None: ...


class Step:
    """One scheduling decision in the making. Each verb takes effect at once; a refused verb changes nothing."""

    __slots__ = (
        "_allocator",
        "_blocks",
        "_forgets",
        "_groups",
        "_host",
        "_limits",
        "_placeholders",
        "_roster",
        "_rules",
        "_scans_by_place",
        "_still_refuses",
        "_tokens",
        "_under_way",
        "_victim",
        "adapters",
        "admitted_before",
        "advanced",
        "budget_tokens",
        "entries",
        "evicted",
        "holds_prefill",
        "now_s",
        "padded",
        "passed",
        "swaps",
        "tiers",
        "tokens_left",
        "waiting",
        "wake_s",
    )

    def __init__(
        self,
        policy: Policy,
        limits: Limits,
        roster: Roster,
        allocator: Allocator,
        blocks: LockstepAllocator | BlocksAhead | None,
        host: HostMemory,
        groups: Groups,
        tokens: TokenClock,
        under_way: Callable[[Request], int],
        rules: Rules,
        most_drafts: int,
    ) -> None:
        self._rules = rules
        self._placeholders = most_drafts if rules.pads_one_token_admissions else 0
        self._limits = limits
        self._roster = roster
        self._allocator = allocator
        self._forgets: bool = getattr(allocator, "keeps_nothing", False)
        self._blocks = blocks
        self._host = host
        self._groups = groups
        self._tokens = tokens
        self._under_way = under_way
        self._victim: Callable[[Collection[Request]], Request] = getattr(policy, "victim", None) or _newest
        self._still_refuses: Callable[[Request], bool] | None = getattr(allocator, "still_refuses", None)
        self._scans_by_place: bool = getattr(policy, "scans_by_place", False)
        self.budget_tokens = limits.max_num_batched_tokens
        self.waiting: WaitingQueue = roster.waiting
        """Requests not admitted, in queue order; granting the one just seen takes it out safely."""
        self.swaps: list[Swap] = []
        """What moves to the host or back before the next batch computes; whoever makes the batch takes them out."""
        self.tiers: Tiers | None = None
        self.adapters: Adapters | None = None
        self.begin(0.0)

    def begin(self, now_s: float) -> None:
        """Forget the last decision."""
        self.now_s = now_s
        self.tokens_left = self.budget_tokens
        self.entries: list[Entry] = []
        self.evicted: list[Request] = []
        self.passed: Collection[Request] = ()
        self.admitted_before = self._roster.admissions
        self.advanced = self.holds_prefill = False
        self.padded: tuple[int, int] | None = None
        self.wake_s: float | None = None
        if self.adapters is not None:
            self.adapters.changed()

    @property
    def running(self) -> Collection[Request]:
        """Admitted requests that have not finished, in admission order.

        Ask `computed` and `generated` of this step for their progress: a request's own counters stand still while
        it decodes in lockstep with others. Granting one by one what `advance_running` would grant costs time.
        """
        return self._roster.running.keys()

    @property
    def seats_left(self) -> int:
        """Sequences that may still be admitted; those that admitted requests will fork have their seats already."""
        return self._seats()

    def _seats(self) -> int:
        roster = self._roster
        return self._limits.max_num_seqs - len(roster.running) - len(roster.held) - roster.seats_promised

    @property
    def prefilling(self) -> bool:
        """Does a running request still have more than one token to compute, its repetitions without a cache aside?"""
        return any(req.known - req.computed > 1 and not (self._forgets and req.generated) for req in self._roster.loose)

    @property
    def backlog(self) -> bool:
        """Does anyone wait who may be admitted, rather than for a slot of an adapter?"""
        return len(self.waiting) > (0 if self.adapters is None else len(self.adapters.deferred))

    def cap(self, threshold: int, *, adaptive: bool = False) -> int:
        """Most tokens of one request in this step by a threshold; 0 (no cap) for a lone request, by the rules.

        adaptive: at least an even share of the budget. To be asked before anything is granted.
        """
        requests = len(self.running) + len(self.waiting)
        if requests == 1 and self._rules.lone_request_uncapped:
            return 0
        return max(threshold, self.budget_tokens // requests) if adaptive and requests else threshold

    @property
    def decoding(self) -> bool:
        """Does a running request decode? One whose last token is under way does."""
        roster = self._roster
        if roster.lockstep.count or any(req.computed >= req.seat.prefill_tokens for req in roster.loose):
            return True
        return any(req in roster.running for req in roster.draining)

    @property
    def prefilled(self) -> bool:
        """Does this step, so far, compute prompts (or what a preemption dropped)? An admission's last token is none."""
        return any(
            past < req.seat.prefill_tokens and not (req.seat.seq >= self.admitted_before and req.known - past == 1)
            for req, _, past in self.entries
        )

    def computed(self, req: Request) -> int:
        """KV tokens that the request has by now, this step's included."""
        lockstep = self._roster.lockstep
        return lockstep.computed(req) if req in lockstep else req.computed

    def generated(self, req: Request) -> int:
        """Output tokens of the request so far, those of batches in flight included, this step's not."""
        lockstep = self._roster.lockstep
        if req not in lockstep:
            return req.generated
        return lockstep.known(req, advanced=self.advanced) - req.prompt_tokens

    def ending(self, req: Request) -> bool:
        """Is the request's last token computed by a batch under way, so that it computes nothing more?"""
        return req.seat.drained

    # ---- verbs ----------------------------------------------------------------------------------------------------

    def grant(self, req: Request, most: int = 0, whole: bool = False) -> int:
        """Compute up to `most` more tokens of a request in this step (0: as many as the budget allows).

        A waiting request is admitted by its first grant. `whole` takes all its pending tokens or none; only the
        first grant of a step may be cut by the budget, else a prompt above the budget could never run.

        Returns:
            The tokens granted, or those that are loaded where the request's KV comes from a tier below: it leaves the
            queue then, and waits there again when they are here. 0 where budget, seats or memory refused, or where
            the request has had its share of this step or was evicted in it, and then nothing changed.
        """
        seat = req.seat
        if seat.granted_step == self._tokens.next_step or seat.drained or req in self.evicted:
            return 0
        if seat.seq < 0:
            return self._admit(req, most, whole)
        if req in self._roster.lockstep:
            if self.advanced:
                return 0
            self._roster.scatter()
        asking, tokens = self._share(req, most, whole)
        # Blocks that some beams of a search got in vain wait for the next attempt.
        if not tokens or not all(self._allocator.grow(sequence, tokens) for sequence in asking):
            return 0
        for sequence in asking:
            self._enter(sequence, tokens)
        return len(asking) * tokens

    def evict(self, req: Request) -> None:
        """Preempt a running request: its KV is dropped and it waits to be computed anew, tokens sampled included.

        Its share of this step is taken back, and so is that of requests admitted on top of KV that it would have
        computed in this step. The beams of a search go together, and it goes on from the first of them.

        Raises:
            ValueError: the request is not running.
        """
        running = self._roster.running
        if req not in running:
            raise ValueError(f"{req} is not running")
        beams = together(req)
        for beam in beams[1:]:
            if beam in running:
                self._withdraw(beam)
                self._allocator.release(beam)
                self._roster.drop(beam)
        req = beams[0]
        dependents = self._withdraw(req)
        self._preempt(req, swap=len(beams) == 1)
        if len(beams) > 1:
            req.seats = len(beams)
        self.evicted.append(req)
        for other in dependents:
            if other in running:
                self.evict(other)

    def advance_running(self, most: int = 0) -> None:
        """Serve the running list in admission order, at most `most` tokens each (0: no such limit).

        Where memory runs out the policy's victim is preempted, again and again, until the asker fits or is itself
        the victim, which ends the serving (vLLM V1, `Scheduler.schedule`). A request may get nothing when the
        budget is gone.
        """
        roster = self._roster
        lockstep = roster.lockstep
        if lockstep.count and not self.advanced and not self._advance_lockstep(lockstep, most):
            roster.scatter()
        if not roster.loose:
            return
        step = self._tokens.next_step
        for req in tuple(roster.loose):
            if self.tokens_left <= 0:
                break
            seat = req.seat
            if seat.granted_step == step or seat.seq < 0 or req in self.passed:
                continue
            if self.holds_prefill and req.computed < seat.prefill_tokens:
                continue
            if not self._serve(req, most) and not self._rules.scan_outlives_self_preemption:
                return

    def pad(self, rows: int, context_tokens: int) -> None:
        """Say that the step computes `rows` equal rows, whoever of them is still alive (static batching).

        `context_tokens` is the padded KV length of each row after this step.
        """
        self.padded = (rows, context_tokens)

    def wake_at(self, time_s: float) -> None:
        """Ask to be called again at that time where nothing else happens before."""
        self.wake_s = time_s if self.wake_s is None else min(self.wake_s, time_s)

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _advance_lockstep(self, lockstep: Members, most: int) -> bool:
        """Give every member of the lockstep its tokens, if serving the running list in order would have it so.

        Returns False where budget, memory or the order stands against it.
        """
        loose, blocks = self._roster.loose, self._blocks
        width, tick = lockstep.width, lockstep.tick
        if lockstep.count * width > self.tokens_left or blocks is None or 0 < most < width:
            return False
        if loose and loose[0].seat.seq < lockstep.last_seq:
            return False
        if not blocks.headroom(tick, 1) and not (isinstance(blocks, BlocksAhead) and self._make_way(blocks, tick)):
            return False
        blocks.step(tick)
        lockstep.tick = tick + 1
        self.tokens_left -= lockstep.count * width
        self.advanced = True
        return True

    def _make_way(self, blocks: BlocksAhead, tick: int) -> bool:
        """Preempt for members who lack blocks at this tick, in their order; False where a victim is none behind them.

        Those before that one have what they need then, and are given no more when they are served one by one.
        """
        while (asking := blocks.step(tick)) is not None:
            victim = self._victim(self._roster.running)
            if victim.seat.seq <= asking.seat.seq:
                return False
            self.evict(victim)
        return True

    def _share(self, req: Request, most: int, whole: bool) -> tuple[Sequence[Request], int]:
        """Who computes together with a running request, and how many tokens each; 0 where the budget refuses."""
        pending = req.known + req.seat.drafts - req.computed
        if req.group is None or not req.group.searching:
            return (req,), self._cut(pending, most, whole, req.seat.drafts)
        beams = together(req)
        return beams, pending if len(beams) * pending <= self.tokens_left else 0

    def _serve(self, req: Request, most: int) -> bool:
        """Give a running request its share, preempting for it; False where it had to give way itself."""
        asking, tokens = self._share(req, most, whole=False)
        if not tokens:
            return True
        passed = 0
        for sequence in asking:
            while not self._allocator.grow(sequence, tokens):
                victim = self._victim(self._roster.running)
                before = victim.seat.seq < sequence.seat.seq
                passed += self._scans_by_place and before and not self._has_share(victim)
                self.evict(victim)
                if sequence.seat.seq < 0:
                    return False
        if passed:
            behind = [other for other in self.running if other.seat.seq > req.seat.seq]
            self.passed = {*self.passed, *behind[:passed]}
        for sequence in asking:
            self._enter(sequence, tokens)
        return True

    def _has_share(self, req: Request) -> bool:
        """Does a running request compute anything in this step, so far?"""
        if req in self._roster.lockstep:
            return self.advanced
        return req.seat.granted_step == self._tokens.next_step

    def _cut(self, pending: int, most: int, whole: bool, drafts: int = 0) -> int:
        tokens = min(pending, most) if most else pending
        if tokens <= self.tokens_left:
            return tokens
        if whole and (self.entries or self.advanced):
            return 0
        # Drafts are cut even where prompts are not (vLLM V1, `Scheduler.schedule`, the running list).
        return self.tokens_left if drafts or self._limits.chunked_prefill else 0

    def _admit(self, req: Request, most: int, whole: bool) -> int:
        if self.tokens_left <= 0 or self._seats() < req.seats:
            return 0
        if self.adapters is not None and not self.adapters.fit(req):
            return 0
        arriving = req.handover
        if arriving is None and self.tiers is None and self._still_refuses is not None and self._still_refuses(req):
            return 0
        hit = arriving.tokens if arriving is not None else self._allocator.match(req)
        pieces = self.tiers.find(req, hit) if self.tiers is not None and arriving is None else ()
        if pieces and self.tiers is not None and not self.tiers.instant(pieces):
            return self._load(req, hit, pieces)
        return self._start(req, hit, pieces, most, whole)

    def _start(self, req: Request, found: int, pieces: Pieces, most: int, whole: bool) -> int:
        """Admit a request behind `found` tokens and those that come in no time; returns what it computes."""
        arriving = req.handover
        loaded = self.tiers.tokens(pieces) if pieces and self.tiers is not None else 0
        hit = found + loaded
        if self.holds_prefill and req.known - hit > 1:
            return 0
        tokens = self._cut(req.known - hit, most, whole)
        if tokens <= 0:
            return 0
        if self._placeholders and req.known - hit == 1:
            padded = 1 + self._padding(hit)
            if padded > self.tokens_left:
                return 0
            tokens = min(padded, most) if most else padded
        req.computed = found
        placed = arriving is not None and req in self._roster.landed
        if not (self._allocator.grow(req, tokens) if placed else self._allocator.admit(req, loaded + tokens)):
            req.computed = 0
            return 0
        if loaded and self.tiers is not None:
            self.tiers.begin(req, found, pieces)
            req.computed = hit
        self._roster.admit(req)
        if self.adapters is not None:
            self.adapters.admit(req)
        req.seat.prefill_tokens = req.known
        if math.isnan(req.first_scheduled_s):
            req.first_scheduled_s = self.now_s
            req.prefix_hit_tokens = hit
        if arriving is not None:
            if blocks := self._host.give_back(req):
                self._swap(req, blocks, out=False)
            req.handover = None
        self._enter(req, tokens)
        return tokens

    def _load(self, req: Request, hit: int, pieces: Pieces) -> int:
        """Let KV of a waiting request come from the tiers; returns its tokens, 0 where memory refused.

        It gets room for all that it knows, so that when it is loaded no other who holds memory stands in its way.
        """
        tiers, allocator = self.tiers, cast("TieredAllocator", self._allocator)
        assert tiers is not None
        req.computed = hit
        has_room = allocator.hold(req, req.known - hit)
        req.computed = 0
        if not has_room:
            return 0
        tiers.begin(req, hit, pieces)
        loaded = tiers.tokens(pieces)
        req.handover = Handover(hit + loaded, 0, "tiers", DEVICE, hit)
        self._roster.await_load(req)
        return loaded

    def _padding(self, hit: int) -> int:
        """Placeholders beside the one token left of an admission (`Rules.pads_one_token_admissions`)."""
        longest = self._limits.max_model_len
        if longest and hit + 2 + self._placeholders > longest:
            return 0
        running = [entry for entry in self.entries if entry.request.seat.seq < self.admitted_before]
        together = self.advanced and self._roster.lockstep.count > 0
        if not (running or together or hit):
            return 0
        prefills = any(entry.past < entry.request.seat.prefill_tokens for entry in running)
        return 0 if prefills else self._placeholders

    def _enter(self, req: Request, tokens: int) -> None:
        self.entries.append(entry_of((req, tokens, req.computed)))
        req.computed += tokens
        req.seat.granted_step = self._tokens.next_step
        self.tokens_left -= tokens

    def _swap(self, req: Request, blocks: int, *, out: bool) -> None:
        """Note that the first blocks of a request move to the host or back, in order with the copies asked for."""
        moved = list(self._allocator.table(req)[:blocks])
        self.swaps.append(Swap(req, moved, out, len(self._groups.forking.copies)))

    def _withdraw(self, req: Request) -> list[Request]:
        """Take a running request out of the step and all lists but `running`; returns who builds on its share."""
        dependents: list[Request] = []
        together_before = req in self._roster.lockstep
        self._roster.take_out(req)
        if together_before:
            if self.advanced:
                lockstep = self._roster.lockstep
                lockstep.withdraw(req)
                self.tokens_left += lockstep.width
            return dependents
        for at, entry in enumerate(self.entries):
            if entry.request is req:
                dependents = self._dependents(entry)
                req.computed = entry.past
                req.seat.withdrawn_tokens = entry.tokens
                req.seat.granted_step = -1
                self.tokens_left += entry.tokens
                del self.entries[at]
                break
        return dependents

    def _dependents(self, entry: Entry) -> list[Request]:
        """Requests whose share of this step builds on blocks that `entry` was to fill."""
        table, block_tokens = self._allocator.table, self._allocator.pool.block_tokens
        uncomputed = set(table(entry.request)[entry.past // block_tokens :])
        return [
            other.request
            for other in self.entries
            if other.request is not entry.request
            and not uncomputed.isdisjoint(table(other.request)[: other.past // block_tokens])
        ]

    def _preempt(self, req: Request, *, swap: bool) -> None:
        """Take the KV of a request that is in no list but `running`, and queue it again."""
        req.seat.in_flight = self._under_way(req)
        blocks = self._host.take(req) if swap else 0
        if blocks:
            self._swap(req, blocks, out=True)
        self._allocator.release(req)
        self._roster.drop(req)
        self._roster.put_back(req)
        if self.adapters is not None:
            self.adapters.changed()
        for finished in self._roster.let_go():
            self._allocator.release(finished)


def _newest(running: Collection[Request]) -> Request:
    return next(reversed(running))  # type: ignore[call-overload,no-any-return]
