"""Follow the brokers of a fleet, and keep a view of it up to date.

A broker's marks say how far it has come. At a mark the view and the brokers' positions
belong together: whoever stores both in one transaction, and begins there the next time,
counts every event once. An event that a broker lost for us is read again from its log.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import PilotError
from pilotfleet.fleet.agent import Agent
from pilotfleet.fleet.monitor.directorywatch import DirectoryWatch
from pilotfleet.fleet.monitor.inorder import InOrder
from pilotfleet.fleet.place import Place
from pilotfleet.fleet.subscription import Mark, Received
from pilotfleet.protocol.services.eventoptions import MarkFrame
from pilotfleet.transport.backoff import backoff_s

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from pilotfleet.fleet.monitor.view.fleetview import FleetView
    from pilotfleet.fleet.subscription import FleetSubscription

__all__ = ["FeedConfig", "FleetFeed", "ForwardClock"]

logger = logging.getLogger(__name__)

TICK_S: Final = 1.0
LIVE_S: Final = 5.0
"""A mark that is older is one of the past, or of a clock that is so wrong."""
PRESENT_S: Final = 1.5
"""Who tells of the past does so until a mark is as young as this."""
LONGEST_LAG_S: Final = 7 * 86_400.0
"""No log goes back further; a broker that says so does not know the time."""
OVERDUE_S: Final = 3.0
"""After which positions are given out though one broker is between two marks."""
FIRST_MARK_S: Final = 5.0
"""In which a broker of ours makes its first mark."""
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class FeedConfig:
    """What is followed, and how often is asked."""

    brokers: tuple[str, ...] = ()
    """The fleet's broker and its stand-bys; empty for those of the daemon."""
    topic: str = "fleet.*"
    socket: Path | None = None
    """The daemon's; None for the default one."""
    agent: str | None = None
    """The hosted agent to follow as."""
    since_s: float = 0.0
    """What is read of a log that no position is known of. With a view that was saved,
    not more than has passed since, or events count twice."""
    directory_s: float = 15.0
    """Between two passes over the directory."""
    trust_s: float = 5.0
    """Between two questions after trust."""


@dataclass(slots=True)
class _Broker:
    """How far one broker has come."""

    place: Place
    lag_s: float = 0.0
    """How old the events are that come of it."""
    lost: int = 0
    """As it counted in this subscription."""
    is_clean: bool = True
    """Whether nothing came since its last mark."""
    silent_until: float = math.inf
    """When one that makes no marks is taken for one that has nothing to catch up
    with, by the monotonic clock."""


@dataclass(slots=True)
class ForwardClock:
    """Wall time that never goes back: set back, it goes on from where it was."""

    wall: Callable[[], float] = time.time
    elapsed: Callable[[], float] = time.monotonic
    _last: float = field(default=0.0, init=False)
    _at: float = field(default=0.0, init=False)

    def __call__(self) -> float:
        """Return the time."""
        now = self.elapsed()
        self._last = max(self.wall(), self._last + now - self._at)
        self._at = now
        return self._last


class FleetFeed:
    """Feeds one view; :meth:`run` does the work."""

    def __init__(
        self,
        view: FleetView,
        config: FeedConfig,
        *,
        positions: Mapping[str, tuple[str, int]] | None = None,
        on_event: Callable[[str, str, bytes, float], None] | None = None,
        on_mark: Callable[[dict[str, tuple[str, int]]], Awaitable[None]] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Prepare to follow.

        Args:
            view: What is fed.
            config: What is followed.
            positions: Where to go on, by broker: its log and the number in it.
            on_event: Told of each event: broker, topic, payload, and when.
            on_mark: Awaited about once a second, when the view and these positions
                belong together. Nothing is taken until it returns.
            clock: The time, which never goes back.
        """
        self._view = view
        self._config = config
        self._on_event = on_event
        self._on_mark = on_mark
        self._clock = clock or ForwardClock()
        self.positions: dict[str, tuple[str, int]] = dict(positions or {})
        """Of the last mark of each broker."""
        self._brokers: dict[str, _Broker] = {}
        self._in_order = InOrder[Received | Mark]()
        self._events: FleetSubscription | None = None
        self._following: frozenset[str] = frozenset()
        self._is_deaf = True
        """Time stands still then: what happens is told later, by the broker's log."""
        self._heard = asyncio.Event()
        """Set for good when there is a time for the first time."""
        self._left: float | None = None
        """When the last subscription ended."""
        self._saving = asyncio.Lock()
        self._saved = 0.0
        self._first = asyncio.Event()
        self.error: PilotError | None = None
        """Why the fleet is not being followed; None while it is."""

    @property
    def following(self) -> frozenset[str]:
        """The brokers that are heard now."""
        return self._following

    async def wait_following(self) -> None:
        """Return when the fleet is followed for the first time. May be cancelled.

        Raises:
            PilotError: The first try failed; :meth:`run` tries again for ever.
        """
        await self._first.wait()
        if self.error is not None:
            raise self.error

    async def run(self) -> None:
        """Follow until cancelled; whatever goes away is looked for again."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(), name="events of the fleet")
                group.create_task(self._tick(), name="time of the fleet")
                group.create_task(self._watch_directory(), name="directory")
        finally:
            self._set_following(frozenset())

    def now(self) -> float:
        """Return the time of the view: that of the broker that is most behind."""
        lags = (self._broker(name).lag_s for name in self._following)
        return min(self._clock() - max(lags, default=0.0), self._in_order.oldest)

    async def save(self) -> None:
        """Have ``on_mark`` called now, as at the end of a program."""
        self._pass_time()
        await self._save()

    # Following

    async def _connect(self) -> Agent:
        return await Agent.connect(self._config.socket, name=self._config.agent)

    async def _follow(self) -> None:
        failures = 0
        while True:
            try:
                async with await self._connect() as agent:
                    await self._subscribe(agent)
                failures = 0
            except PilotError as error:
                self._set_error(error, is_first=not failures)
                failures += 1
            self._set_following(frozenset())
            pause_s = backoff_s(
                failures, first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S
            )
            await asyncio.sleep(pause_s)

    async def _subscribe(self, agent: Agent) -> None:
        """Follow until a broker has lost something that its log has."""
        config, now = self._config, time.monotonic()
        since_s = config.since_s if self._left is None else now - self._left
        events = await agent.subscribe(
            config.topic,
            broker=list(config.brokers) or None,
            since=since_s or None,
            marks=True,
            positions=self.positions,
        )
        async with events:
            for broker in self._brokers.values():
                broker.place.connect(now)
                broker.lost = 0
            # It comes again: no mark behind it was taken.
            self._in_order.clear()
            # Also of who is heard a moment later than the first.
            for name in config.brokers:
                self._wait_for(name)
            self.error = None
            self._events = events
            self._set_following(frozenset(events.following))
            self._first.set()
            try:
                await self._take_all(events)
            finally:
                self._events = None
                self._left = time.monotonic()
                for broker in self._brokers.values():
                    broker.place.leave(self._left)

    async def _take_all(self, events: FleetSubscription) -> None:
        async for item in events:
            self._arrive(item)
            for at, due in self._in_order.due():
                if self._saving.locked():
                    async with self._saving:
                        pass
                broker = self._broker(due.broker)
                if isinstance(due, Received):
                    self._take(due, broker, at)
                elif not self._take_mark(due, broker, at):
                    logger.info("broker %s lost events; reading its log", due.broker)
                    return
                else:
                    await self._save_if_due()

    def _arrive(self, item: Received | Mark) -> None:
        """Put what comes where it waits for what happened before."""
        broker, now, size = self._broker(item.broker), self._clock(), 0
        if isinstance(item, Mark):
            behind_s = now - item.time
            past_s = PRESENT_S if broker.lag_s else LIVE_S
            is_past = past_s < behind_s < LONGEST_LAG_S
            broker.lag_s = behind_s if is_past else 0.0
            self._set_following(self._following | {item.broker})
            reached = now - behind_s if is_past else math.inf
            self._in_order.reach(item.broker, reached)
        else:
            size = len(item.event.payload)
        at = now - broker.lag_s
        self._in_order.put(item.broker, item, at=at, size=size)

    def _take(self, item: Received, broker: _Broker, at: float) -> None:
        broker.is_clean = False
        if not broker.place.take(item.event, time.monotonic()):
            return
        topic, payload = item.event
        self._hear(at)
        self._view.take(topic, payload, at=at)
        if self._on_event is not None:
            self._on_event(item.broker, topic, payload, at)

    def _take_mark(self, mark: Mark, broker: _Broker, at: float) -> bool:
        """Take note of a place; false if what came before it must be read again."""
        lost = mark.lost - broker.lost
        if lost > 0:
            if mark.log and mark.broker in self.positions:
                return False
            self._view.count_lost(lost)
            broker.lost = mark.lost
        broker.place.mark(MarkFrame(mark.log, mark.id, mark.time, mark.lost))
        broker.is_clean = True
        broker.silent_until = 0.0
        self._hear(at)
        if mark.log:
            self.positions[mark.broker] = (mark.log, mark.id)
        return True

    def _broker(self, name: str) -> _Broker:
        broker = self._brokers.get(name)
        if broker is None:
            place = Place(position=self.positions.get(name))
            broker = self._brokers[name] = _Broker(place)
        return broker

    async def _watch_directory(self) -> None:
        directory = DirectoryWatch(
            self._view,
            self._connect,
            # While time stands still the registry must not move it: what a broker's
            # log tells afterwards would count as of now.
            lambda: self._view.now if self._is_deaf else self.now(),
            directory_s=self._config.directory_s,
            trust_s=self._config.trust_s,
        )
        await self._heard.wait()
        await directory.run()

    # Time

    async def _tick(self) -> None:
        while True:
            if self._events is not None:
                self._set_following(frozenset(self._events.following))
            self._pass_time()
            await self._save_if_due()
            await asyncio.sleep(TICK_S)

    def _pass_time(self) -> None:
        now = time.monotonic()
        for name, broker in self._brokers.items():
            if 0 < broker.silent_until <= now:
                self._in_order.reach(name, math.inf)
        if any(self._broker(name).silent_until <= now for name in self._following):
            at = self.now()
            self._hear(at)
            self._view.advance(at)
        else:
            self._is_deaf = True

    def _hear(self, at: float) -> None:
        if self._is_deaf:
            self._is_deaf = False
            self._heard.set()
            self._view.listen_from(at)

    async def _save_if_due(self) -> None:
        passed_s = time.monotonic() - self._saved
        if passed_s < TICK_S or self._saving.locked():
            return
        # Without marks nothing is ever known to be complete, nor has it a position.
        clean = all(
            broker.is_clean or name not in self.positions
            for name, broker in self._brokers.items()
        )
        if clean or passed_s >= OVERDUE_S:
            await self._save()

    async def _save(self) -> None:
        if self._on_mark is None:
            return
        async with self._saving:
            self._saved = time.monotonic()
            try:
                await self._on_mark(dict(self.positions))
            except PilotError as error:
                logger.warning("fleet %s: not saved: %s", self._view.fleet, error)

    def _set_following(self, following: frozenset[str]) -> None:
        for name in following - self._following:
            self._wait_for(name)
        for name in self._following - following:
            self._broker(name).silent_until = math.inf
            self._broker(name).lag_s = 0.0
            self._in_order.reach(name, math.inf)
        self._following = following
        self._view.is_following = bool(following)

    def _wait_for(self, name: str) -> None:
        """Expect the first mark of a broker."""
        self._broker(name).silent_until = time.monotonic() + FIRST_MARK_S
        self._in_order.reach(name, -math.inf)

    def _set_error(self, error: PilotError, *, is_first: bool) -> None:
        self.error = error
        self._first.set()
        # Once for each time that it goes away.
        log = logger.warning if is_first else logger.debug
        log("fleet %s: %s; trying again", self._view.fleet, error)
