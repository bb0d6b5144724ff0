"""What the registry does by itself as time passes (registry.md section 9)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import Conflict
from pilotfleet.registry.directory.folding import (
    decide_close,
    decide_fold,
    decide_forget,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.directory.registration import decide_reap
from pilotfleet.registry.store.base import Change

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.registry.committer import Committer
    from pilotfleet.registry.config import ServiceConfig
    from pilotfleet.registry.directory.decision import Decision
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.nodes import Node

__all__ = ["Maintenance"]

BLOCKS_AT_ONCE: Final = 256
"""Blocks of last-seen times in one write: 65,536 nodes, 256 KiB."""
EXPIRED_AT_ONCE: Final = 5_000
"""Nodes of which it is looked whether they are still online: about 5 ms."""
GARBAGE_AT_ONCE: Final = 1_000


class Maintenance:
    """Sweeps stale nodes, writes last-seen times, folds receipts, deletes what is
    void."""

    def __init__(
        self, directory: Directory, committer: Committer, config: ServiceConfig
    ) -> None:
        self._directory = directory
        self._committer = committer
        self._config = config
        self._sweep_at = 0.0
        self._flush_at = 0.0
        self._sweep_from = 0
        """Node ID at which the sweep goes on."""

    def begin(self, wall: float) -> None:
        """Start the clock.

        No node is stale before one full period has passed: while the registry
        was away, none could be heard.
        """
        self._sweep_at = wall + self._config.stale_after_s
        self._flush_at = wall + self._config.flush_interval_s

    async def run(self, wall: float) -> None:
        """Do what is due.

        Raises:
            StorageError: The store refused; it is due again next time.
        """
        while True:
            if not self._directory.expire_online(wall, limit=EXPIRED_AT_ONCE):
                break
            await asyncio.sleep(0)
        if wall >= self._sweep_at:
            self._sweep_at = wall + self._config.sweep_interval_s
            await self._sweep(wall)
        if wall >= self._flush_at:
            self._flush_at = wall + self._config.flush_interval_s
            await self.flush()
        await self._fold_receipts(int(wall))
        await self._delete_garbage()

    async def flush(self) -> None:
        """Write the last-seen times that changed.

        Raises:
            StorageError: The store refused; newer times are written later.
        """
        while changes := self._directory.seen_changes(BLOCKS_AT_ONCE):
            await self._committer.write(changes)

    async def _sweep(self, wall: float) -> None:
        for node in self._stale_nodes(wall):
            await self._reap(node, wall)

    async def _reap(self, node: Node, wall: float) -> None:
        await self._commit(
            lambda: decide_reap(node, is_stale=self._is_stale(node, wall))
        )

    async def _fold_receipts(self, now: int) -> None:
        directory, limit = self._directory, self._config.max_receipts
        await self._commit(lambda: decide_close(directory, now=now, max_receipts=limit))
        await self._commit(lambda: decide_fold(directory, now=now))
        await self._commit(lambda: decide_forget(directory, now=now))

    async def _commit(self, decide: Callable[[], Decision]) -> None:
        # A conflict: another replica does the same just now, and that will do. What
        # is still due is found next time.
        with contextlib.suppress(Conflict, Refused):
            await self._committer.commit(decide(), decide)

    def _stale_nodes(self, wall: float) -> list[Node]:
        """Return the stale ones among the next nodes, in the order of IDs."""
        live, start = self._directory.nodes.live, self._sweep_from
        numbers = live.after(start, self._config.sweep_step)
        complete = len(numbers) < self._config.sweep_step
        self._sweep_from = 0 if complete else numbers[-1]
        nodes = (self._directory.nodes.by_id[number] for number in numbers)
        return [node for node in nodes if self._is_stale(node, wall)]

    def _is_stale(self, node: Node, wall: float) -> bool:
        # A node that came by way of another replica may not have been heard
        # here yet.
        heard = max(node.last_seen, node.record.created)
        return node.record.live and wall - heard > self._config.stale_after_s

    async def _delete_garbage(self) -> None:
        garbage = self._directory.networks.garbage
        keys = [key for key, _ in zip(garbage, range(GARBAGE_AT_ONCE), strict=False)]
        if not keys:
            return
        await self._committer.write([Change(key, None, None) for key in keys])
        garbage.difference_update(keys)
