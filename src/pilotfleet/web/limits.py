"""Bounds on what a request may bring."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers

from pilotfleet.web.answers import refuse

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BodyLimit", "client_network", "network_of"]

MAX_BODY: Final = 16 * 1024
"""Bytes. Our pages take a login token and nothing else."""
BODY_S: Final = 10.0
"""How long a body may take to come."""


class BodyLimit:
    """Refuses bodies that are too large or too slow, and reads none for nothing."""

    def __init__(self, app: ASGIApp, *, max_bytes: int = MAX_BODY) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request, or refuse it."""
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        body = await self._read(receive)
        if body is None:
            answer = refuse(
                413,
                "invalid_argument",
                f"the body is larger than {self._max_bytes} bytes, or too slow",
                # The rest of it is not read.
                headers={"Connection": "close"},
            )
            await answer(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self._max_bytes:
                        return None
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            return None


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def client_network(connection: HTTPConnection) -> str:
    """Return whom to count a request for; see :func:`network_of`."""
    return network_of(connection.client.host if connection.client is not None else "")


def network_of(host: str) -> str:
    """Return whom to count for: an address, or the /64 of an IPv6 one.

    Whoever has one IPv6 address has all of its /64.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 4 or address.is_loopback:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
