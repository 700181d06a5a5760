"""Names of blocks by runs: blocks that follow one another in a prompt are found, held idle and taken as slices.

A key names a block's content and all before it, so that where two paths of keys are equal, all before is too. It knows
no request, and counts no memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from sim.engine.memory import NULL_BLOCK

Piece = tuple["BlockRun", int, int]
"""(run, start, stop): the keys of a path from `start` to before `stop` are the first of the run's."""


class BlockRun:
    """Keys that follow one another, each with the block in which it is found; NULL_BLOCK where it is in none now."""

    __slots__ = ("after", "before", "blocks", "idle", "keys", "live", "shared")

    def __init__(self, keys: list[int], blocks: list[int], before: BlockRun | None) -> None:
        self.keys = keys
        self.blocks = blocks
        self.live = len(blocks)
        """Keys that are found."""
        self.idle: list[Idle] = []
        """Stretches of the queue that hold blocks of these keys."""
        self.before = before
        """The run whose keys lead here."""
        self.after = 0
        """Runs that this one leads to: as long as there are any it stays, so that they can be reached."""
        self.shared = False
        """Set once a second holder has taken blocks that the first still had."""


class Idle:
    """Blocks that nobody holds, in the order of their tokens, taken from the end; NULL_BLOCK where one has left."""

    __slots__ = ("blocks", "left", "run")

    def __init__(self, run: BlockRun | None, blocks: list[int], left: int) -> None:
        self.run = run
        """Whose first keys these blocks may have."""
        self.blocks = blocks
        self.left = left


class Found:
    """Which key is found in which block. Content computed twice stands in two: the one named first, then the next."""

    def __init__(self) -> None:
        self.heads: dict[int, BlockRun] = {}
        """The runs by their first keys."""
        self._duplicates: dict[int, list[int]] = {}
        self._apart = False
        """Set once a run begins where nothing leads to."""

    def blocks(self) -> Iterator[int]:
        """All that have a name."""
        for run in self.heads.values():
            yield from filter(None, run.blocks)
        for blocks in self._duplicates.values():
            yield from blocks

    def pieces(self, keys: Sequence[int], stop: int) -> list[Piece]:
        """The runs that lead along the first `stop` keys, as far as there are any."""
        heads, at, pieces = self.heads, 0, []
        while at < stop and (run := heads.get(keys[at])) is not None:
            most = min(len(run.keys), stop - at)
            if run.keys[most - 1] != keys[at + most - 1]:
                most = _common(run.keys, keys, at, most)
            pieces.append((run, at, at + most))
            at += most
        return pieces

    def hits(self, keys: Sequence[int], stop: int) -> int:
        """How many of the first `stop` keys are found, up to the first that is not."""
        hits = 0
        for run, start, hits in self.pieces(keys, stop):
            if run.live < len(run.blocks):
                blocks = run.blocks[: hits - start]
                if NULL_BLOCK in blocks:
                    return start + blocks.index(NULL_BLOCK)
        return hits

    def name(self, keys: Sequence[int], blocks: Sequence[int], first: int, stop: int) -> None:
        """Let the keys of a path from `first` to before `stop` be found in the blocks of the same places."""
        at, last = 0, None
        for run, start, at in self.pieces(keys, stop):
            if at > first:
                begin = max(first, start)
                self._fill(run, begin - start, blocks[begin:at])
            last = run
        begin = max(first, at)
        if begin == stop:
            return
        more = keys[begin:stop]
        if self._apart and not self.heads.keys().isdisjoint(more):
            # What leads to a run that is there has no name, so that it could not be reached.
            middle = begin + next(number for number, key in enumerate(more) if key in self.heads)
            self.name(keys, blocks, first, middle)
            self.name(keys[middle:], blocks[middle:], 0, stop - middle)
            return
        if begin > at:
            self._apart, last = True, None
        if last is not None and last.keys[-1] == keys[begin - 1]:
            last.keys += more
            last.blocks += blocks[begin:stop]
            last.live += stop - begin
            return
        self.heads[more[0]] = BlockRun(list(more), list(blocks[begin:stop]), last)
        if last is not None:
            last.after += 1

    def forget(self, run: BlockRun, first: int, blocks: list[int]) -> None:
        """Let nobody find these blocks any more, which may have the run's keys from number `first` on."""
        stop = first + len(blocks)
        if not self._duplicates and run.blocks[first:stop] == blocks and NULL_BLOCK not in blocks:
            run.blocks[first:stop] = [NULL_BLOCK] * len(blocks)
            run.live -= len(blocks)
        elif self._duplicates or any(run.blocks[first:stop]):
            for number, block in enumerate(blocks, first):
                if block != NULL_BLOCK:
                    self._forget(run, number, block)
        while not run.live and not run.after:
            if self.heads.get(run.keys[0]) is run:
                del self.heads[run.keys[0]]
                if run.before is None:
                    return
                run.before.after -= 1
                run = run.before
            else:
                return

    def only(self, run: BlockRun, first: int, blocks: Sequence[int]) -> list[int]:
        """Of the run's keys from number `first` on those that are found in these blocks alone."""
        return [
            run.keys[number]
            for number, block in enumerate(blocks, first)
            if block != NULL_BLOCK and run.blocks[number] == block and run.keys[number] not in self._duplicates
        ]

    def _fill(self, run: BlockRun, first: int, blocks: Sequence[int]) -> None:
        stop = first + len(blocks)
        before = run.blocks[first:stop]
        if not any(before):
            run.blocks[first:stop] = blocks
            run.live += len(blocks)
            return
        for number, (old, new) in enumerate(zip(before, blocks, strict=True), first):
            if old == NULL_BLOCK:
                run.blocks[number] = new
                run.live += 1
            elif old != new and new not in self._duplicates.get(run.keys[number], ()):
                self._duplicates.setdefault(run.keys[number], []).append(new)

    def _forget(self, run: BlockRun, number: int, block: int) -> None:
        key = run.keys[number]
        others = self._duplicates.get(key)
        if run.blocks[number] == block:
            run.blocks[number] = others.pop(0) if others else NULL_BLOCK
            run.live -= run.blocks[number] == NULL_BLOCK
        elif others and block in others:
            others.remove(block)
        if others is not None and not others:
            del self._duplicates[key]


class IdleQueue:
    """Blocks that nobody holds: first in, first out, but that those that are hit leave at once."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self._queue: deque[Idle] = deque()
        self._empty = 0
        self.tell_lost: Callable[[Sequence[int]], None] | None = None
        """Told of keys that nobody finds any more since their blocks were taken, the last one first."""

    def put(self, run: BlockRun | None, blocks: list[int], left: int) -> None:
        """Add blocks in the order of their tokens, `left` of them not NULL_BLOCK; the last one will be taken first."""
        idle = Idle(run, blocks, left)
        self._queue.append(idle)
        if run is not None:
            run.idle.append(idle)

    def of(self, piece: Piece) -> list[tuple[Idle, int, list[int]]]:
        """Where blocks in which the keys of a piece are found stand here: (stretch, place in it, blocks)."""
        run, start, stop = piece
        places = []
        for idle in run.idle:
            count = min(stop - start, len(idle.blocks))
            here, found = idle.blocks[:count], run.blocks[:count]
            if here == found:
                places.append((idle, 0, here))
            else:
                pairs = enumerate(zip(here, found, strict=True))
                places += [(idle, at, [block]) for at, (block, other) in pairs if block == other != NULL_BLOCK]
        return places

    def leave(self, idle: Idle, at: int, blocks: list[int]) -> None:
        """Blocks that somebody holds again."""
        idle.blocks[at : at + len(blocks)] = [NULL_BLOCK] * len(blocks)
        idle.left -= len(blocks)
        if not idle.left:
            self._gone(idle)
            self._empty += 1
            if self._empty > 64 and self._empty * 2 > len(self._queue):
                self._queue = deque(each for each in self._queue if each.left)
                self._empty = 0

    def take(self, count: int) -> list[int]:
        """The next blocks, which nobody will find any more; there are to be so many."""
        queue, taken = self._queue, list[int]()
        while count:
            idle = queue[0]
            blocks, left = idle.blocks, idle.left
            if idle.run is None and left == len(blocks):
                if count < left:
                    part = blocks[: -count - 1 : -1]
                    del blocks[-count:]
                    idle.left = left - count
                    return taken + part if taken else part
                queue.popleft()
                taken += blocks[::-1]
                count -= left
                continue
            if left:
                part = self._part(idle, count)
                taken += part
                count -= len(part)
            else:
                self._empty -= 1
            if not idle.left:
                queue.popleft()
        return taken

    def _part(self, idle: Idle, count: int) -> list[int]:
        blocks = idle.blocks
        part = blocks[-count:]
        full = idle.left == len(blocks)
        del blocks[-count:]
        if idle.run is not None:
            lost = self._found.only(idle.run, len(blocks), part) if self.tell_lost is not None else ()
            self._found.forget(idle.run, len(blocks), part)
            if lost and self.tell_lost is not None:
                self.tell_lost(lost[::-1])
        part.reverse()
        if not full:
            part = [block for block in part if block != NULL_BLOCK]
        idle.left -= len(part)
        if not idle.left:
            self._gone(idle)
        return part

    def _gone(self, idle: Idle) -> None:
        if idle.run is not None:
            idle.run.idle.remove(idle)


def _common(keys: Sequence[int], others: Sequence[int], at: int, most: int) -> int:
    """How many keys, fewer than `most` and at least one, are those of the others from `at` on."""
    low, high = 1, most - 1
    while low < high:
        middle = (low + high + 1) // 2
        if keys[middle - 1] == others[at + middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
