"""How requests travel to a registry and answers come back.

One at a time, or many in one message where the registry takes that (extension
``batch``). The typed methods of :class:`~pilotfleet.client.registry.RegistryClient`
stand on it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.client.links import LinkConfig, LinkPool
from pilotfleet.client.pacing import MAX_DEFERRALS, deferral_pause_s, deferral_s
from pilotfleet.errors import (
    ConnectionReset,
    DecodeError,
    InvalidArgument,
    NotSupported,
    ProtocolError,
    RegistryError,
)
from pilotfleet.protocol.registry.batches import (
    BATCH,
    BATCH_EXTENSION,
    HEARTBEATS,
    MAX_BATCH,
    MAX_BATCH_BYTES,
)
from pilotfleet.protocol.registry.framing import encode_json_frame
from pilotfleet.protocol.registry.messages import (
    MAX_NODE,
    decode_request,
    encode_message,
    text,
    texts,
)
from pilotfleet.protocol.registry.signatures import sign_request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.protocol.identity import Identity
    from pilotfleet.transport.tls import TlsConfig

__all__ = ["RegistryRequests", "accepted"]

PIPELINE: Final = "pipeline"
BATCH_ROOM: Final = MAX_BATCH_BYTES - 64
"""What the requests of one batch may take with their commas."""
NODE_DIGITS: Final = len(str(MAX_NODE))


class RegistryRequests:
    """A pool of connections to one registry. An async context manager.

    Connections are made when they are first needed.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        connections: int = 4,
        tls: TlsConfig | None = None,
        config: LinkConfig | None = None,
    ) -> None:
        config = config or LinkConfig(connections=connections)
        self._pool = LinkPool(endpoint, config, tls)
        self.extensions: frozenset[str] = frozenset()
        """What the registry offers beyond the protocol; a registration tells."""

    @property
    def endpoint(self) -> Endpoint:
        """Where the registry is."""
        return self._pool.endpoint

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close all connections."""
        await self.aclose()

    def offers(self, name: str) -> bool:
        """Tell whether the registry offers an extension, as far as is known."""
        return name in self.extensions

    def learn(self, reply: Mapping[str, Any]) -> None:
        """Note what the registry offers, from its answer to a registration."""
        extensions = frozenset(texts(reply, "extensions"))
        if extensions != self.extensions:
            self.extensions = extensions
            if PIPELINE in extensions:
                self._pool.allow_pipelining()

    def reconnect(self) -> None:
        """Dial anew for the next requests; those that are out fail.

        For a machine with another address: TCP would find out after minutes only.
        """
        self._pool.reset()

    async def aclose(self) -> None:
        """Close all connections; requests that are out fail with Closed."""
        self._pool.close()
        # Lets the transports close their sockets.
        await asyncio.sleep(0)

    async def request(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send a message and return the reply.

        Waits and repeats it if the registry is too busy and says for how long.
        May be cancelled; the registry may then have acted all the same.

        Raises:
            RegistryError: The registry refused, with this text.
            ConnectionFailed: It cannot be reached, or was lost twice.
            TimedOut: It gave no answer.
            ProtocolError: The answer is no registry message.
            Busy: Too many requests wait here.
        """
        frame = encode_json_frame(encode_message(message))
        for _ in range(MAX_DEFERRALS):
            reply = await self._exchange(frame)
            wait = deferral_s(reply)
            if not wait:
                break
            await asyncio.sleep(deferral_pause_s(wait, self._pool.rng))
        return accepted(reply)

    async def signed(
        self, identity: Identity, message: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Sign a message with the text of its type and send it."""
        return await self.request(sign_request(identity, message))

    async def batch(
        self, requests: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Send many requests, ready made; return the reply to each, in their order.

        Needs the extension ``batch``; see ``offers``. A reply may be a refusal, and
        one with ``retry_after`` is the caller's to repeat: nothing is raised for a
        single request. More than a message may hold go in several, one after the
        other. Safe to repeat if the requests are.

        Raises:
            NotSupported: The registry does not offer it.
            InvalidArgument: A request is larger than a whole batch may be.
            PilotError: As ``request``, for the batch as a whole.
        """
        self._require_batch()
        replies: list[dict[str, Any]] = []
        for group in _groups(requests):
            reply = await self.request({"type": BATCH, "requests": group})
            rows = reply.get("replies")
            if not isinstance(rows, list) or len(rows) != len(group):
                raise ProtocolError("the registry's reply has not one for each request")
            if not all(isinstance(row, dict) for row in rows):
                raise ProtocolError("the registry's reply holds what is no reply")
            replies += rows
        return replies

    async def heartbeats(self, nodes: Sequence[tuple[int, str]]) -> dict[int, str]:
        """Say that nodes live; return what the registry has against some of them.

        Needs the extension ``batch``.

        Args:
            nodes: IDs with the signatures of ``heartbeat:<id>``, which stay the same
                for as long as the key does.

        Raises:
            NotSupported, PilotError: As ``batch``.
        """
        self._require_batch()
        failed: dict[int, str] = {}
        for start in range(0, len(nodes), MAX_BATCH):
            rows = nodes[start : start + MAX_BATCH]
            reply = await self.request({"type": HEARTBEATS, "nodes": rows})
            failed |= _failed(reply)
        return failed

    def _require_batch(self) -> None:
        if not self.offers(BATCH_EXTENSION):
            raise NotSupported("the registry takes no batches; ask one by one")

    async def _exchange(self, frame: bytes) -> dict[str, Any]:
        try:
            body = await self._pool.exchange(frame)
        except ConnectionReset:
            body = await self._pool.exchange(frame)
        try:
            return decode_request(body)
        except DecodeError as error:
            raise ProtocolError(f"the registry's reply: {error}") from None


def accepted(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a reply that is not an error.

    Raises:
        RegistryError: The registry refused, with this text.
        ProtocolError: It is no registry message.
    """
    if "error" in reply:
        raise RegistryError(text(reply, "error") or "request failed")
    if not text(reply, "type"):
        raise ProtocolError("the registry's reply has no type")
    return reply


def _groups(requests: Sequence[Mapping[str, Any]]) -> Iterator[list[msgspec.Raw]]:
    """Yield the requests, encoded, as many together as one message may hold."""
    group: list[msgspec.Raw] = []
    size = 0
    for request in requests:
        body = encode_message(request)
        if len(body) > BATCH_ROOM:
            kind = text(request, "type")
            raise InvalidArgument(
                f"request {kind} of {len(body)} bytes, limit {BATCH_ROOM} in a batch"
            )
        if group and (len(group) == MAX_BATCH or size + len(body) >= BATCH_ROOM):
            yield group
            group, size = [], 0
        group.append(msgspec.Raw(body))
        size += len(body) + 1
    if group:
        yield group


def _failed(reply: Mapping[str, Any]) -> dict[int, str]:
    failed = reply.get("failed", {})
    if not isinstance(failed, dict):
        raise ProtocolError("the registry's reply to heartbeats has no list of nodes")
    found: dict[int, str] = {}
    for node, error in failed.items():
        # The length first: ``int`` refuses what has thousands of digits in its own way.
        is_number = len(node) <= NODE_DIGITS and node.isascii() and node.isdigit()
        if not (is_number and isinstance(error, str)):
            raise ProtocolError(f"the registry's reply names {node[:20]!r} as a node")
        found[int(node)] = error
    return found
