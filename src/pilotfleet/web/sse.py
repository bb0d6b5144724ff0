"""Server-sent events: what is shown stays true without being asked for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from pilotfleet.web.answers import refuse
from pilotfleet.web.lifetime import Lifetime
from pilotfleet.web.limits import client_network

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

__all__ = ["event_stream"]

KEEP_ALIVE_S: Final = 15.0
"""Longest silence; proxies close connections that say nothing."""
STREAM_S: Final = 3600.0
"""Longest life of a stream. The browser opens the next, if it is still logged in."""
RETRY_MS: Final = 2000

EVENT_STREAM: Final = "text/event-stream"
HEADERS: Final = {
    "Cache-Control": "no-store",
    # nginx would collect the events and hand them over when it has enough.
    "X-Accel-Buffering": "no",
}


def event_stream(
    request: Request,
    produce: Callable[[], bytes],
    interval_s: float = 1.0,
    *,
    event: str = "figures",
) -> Response:
    """Return a response that repeats what ``produce`` says, whenever it changed.

    Args:
        request: The request that is answered.
        produce: Returns the data of the event, one line of JSON. Called at once and
            then each ``interval_s``; with many clients it should remember its answer.
        interval_s: Pause between two looks.
        event: Name of the event.

    Returns:
        The stream, or status 503 when the server has as many as it can have.
    """
    if request.method == "HEAD":
        # Without a body there is nothing to wait for.
        return Response(headers=HEADERS, media_type=EVENT_STREAM)
    lifetime = Lifetime.of(request.scope)
    client = client_network(request)
    if not lifetime.open_stream(client):
        return refuse(
            503,
            "connection_failed",
            "too many live streams are open",
            hint="close other pages, or try again later",
            headers={"Retry-After": "10"},
        )
    return _EventStream(lifetime, client, produce, interval_s, event)


class _EventStream(Response):
    media_type = EVENT_STREAM

    def __init__(
        self,
        lifetime: Lifetime,
        client: str,
        produce: Callable[[], bytes],
        interval_s: float,
        event: str,
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._lifetime = lifetime
        self._client = client
        self._produce = produce
        self._interval_s = interval_s
        self._event = event.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the client leaves, the server ends, or it has been long."""
        ends = [
            asyncio.create_task(_until_gone(receive), name="sse-client"),
            asyncio.create_task(self._lifetime.closing.wait(), name="sse-closing"),
        ]
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            await _send_part(send, b"retry: %d\n\n" % RETRY_MS)
            await self._repeat(send, ends)
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._lifetime.close_stream(self._client)
            for task in ends:
                task.cancel()
            # Not one by one: the request may be cancelled meanwhile, and must end.
            await asyncio.gather(*ends, return_exceptions=True)

    async def _repeat(self, send: Send, ends: list[asyncio.Task[bool]]) -> None:
        clock = asyncio.get_running_loop().time
        end = clock() + STREAM_S
        shown = b""
        quiet_since = clock()
        while clock() < end:
            data = self._produce()
            if data != shown:
                shown = data
                quiet_since = clock()
                await _send_part(send, b"event: %b\ndata: %b\n\n" % (self._event, data))
            elif clock() - quiet_since >= KEEP_ALIVE_S:
                quiet_since = clock()
                await _send_part(send, b": still here\n\n")
            done, _ = await asyncio.wait(
                ends,
                timeout=self._interval_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if done:
                return


async def _send_part(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _until_gone(receive: Receive) -> bool:
    while (await receive())["type"] != "http.disconnect":
        pass
    return True
