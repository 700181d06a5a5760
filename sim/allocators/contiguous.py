"""One run of consecutive blocks per request, reserved at admission: how KV memory was held before paging.

The three ways to size a reservation are those that the vLLM paper compares with (Kwon et al. 2023, section 6.1).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from sim.engine.memory import Drift, KvPool, Usage
from sim.engine.request import Request
from traces.schema import InputError


class Contiguous:
    """Reserves a request's whole KV at admission, in one piece of a real address space with real holes.

    Args:
        reserve: "max" reserves the model's maximum length for everybody; "pow2" the prompt and the output rounded up
            to a power of two; "oracle" exactly what the request will use. The last two know the output's length
            beforehand, which no real system does.
        fit: "first" takes the lowest hole that is large enough, "best" the smallest.
    """

    appends = True

    def __init__(self, pool: KvPool, *, reserve: str = "max", fit: str = "first") -> None:
        if reserve not in ("max", "pow2", "oracle"):
            raise InputError(f"allocator.reserve is {reserve!r}; contiguous knows max, pow2 and oracle")
        if fit not in ("first", "best"):
            raise InputError(f"allocator.fit is {fit!r}; contiguous knows first and best")
        if reserve == "max" and pool.max_request_tokens < 1:
            raise InputError("the contiguous-max allocator reserves engine.max_model_len tokens; set it")
        self.pool = pool
        self._reserve = reserve
        self._best = fit == "best"
        self._holes: list[tuple[int, int]] = [(1, pool.blocks)]
        self._runs: dict[Request, range] = {}
        self._spare: dict[Request, list[range]] = {}
        self.copies: list[tuple[int, int]] = []
        self.free_blocks = pool.blocks
        self._final_tokens = 0
        self._refused_blocks = 0
        self._joined = 0

    def refusal(self, req: Request) -> str | None:
        need = self._need(req)
        if need * req.seats > self.pool.blocks:
            each = f" for each of its {req.seats} sequences" if req.seats > 1 else ""
            return f"its reservation is {need} KV blocks{each} and the cache has {self.pool.blocks}"
        if req.final_kv_tokens > need * self.pool.block_tokens:
            return f"its {req.final_kv_tokens} KV tokens exceed the reservation of {self.pool.max_request_tokens}"
        return None

    def match(self, req: Request) -> int:
        return 0

    def admit(self, req: Request, tokens: int) -> bool:
        need = self._need(req)
        if sum(length // need for _, length in self._holes) < req.seats:
            self._refused_blocks = need
            return False
        self._runs[req] = self._reserve_run(need)
        if req.seats > 1:
            self._spare[req] = [self._reserve_run(need) for _ in range(req.seats - 1)]
        self._final_tokens += req.final_kv_tokens * req.seats
        self._refused_blocks = 0
        return True

    def grow(self, req: Request, tokens: int) -> bool:
        return True

    def fork(self, parent: Request, child: Request) -> None:
        """Nothing can be shared: the child gets a run of its own and a copy of all that is computed."""
        if child not in self._runs:
            spare = self._spare[parent]
            self._runs[child] = spare.pop()
            if not spare:
                del self._spare[parent]
        blocks = self.pool.blocks_for(parent.computed)
        self.copies += zip(self._runs[parent][:blocks], self._runs[child][:blocks], strict=True)

    def owns_tail(self, req: Request) -> bool:
        return True

    def release(self, req: Request) -> None:
        run = self._runs.pop(req)
        for one in (run, *self._spare.pop(req, ())):
            self._final_tokens -= req.final_kv_tokens
            self._free_run(one)

    def _reserve_run(self, need: int) -> range:
        fitting = [hole for hole in self._holes if hole[1] >= need]
        hole = min(fitting, key=lambda hole: hole[1]) if self._best else fitting[0]
        at = bisect_left(self._holes, hole)
        if hole[1] == need:
            del self._holes[at]
        else:
            self._holes[at] = (hole[0] + need, hole[1] - need)
        self.free_blocks -= need
        return range(hole[0], hole[0] + need)

    def _free_run(self, run: range) -> None:
        self.free_blocks += len(run)
        start, length = run.start, len(run)
        at = bisect_left(self._holes, (start, 0))
        if at < len(self._holes) and self._holes[at][0] == start + length:
            length += self._holes.pop(at)[1]
        if at and sum(self._holes[at - 1]) == start:
            start, before = self._holes.pop(at - 1)
            length += before
        insort(self._holes, (start, length))

    def table(self, req: Request) -> Sequence[int]:
        return self._runs[req]

    def usage(self, computed_tokens: int) -> Usage:
        block_tokens = self.pool.block_tokens
        held = (self.pool.blocks - self.free_blocks) * block_tokens
        external = sum(length for _, length in self._holes if length < self._refused_blocks) * block_tokens
        return Usage(
            computed_tokens,
            0,
            self._final_tokens - computed_tokens,
            held - self._final_tokens,
            external,
            self.free_blocks * block_tokens - external,
        )

    def join(self, req: Request, tick: int) -> None:
        self._joined += 1

    def leave(self, req: Request) -> None:
        self._joined -= 1

    def headroom(self, tick: int, limit: int) -> int:
        return limit

    def step(self, tick: int) -> None:
        """Nothing more is needed than was reserved."""

    def advance(self, tick: int, steps: int) -> Drift:
        gained = self._joined * (steps * (steps + 1) // 2)
        return Drift(used=-gained, reserved=gained)

    def _need(self, req: Request) -> int:
        if self._reserve == "max":
            tokens = self.pool.max_request_tokens
        elif self._reserve == "pow2":
            # Drafts may be written behind the answer's end.
            tokens = max(req.prompt_tokens + (1 << (req.output_tokens - 1).bit_length()), req.final_kv_tokens)
        else:
            tokens = req.final_kv_tokens
        return self.pool.blocks_for(tokens)
