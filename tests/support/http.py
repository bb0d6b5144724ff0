"""A small HTTP client that sends what it is told, also what is not allowed."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pilotfleet.web.server import HttpServer

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from pilotfleet.protocol.address import Endpoint

__all__ = ["LOOPBACK", "TIMEOUT_S", "Answer", "fetch", "serve"]

LOOPBACK: Endpoint = ("127.0.0.1", 0)
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    """By name in lower case; several of one name joined by line ends."""
    body: bytes

    def json(self) -> Any:
        """Return the body as a value."""
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


def serve(app: ASGIApp) -> HttpServer:
    """Return a server on a free port."""
    return HttpServer(app, LOOPBACK)


async def fetch(
    endpoint: Endpoint,
    path: str,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """Send one request and read the answer to the end of the connection."""
    fields = {"Host": f"{endpoint[0]}:{endpoint[1]}", "Connection": "close"}
    fields |= headers or {}
    if body is not None:
        fields.setdefault("Content-Length", str(len(body)))
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_connection(*endpoint)
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + (body or b""))
            return read_answer(await reader.read())
        finally:
            writer.close()


def read_answer(data: bytes) -> Answer:
    """Take an answer apart."""
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        known = headers.get(name.lower())
        headers[name.lower()] = value if known is None else f"{known}\n{value}"
    if headers.get("transfer-encoding") == "chunked":
        body = _joined(body)
    return Answer(int(status.split()[1]), headers, body)


def _joined(data: bytes) -> bytes:
    whole = bytearray()
    place = 0
    while place < len(data):
        end = data.index(b"\r\n", place)
        length = int(data[place:end], 16)
        whole += data[end + 2 : end + 2 + length]
        place = end + 4 + length
    return bytes(whole)
