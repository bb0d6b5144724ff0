"""One fleet of a monitor: follows it and stores what it learns."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final, Protocol

from pilotfleet.errors import DecodeError, NotSupported, PilotError, TimedOut
from pilotfleet.fleet.agent import Agent
from pilotfleet.fleet.monitor.feed import FeedConfig, FleetFeed
from pilotfleet.fleet.monitor.view.fleetview import FleetView

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pilotfleet.fleet.monitor.history.history import History
    from pilotfleet.fleet.monitor.outputs.health import MonitorHealth

__all__ = ["Following", "Watch", "fleet_name"]

logger = logging.getLogger(__name__)

CATCH_UP_S: Final = 600.0
"""What is read of the log of a fleet that is new, or of a broker without a place."""
SLACK_S: Final = 2.0
"""Between two looks at the clock; tasks that come twice are counted once."""
NO_PLACE_S: Final = 6.0
"""After which a broker that told no place in a log has none: one of ours does so at
once. Saved before that, a state without places would have no place to go on from."""
COSTLY_SHARE: Final = 0.05
"""Of the time that saving may take: a fleet of tens of thousands saves less often."""
TAKE_S: Final = 8.0
"""In which a broker takes an alert: one that was killed is not known to be away."""
FINISH_S: Final = 1.5
"""How long the end waits for a moment at which nothing is under way."""


class Following(Protocol):
    """What of a monitor's configuration the following of a fleet needs."""

    @property
    def topic(self) -> str:
        """What is followed."""

    @property
    def socket(self) -> Path | None:
        """The daemon's."""

    @property
    def agent(self) -> str | None:
        """The hosted agent to follow as."""


class Watch:
    """Follows the brokers of one fleet."""

    def __init__(
        self,
        brokers: tuple[str, ...],
        config: Following,
        history: History,
        health: MonitorHealth,
    ) -> None:
        """Prepare to follow ``brokers``, the first and its stand-bys."""
        self.fleet = fleet_name(brokers[0])
        self.view = FleetView(self.fleet)
        self.listeners: list[Callable[[str, str, bytes, float], None]] = []
        """Told of each event: broker, topic, payload, and when it was published."""
        self.brokers = brokers
        self._config = config
        self._history = history
        self._health = health
        self._feed = FleetFeed(self.view, FeedConfig())
        self._is_known = False
        self._is_finishing = False
        self._stored = asyncio.Event()
        self._not_before = 0.0
        self._no_place_until = 0.0

    async def load(self) -> None:
        """Take up what was stored last.

        Raises:
            StorageError: The history cannot be read.
        """
        saved, now = await self._history.load(self.fleet), time.time()
        positions: dict[str, tuple[str, int]] = {}
        since_s = CATCH_UP_S
        if saved is not None:
            try:
                self.view = FleetView.load(saved.state, at=now)
            except DecodeError as error:
                # Its history stays; only the counters begin anew.
                logger.error("fleet %s begins anew: %s", self.fleet, error)
            else:
                self.view.take_back(saved.recent)
                self._is_known = True
                positions = saved.positions
                passed_s = max(0.0, now - saved.saved_at)
                since_s = min(CATCH_UP_S, passed_s + SLACK_S)
        self._feed = FleetFeed(
            self.view,
            FeedConfig(
                brokers=self.brokers,
                topic=self._config.topic,
                socket=self._config.socket,
                agent=self._config.agent,
                since_s=since_s,
            ),
            positions=positions,
            on_event=self._on_event,
            on_mark=self._on_mark,
        )

    async def run(self) -> None:
        """Follow until cancelled. After :meth:`load`."""
        self._no_place_until = time.monotonic() + NO_PLACE_S
        await self._feed.run()

    async def wait_first(self) -> None:
        """Return when the fleet is followed, or was tried once and is known already.

        Raises:
            PilotError: It cannot be followed, and nothing is known of it: what is wrong
                is said to whoever starts the monitor.
        """
        try:
            await self._feed.wait_following()
        except PilotError as error:
            if not self._is_known:
                raise type(error)(
                    f"fleet {self.fleet} cannot be followed: {error}",
                    hint="the daemon's agent must be in the network of each fleet; one"
                    " with another rendezvous needs a monitor of its own",
                ) from error

    async def finish(self) -> None:
        """Store the last of it, at a moment at which all that came is complete."""
        self._is_finishing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_S):
                await self._stored.wait()
                return
        await self._feed.save()

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish an alert of the fleet; confirmed, where the broker can.

        Raises:
            PilotError: No broker of the fleet took it.
        """
        config, heard = self._config, self._feed.following
        *others, last = sorted(self.brokers, key=lambda name: name not in heard)
        async with await Agent.connect(config.socket, name=config.agent) as agent:
            for broker in others:
                try:
                    await _publish_at(agent, broker, topic, payload)
                except PilotError as error:
                    logger.debug("broker %s takes no alert: %s", broker, error)
                else:
                    return
            await _publish_at(agent, last, topic, payload)

    def _on_event(self, broker: str, topic: str, payload: bytes, at: float) -> None:
        self._health.last_event[self.fleet] = at
        for listener in self.listeners:
            listener(broker, topic, payload, at)

    async def _on_mark(self, positions: dict[str, tuple[str, int]]) -> None:
        """Write state, places and samples in one transaction."""
        started, is_last = time.monotonic(), self._is_finishing
        if not positions and started < self._no_place_until:
            return
        if started < self._not_before and not is_last:
            return
        is_written = await self._history.store(
            self.fleet,
            self.view.collect(),
            state=self.view.save(),
            positions=positions,
            recent=self.view.new_recent(),
        )
        if not is_written:
            # The history says so, and keeps the samples for the next time.
            self._health.history_errors += 1
        took_s = time.monotonic() - started
        self._not_before = started + took_s / COSTLY_SHARE
        # One that began before the end was asked for lacks what came since.
        if is_last:
            self._stored.set()


async def _publish_at(agent: Agent, broker: str, topic: str, payload: bytes) -> None:
    try:
        async with asyncio.timeout(TAKE_S):
            try:
                await agent.publish(topic, payload, broker=broker, confirm=True)
            except NotSupported:
                # An official broker gets it as it can.
                await agent.publish(topic, payload, broker=broker)
    except TimeoutError:
        raise TimedOut(f"broker {broker} does not answer in {TAKE_S:g} s") from None


def fleet_name(broker: str) -> str:
    """Return the name of a fleet by that of its first broker."""
    return broker.removesuffix("-hub") or broker
