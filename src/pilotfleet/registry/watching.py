"""Watches that wait for something new: the long polls of the ``watch`` extension.

One task looks for all who wait, and exists only while somebody does. It looks four
times a second at most, so changes are gathered, and answers those in a row that ask
the same, so that their result is found once. It works in slices of milliseconds
between which everybody else has his turn; the more it has to do, the longer it rests.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.registry.agentrow import agent_row
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.directory.watches import Watches
from pilotfleet.registry.metrics import WatchStats

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from pilotfleet.protocol.registry.messages import Reply
    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.watches import (
        Delta,
        Question,
        Watch,
        WatchLimits,
    )
    from pilotfleet.transport.clock import Clock

__all__ = ["Watching"]

logger = logging.getLogger(__name__)

GATHER_S: Final = 0.25
"""Time between two looks."""
REST: Final = 3
"""A look is followed by a rest of so many times its own length, if that is longer:
watches take a quarter of a core at most, and get their answers later instead."""
SLICE_S: Final = 0.002
"""How long a look goes on before others have their turn. Those who were answered take
theirs at once, which is as long again."""
SLICE_NODES: Final = 1_000
"""Nodes answered in a slice; their encoding, about 1 us each, comes after it."""
ANSWER_NODES: Final = 50
"""An answer costs as much as so many nodes, whatever is in it."""
AFTER_FAILURE_S: Final = 1.0
NAME_BYTES: Final = 8


class _Waiter:
    """A question that waits for its answer."""

    __slots__ = ("answer", "group", "limit", "watch")

    def __init__(self, watch: Watch, limit: int, group: Hashable) -> None:
        self.watch = watch
        self.limit = limit
        self.group = group
        loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Reply | Refused | None] = loop.create_future()
        """None: the wait is over."""

    def set(self, answer: Reply | Refused | None) -> None:
        """Give the answer, unless there is one."""
        if not self.answer.done():
            self.answer.set_result(answer)

    def end(self) -> None:
        """Wait no longer."""
        self.set(None)


class Watching:
    """Answers watches, at once or when there is something new."""

    def __init__(
        self, directory: Directory, clock: Clock, *, limits: WatchLimits | None = None
    ) -> None:
        self.stats = WatchStats()
        self._directory = directory
        self._clock = clock
        self._watches = Watches(
            directory, limits=limits, make_name=lambda: secrets.token_hex(NAME_BYTES)
        )
        self._waiting: dict[str, _Waiter] = {}
        """By the watch's name."""
        self._groups: dict[Hashable, dict[str, _Waiter]] = {}
        """The same, with those that ask the same beside each other."""
        self._rows: dict[int, tuple[list[int], list[dict[str, Any]]]] = {}
        """Rows by the list of their nodes, while nothing can change in between."""
        self._overdue: deque[_Waiter] = deque()
        """Those whose time is over. Who began to wait together ends together."""
        self._task: asyncio.Task[None] | None = None

    async def answer(
        self, question: Question, peer: PeerContext, *, wait_s: float
    ) -> Reply:
        """Answer a watch, after ``wait_s`` at the latest.

        May be cancelled; the watcher then asks again from where it is.

        Raises:
            Refused: There is no room, or the watching node has gone.
        """
        self._directory.expire_online(self._clock.wall())
        try:
            watch = self._watches.open(question, self._clock.now())
            self._end_wait(watch.name)
            # What comes after an answer is gathered. The first answer is not, nor
            # what had no room in the last one.
            if watch.is_behind or not wait_s or peer.is_ending:
                self._rows.clear()
                return self._reply(self._watches.compare(watch, question.limit))
            group = self._watches.group_of(watch)
            waiter = _Waiter(watch, question.limit, group)
            return await self._wait(waiter, peer, wait_s)
        except Refused:
            self.stats.refused += 1
            raise
        finally:
            self._count()

    def forget(self) -> None:
        """Forget the watches that nobody asks about any more."""
        self._watches.forget(self._clock.now())
        self._count()

    async def aclose(self) -> None:
        """End all waits."""
        for waiter in list(self._waiting.values()):
            waiter.end()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    # Waiting.

    def _end_wait(self, name: str) -> None:
        # A watcher that has lost its connection asks on another one. The wait on the
        # first must not take its answer, or make void the one that it gets at once.
        before = self._waiting.get(name)
        if before is not None:
            before.end()
            self._remove(before)

    async def _wait(self, waiter: _Waiter, peer: PeerContext, wait_s: float) -> Reply:
        self._add(waiter)
        peer.add_wait(waiter.end)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(wait_s, self._time_out, waiter)
        try:
            answer = await waiter.answer
        finally:
            timer.cancel()
            peer.remove_wait(waiter.end)
            if self._waiting.get(waiter.watch.name) is waiter:
                self._remove(waiter)
        if isinstance(answer, Refused):
            raise answer
        return answer or self._reply(self._watches.unchanged(waiter.watch))

    def _time_out(self, waiter: _Waiter) -> None:
        self._overdue.append(waiter)
        if len(self._overdue) == 1:
            asyncio.get_running_loop().call_soon(self._end_overdue)

    def _end_overdue(self) -> None:
        """End the waits whose time is over, as many as a slice has room for."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        self._rows.clear()
        try:
            while self._overdue:
                self._end_late(self._overdue.popleft())
                if loop.time() - begin >= SLICE_S:
                    break
        finally:
            # After a failure as well: nobody else would ever end the others.
            if self._overdue:
                loop.call_soon(self._end_overdue)

    def _end_late(self, waiter: _Waiter) -> None:
        # There may have been no look since the last change.
        try:
            self._look_at(waiter)
        finally:
            waiter.end()

    def _add(self, waiter: _Waiter) -> None:
        name = waiter.watch.name
        self._waiting[name] = waiter
        self._groups.setdefault(waiter.group, {})[name] = waiter
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="registry-watches")

    def _remove(self, waiter: _Waiter) -> None:
        name = waiter.watch.name
        del self._waiting[name]
        group = self._groups[waiter.group]
        del group[name]
        if not group:
            del self._groups[waiter.group]

    # Looking.

    async def _run(self) -> None:
        """Look for all who wait, until there are none; ``aclose`` awaits it."""
        rest = GATHER_S
        try:
            while self._waiting:
                await asyncio.sleep(rest)
                try:
                    rest = max(GATHER_S, REST * await self._look())
                except Exception:  # Nobody else would ever look for those who wait.
                    logger.exception("a look for watchers failed")
                    rest = AFTER_FAILURE_S
        finally:
            self._task = None

    async def _look(self) -> float:
        """Answer those for whom there is news; return how long it took."""
        loop = asyncio.get_running_loop()
        self._directory.expire_online(self._clock.wall())
        took, begin, size = 0.0, loop.time(), 0
        self._rows.clear()
        for waiter in self._in_groups():
            size += self._look_at(waiter)
            if loop.time() - begin < SLICE_S and size < SLICE_NODES:
                continue
            took += loop.time() - begin
            await asyncio.sleep(0)
            begin, size = loop.time(), 0
            self._rows.clear()
        return took + loop.time() - begin

    def _in_groups(self) -> Iterator[_Waiter]:
        """Yield those who wait now; others may come and go meanwhile."""
        for group in list(self._groups.values()):
            yield from list(group.values())

    def _look_at(self, waiter: _Waiter) -> int:
        """Answer one who waits, if there is news; return how much that was."""
        if waiter.answer.done() or self._watches.is_current(waiter.watch):
            return 0
        try:
            delta = self._watches.compare(waiter.watch, waiter.limit)
        except Refused as refusal:
            waiter.set(refusal)
            return ANSWER_NODES
        if not delta.is_news:
            return 0
        waiter.set(self._reply(delta))
        return ANSWER_NODES + delta.size

    # Answering.

    def _reply(self, delta: Delta) -> Reply:
        self.stats.resets += delta.reset
        self.stats.deltas += delta.is_news and not delta.reset
        return {
            "type": "watch_ok",
            "watch": delta.watch,
            "seq": delta.seq,
            "reset": delta.reset,
            "added": self._rows_of(delta.added),
            "changed": self._rows_of(delta.changed),
            "removed": delta.removed,
            "total": delta.total,
            "more": delta.more,
        }

    def _rows_of(self, nodes: list[int]) -> list[dict[str, Any]]:
        known = self._rows.get(id(nodes))
        if known is None:
            directory = self._directory
            by_id = directory.nodes.by_id
            rows = [agent_row(directory, by_id[node]) for node in nodes]
            # With the list, whose id is nobody else's as long as it is there.
            known = self._rows[id(nodes)] = nodes, rows
        return known[1]

    def _count(self) -> None:
        self.stats.kept = len(self._watches)
        self.stats.waiting = len(self._waiting)
        self.stats.size_bytes = self._watches.size_bytes
