"""Who is refused again without a look at content would have been refused by one."""

from __future__ import annotations

import pytest
from engine_kit import MS, Watch
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.allocators.prefix import Prefix
from sim.engine.batch import Limits
from sim.engine.memory import KvPool
from sim.engine.request import Request, SharedPrefix
from sim.engine.wiring import wire
from sim.policies.chunked import Chunked
from sim.policies.priority import Priority
from sim.serving.clock import Clock
from sim.serving.executor import Predicted
from sim.serving.replica import Replica


class Honest(Prefix):
    """Asks `admit` too, each time that it is refused without."""

    refused = 0

    def still_refuses(self, req: Request) -> bool:
        said = super().still_refuses(req)
        if said:
            self.refused += 1
            req.computed = self.match(req)
            assert not self.admit(req, req.known - req.computed)
            req.computed = 0
        return said


def served(policy: Chunked, asked: list[tuple[float, int, int, int]], blocks: int, depth: int) -> Honest:
    allocator, clock, done = Honest(KvPool(blocks, 4)), Clock(), list[Request]()
    engine = wire(policy, allocator, Limits(6, 24), ahead=depth == 2, spans=True)
    price = Predicted(MS, overlap_host=depth == 2)
    replica = Replica(clock, engine, price, depth=depth, on_finish=done.append, observer=Watch(depth, []))
    for number, (time_s, family, prompt, output) in enumerate(asked):
        # Families share their prompts' beginning, answers included where the next prompt goes on from one.
        names = [1000 * family + unit + 1 for unit in range((prompt + output) // 4 + 1)]
        req = Request(number, time_s, prompt, output, family, SharedPrefix(names, 4, prompt + output))
        assert engine.refusal(req) is None
        clock.call_at(time_s, lambda event, req=req: replica.submit(req), first=True)  # type: ignore[misc]
    clock.run_out()
    assert len(done) == len(asked)
    return allocator


REQUESTS = st.lists(
    st.tuples(st.floats(0, 0.2), st.integers(0, 3), st.integers(1, 40), st.integers(1, 40)), min_size=2, max_size=25
)


@pytest.mark.parametrize("policy", [Chunked, Priority])
@settings(max_examples=60)
@given(REQUESTS, st.integers(20, 40), st.integers(1, 2))
def test_no_refusal_without_a_look_is_another_than_with_one(
    policy: type[Chunked], asked: list[tuple[float, int, int, int]], blocks: int, depth: int
) -> None:
    served(policy(), asked, blocks, depth)


def test_refusals_that_need_no_look_are_met() -> None:
    asked = [(0.0, number % 5, 30, 40) for number in range(20)]
    assert served(Chunked(), asked, 40, 2).refused > 20
