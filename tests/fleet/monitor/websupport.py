"""The monitor's pages on a real socket, and a plain client for them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pilotfleet.fleet.monitor.web.app import make_app
from pilotfleet.web.access import Access
from pilotfleet.web.guard import guard
from pilotfleet.web.server import HttpServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from email.message import Message

    from pilotfleet.fleet.monitor.source import MonitorSource

__all__ = ["Answer", "Site", "served"]

REQUEST_S = 10


@dataclass
class Answer:
    """What a server answered."""

    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, str]:
        """The error of an answer that must be one, and have nothing else."""
        assert self.json.keys() == {"error"}
        error: dict[str, str] = self.json["error"]
        return error


@dataclass
class Site:
    """Pages that are being served."""

    url: str

    async def get(self, path: str, **headers: str) -> Answer:
        return await asyncio.to_thread(self._get, path, headers)

    def _get(self, path: str, headers: dict[str, str]) -> Answer:
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_S) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as refused:
            with refused:
                return Answer(refused.code, refused.headers, refused.read())


@contextlib.asynccontextmanager
async def served(
    source: MonitorSource,
    *,
    token: str | None = None,
    port: int = 0,
    wall: Callable[[], float] = time.time,
) -> AsyncIterator[Site]:
    """Serve a source as the monitor does."""
    bind = ("127.0.0.1", port)
    access = Access(token)
    app = make_app(source, access=access, started=wall() - 5, wall=wall)
    async with HttpServer(guard(app, bind=bind, access=access), bind) as server:
        yield Site(f"http://127.0.0.1:{server.address[1]}")
