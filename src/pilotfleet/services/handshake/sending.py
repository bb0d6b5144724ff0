"""Sending trust messages: directly, else through the registry (trust.md section 5)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import ConnectionFailed, NotFound, PilotError, RegistryError
from pilotfleet.node.cache import ExpiringCache
from pilotfleet.protocol.address import BACKBONE, Address, SocketAddress
from pilotfleet.protocol.services.handshake import (
    HANDSHAKE_PORT,
    Kind,
    encode_message,
    make_message,
)

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host

__all__ = ["Messenger"]

logger = logging.getLogger(__name__)

# From the specification.
MAX_DIRECT: Final = 1152
"""A 1.18.0 receiver parses the first segment only."""
CLOSE_DELAY_S: Final = 0.5
"""Between the write and the close of the stream."""
REPEAT_S: Final = 900.0
"""How long a 1.18.0 receiver silently drops a second direct message of a kind."""

# Of our choosing.
DIAL_TIMEOUT_S: Final = 5.0
"""A private peer without trust answers nothing, and the relay waits."""
MAX_REMEMBERED: Final = 65_536
PENDING_TEXT: Final = "already pending"


class Messenger:
    """Carries the four messages from any agent of a host to any node."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._sent: ExpiringCache[tuple[int, int, Kind], bool] = ExpiringCache(
            MAX_REMEMBERED
        )
        """Direct messages that the receiver would take for replays of these."""

    async def request(self, agent: Agent, node: int, justification: str) -> None:
        """Ask for trust.

        Raises:
            NotFound: The registry knows no such node.
            ConnectionFailed: Neither way works.
        """
        self._host.gate.note_contact(agent, node)
        if self._is_repeated(agent, node, Kind.REQUEST) or not await self._direct(
            agent, node, Kind.REQUEST, justification=justification
        ):
            await self._relay_request(agent, node, justification)

    async def accept(self, agent: Agent, node: int) -> None:
        """Tell ``node`` that it is trusted, through the registry if need be."""
        # A repeated one may be dropped as a replay, or be the first that a restarted
        # peer gets: so it goes both ways.
        is_repeated = self._is_repeated(agent, node, Kind.ACCEPT)
        if not await self._direct(agent, node, Kind.ACCEPT) or is_repeated:
            await self.respond(agent, node, accept=True)

    async def reject(self, agent: Agent, node: int, reason: str) -> None:
        """Tell ``node`` directly that its request was refused."""
        await self._direct(agent, node, Kind.REJECT, reason=reason)

    async def revoke(self, agent: Agent, node: int) -> None:
        """Tell ``node`` directly that trust has ended."""
        await self._direct(agent, node, Kind.REVOKE)

    async def respond(self, agent: Agent, node: int, *, accept: bool) -> None:
        """Leave an answer at the registry; without a request there, it refuses."""
        await self._tell_registry(agent, node, "respond_handshake", accept=accept)

    async def report_trust(self, agent: Agent, node: int) -> None:
        """Have the registry keep the pair, so that both can resolve each other."""
        await self._tell_registry(agent, node, "report_trust")

    async def revoke_trust(self, agent: Agent, node: int) -> None:
        """Have the registry forget the pair; the peer may have been first."""
        await self._tell_registry(agent, node, "revoke_trust")

    async def _tell_registry(
        self, agent: Agent, node: int, type: str, **fields: object
    ) -> None:
        try:
            await agent.registry(type, node_id=agent.node_id, peer_id=node, **fields)
        except PilotError as error:
            # Nothing is lost: trust is the node's own, and the pair is reported
            # again with the next registration.
            logger.debug("%s of %d for %d: %s", type, agent.node_id, node, error)

    async def _direct(
        self,
        agent: Agent,
        node: int,
        kind: Kind,
        *,
        justification: str = "",
        reason: str = "",
    ) -> bool:
        message = make_message(
            kind,
            agent.identity,
            sender=agent.node_id,
            receiver=node,
            wall=self._host.wall(),
            justification=justification,
            reason=reason,
        )
        data = encode_message(message)
        if len(data) > MAX_DIRECT:
            return False
        remote = SocketAddress(Address(BACKBONE, node), HANDSHAKE_PORT)
        try:
            stream = await agent.dial(remote, timeout=DIAL_TIMEOUT_S)
            await stream.write(data)
        except PilotError as error:
            logger.debug("%s from %d to %d: %s", kind, agent.node_id, node, error)
            return False
        self._host.loop.call_later(CLOSE_DELAY_S, stream.close_nowait)
        key, now = (agent.node_id, node, kind), self._host.now()
        self._sent.put(key, True, now + REPEAT_S)
        return True

    def _is_repeated(self, agent: Agent, node: int, kind: Kind) -> bool:
        key = (agent.node_id, node, kind)
        return self._sent.get(key, self._host.now()) is not None

    async def _relay_request(self, agent: Agent, node: int, justification: str) -> None:
        try:
            await agent.registry(
                "request_handshake",
                from_node_id=agent.node_id,
                to_node_id=node,
                justification=justification,
            )
        except RegistryError as error:
            text = str(error)
            if PENDING_TEXT in text:
                return  # An earlier one still waits there, which is as good.
            kind = NotFound if "not found" in text else ConnectionFailed
            raise kind(f"handshake relay: registry: {text}") from error
        except PilotError as error:
            raise ConnectionFailed(f"handshake relay: {error}") from error
