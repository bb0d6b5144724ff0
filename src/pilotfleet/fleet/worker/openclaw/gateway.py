"""Gateways that tasks can be given to: our own, which are kept running, and others'.

A gateway is *ready* while tasks may be given to it. Whoever finds that it does not
answer says so (`suspect`); it gets no more tasks then until it has been asked.

Each start of our own has a new folder, port and token. The state of the one before
is no loss, as a session lives no longer than its task, and with it OpenClaw would take
up the turns that were cut short: the same tasks that are given to another gateway.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
import random
import secrets
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import (
    ConnectionFailed,
    NotRunning,
    PilotError,
    TimedOut,
)
from pilotfleet.fleet.worker.openclaw.client import check
from pilotfleet.fleet.worker.openclaw.config import write_home
from pilotfleet.fleet.worker.openclaw.http import Endpoint, exchange
from pilotfleet.fleet.worker.openclaw.process import GatewayProcess
from pilotfleet.transport.threads import run_blocking

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.fleet.worker.openclaw.config import OpenClawConfig

__all__ = ["Gateway", "OwnGateway", "RemoteGateway"]

logger = logging.getLogger(__name__)

STARTED: Final = "/startupz"
START_LIMIT_S: Final = 180.0
"""Ten seconds is usual; several that start on a busy machine take much longer."""
START_POLL_S: Final = 0.25
CHECK_INTERVAL_S: Final = 15.0
CHECK_LIMIT_S: Final = 30.0
MAX_MISSED: Final = 3
"""Checks in a row without an answer, after which a gateway counts as lost."""
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 60.0
STEADY_S: Final = 60.0
"""A gateway that ran so long is started again without a pause."""


class Gateway(abc.ABC):
    """One gateway and what is known of it."""

    is_ours: bool
    """Whether we start it again when it is lost, so that tasks need not be."""

    def __init__(self, name: str, agent: str) -> None:
        self.name = name
        self.busy = 0
        """Tasks that it has now; the pool counts."""
        self.endpoint: Endpoint | None = None
        """Where it is; known while it is ready."""
        self.failure: PilotError | None = None
        """Why it is not ready; none while it starts for the first time."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when it becomes ready, and when it fails."""
        self._agent = agent
        self._is_suspect = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether tasks may be given to it."""
        return self.endpoint is not None and not self._is_suspect.is_set()

    def suspect(self) -> None:
        """Have it checked before it gets another task."""
        self._is_suspect.set()

    @abc.abstractmethod
    async def run(self) -> None:
        """Keep it in sight until cancelled."""

    def _serve(self, endpoint: Endpoint) -> None:
        self._is_suspect.clear()
        self.endpoint, self.failure = endpoint, None
        logger.info("%s is ready", self.name)
        self.on_change()

    def _fail(self, error: PilotError) -> None:
        self.endpoint, self.failure = None, error
        logger.warning("%s: %s", self.name, error)
        self.on_change()

    async def _check(self, endpoint: Endpoint) -> None:
        try:
            async with asyncio.timeout(CHECK_LIMIT_S):
                await check(endpoint, self._agent)
        except TimeoutError:
            raise TimedOut(f"{self.name} does not answer") from None

    async def _watch(self, endpoint: Endpoint) -> None:
        """Check it now and then, or when it is suspect.

        Raises:
            PilotError: It does not do what it should.
        """
        missed = 0
        while missed < MAX_MISSED:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL_S):
                    await self._is_suspect.wait()
            try:
                await self._check(endpoint)
            except TimedOut:
                missed += 1
                continue
            missed = 0
            if self._is_suspect.is_set():
                self._is_suspect.clear()
                self.on_change()
        raise TimedOut(f"{self.name} has not answered {MAX_MISSED} times")


class RemoteGateway(Gateway):
    """A gateway that somebody else runs."""

    is_ours = False

    def __init__(self, name: str, endpoint: Endpoint, *, agent: str) -> None:
        super().__init__(name, agent)
        self._address = endpoint

    async def run(self) -> None:
        """Look for it, again and again while it is away."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._check(self._address)
                self._serve(self._address)
                pause_s = FIRST_PAUSE_S
                await self._watch(self._address)
            except PilotError as error:
                self._fail(error)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


class OwnGateway(Gateway):
    """A gateway process of ours, started again whenever it ends."""

    is_ours = True

    def __init__(
        self, name: str, config: OpenClawConfig, *, starting: asyncio.Semaphore
    ) -> None:
        """Prepare a gateway.

        Args:
            name: What it is called in messages.
            config: How it runs tasks.
            starting: Held while it starts: a start takes a whole processor.
        """
        super().__init__(name, config.agent)
        self.pid: int | None = None
        """Its process, while there is one."""
        self.starts = 0
        self._config = config
        self._starting = starting

    async def run(self) -> None:
        """Keep a process running; end it when cancelled."""
        loop, pause_s = asyncio.get_running_loop(), FIRST_PAUSE_S
        while True:
            started = loop.time()
            try:
                await self._run_once()
            except PilotError as error:
                self._fail(error)
            if loop.time() - started > STEADY_S:
                pause_s = FIRST_PAUSE_S
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _run_once(self) -> None:
        """Start it and stay until it is lost; always raises."""
        home = Path(await run_blocking(tempfile.mkdtemp, prefix="pilotfleet-openclaw-"))
        try:
            await self._run_in(home)
        except OSError as error:
            raise NotRunning(f"{self.name} cannot start: {error}") from error
        finally:
            await run_blocking(shutil.rmtree, home, ignore_errors=True)

    async def _run_in(self, home: Path) -> None:
        endpoint = Endpoint("127.0.0.1", _free_port(), secrets.token_urlsafe(32))
        environment = await run_blocking(
            write_home, home, self._config, port=endpoint.port, token=endpoint.token
        )
        async with self._starting:
            command = (self._config.program, "gateway", "run")
            process = await GatewayProcess.start(
                command, folder=home, environment=environment
            )
            self.pid, self.starts = process.pid, self.starts + 1
            try:
                await _until_ready(process, endpoint, self.name)
            except BaseException:
                await process.end()
                raise
        try:
            await self._stay(process, endpoint)
        finally:
            self.endpoint = self.pid = None
            await process.end()

    async def _stay(self, process: GatewayProcess, endpoint: Endpoint) -> None:
        await self._check(endpoint)
        self._serve(endpoint)
        ended = asyncio.create_task(process.wait(), name=f"{self.name} ends")
        watch = asyncio.create_task(self._watch(endpoint), name=f"{self.name} watched")
        try:
            await asyncio.wait([ended, watch], return_when=asyncio.FIRST_COMPLETED)
            # A process that has ended breaks its connections, too.
            await asyncio.wait([ended], timeout=START_POLL_S)
            if ended.done():
                raise NotRunning(f"{self.name} ended ({ended.result()})")
            watch.result()
        finally:
            for task in (ended, watch):
                task.cancel()
            await asyncio.gather(ended, watch, return_exceptions=True)


async def _until_ready(process: GatewayProcess, endpoint: Endpoint, name: str) -> None:
    """Wait until a process that starts says that it is ready."""
    ended = asyncio.create_task(process.wait(), name=f"{name} starts")
    try:
        async with asyncio.timeout(START_LIMIT_S):
            while not await _says_ready(endpoint):
                await asyncio.wait([ended], timeout=START_POLL_S)
                if ended.done():
                    raise NotRunning(f"{name} ended at once ({ended.result()})")
    except TimeoutError:
        raise TimedOut(
            f"{name} was not ready after {START_LIMIT_S:g} s: {process.last_words}"
        ) from None
    finally:
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)


async def _says_ready(endpoint: Endpoint) -> bool:
    try:
        status, _ = await exchange(endpoint, "GET", STARTED)
    except ConnectionFailed:
        return False
    return status == 200


def _free_port() -> int:
    """Return a port that is free now; if it is taken, the next start has another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
