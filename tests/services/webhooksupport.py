"""A program that takes webhook deliveries and remembers them."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = ["Delivery", "Recorder"]

WAIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """One request as it came in."""

    body: bytes
    headers: dict[str, str]

    @property
    def event(self) -> dict[str, Any]:
        """The body, decoded."""
        return dict(json.loads(self.body))


@dataclass
class Recorder:
    """An HTTP server in a thread. A context manager."""

    answers: list[int] = field(default_factory=list)
    """Status of the next requests, the first first; 200 when there is none."""
    location: str = ""
    """Where a redirect points."""
    trailer: bytes = b""
    """Body of every answer."""
    hold: threading.Event | None = None
    """When set, no answer is given before this is."""

    def __post_init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self._changed = threading.Condition()
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                recorder.take(self, self.rfile.read(length))

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.hold is not None:
            self.hold.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where to deliver to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/hook?a=b"

    @property
    def events(self) -> list[dict[str, Any]]:
        """What came, in order."""
        with self._changed:
            return [delivery.event for delivery in self.deliveries]

    def names(self) -> list[str]:
        """Return the names of what came, in order."""
        return [event["event"] for event in self.events]

    def wait_for(self, is_there: Callable[[list[dict[str, Any]]], object]) -> None:
        """Return when what came satisfies the condition; blocks the thread."""
        with self._changed:
            found = self._changed.wait_for(
                lambda: is_there([d.event for d in self.deliveries]), WAIT_S
            )
        assert found, f"only {self.names()} came"

    def take(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        """Remember a request and answer it."""
        headers = {key.lower(): value for key, value in request.headers.items()}
        with self._changed:
            self.deliveries.append(Delivery(body, headers))
            status = self.answers.pop(0) if self.answers else 200
            self._changed.notify_all()
        if self.hold is not None:
            self.hold.wait(WAIT_S)
        request.send_response(status)
        if self.location:
            request.send_header("Location", self.location)
        request.send_header("Content-Length", str(len(self.trailer)))
        request.end_headers()
        request.wfile.write(self.trailer)
