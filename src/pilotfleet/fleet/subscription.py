"""Events of a broker, as they come."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec

from pilotfleet.errors import ConnectionReset
from pilotfleet.protocol.services.events import (
    EVENT_PORT,
    Event,
    EventDecoder,
    encode_event,
    encode_since,
)

if TYPE_CHECKING:
    from types import TracebackType

    from pilotfleet.client.daemon import DaemonClient
    from pilotfleet.client.streams import ClientStream
    from pilotfleet.protocol.address import Address

__all__ = ["Subscription", "read_payload"]

_Payload = TypeVar("_Payload")


def read_payload(payload: bytes, kind: type[_Payload]) -> _Payload | None:
    """Return what the JSON of an event says; None when it is of another form.

    Any member of a fleet may publish anything.
    """
    try:
        return msgspec.json.decode(payload, type=kind)
    # Deep nesting and what is not UTF-8 leave msgspec's own error tree.
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


class Subscription:
    """Iterate over it for events. An asynchronous context manager that ends it."""

    def __init__(self, client: DaemonClient, stream: ClientStream) -> None:
        """For :meth:`open`."""
        self._client = client
        self._stream = stream
        self._decoder = EventDecoder()
        self._events: deque[Event] = deque()

    @classmethod
    async def open(
        cls,
        client: DaemonClient,
        broker: Address,
        pattern: str,
        *,
        since: float | None = None,
    ) -> Self:
        """Subscribe to the topics that fit a pattern.

        Args:
            client: A connection to the daemon for this alone; closed with it.
            broker: The agent whose broker it is.
            pattern: Such as ``fleet.*``.
            since: Also what the broker's log has of so many last seconds.

        Raises:
            PilotError: The broker cannot be reached.
        """
        try:
            stream = await client.dial(broker, EVENT_PORT)
            payload = encode_since(since) if since else b""
            await stream.write(encode_event(pattern, payload))
        except BaseException:
            await client.close()
            raise
        return cls(client, stream)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Return the next event. May be cancelled.

        Raises:
            ConnectionReset: The broker, or the daemon, went away.
        """
        while not self._events:
            data = await self._stream.read()
            if not data:
                raise ConnectionReset("the broker ended the subscription")
            self._events.extend(self._decoder.feed(data))
        return self._events.popleft()

    async def close(self) -> None:
        """End the subscription."""
        await self._client.close()
