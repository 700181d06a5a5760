"""Which blocks have which names, by runs: blocks that follow one another are found, held idle and taken as slices.

Where two paths have one name, all before is alike too (`sim.engine.names`). It knows no request, and counts no memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from sim.engine.memory import NULL_BLOCK, Ids, ids_of
from sim.engine.names import Names

Piece = tuple["BlockRun", int, int]
"""(run, start, stop): the names of a path from `start` to before `stop` are the first of the run's."""


class BlockRun:
    """Names that follow one another, each with the block in which it is found; NULL_BLOCK where it is in none now."""

    __slots__ = ("after", "before", "blocks", "head", "idle", "live", "names", "shared", "start")

    def __init__(self, names: Names, start: int, blocks: Ids, before: BlockRun | None) -> None:
        self.names = names
        self.start = start
        """The place of its first name on a path."""
        self.head = names.of(start)
        self.blocks = blocks
        self.live = len(blocks)
        """Names that are found."""
        self.idle: list[Idle] = []
        """Stretches of the queue that hold blocks of these names."""
        self.before = before
        """The run whose names lead here."""
        self.after = 0
        """Runs that this one leads to: as long as there are any it stays, so that they can be reached."""
        self.shared = False
        """Set once a second holder has taken blocks that the first still had."""


class Idle:
    """Blocks that nobody holds, which may have a run's first names, in the order of their tokens.

    They are taken from the end; NULL_BLOCK stands where one has left.
    """

    __slots__ = ("blocks", "left", "run")

    def __init__(self, run: BlockRun, blocks: Ids, left: int) -> None:
        self.run = run
        self.blocks = blocks
        self.left = left


class Unnamed:
    """Blocks that nobody holds and nobody will find, in the order of their tokens until some are `taken`, and then in
    that in which they are."""

    __slots__ = ("blocks", "taken")

    def __init__(self, blocks: Ids) -> None:
        self.blocks = blocks
        self.taken = 0


class Found:
    """Which name is found in which block. Content computed twice stands in two: the one named first, then the next."""

    def __init__(self) -> None:
        self.heads: dict[int, BlockRun] = {}
        """The runs by their first names."""
        self._duplicates: dict[int, list[int]] = {}
        self._apart = False
        """Set once a run begins where nothing leads to."""
        self._walked: tuple[Names, list[Piece]] | None = None
        """The last path that was looked for, and the runs that led along it; nothing has changed since."""

    def blocks(self) -> Iterator[int]:
        """All that have a name."""
        for run in self.heads.values():
            yield from filter(None, run.blocks)
        for blocks in self._duplicates.values():
            yield from blocks

    def pieces(self, names: Names, stop: int, at: int = 0) -> list[Piece]:
        """The runs that lead along a path from a place to before `stop`, as far as there are any."""
        heads, pieces = self.heads, []
        while at < stop and (run := heads.get(names.of(at))) is not None:
            most = names.alike(run.names, at, min(len(run.blocks), stop - at))
            pieces.append((run, at, at + most))
            at += most
        return pieces

    def hits(self, names: Names, stop: int) -> int:
        """How many of the first `stop` names are found, up to the first that is not."""
        hits, pieces = 0, self.pieces(names, stop)
        self._walked = names, pieces
        for run, start, hits in pieces:
            if run.live < len(run.blocks):
                blocks = run.blocks[: hits - start]
                if NULL_BLOCK in blocks:
                    return start + blocks.index(NULL_BLOCK)
        return hits

    def hit(self, names: Names, stop: int) -> list[Piece]:
        """The runs that lead along the first `stop` names, all of which are found."""
        if self._walked is None or self._walked[0] is not names:
            return self.pieces(names, stop)
        return [(run, start, min(end, stop)) for run, start, end in self._walked[1] if start < stop]

    def name(self, names: Names, blocks: Ids, first: int, stop: int, led: list[Piece]) -> list[Piece]:
        """Let the names of a path from `first` to before `stop` be found in the blocks of the same places.

        `led` are the runs that lead along the path to `first` at most, as far as that is known; returns all to `stop`.
        """
        if led and led[-1][1] + len(led[-1][0].blocks) > led[-1][2]:
            led, at = led[:-1], led[-1][1]  # it may lead further
        else:
            at = led[-1][2] if led else 0
        for piece in self.pieces(names, stop, at):
            run, start, at = piece
            if at > first:
                begin = max(first, start)
                self._fill(run, begin - start, blocks[begin:at])
            led = [*led, piece]
        begin = max(first, at)
        if begin == stop:
            return led
        self._walked = None
        if self._apart:
            middle = next((place for place in range(begin, stop) if names.of(place) in self.heads), stop)
            if middle < stop:
                # What leads to a run that is there has no name, so that it could not be reached.
                led = self.name(names, blocks, first, middle, led)
                return self.name(names, blocks, middle, stop, led)
        last = led[-1][0] if led and begin == at else None
        if last is not None and last.start + len(last.blocks) == begin and last.names.rule == names.rule:
            last.names.extend(names, begin, stop)
            last.blocks += blocks[begin:stop]
            last.live += stop - begin
            return [*led[:-1], (last, last.start, stop)]
        run = BlockRun(names.part(begin, stop), begin, blocks[begin:stop], last)
        self.heads[run.head] = run
        if last is not None:
            last.after += 1
        if begin > at:
            self._apart = True
            return led
        return [*led, (run, begin, stop)]

    def forget(self, run: BlockRun, first: int, blocks: Ids) -> None:
        """Let nobody find these blocks any more, which may have the run's names from number `first` on."""
        self._walked = None
        stop, found = first + len(blocks), run.blocks
        if not self._duplicates and not run.after and stop == len(found) == run.live and found[first:] == blocks:
            del found[first:]
            run.live = first
        elif self._duplicates or any(found[first:stop]):
            for number, block in zip(range(first, len(found)), blocks, strict=False):
                if block != NULL_BLOCK:
                    self._forget(run, number, block)
        while not run.live and not run.after:
            if self.heads.get(run.head) is run:
                del self.heads[run.head]
                if run.before is None:
                    return
                run.before.after -= 1
                run = run.before
            else:
                return

    def only(self, run: BlockRun, first: int, blocks: Sequence[int]) -> list[int]:
        """Of the run's names from number `first` on those that are found in these blocks alone."""
        found = [
            run.names.of(run.start + number)
            for number, block in zip(range(first, len(run.blocks)), blocks, strict=False)
            if block != NULL_BLOCK and run.blocks[number] == block
        ]
        return [name for name in found if name not in self._duplicates]

    def _fill(self, run: BlockRun, first: int, blocks: Ids) -> None:
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
            elif old != new and new not in self._duplicates.get(run.names.of(run.start + number), ()):
                self._duplicates.setdefault(run.names.of(run.start + number), []).append(new)

    def _forget(self, run: BlockRun, number: int, block: int) -> None:
        name = run.names.of(run.start + number)
        others = self._duplicates.get(name)
        if run.blocks[number] == block:
            run.blocks[number] = others.pop(0) if others else NULL_BLOCK
            run.live -= run.blocks[number] == NULL_BLOCK
        elif others and block in others:
            others.remove(block)
        if others is not None and not others:
            del self._duplicates[name]


_NONE = ids_of(())


class IdleQueue:
    """Blocks that nobody holds: first in, first out, but that those that are hit leave at once."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self._queue: deque[Idle | Unnamed] = deque()
        self._empty = 0
        self.tell_lost: Callable[[Sequence[int]], None] | None = None
        """Told of keys that nobody finds any more since their blocks were taken, the last one first."""

    def put(self, run: BlockRun, blocks: Ids, left: int) -> None:
        """Add blocks in the order of their tokens, `left` of them not NULL_BLOCK; the last one will be taken first."""
        idle = Idle(run, blocks, left)
        self._queue.append(idle)
        run.idle.append(idle)

    def put_unnamed(self, blocks: Ids) -> None:
        """Add blocks that nobody will find, in the order of their tokens; the last one will be taken first.

        They are kept as they come, not in one array, which would move whenever it grows, cold as it is.
        """
        self._queue.append(Unnamed(blocks))

    def of(self, piece: Piece) -> list[tuple[Idle, int, Ids]]:
        """Where blocks in which the names of a piece are found stand here: (stretch, place in it, blocks)."""
        run, start, stop = piece
        places = []
        for idle in run.idle:
            count = min(stop - start, len(idle.blocks))
            here, found = idle.blocks[:count], run.blocks[:count]
            if here == found:
                places.append((idle, 0, here))
            else:
                pairs = enumerate(zip(here, found, strict=True))
                places += [(idle, at, ids_of([block])) for at, (block, other) in pairs if block == other != NULL_BLOCK]
        return places

    def leave(self, idle: Idle, at: int, blocks: Ids) -> None:
        """Blocks that somebody holds again."""
        idle.blocks[at : at + len(blocks)] = ids_of([NULL_BLOCK]) * len(blocks)
        idle.left -= len(blocks)
        if not idle.left:
            idle.run.idle.remove(idle)
            self._empty += 1
            if self._empty > 64 and self._empty * 2 > len(self._queue):
                self._queue = deque(each for each in self._queue if isinstance(each, Unnamed) or each.left)
                self._empty = 0

    def take(self, count: int) -> Ids:
        """The next blocks, which nobody will find any more; there are to be so many."""
        queue, taken = self._queue, _NONE
        while count:
            idle = queue[0]
            if isinstance(idle, Unnamed):
                begin = idle.taken
                if not begin:
                    idle.blocks.reverse()
                idle.taken = end = begin + count
                part = idle.blocks[begin:end]
                if len(part) == count:
                    return taken + part if taken else part
                queue.popleft()
            elif idle.left:
                part = self._part(idle, count)
                if not idle.left:
                    queue.popleft()
            else:
                self._empty -= 1
                queue.popleft()
                continue
            count -= len(part)
            if taken:
                taken += part
            else:
                taken = part
        return taken

    def _part(self, idle: Idle, count: int) -> Ids:
        """Up to so many blocks off the end of a stretch, the last one first."""
        run, blocks = idle.run, idle.blocks
        part = blocks[-count:]
        full = idle.left == len(blocks)
        del blocks[-count:]
        lost = self._found.only(run, len(blocks), part) if self.tell_lost is not None else ()
        self._found.forget(run, len(blocks), part)
        if lost and self.tell_lost is not None:
            self.tell_lost(lost[::-1])
        part.reverse()
        if not full:
            part = ids_of([block for block in part if block != NULL_BLOCK])
        idle.left -= len(part)
        if not idle.left:
            run.idle.remove(idle)
        return part
