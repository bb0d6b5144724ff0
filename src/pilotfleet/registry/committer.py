"""From a decision to the store and back into the directory.

A decision is made on the directory as it is, then its keys are locked, its
changes are written with compare-and-set, and only then the directory takes
them over and the answer goes out. Two things can come in between:

* Another request of this process holds one of the keys: wait, decide again.
* Another replica has changed one of the keys: the store reports a conflict.
  Wait until the watch has brought that change, decide again.

Writing and taking over is a task of its own: a client that hangs up cannot
leave the directory behind the store.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import Conflict
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.keylocks import KeyLocks
from pilotfleet.registry.store.base import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pilotfleet.registry.directory.decision import Decision
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.store.base import Change, Store

__all__ = ["Committer"]

MAX_CONFLICTS: Final = 8
MAX_TURNS: Final = 64
"""How often a request may find, when its turn comes, that it needs other keys."""
CATCH_UP_S: Final = 0.5
"""How long to wait for the watch after a conflict."""


class Committer:
    """Writes decisions, one request at a time for each key."""

    def __init__(self, directory: Directory, store: Store) -> None:
        self._directory = directory
        self._store = store
        # The store's compare-and-set would be enough for correctness. Without the
        # locks, though, many requests for one key would fail and try again all the
        # time.
        self._locks = KeyLocks()
        self._writes: set[asyncio.Task[None]] = set()
        self._watched_to = 0
        """The revision up to which the directory has followed the store."""
        self._is_watching = False
        self._ahead: dict[str, int] = {}
        """Own changes that the watch has still to bring: key to revision."""
        self._moved = asyncio.Event()

    async def commit(
        self, decision: Decision, redo: Callable[[], Decision]
    ) -> Decision:
        """Make a decision last; return it, or the one that replaced it.

        May be cancelled: the changes are then made or not, but never by half.

        Args:
            decision: What was just decided.
            redo: Decides again.

        Raises:
            Refused: Decided again, the request is not granted.
            Conflict: Other replicas were faster again and again.
            StorageError: The store refused.
        """
        # Decisions are repeated whole and not patched: only the handler knows which of
        # its checks the other's change has overturned.
        conflicts = 0
        while decision.changes:
            decision, keys = await self._take_turn(decision, redo)
            # Decided again in its turn, there may be nothing left to do: somebody else
            # did it.
            if not decision.changes:
                self._locks.release(keys)
                break
            try:
                await self._write_and_apply(decision.changes, keys)
                break
            except Conflict:
                conflicts += 1
                if conflicts > MAX_CONFLICTS:
                    raise
                # The store knows more than our directory. Deciding again at once would
                # give the same decision and the same conflict.
                await self._catch_up()
                decision = redo()
        return decision

    async def write(self, changes: Sequence[Change]) -> None:
        """Write changes that need no decision; the directory has them already.

        Raises:
            StorageError: The store refused.
        """
        await self._store.write(changes)

    def follow(self, entry: Entry) -> None:
        """Take over an entry that the watch has brought."""
        self._watched_to = entry.revision
        ahead = self._ahead.get(entry.key, 0)
        if ahead <= entry.revision:
            self._ahead.pop(entry.key, None)
        # Our own change was taken over when it was written, and what is older
        # than that must not undo it.
        if ahead < entry.revision:
            self._directory.apply(entry)
        self._moved.set()
        self._moved = asyncio.Event()

    def begin_watch(self) -> int:
        """Note that a watch begins; return the revision to watch from."""
        self._is_watching = True
        return self._watched_to

    def end_watch(self) -> None:
        """Note that the watch has ended."""
        self._is_watching = False
        # A new watch begins from what we have seen, so it brings all of them again.
        self._ahead.clear()

    def loaded(self, revision: int) -> None:
        """Note the revision up to which the directory was loaded."""
        self._watched_to = revision

    async def aclose(self) -> None:
        """Wait for the writes that have begun."""
        if self._writes:
            await asyncio.wait(self._writes)

    async def _take_turn(
        self, decision: Decision, redo: Callable[[], Decision]
    ) -> tuple[Decision, set[str]]:
        """Lock what a decision needs; return the decision that holds then."""
        for _ in range(MAX_TURNS):
            keys = decision.keys()
            if self._locks.try_acquire(keys):
                return decision, keys
            # A decision that is thrown away must give its node number back, or a crowd
            # of registrations would use numbers up.
            self._directory.nodes.release_id(decision.reserved)
            await self._locks.acquire(keys)
            try:
                decision = redo()
            except BaseException:
                # Whatever it is, the keys must not stay locked.
                self._locks.release(keys)
                raise
            # The keys may be others than those that were locked. Locking more while
            # some are held would risk a deadlock, so all are released and it starts
            # over.
            if decision.keys() <= keys:
                return decision, keys
            self._locks.release(keys)
        self._directory.nodes.release_id(decision.reserved)
        raise Refused("cannot be decided while others change it, retry")

    async def _write_and_apply(self, changes: list[Change], keys: set[str]) -> None:
        # Shielded: once the store has the changes, the directory must take them over,
        # whether or not the client still waits.
        task = asyncio.create_task(self._run(changes, keys), name="registry-write")
        self._writes.add(task)
        task.add_done_callback(self._written)
        await asyncio.shield(task)

    async def _run(self, changes: list[Change], keys: set[str]) -> None:
        try:
            revisions = await self._store.write(changes)
            # No await between these: other requests see all of a decision or none.
            for change, revision in zip(changes, revisions, strict=True):
                self._apply_own(Entry(change.key, change.value, revision))
        finally:
            self._locks.release(keys)

    def _apply_own(self, entry: Entry) -> None:
        # The watch may have been faster, and have brought what came after.
        if self._is_watching and entry.revision <= self._watched_to:
            return
        if self._is_watching:
            self._ahead[entry.key] = entry.revision
        self._directory.apply(entry)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writes.discard(task)
        # Whoever waited has the error; if he was cancelled, nobody wants it.
        if not task.cancelled():
            task.exception()

    async def _catch_up(self) -> None:
        if not self._is_watching:
            return
        # It is enough to wait for any progress: if it was not the right one, the next
        # conflict brings us back here.
        moved = self._moved
        try:
            async with asyncio.timeout(CATCH_UP_S):
                await moved.wait()
        except TimeoutError:
            return
