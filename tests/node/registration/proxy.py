"""A man in the middle of a host and its real registry."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from pilotfleet.protocol.registry.framing import encode_json_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from pilotfleet.protocol.address import Endpoint

__all__ = ["RegistryProxy", "without_batches"]

Message: TypeAlias = dict[str, Any]


def _no_answer(request: Message) -> Message | None:
    return None


def _unchanged(request: Message, reply: Message) -> Message:
    return reply


@dataclass
class RegistryProxy:
    """Hands requests on, notes their types, and changes what it is told to."""

    target: Endpoint
    answer: Callable[[Message], Message | None] = _no_answer
    """Answers in the registry's place, where it returns something."""
    change: Callable[[Message, Message], Message] = _unchanged
    """Takes a request and the registry's reply, returns the reply to hand on."""
    seen: Counter[str] = field(default_factory=Counter)
    """Messages by type; those within a batch count as well."""
    batches: list[int] = field(default_factory=list)
    """The sizes of the batches."""
    endpoint: Endpoint = ("127.0.0.1", 0)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[RegistryProxy]:
        """Serve on a port of loopback."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = server.sockets[0].getsockname()
        async with server:
            yield self

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        near, far = await asyncio.open_connection(*self.target)
        try:
            while True:
                request = await _read(reader)
                self._note(request)
                reply = self.answer(request)
                if reply is None:
                    far.write(encode_json_frame(msgspec.json.encode(request)))
                    reply = self.change(request, await _read(near))
                writer.write(encode_json_frame(msgspec.json.encode(reply)))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            far.close()
            writer.close()

    def _note(self, request: Message) -> None:
        self.seen[request["type"]] += 1
        if request["type"] == "batch":
            self.batches.append(len(request["requests"]))
            self.seen.update(each["type"] for each in request["requests"])


def without_batches(request: Message, reply: Message) -> Message:
    """Have a registry offer no batches."""
    offered = reply.get("extensions")
    if offered is None:
        return reply
    return {**reply, "extensions": [name for name in offered if name != "batch"]}


async def _read(reader: asyncio.StreamReader) -> Message:
    length = int.from_bytes(await reader.readexactly(4), "big")
    message: Message = msgspec.json.decode(await reader.readexactly(length))
    return message
