"""What a browser is told about our pages, and which names they answer to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers, MutableHeaders

from pilotfleet.protocol.registry.endpoints import is_loopback
from pilotfleet.web.answers import refuse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from pilotfleet.protocol.address import Endpoint

__all__ = ["HostCheck", "SecurityHeaders"]

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "font-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=()",
}
CRASHED: Final = b"internal error; the log of the program says more\n"
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class SecurityHeaders:
    """Puts the headers on every response, also on those to failures.

    A response that sets one of them itself keeps its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_secured(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(raw=message["headers"])
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                message = {**message, "headers": headers.raw}
            await send(message)

        try:
            await self._app(scope, receive, send_secured)
        except Exception:
            # The server's own page for this would come without our headers.
            if not started:
                await _say_crashed(send_secured)
            raise


async def _say_crashed(send: Send) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": CRASHED})


class HostCheck:
    """Answers only to names that are ours.

    A page that binds to loopback is for this machine. But any web site can have its
    own name resolve to 127.0.0.1 and then read our pages as if they were its own
    (DNS rebinding). It cannot change the Host header, which says its name.
    """

    def __init__(
        self, app: ASGIApp, *, bind: Endpoint, allowed: Iterable[str] = ()
    ) -> None:
        self._app = app
        names = {_canonical(name) for name in allowed}
        host = _canonical(bind[0])
        # Bound to the world, the server cannot know what the world calls it.
        self._checks = is_loopback(host) or bool(names)
        self._names = LOOPBACK_NAMES | names | {host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request, or refuse it."""
        if scope["type"] == "http" and self._checks:
            host = _canonical(_without_port(Headers(scope=scope).get("host", "")))
            if host not in self._names:
                answer = refuse(
                    421,
                    "invalid_argument",
                    "this host name is not served here",
                    hint="allow it with --http-allow-host, or use 127.0.0.1",
                )
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _without_port(host: str) -> str:
    if host.startswith("["):
        name, _, port = host.rpartition("]")
        return f"{name}]" if port == "" or port.startswith(":") else host
    return host.partition(":")[0]


def _canonical(name: str) -> str:
    return name.strip().lower().removeprefix("[").removesuffix("]").rstrip(".")
