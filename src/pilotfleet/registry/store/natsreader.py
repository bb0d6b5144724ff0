"""Reading a NATS bucket: what is in it, and what comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import nats.errors
from nats.js import api

from pilotfleet.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

__all__ = ["REQUEST_TIMEOUT_S", "BucketReader"]

# From NATS (the status of a pull request's messages).
HEARTBEAT: Final = "100"
NO_MESSAGES: Final = "404"
REQUEST_ENDED: Final = "408"

# Ours.
REQUEST_TIMEOUT_S: Final = 5.0
FETCH_MESSAGES: Final = 1_000
FETCH_WAIT_NS: Final = 30_000_000_000
HEARTBEAT_NS: Final = 2_000_000_000
LAST_WORD_NS: Final = 500_000_000
CONSUMER_LIFE_S: Final = 300.0
SILENCE_S: Final = 5.0
"""Without a message for so long, the server or the consumer is gone."""


class BucketReader:
    """A pull consumer without acknowledgements.

    Pulling bounds what is in flight. The consumer's own numbering has no gaps;
    a gap means that messages were lost, and the reader fails, so that its
    owner starts another one where it was. So does a silence of the server,
    which otherwise sends heartbeats.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._subject = ""
        self._inbox = client.new_inbox()
        self._subscription: Subscription | None = None
        self._messages: deque[Msg] = deque()
        self._arrived = asyncio.Event()
        self._number = 0
        self._asked = 0
        self._stopped = False

    @classmethod
    async def start(cls, client: Client, stream: str, *, after: int) -> BucketReader:
        config = api.ConsumerConfig(
            ack_policy=api.AckPolicy.NONE,
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=after + 1,
            inactive_threshold=CONSUMER_LIFE_S,
            mem_storage=True,
            num_replicas=1,
        )
        js = client.jetstream(timeout=REQUEST_TIMEOUT_S)
        consumer = await js.add_consumer(stream, config=config)
        reader = cls(client)
        reader._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer.name}"
        # What is asked for bounds what can arrive.
        reader._subscription = await client.subscribe(
            reader._inbox, cb=reader._on_message
        )
        return reader

    async def stored(self, last: int) -> AsyncIterator[Msg]:
        """Yield the messages that there are, at least up to number ``last``.

        A message that is replaced just now is missed by a request that does
        not wait; and ``last`` may be a marker that has expired. So a request
        that waits a little has the last word.
        """
        wait: dict[str, Any] = {"no_wait": True}
        while True:
            await self._ask(wait)
            got = 0
            while self._asked and (message := await self._next()):
                got = message.metadata.sequence.stream
                yield message
                if got >= last:
                    return
            if not got:
                if "expires" in wait:
                    return
                wait = {"expires": LAST_WORD_NS}

    async def coming(self) -> AsyncIterator[Msg]:
        """Yield the messages that there are now and those that will come."""
        wait = {"expires": FETCH_WAIT_NS, "idle_heartbeat": HEARTBEAT_NS}
        while True:
            if not self._asked:
                await self._ask(wait)
            if message := await self._next():
                yield message

    def end(self) -> None:
        """Make whoever reads fail with StorageError."""
        self._stopped = True
        self._arrived.set()

    async def stop(self) -> None:
        """Leave the consumer to the server, which removes it when unused."""
        self.end()
        if self._subscription is not None:
            with contextlib.suppress(OSError, nats.errors.Error):
                await self._subscription.unsubscribe()

    async def _ask(self, options: dict[str, Any]) -> None:
        request = json.dumps({"batch": FETCH_MESSAGES, **options}).encode()
        await self._client.publish(self._subject, request, reply=self._inbox)
        self._asked = FETCH_MESSAGES

    async def _next(self) -> Msg | None:
        """Return the next message; None when the request has ended."""
        while True:
            message = await self._receive()
            status = (message.headers or {}).get("Status")
            if status is None:
                break
            if status in (NO_MESSAGES, REQUEST_ENDED):
                self._asked = 0
                return None
            if status != HEARTBEAT:
                raise StorageError(f"the server answers with status {status}")
        number = message.metadata.sequence.consumer
        if number != self._number + 1:
            raise StorageError(f"message {number} follows {self._number}")
        self._number = number
        self._asked -= 1
        return message

    async def _on_message(self, message: Msg) -> None:
        self._messages.append(message)
        self._arrived.set()

    async def _receive(self) -> Msg:
        while not self._messages:
            if self._stopped:
                raise StorageError("the store is closed")
            self._arrived.clear()
            async with asyncio.timeout(SILENCE_S):
                await self._arrived.wait()
        return self._messages.popleft()
