"""Alerts as they run: hold the rules against the values, save, tell.

In this order: what fires is saved before it is told, so that a program that is killed
in between tells it after its restart, and does not fire it a second time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from pilotfleet.errors import DecodeError
from pilotfleet.fleet.monitor.alerts.actions import AlertActions
from pilotfleet.fleet.monitor.alerts.book import AlertBook, Values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pilotfleet.fleet.monitor.alerts.actions import Publish
    from pilotfleet.fleet.monitor.alerts.rules import Rule
    from pilotfleet.fleet.monitor.figures import AlertRow
    from pilotfleet.fleet.monitor.outputs.health import OutputCounters

__all__ = ["AlertDesk", "AlertStore"]

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 1.0

_saved: Final = msgspec.msgpack.Decoder(tuple[bytes, bytes])


class AlertStore(Protocol):
    """Keeps what alerts go on with; the history does."""

    async def store_alerts(self, state: bytes) -> bool:
        """Keep it; False when the disk refuses."""

    async def load_alerts(self) -> bytes | None:
        """Return what was kept last."""


class ReadValues(Values, Protocol):
    """Values that stay the same from one reading to the next."""

    def read(self, at: float) -> None:
        """Take the values of now."""


class AlertDesk:
    """The alerts of a monitor. :meth:`run` does the work.

    Args:
        rules: From :func:`~pilotfleet.fleet.monitor.alerts.rules.load_rules`.
        values: What they are held against.
        store: Keeps alerts over restarts.
        publish: For alerts that go to a topic.
        counters: Where alerts that are given up are counted.
        wall: Unix time.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        values: ReadValues,
        *,
        store: AlertStore,
        publish: Publish,
        counters: OutputCounters | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._book = AlertBook(rules)
        self._values = values
        self._store = store
        self._wall = wall
        self.actions = AlertActions(publish, counters=counters, wall=wall)
        self._stored = (0, 0)

    def rows(self) -> list[AlertRow]:
        """Return what fires, what is pending, and what was resolved lately."""
        return self._book.rows()

    async def load(self) -> None:
        """Go on where the last program ended; before the first :meth:`step`.

        Raises:
            StorageError: The store cannot be read.
        """
        data = await self._store.load_alerts()
        if data is None:
            return
        try:
            book, actions = _saved.decode(data)
            self._book.load(book)
            self.actions.load(actions, self._book.rules)
        except (msgspec.MsgspecError, DecodeError) as error:
            # A monitor that does not start would tell nothing at all.
            logger.error("alerts begin anew: %s", error)

    async def run(self) -> None:
        """Work until cancelled; what is not confirmed is saved at the end."""
        try:
            while True:
                await self.step()
                await asyncio.sleep(INTERVAL_S)
        finally:
            await self.actions.aclose()
            await self._save()

    async def step(self) -> None:
        """Hold the rules against the values of now."""
        at = self._wall()
        self._values.read(at)
        for change in self._book.evaluate(self._values, at):
            row = change.row
            # Names of agents come from outside.
            logger.warning(
                "alert %s is %s: %s %r", row.rule, row.state, row.fleet, row.subject
            )
            self.actions.offer(change)
        await self._save()
        self.actions.start()

    def reload(self, rules: Sequence[Rule]) -> None:
        """Use other rules from the next step on."""
        for change in self._book.reload(rules, self._wall()):
            self.actions.offer(change)

    async def _save(self) -> None:
        versions = (self._book.version, self.actions.version)
        if versions == self._stored:
            return
        state = msgspec.msgpack.encode((self._book.save(), self.actions.save()))
        # A disk that refuses must not keep anybody from being told: perhaps that is
        # what the alert is about. It is tried again with the next step.
        if await self._store.store_alerts(state):
            self._stored = versions
