"""A monitor: watches fleets, keeps their history, and offers both to its outputs.

Start: what was saved is loaded, the pages are offered, then the fleets are followed
from where the saved state ends, so every event is counted once. End: each fleet stores
what it has, then the outputs end, then the history closes. A part that fails does so
alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from pilotfleet.errors import (
    ConfigError,
    InvalidArgument,
    NotFound,
    NotSupported,
)
from pilotfleet.fleet.monitor.alerts.desk import AlertDesk
from pilotfleet.fleet.monitor.alerts.rules import load_rules
from pilotfleet.fleet.monitor.alerts.values import SourceValues
from pilotfleet.fleet.monitor.history.history import History, Retention
from pilotfleet.fleet.monitor.outputs.health import MonitorHealth
from pilotfleet.fleet.monitor.outputs.lines import LineOutput
from pilotfleet.fleet.monitor.outputs.metrics import FleetCollector, metrics_route
from pilotfleet.fleet.monitor.outputs.ndjson import LineKind, event_line, write_figures
from pilotfleet.fleet.monitor.supervision import supervise
from pilotfleet.fleet.monitor.watch import Watch
from pilotfleet.fleet.monitor.web.app import make_app
from pilotfleet.transport.threads import run_blocking
from pilotfleet.web.access import Access
from pilotfleet.web.guard import guard
from pilotfleet.web.server import HttpServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from starlette.types import ASGIApp

    from pilotfleet.fleet.monitor.figures import (
        AgentDetail,
        AgentPage,
        AgentQuery,
        AlertRow,
        Figures,
        RecentEvent,
        Series,
        TagFigures,
        TrustChange,
        TrustGraph,
    )
    from pilotfleet.fleet.monitor.times import TimeHistogram
    from pilotfleet.fleet.monitor.view.fleetview import FleetView
    from pilotfleet.protocol.address import Endpoint

__all__ = ["Monitor", "MonitorConfig"]

logger = logging.getLogger(__name__)

STDOUT: Final = 1
ALERTS: Final = "alerts"
"""Their name among the outputs, in metrics."""


@dataclass(frozen=True, slots=True)
class MonitorConfig:
    """What a monitor watches, and where it tells of it."""

    fleets: tuple[tuple[str, ...], ...]
    """Of each fleet the agents whose brokers it has, the first before its stand-bys."""
    home: Path
    """Folder of the history; of one monitor at a time."""
    topic: str = "fleet.*"
    socket: Path | None = None
    """The daemon's; None for the default one."""
    agent: str | None = None
    """The hosted agent to follow as."""
    http: Endpoint | None = None
    token: str | None = field(default=None, repr=False)
    """Opens the pages; None for everybody."""
    allow_hosts: tuple[str, ...] = ()
    alerts: Path | None = None
    lines: LineKind | None = None
    """What is written on standard output."""
    otlp: str = ""
    retention: Retention = field(default_factory=Retention)


class Monitor:
    """Watches fleets while it is entered. Offers what a ``MonitorSource`` does."""

    def __init__(self, config: MonitorConfig) -> None:
        """Prepare to watch. Reads the rules of alerts, which blocks for a moment.

        Raises:
            InvalidArgument: Two fleets have one name.
            ConfigError: A rule is wrong.
        """
        self._config = config
        self._health = MonitorHealth(started=time.time())
        self._history = History(config.home / "monitor.db", retention=config.retention)
        self._watches: dict[str, Watch] = {}
        for brokers in config.fleets:
            watch = Watch(brokers, config, self._history, self._health)
            if watch.fleet in self._watches:
                raise InvalidArgument(f"two fleets are called {watch.fleet}")
            self._watches[watch.fleet] = watch
        rules = load_rules(config.alerts) if config.alerts is not None else ()
        self._desk = AlertDesk(
            rules,
            SourceValues(self, self._view),
            store=self._history,
            publish=self._publish,
            counters=self._health.output(ALERTS),
        )
        self._wants_rules = asyncio.Event()
        self._collector = FleetCollector(self, self._health)
        self._server: HttpServer | None = None
        self._resources = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Load what was saved, and return when the fleets are followed.

        Raises:
            PilotError: Something that was asked for cannot be had. A fleet that is
                known from before may be away.
        """
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop()

    @property
    def http(self) -> Endpoint | None:
        """Where the pages are."""
        return self._server.address if self._server is not None else None

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until ``stop`` is set, then store what is known."""
        await stop.wait()
        await asyncio.gather(*(watch.finish() for watch in self._watches.values()))

    def reload_rules(self) -> None:
        """Read the rules of alerts again; where they are wrong, the old ones stay."""
        self._wants_rules.set()

    # What a source offers

    def fleets(self) -> Sequence[str]:
        """Return the names of the fleets."""
        return list(self._watches)

    def figures(self, fleet: str) -> Figures:
        """Return the figures of now."""
        return self._view(fleet).figures()

    def tags(self, fleet: str) -> Sequence[TagFigures]:
        """Return the figures of the tags that most agents have."""
        return self._view(fleet).tags()

    def task_times(self, fleet: str) -> TimeHistogram:
        """Return the times of all tasks."""
        return self._view(fleet).task_times()

    def agents(self, fleet: str, query: AgentQuery) -> AgentPage:
        """Return rows of the table."""
        return self._view(fleet).agents(query)

    def agent(self, fleet: str, name: str) -> AgentDetail:
        """Return the page of an agent."""
        return self._view(fleet).agent(name)

    def trust_graph(self, fleet: str, *, limit: int = 500) -> TrustGraph:
        """Return what can be drawn."""
        return self._view(fleet).trust_graph(limit=limit)

    def trust_changes(self, fleet: str, *, limit: int = 200) -> Sequence[TrustChange]:
        """Return the last changes, newest first."""
        return self._view(fleet).trust_changes(limit=limit)

    def recent_events(self, fleet: str, *, limit: int = 100) -> Sequence[RecentEvent]:
        """Return the last events, newest first."""
        return self._view(fleet).recent_events(limit=limit)

    def alerts(self) -> Sequence[AlertRow]:
        """Return what fires, then what was resolved lately."""
        return self._desk.rows()

    async def series(
        self,
        fleet: str,
        metrics: Sequence[str],
        *,
        start: float,
        end: float,
        tag: str | None = None,
        points: int = 600,
    ) -> Series:
        """Return values over time."""
        self._view(fleet)
        return await self._history.series(
            fleet, metrics, start=start, end=end, tag=tag, points=points
        )

    # Private

    def _view(self, fleet: str) -> FleetView:
        watch = self._watches.get(fleet)
        if watch is None:
            raise NotFound(f"no fleet is called {fleet!r}")
        return watch.view

    async def _start(self) -> None:
        enter = self._resources.enter_async_context
        await enter(self._history)
        for watch in self._watches.values():
            await watch.load()
        await self._desk.load()
        outputs = self._open_outputs()
        if self._config.http is not None:
            self._server = await enter(HttpServer(self._app(), self._config.http))
        for watch in self._watches.values():
            self._spawn(f"fleet {watch.fleet}", watch.run)
        await asyncio.gather(*(watch.wait_first() for watch in self._watches.values()))
        self._spawn(ALERTS, self._desk.run)
        self._spawn("alert rules", self._reload_rules)
        for name, work in outputs.items():
            self._spawn(name, work)

    async def _reload_rules(self) -> None:
        while True:
            await self._wants_rules.wait()
            self._wants_rules.clear()
            path = self._config.alerts
            if path is None:
                logger.warning("there are no rules of alerts (--alerts) to read again")
                continue
            try:
                rules = await run_blocking(load_rules, path)
            except ConfigError as error:
                logger.error("the old rules of alerts stay: %s", error)
                continue
            self._desk.reload(rules)
            logger.info("%d rules of alerts are in use", len(rules))

    async def _publish(self, fleet: str, topic: str, payload: bytes) -> None:
        await self._watches[fleet].publish(topic, payload)

    def _open_outputs(self) -> dict[str, Callable[[], Awaitable[None]]]:
        config = self._config
        outputs: dict[str, Callable[[], Awaitable[None]]] = {}
        if config.otlp:
            outputs["otlp"] = self._open_otlp(config.otlp)
        if config.lines is None:
            return outputs
        lines = LineOutput(STDOUT, self._health.output("ndjson"))
        self._resources.push_async_callback(lines.close)
        if config.lines is LineKind.FIGURES:
            outputs["ndjson"] = lambda: write_figures(self, lines)
            return outputs

        def on_event(broker: str, topic: str, payload: bytes, at: float) -> None:
            lines.write(event_line(topic, payload, at=at, broker=broker))

        for watch in self._watches.values():
            watch.listeners.append(on_event)
        return outputs

    def _open_otlp(self, url: str) -> Callable[[], Awaitable[None]]:
        try:
            from pilotfleet.fleet.monitor.outputs.otlp import OtlpOutput
        except ImportError:
            raise NotSupported(
                "OTLP needs libraries that are not installed",
                hint="pip install 'pilotfleet[otlp]'",
            ) from None
        return OtlpOutput(url, self._collector, self._health.output("otlp")).run

    def _app(self) -> ASGIApp:
        config = self._config
        assert config.http is not None
        access = Access(config.token)
        app = make_app(
            self,
            access=access,
            started=self._health.started,
            routes=[metrics_route(self._collector)],
        )
        return guard(
            app, bind=config.http, access=access, allow_hosts=config.allow_hosts
        )

    def _spawn(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        # Of an output by the name of its metric; parts have one as well.
        kept = supervise(name, work, self._health.output(name))
        self._tasks.append(asyncio.create_task(kept, name=name))

    async def _stop(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._resources.aclose()
