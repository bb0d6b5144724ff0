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

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from pilotfleet.protocol.address import Endpoint

__all__ = ["HttpServer"]

BACKLOG: Final = 512
DRAIN_S: Final = 2
"""How long a stop waits for responses that have begun."""
MAX_CONNECTIONS: Final = 1_000


class HttpServer:
    """Serves an ASGI application on a TCP port. An async context manager."""

    def __init__(self, app: Any, bind: Endpoint, *, flag: str = "--http") -> None:
        self._app = app
        self._bind = bind
        self._flag = flag
        self._socket: socket.socket | None = None
        self._server: Any = None
        self._task: asyncio.Task[None] | None = None

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

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        self._socket = self._listen()
        config = uvicorn.Config(
            self._app,
            log_config=None,
            # Its warnings are one for each bad request: a log that strangers fill.
            log_level="error",
            access_log=False,
            lifespan="off",
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
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
        """Stop: finish responses that have begun, then close."""
        assert self._task is not None
        assert self._socket is not None
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
