"""The registry's watches, in virtual time.

Table, comparison and rows are those of the real ``registry.watching``; only its task,
which sleeps, is replaced: somebody else says when to look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfleet.registry.watching import Watching

if TYPE_CHECKING:
    from pilotfleet.protocol.registry.messages import Reply
    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.watching import _Waiter


class WaitingRoom(Watching):
    """The registry's watches, with nobody who sleeps until the next look."""

    waiting_now: _Waiter | None = None
    """Whose question was just found to have no news yet."""
    compared = 0
    """Watches that were compared with the directory, so far."""

    async def _wait(self, waiter: _Waiter, peer: PeerContext, wait_s: float) -> Reply:
        self._waiting[waiter.watch.name] = self.waiting_now = waiter
        self._groups.setdefault(waiter.group, {})[waiter.watch.name] = waiter
        return {}

    async def look(self) -> list[_Waiter]:
        """Look once for all who wait; return those who have their answer."""
        await self._look()
        return [each for each in self._waiting.values() if each.answer.done()]

    def _look_at(self, waiter: _Waiter) -> int:
        is_known = waiter.answer.done() or self._watches.is_current(waiter.watch)
        self.compared += not is_known
        return super()._look_at(waiter)

    def answer_now(self, waiter: _Waiter) -> Reply:
        """Return what there is to tell, after a look or at the end of the wait."""
        if not waiter.answer.done():
            # There may have been no look since the last change.
            self._rows.clear()
            self._look_at(waiter)
            waiter.end()
        self._remove(waiter)
        found = waiter.answer.result()
        assert not isinstance(found, Exception), found
        return found or self._reply(self._watches.unchanged(waiter.watch))
