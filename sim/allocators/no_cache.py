"""No KV cache: every step computes all tokens of a request again. It shows what the cache is for."""

from __future__ import annotations

from collections.abc import Sequence

from sim.engine.memory import KvPool, Usage
from sim.engine.request import Request


class NoCache:
    """Holds nothing and refuses nothing; the engine forgets what a step computed as soon as it has ended.

    The n-th token costs a pass over n tokens, so an answer of n tokens costs O(n^2) token computations instead of
    O(n), and its attention O(n^3) instead of O(n^2) (Pope et al. 2022, section 2; Kwon et al. 2023, section 2.2).
    """

    keeps_nothing = True

    def __init__(self, pool: KvPool) -> None:
        self.pool = pool
        self.free_blocks = pool.blocks
        self.copies: list[tuple[int, int]] = []

    def refusal(self, req: Request) -> str | None:
        return None

    def match(self, req: Request) -> int:
        return 0

    def admit(self, req: Request, tokens: int) -> bool:
        return True

    def grow(self, req: Request, tokens: int) -> bool:
        return True

    def fork(self, parent: Request, child: Request) -> None:
        pass

    def owns_tail(self, req: Request) -> bool:
        return True

    def release(self, req: Request) -> None:
        pass

    def table(self, req: Request) -> Sequence[int]:
        return ()

    def usage(self, computed_tokens: int) -> Usage:
        return Usage(0, 0, 0, 0, 0, self.pool.tokens)
