"""Trust between nodes: the handshake service of all agents of a host.

Trust is a fact that each node keeps for itself, plus a pair at the registry; this
service keeps both in step (trust.md). It serves port 444, does what local programs
ask for, and acts on what waits at the registry.

Two rules shape it. A change is on disk before anybody is told of it, so that
neither a crash nor a full disk leaves the two sides with different minds. And a key
counts as the peer's only if the registry has the same one (*bound*); until then a
claim ends with a person, in the list of pending requests.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import DecodeError, NotFound, PilotError
from pilotfleet.node.memberships import networks_of
from pilotfleet.node.trustfile import TrustWriter
from pilotfleet.protocol.services.handshake import (
    HANDSHAKE_PORT,
    MAX_MESSAGE,
    READ_TIMEOUT_S,
    HandshakeMessage,
    Kind,
    ReplayMemory,
    decode_message,
    is_fresh,
    is_signed_by,
)
from pilotfleet.services.handshake.mail import Mailroom
from pilotfleet.services.handshake.sending import CLOSE_DELAY_S, Messenger

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host
    from pilotfleet.node.stream import Stream
    from pilotfleet.node.trust import TrustStore

__all__ = ["HandshakeService"]

logger = logging.getLogger(__name__)

MAX_WAITERS: Final = 1024
"""Calls of `wait` under way; further ones get the present state."""
MAX_ATTEMPTS: Final = 16
"""Attempts to decode a message before its stream has ended."""
REVOKE_TIMEOUT_S: Final = 3.0
"""How long a revocation waits for its notice to the peer."""


class HandshakeService:
    """Port 444 and everything about trust, for every agent of ``host``."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._writer = TrustWriter()
        self._messenger = Messenger(host)
        self._mail = Mailroom(host, self._on_mail)
        self._replays: dict[Agent, ReplayMemory] = {}
        self._requesting: set[tuple[Agent, int]] = set()
        self._waiters: dict[tuple[Agent, int], list[asyncio.Future[None]]] = {}
        self._waiter_count = 0
        self.on_change: list[Callable[[Agent, int, str, str], None]] = []
        """Called with agent, peer, ``granted`` or ``revoked``, and the reason."""
        self.refused = 0
        """Messages that failed a check."""

    def attach(self) -> None:
        """Serve the host; called before it is entered."""
        self._host.services[HANDSHAKE_PORT] = self.handle
        self._host.trust_service = self
        self._host.on_trust_change = self._writer.changed

    async def aclose(self) -> None:
        """Save what is not saved yet."""
        await self._writer.aclose()

    # Local programs (node.trust.TrustService)

    async def request(self, agent: Agent, node: int, justification: str) -> str:
        """Ask ``node`` for trust; return the status word for the client.

        Raises:
            NotFound: The registry knows no such node.
            ConnectionFailed: Neither the node nor the registry can be reached.
        """
        store = agent.trust
        if store.is_trusted(node):
            return "sent"
        if (agent, node) in self._requesting:
            return "in_flight"
        self._requesting.add((agent, node))
        try:
            store.ask(node, self._host.wall())
            await self._writer.flush(store)
            await self._messenger.request(agent, node, justification)
        except NotFound:
            store.drop_outgoing(node)
            raise
        finally:
            self._requesting.discard((agent, node))
        self._mail.box(agent).expect(node, self._host.now())
        return "sent"

    async def approve(self, agent: Agent, node: int) -> None:
        """Trust a pending node; without a pending entry do nothing."""
        await self._mail.look(agent)
        entry = agent.trust.live_pending(self._host.wall()).get(node)
        if entry is None:
            return
        agent.report("handshake.approved", peer_node_id=node)
        await self._finish(self._approve(agent, node, entry.public_key), agent, node)

    async def reject(self, agent: Agent, node: int, reason: str) -> None:
        """Drop a pending node and tell it, both ways (trust.md section 4.5)."""
        await self._mail.look(agent)
        if agent.trust.drop_pending(node) is None:
            return
        agent.report("handshake.rejected", peer_node_id=node, reason=reason)
        await self._finish(self._reject(agent, node, reason), agent, node)

    async def revoke(self, agent: Agent, node: int) -> None:
        """End trust with ``node`` and tell it.

        Raises:
            NotFound: There was none.
        """
        was_trusted = agent.trust.revoke(node, self._host.wall())
        if not was_trusted:
            await self._writer.flush(agent.trust)
            raise NotFound(f"node {node} was not trusted")
        await self._finish(self._revoke(agent, node), agent, node)

    async def pending(self, agent: Agent) -> list[dict[str, Any]]:
        """Return who waits for a decision (ipc.md section 6)."""
        await self._mail.look(agent)
        return [
            {
                "node_id": node,
                "public_key": entry.public_key,
                "justification": entry.justification,
                "received_at": entry.received_at,
            }
            for node, entry in agent.trust.live_pending(self._host.wall()).items()
        ]

    async def trusted(self, agent: Agent) -> list[dict[str, Any]]:
        """Return who is trusted (ipc.md section 6)."""
        await self._mail.look(agent)
        return [
            {
                "node_id": node,
                "public_key": entry.public_key,
                "approved_at": entry.approved_at,
                "mutual": entry.mutual,
                "network": entry.network,
            }
            for node, entry in agent.trust.trusted.items()
        ]

    async def wait(self, agent: Agent, node: int, *, timeout: float) -> bool:
        """Wait until ``node`` is trusted; tell whether it is."""
        store = agent.trust
        if node == agent.node_id or store.is_trusted(node):
            return True
        await self._mail.look(agent)
        if store.is_trusted(node):
            return True
        if timeout <= 0 or self._waiter_count >= MAX_WAITERS:
            return False
        return await self._wait(agent, node, timeout)

    def handshake_waiting(self, agent: Agent) -> None:
        """React to the beacon's poke: something waits at the registry."""
        self._mail.box(agent).poke(self._host.now())

    def keepalive(self, agent: Agent) -> None:
        """Poll with the keepalive."""
        self._mail.box(agent).poll(self._host.now())

    async def _finish(
        self, work: Coroutine[Any, Any, None], agent: Agent, node: int
    ) -> None:
        """Carry a decision out to its end, though its program may leave.

        Half of it would be worse than none: a peer that was revoked here but not at
        the registry still passes the gate.
        """
        await asyncio.shield(self._spawn(work, agent, node))

    async def _approve(self, agent: Agent, node: int, public_key: str) -> None:
        await self._grant(
            agent, node, public_key=public_key, mutual=False, reason="approved"
        )
        await self._messenger.report_trust(agent, node)
        await self._messenger.respond(agent, node, accept=True)
        self._spawn(self._messenger.accept(agent, node), agent, node)
        if not public_key:
            self._spawn(self._fetch_key(agent, node), agent, node)

    async def _reject(self, agent: Agent, node: int, reason: str) -> None:
        await self._writer.flush(agent.trust)
        await self._messenger.respond(agent, node, accept=False)
        self._spawn(self._messenger.reject(agent, node, reason), agent, node)

    async def _revoke(self, agent: Agent, node: int) -> None:
        await self._writer.flush(agent.trust)
        agent.report("trust.revoked", peer_node_id=node)
        self._changed(agent, node, "revoked", "local")
        # The notice needs the tunnel, and the pair to resolve the peer.
        try:
            async with asyncio.timeout(REVOKE_TIMEOUT_S):
                await self._messenger.revoke(agent, node)
                await asyncio.sleep(CLOSE_DELAY_S)
        except TimeoutError:
            logger.debug("node %d was not told of its revocation", node)
        self._drop_tunnel(agent, node)
        await self._messenger.revoke_trust(agent, node)
        # The gate may have asked the registry in the meantime, and to send the notice
        # has opened the reply window.
        self._host.gate.forget(agent, node)

    # Port 444

    async def handle(self, agent: Agent, stream: Stream) -> None:
        """Take one message; whatever is wrong with it, say nothing."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                message = await _read_message(stream)
            await self._receive(agent, message, stream.remote.address.node)
        except (PilotError, TimeoutError) as error:
            self.refused += 1
            logger.debug("handshake from %s refused: %s", stream.remote, error)

    async def _receive(
        self, agent: Agent, message: HandshakeMessage, source: int
    ) -> None:
        """Check a message in the order of trust.md section 2, then act on it."""
        if not is_fresh(message, self._host.wall()):
            raise DecodeError("timestamp is too old, or in the future")
        if message.type == Kind.REQUEST and not message.public_key:
            raise DecodeError("request without a key")
        is_own = message.node_id == source
        known = await self._check_key(agent, message)
        if not is_own:
            if message.type != Kind.REQUEST:
                raise DecodeError(f"{message.type} for node {message.node_id}")
            # The tunnel keeps replays of a node's own messages out.
            replays = self._replays.setdefault(agent, ReplayMemory())
            key = (message.type, message.node_id, message.public_key)
            if not replays.admit(key, self._host.now()):
                raise DecodeError("repeated message")
        match message.type:
            case Kind.REQUEST:
                await self._on_request(agent, message, source, known)
            case Kind.ACCEPT:
                await self._on_accept(agent, message, known)
            case Kind.REJECT:
                await self._on_reject(agent, message.node_id)
            case Kind.REVOKE:
                await self._on_revoke(agent, message.node_id)

    async def _check_key(
        self, agent: Agent, message: HandshakeMessage
    ) -> dict[str, Any] | None:
        """Check key and signature; return the registry's record if the key is bound."""
        if not message.public_key:
            return None
        known = await self._lookup(message.node_id)
        key = known.get("public_key") if known is not None else None
        if key and key != message.public_key:
            raise DecodeError(f"node {message.node_id} has another key")
        if not is_signed_by(message, message.public_key, agent.node_id):
            raise DecodeError("signature verification failed")
        return known if key else None

    async def _lookup(self, node: int) -> dict[str, Any] | None:
        """Return what the registry says of ``node``; None if it does not answer."""
        try:
            return await self._host.registry.request(
                {"type": "lookup", "node_id": node}
            )
        except PilotError as error:
            logger.debug("lookup of %d: %s", node, error)
            return None

    async def _on_request(
        self,
        agent: Agent,
        message: HandshakeMessage,
        source: int,
        known: dict[str, Any] | None,
    ) -> None:
        store, node, key = agent.trust, message.node_id, message.public_key
        told = {"peer_node_id": node, "justification": message.justification}
        agent.report("handshake.received", **told)
        if self._shows_trusted_key(store, message, known):
            await self._writer.flush(store)
            await self._messenger.accept(agent, node)
            return
        granted = await self._automatic(agent, node, known)
        if granted is not None:
            _report_automatic(agent, node, granted["reason"])
            await self._grant(agent, node, public_key=key, **granted)
            await self._messenger.report_trust(agent, node)
            await self._messenger.accept(agent, node)
            return
        is_kept = store.add_pending(
            node,
            public_key=key,
            justification=message.justification,
            source=source,
            wall=self._host.wall(),
        )
        if not is_kept:
            logger.warning("agent %s: no room for the request of %d", agent.name, node)
            return
        logger.info("agent %s: node %d asks for trust", agent.name, node)
        agent.report("handshake.pending", **told)
        await self._writer.flush(store)

    def _shows_trusted_key(
        self,
        store: TrustStore,
        message: HandshakeMessage,
        known: dict[str, Any] | None,
    ) -> bool:
        """Tell whether a trusted node has sent ``message``; note its key.

        Raises:
            DecodeError: It shows another key, and nobody says that it is the node's.
                To believe it would let anybody take the place of a trusted node while
                the registry is away.
        """
        entry = store.trusted.get(message.node_id)
        if entry is None:
            return False
        if known is None:
            if entry.public_key == message.public_key:
                return True
            raise DecodeError(f"unproven key for trusted node {message.node_id}")
        rotated = bool(known.get("key_generation"))
        return store.bind_key(message.node_id, message.public_key, rotated=rotated)

    async def _automatic(
        self, agent: Agent, node: int, known: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        """Return with what a request is granted without a person, if it is.

        ``known`` is the registry's record of the node; None if its key is not bound.
        """
        if known is not None:
            if agent.trust.is_asked(node, self._host.wall()):
                return {"mutual": True, "reason": "mutual"}
            if network := await self._shared_network(agent, known):
                return {"mutual": False, "network": network, "reason": "same_network"}
        if self._host.config.trust_auto_approve:
            return {"mutual": False, "reason": "auto_approve"}
        return None

    async def _shared_network(self, agent: Agent, known: dict[str, Any]) -> int:
        """Return a network that the agent and a node are in, as the registry says."""
        theirs = networks_of(known)
        if not theirs:
            return 0
        # Not what we believe: others can add and remove members.
        own = await self._lookup(agent.node_id)
        return min(theirs.intersection(networks_of(own or {})), default=0)

    async def _on_accept(
        self, agent: Agent, message: HandshakeMessage, known: dict[str, Any] | None
    ) -> None:
        store, node = agent.trust, message.node_id
        wall = self._host.wall()
        if store.is_revoked(node, wall):
            return
        if store.is_trusted(node):
            if not message.public_key or self._shows_trusted_key(store, message, known):
                store.accepted(node, message.public_key if known is not None else "")
            await self._writer.flush(store)
            return
        if not store.is_asked(node, wall):
            return
        key = message.public_key
        await self._grant(agent, node, public_key=key, mutual=True, reason="")
        await self._messenger.report_trust(agent, node)

    async def _on_reject(self, agent: Agent, node: int) -> None:
        store = agent.trust
        store.drop_outgoing(node)
        await self._writer.flush(store)
        logger.info("agent %s: node %d refused trust", agent.name, node)

    async def _on_revoke(self, agent: Agent, node: int) -> None:
        store = agent.trust
        was_trusted = store.forget(node)
        await self._writer.flush(store)
        self._drop_tunnel(agent, node)
        if was_trusted:
            agent.report("trust.revoked_by_peer", peer_node_id=node)
            self._changed(agent, node, "revoked", "by_peer")
            await self._messenger.revoke_trust(agent, node)

    # What waited at the registry

    async def _on_mail(
        self,
        agent: Agent,
        requests: list[dict[str, Any]],
        responses: list[dict[str, Any]],
    ) -> None:
        """Save everything that a poll brought, then act on it."""
        store, wall = agent.trust, self._host.wall()
        accepted = [
            row["from_node_id"]
            for row in responses
            if self._take_response(store, row, wall)
        ]
        for row in requests:
            node = row["from_node_id"]
            if not store.is_trusted(node):
                text = str(row.get("justification") or "")
                store.add_pending(
                    node, public_key="", justification=text, source=node, wall=wall
                )
        await self._writer.flush(store)
        for node in accepted:
            self._granted(agent, node, "")
            # Our own consent too: a request that went directly left no trace there.
            await self._messenger.report_trust(agent, node)
            await self._fetch_key(agent, node)
        for row in requests:
            await self._act_on_request(agent, row["from_node_id"])

    def _take_response(
        self, store: TrustStore, row: dict[str, Any], wall: float
    ) -> bool:
        """Take an answer into the store; tell whether it made trust."""
        node = row["from_node_id"]
        if row.get("accept") is not True:
            store.drop_outgoing(node)
            return False
        is_expected = store.is_asked(node, wall) and not store.is_revoked(node, wall)
        if not is_expected or store.is_trusted(node):
            return False
        store.trust(node, wall=wall, mutual=True)
        return True

    async def _act_on_request(self, agent: Agent, node: int) -> None:
        """Grant a relayed request, where no person is needed for it.

        The registry checked its signature, so it counts as bound.
        """
        store = agent.trust
        if not store.is_trusted(node):
            granted = await self._automatic(agent, node, await self._lookup(node) or {})
            if granted is None:
                logger.info("agent %s: node %d asks for trust", agent.name, node)
                return
            # As in 1.18.0, a mutual approval by relay is told to nobody.
            reason = granted.pop("reason")
            if reason != "mutual":
                _report_automatic(agent, node, reason)
                granted["reason"] = f"{reason}_relayed"
            await self._grant(agent, node, public_key="", **granted)
            await self._fetch_key(agent, node)
        await self._messenger.respond(agent, node, accept=True)
        await self._messenger.report_trust(agent, node)

    async def _fetch_key(self, agent: Agent, node: int) -> None:
        known = await self._lookup(node) or {}
        if key := str(known.get("public_key") or ""):
            rotated = bool(known.get("key_generation"))
            agent.trust.bind_key(node, key, rotated=rotated)
            await self._writer.flush(agent.trust)

    # Private

    async def _grant(
        self,
        agent: Agent,
        node: int,
        *,
        public_key: str,
        mutual: bool,
        reason: str = "",
        network: int = 0,
    ) -> None:
        """Trust ``node``; on return it is on disk.

        Nobody is told of a change without a reason: the peer's answer to our own
        request is none to 1.18.0.
        """
        store = agent.trust
        store.trust(
            node,
            wall=self._host.wall(),
            public_key=public_key,
            mutual=mutual,
            network=network,
        )
        await self._writer.flush(store)
        self._granted(agent, node, reason)

    def _granted(self, agent: Agent, node: int, reason: str) -> None:
        for waiter in self._waiters.pop((agent, node), ()):
            if not waiter.done():
                waiter.set_result(None)
        self._changed(agent, node, "granted", reason)

    def _changed(self, agent: Agent, node: int, state: str, reason: str) -> None:
        self._host.gate.forget(agent, node)
        self._host.routing.forget_path(agent, node)
        logger.info(
            "agent %s: trust of node %d %s (%s)",
            *(agent.name, node, state, reason or "accepted"),
        )
        if reason:
            agent.report("trust.changed", peer_node_id=node, state=state, reason=reason)
        for listener in self.on_change:
            listener(agent, node, state, reason)

    def _drop_tunnel(self, agent: Agent, node: int) -> None:
        agent.tunnels.drop(node, self._host.now())
        agent.mark_dirty()

    async def _wait(self, agent: Agent, node: int, timeout: float) -> bool:
        waiter = self._host.loop.create_future()
        waiters = self._waiters.setdefault((agent, node), [])
        waiters.append(waiter)
        self._waiter_count += 1
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._waiter_count -= 1
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters and self._waiters.get((agent, node)) is waiters:
                del self._waiters[agent, node]
        return agent.trust.is_trusted(node)

    def _spawn(
        self, work: Coroutine[Any, Any, None], agent: Agent, node: int
    ) -> asyncio.Task[None]:
        name = f"handshake of {agent.name} with {node}"
        return self._host.spawn(work, name=name)


def _report_automatic(agent: Agent, node: int, reason: str) -> None:
    agent.report("handshake.auto_approved", peer_node_id=node, reason=reason)


async def _read_message(stream: Stream) -> HandshakeMessage:
    """Read until the message is complete; a segment alone need not be."""
    data = b""
    # Bounded, so that a drip of closing braces costs no more than a message.
    attempts = MAX_ATTEMPTS
    while len(data) < MAX_MESSAGE:
        part = await stream.read(MAX_MESSAGE - len(data))
        if not part:
            return decode_message(data)
        data += part
        if attempts and data.rstrip().endswith(b"}"):
            attempts -= 1
            with suppress(DecodeError):
                return decode_message(data)
    raise DecodeError(f"handshake message of more than {MAX_MESSAGE} bytes")
