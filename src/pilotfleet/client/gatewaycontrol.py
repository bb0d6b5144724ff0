"""The Unix socket through which a running gateway is told what to map.

One JSON object per line each way: ``{"op":"map","target":…,"ip":…}``, answered by
``{"result":{…}}`` or ``{"error":{"code","message","hint"?}}``. Operations: ``map``,
``unmap``, ``list``, ``stop``. The socket is its user's alone (mode 0600).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import (
    AlreadyExists,
    InvalidArgument,
    PilotError,
    StorageError,
    error_to_fields,
)
from pilotfleet.transport.privatesocket import listen_privately

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from pilotfleet.client.gateway import Gateway

__all__ = ["GatewayControl"]

MAX_LINE: Final = 64 * 1024
MAX_CLIENTS: Final = 16
IDLE_S: Final = 30.0
BACKLOG: Final = 16


class GatewayControl:
    """Serves one gateway's control socket. An async context manager."""

    def __init__(self, gateway: Gateway, path: Path) -> None:
        self.path = path
        self.stopped = asyncio.Event()
        """Set once a client asked the gateway to stop."""
        self.is_ready = False
        """Whether the mappings that it was started with are there."""
        self._gateway = gateway
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            AlreadyExists: Another gateway answers there.
            StorageError: The socket cannot be made.
        """
        if _answers(self.path):
            raise AlreadyExists(
                f"gateway is already running (socket {self.path} is active)",
                hint="stop it first with: pilotctl gateway stop",
            )
        try:
            listener = listen_privately(self.path, backlog=BACKLOG)
        except OSError as error:
            reason = error.strerror or str(error)
            raise StorageError(f"cannot make socket {self.path}: {reason}") from error
        self._server = await asyncio.start_unix_server(
            self._on_client, sock=listener, limit=MAX_LINE
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(OSError):
            self.path.unlink()
        while self._clients:
            for task in self._clients:
                task.cancel()
            await asyncio.wait(self._clients)

    def _on_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(
            self._serve(reader, writer), name="gateway control"
        )
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            async with asyncio.timeout(IDLE_S) as limit:
                # ValueError: the line is longer than the limit.
                while line := await reader.readline():
                    limit.reschedule(None)
                    answer = await self._answer(line)
                    writer.write(json.dumps(answer).encode() + b"\n")
                    await writer.drain()
                    limit.reschedule(asyncio.get_running_loop().time() + IDLE_S)
        except (TimeoutError, OSError, ValueError):
            pass
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            return {"result": await self._run(_decode(line))}
        except PilotError as error:
            return {"error": error_to_fields(error)}

    async def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        gateway = self._gateway
        match request.get("op"):
            case "map":
                ip = _text(request, "ip") or None
                mapping = await gateway.map(_text(request, "target"), ip)
                return {"local_ip": mapping.ip, "pilot_addr": str(mapping.address)}
            case "unmap":
                mapping = await gateway.unmap(_text(request, "target"))
                return {"unmapped": mapping.ip, "pilot_addr": str(mapping.address)}
            case "list" | "stop" as op:
                if op == "stop":
                    self.stopped.set()
                mappings = gateway.mappings()
                return {
                    "pid": os.getpid(),
                    "ready": self.is_ready,
                    "subnet": gateway.subnet,
                    "mappings": mappings,
                    "total": len(mappings),
                }
            case op:
                raise InvalidArgument(f"unknown gateway operation {op!r:.40}")


def _decode(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidArgument("the request is not JSON") from None
    if not isinstance(request, dict):
        raise InvalidArgument("the request is not an object")
    return request


def _text(request: dict[str, Any], key: str) -> str:
    value = request.get(key, "")
    return value if isinstance(value, str) else ""


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
