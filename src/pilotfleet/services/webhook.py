"""Webhooks of a host's agents (services.md section 11).

The policy is in `pilotfleet.protocol.services.webhook`; here are the URLs, the files
that keep them, and one task for each agent that has something to deliver. An agent
without a URL has no object here, and as long as none has one the host does not even
call: events then cost a comparison.

Where a URL comes from, strongest first: what a local program set while the daemon
runs, the flag or config.json (for all agents), the file ``webhook_url`` in the
agent's folder, which keeps what was set by a program.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import InvalidArgument, PilotError, StorageError
from pilotfleet.node.home import make_folder
from pilotfleet.node.supervisor import Supervisor
from pilotfleet.protocol.services.webhook import (
    DRAIN_S,
    REQUEST_S,
    SIGNATURE_HEADER,
    Counters,
    DeliveryQueue,
    Target,
    check_address,
    parse_url,
    sign_body,
)
from pilotfleet.transport.files import replace_file
from pilotfleet.transport.httppost import HttpPoster
from pilotfleet.transport.threads import run_blocking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.config import AgentSpec
    from pilotfleet.node.host import Host

__all__ = ["URL_FILE", "WebhookService"]

logger = logging.getLogger(__name__)

URL_FILE: Final = "webhook_url"
SET_OPERATION: Final = "webhook.set"
"""Name under which the IPC server finds `WebhookService.set_request`."""

# Of our choosing.
MAX_DELIVERIES: Final = 32
"""Requests under way at a time, of all agents together: ten thousand agents that
start must not open ten thousand connections."""


class WebhookService:
    """Delivers what happens to the agents of a host.

    An async context manager around the host's: it must know the URLs before the
    first agent is registered, and delivers the last events after the host is closed.

    Args:
        host: Whose agents.
        url: For every agent; empty means what each agent's file says.
        secret: Signs the deliveries; empty for none.
        clock: Monotonic seconds.
        wall_ns: Unix time in nanoseconds.

    Raises:
        InvalidArgument: ``url`` cannot be used.
        PermissionDenied: It points where no event may go.
    """

    def __init__(
        self,
        host: Host,
        *,
        url: str = "",
        secret: str = "",
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._host = host
        self._target = parse_url(url) if url else None
        self._secret = secret
        self._clock = clock
        self._wall_ns = wall_ns
        self._hooks: dict[str, _Hook] = {}
        self._counters: dict[str, Counters] = {}
        self._slots = asyncio.Semaphore(MAX_DELIVERIES)
        self._setting = asyncio.Lock()
        self._tasks = Supervisor()

    async def __aenter__(self) -> Self:
        specs = self._host.config.agents
        if self._target is not None:
            for spec in specs:
                self._attach(spec.name, self._target)
        else:
            for name, url in (await run_blocking(_read_urls, specs)).items():
                self._attach_stored(name, url)
        self._host.extensions[SET_OPERATION] = self.set_request
        self._host.webhook_counters = self.counters
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Deliver what waits, for a few seconds at most, and end."""
        self._host.event_sink = None
        working = [hook.task for hook in self._hooks.values() if hook.task is not None]
        if working:
            await asyncio.wait(working, timeout=DRAIN_S)
        await self._tasks.aclose()

    def counters(self, agent: Agent) -> Counters:
        """Return what became of the events of ``agent`` since the start."""
        return self._counters.get(agent.name) or Counters()

    async def set_url(self, agent: Agent, url: str) -> None:
        """Deliver events of ``agent`` to ``url`` from now on; empty: to nobody.

        It is kept over restarts. What waits for the old URL is thrown away.

        Raises:
            InvalidArgument: The URL cannot be used.
            PermissionDenied: It points where no event may go.
            StorageError: It cannot be kept; the old one stays in use.
        """
        target = parse_url(url) if url else None
        # One after the other, so that the file says what is in use.
        async with self._setting:
            await run_blocking(_write_url, agent.home / URL_FILE, url)
            self._detach(agent.name)
            if target is not None:
                self._attach(agent.name, target)
        where = target.authority if target is not None else "nobody"
        logger.info("agent %s: events go to %s", agent.name, where)

    async def set_request(
        self, session: object, agent: Agent, request: dict[str, Any]
    ) -> dict[str, Any]:
        """Serve the IPC command SetWebhook."""
        url = request.get("url", "")
        if not isinstance(url, str):
            raise InvalidArgument("url must be text")
        await self.set_url(agent, url)
        return {"webhook": url}

    # Private

    def _attach_stored(self, name: str, url: str) -> None:
        try:
            self._attach(name, parse_url(url))
        except PilotError as error:
            # A file that somebody edited must not keep the agent from running.
            logger.warning("agent %s: %s is not used: %s", name, URL_FILE, error)

    def _attach(self, name: str, target: Target) -> None:
        counters = self._counters.setdefault(name, Counters())
        self._hooks[name] = _Hook(target, DeliveryQueue(counters))
        self._host.event_sink = self._take

    def _detach(self, name: str) -> None:
        hook = self._hooks.pop(name, None)
        if hook is not None and hook.task is not None:
            hook.task.cancel()
        if not self._hooks:
            self._host.event_sink = None

    def _take(self, agent: Agent, event: str, data: dict[str, Any]) -> None:
        """Be the host's event sink."""
        hook = self._hooks.get(agent.name)
        if hook is None:
            return
        is_queued = hook.queue.offer(
            event,
            data,
            node_id=agent.node_id,
            timestamp_ns=self._wall_ns(),
            now=self._clock(),
        )
        if is_queued and hook.task is None:
            hook.task = self._tasks.spawn(
                self._deliver(agent.name, hook), name=f"webhook of {agent.name}"
            )

    async def _deliver(self, name: str, hook: _Hook) -> None:
        """Empty the queue; this task lives as long as that takes."""
        poster = HttpPoster(hook.target, check_address=check_address)
        try:
            while (body := hook.queue.begin()) is not None:
                await self._deliver_one(name, hook, poster, body)
        finally:
            # Nothing waits between the last look at the queue and this.
            hook.task = None
            await poster.aclose()

    async def _deliver_one(
        self, name: str, hook: _Hook, poster: HttpPoster, body: bytes
    ) -> None:
        pause: float | None = 0.0
        while pause is not None:
            await asyncio.sleep(pause)
            async with self._slots:
                status = await self._post(name, hook, poster, body)
            was_open = hook.queue.is_open
            pause = hook.queue.finish(status, self._clock())
            if hook.queue.is_open and not was_open:
                logger.warning(
                    "agent %s: webhook %s does not take events; resting",
                    name,
                    hook.target.authority,
                )

    async def _post(
        self, name: str, hook: _Hook, poster: HttpPoster, body: bytes
    ) -> int | None:
        target = hook.target
        try:
            async with asyncio.timeout(REQUEST_S):
                status = await poster.post(
                    target.path, self._headers(target, body), body
                )
        except (PilotError, TimeoutError) as error:
            # Neither the path nor the user may be logged: both can hold a secret.
            reason = str(error) or "no answer in time"
            logger.debug("agent %s: webhook %s: %s", name, target.authority, reason)
            return None
        if status >= 300:
            logger.debug("agent %s: webhook answers with %d", name, status)
        return status

    def _headers(self, target: Target, body: bytes) -> list[tuple[str, str]]:
        headers = [
            ("Host", target.authority),
            ("User-Agent", "pilotfleet"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
        ]
        if target.authorization:
            headers.append(("Authorization", target.authorization))
        if self._secret:
            headers.append((SIGNATURE_HEADER, sign_body(self._secret, body)))
        return headers


class _Hook:
    """Where the events of one agent go, and those on their way."""

    __slots__ = ("queue", "target", "task")

    def __init__(self, target: Target, queue: DeliveryQueue) -> None:
        self.target = target
        self.queue = queue
        self.task: asyncio.Task[None] | None = None
        """Runs while the queue is not empty."""


def _read_urls(specs: Iterable[AgentSpec]) -> dict[str, str]:
    """Return what the files of the agents say, for those that have one."""
    urls = {}
    for spec in specs:
        path = spec.home / URL_FILE
        try:
            urls[spec.name] = path.read_text().strip()
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            logger.warning("cannot read %s: %s", path, error)
    return {name: url for name, url in urls.items() if url}


def _write_url(path: Path, url: str) -> None:
    try:
        if url:
            make_folder(path.parent)
            replace_file(path, url.encode())
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
