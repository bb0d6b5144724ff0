"""An HTTP server that runs inside a program's own event loop.

uvicorn as a library: without its signal handlers, its log format and its habit
of ending the process when a port is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import AlreadyExists, Unavailable
from pilotfleet.web.lifetime import Lifetime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from starlette.types import ASGIApp

    from pilotfleet.protocol.address import Endpoint

__all__ = ["HttpServer"]

BACKLOG: Final = 512
DRAIN_S: Final = 1
"""How long a stop waits for responses that have begun."""
MAX_CONNECTIONS: Final = 1_000
MAX_HEADERS: Final = 16 * 1024
"""Bytes of a request line with its headers."""
KEEP_ALIVE_S: Final = 30
"""How long a connection may do nothing between two requests."""


class HttpServer:
    """Serves an ASGI application on a TCP port. An async context manager.

    The application finds a ``Lifetime`` in the scope of each request.
    """

    def __init__(self, app: ASGIApp, bind: Endpoint, *, flag: str = "--http") -> None:
        self._app = app
        self._bind = bind
        self._flag = flag
        self._socket: socket.socket | None = None
        self._server: Any = None
        self._task: asyncio.Task[None] | None = None
        self._lifetime = Lifetime()

    @property
    def address(self) -> Endpoint:
        """Where the server listens."""
        if self._socket is None:
            return self._bind
        host, port = self._socket.getsockname()[:2]
        return host, port

    async def __aenter__(self) -> HttpServer:
        """Start to listen.

        Raises:
            AlreadyExists: Somebody else has the port.
            Unavailable: The system refuses the address.
        """
        # Late: most processes of this package serve no HTTP, and it is large.
        import uvicorn

        from pilotfleet.web.connection import PatientProtocol

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        self._socket = self._listen()
        config = uvicorn.Config(
            self._lifetime.attached(self._app),
            http=PatientProtocol,
            ws="none",
            log_config=None,
            # Its warnings are one for each bad request: a log that strangers fill.
            log_level="error",
            access_log=False,
            lifespan="off",
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            h11_max_incomplete_event_size=MAX_HEADERS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
        )
        self._server = Server(config)
        self._task = asyncio.create_task(
            self._server.serve(sockets=[self._socket]), name="http-server"
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop: end the streams, finish responses that have begun, then close."""
        assert self._task is not None
        assert self._socket is not None
        self._lifetime.closing.set()
        self._server.should_exit = True
        try:
            await self._task
        finally:
            self._socket.close()

    def _listen(self) -> socket.socket:
        host, port = self._bind
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                raise AlreadyExists(
                    f"tcp port {port} on {host or 'all addresses'} is in use",
                    hint="stop the other program, or choose another port with "
                    f"{self._flag}",
                ) from error
            reason = error.strerror or str(error)
            raise Unavailable(f"cannot listen on {host}:{port}: {reason}") from error
        return listener
