"""What each command does that may take its time (ipc.md sections 2 to 10).

A handler is a coroutine that gets the session and the payload, returns its
reply's payload, and raises a :class:`PilotError` for an Error frame.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pilotfleet.errors import (
    Busy,
    DecodeError,
    InvalidArgument,
    NotSupported,
    PermissionDenied,
    PilotError,
)
from pilotfleet.node.ipc.envelopes import sign_envelope, verify_envelope
from pilotfleet.node.ipc.handshake import run_handshake
from pilotfleet.node.ipc.network import decode_tags, run_managed, run_network
from pilotfleet.node.ipc.session import MAX_STREAMS
from pilotfleet.node.ipc.texts import encode_json, operation
from pilotfleet.protocol.address import BACKBONE, Address, SocketAddress
from pilotfleet.protocol.ipc import commands as wire
from pilotfleet.protocol.ipc.commands import Command
from pilotfleet.protocol.ipc.extension import decode_object
from pilotfleet.protocol.registry.messages import node_number
from pilotfleet.protocol.services.webhook import parse_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.ipc.session import IpcSession

__all__ = ["HANDLERS", "CommandHandler", "dial"]

CommandHandler: TypeAlias = Callable[["IpcSession", bytes], Awaitable[bytes]]

MAX_BROADCASTS: Final = 64
"""Members that one broadcast is on its way to at a time."""
MAX_TAGS: Final = 3
"""The registry's rule, checked here for the words clients know."""


async def dial(session: IpcSession, payload: bytes) -> None:
    """Open a stream and make the client its owner; answers by itself.

    The reply must leave before the stream's first data, so nothing may wait
    between the two.
    """
    remote = wire.unpack_socket_address(payload, "dial: missing address/port")
    if len(session.streams) >= MAX_STREAMS:
        raise Busy(f"dial: per-client connection quota ({MAX_STREAMS}) reached")
    stream = await session.agent.dial(remote)
    if session.is_closed:
        stream.abort()
        return
    entry = session.add_stream(stream)
    session.reply(Command.DIAL_OK, wire.pack_connection(stream.id))
    entry.pump()


async def _handshake(session: IpcSession, payload: bytes) -> bytes:
    return await run_handshake(session.agent, payload)


async def _network(session: IpcSession, payload: bytes) -> bytes:
    return await run_network(session.agent, payload)


async def _managed(session: IpcSession, payload: bytes) -> bytes:
    return await run_managed(session.agent, payload)


async def _resolve_hostname(session: IpcSession, payload: bytes) -> bytes:
    if not payload:
        raise DecodeError("resolve_hostname: missing hostname")
    name = payload.decode("utf-8", "replace")
    with operation("resolve_hostname"):
        return encode_json(await session.agent.resolve_hostname(name))


async def _set_hostname(session: IpcSession, payload: bytes) -> bytes:
    agent, name = session.agent, payload.decode("utf-8", "replace")
    with operation("set_hostname"):
        body = await _own(agent, "set_hostname", hostname=name)
    agent.hostname = agent.wanted_hostname = name
    return encode_json(body)


async def _set_visibility(session: IpcSession, payload: bytes) -> bytes:
    if not payload:
        raise DecodeError("set_visibility: missing value")
    agent, public = session.agent, payload[0] == 1
    with operation("set_visibility"):
        body = await _own(agent, "set_visibility", public=public)
    agent.is_public = agent.streams.is_public = public
    return encode_json(body)


async def _set_tags(session: IpcSession, payload: bytes) -> bytes:
    agent, tags = session.agent, decode_tags(payload, "set_tags")
    if len(tags) > MAX_TAGS:
        raise InvalidArgument(f"set_tags: maximum {MAX_TAGS} tags allowed")
    with operation("set_tags"):
        body = await _own(agent, "set_tags", tags=tags)
    agent.tags = tuple(tags)
    return encode_json(body)


async def _set_task_exec(session: IpcSession, payload: bytes) -> bytes:
    # Unknown to 1.18; clients up to 1.9 still send it.
    if not payload:
        raise DecodeError("set_task_exec: missing value")
    with operation("set_task_exec"):
        return encode_json(
            await _own(session.agent, "set_task_exec", enabled=payload[0] == 1)
        )


async def _my_polo(session: IpcSession, payload: bytes) -> bytes:
    with operation("my_polo"):
        return encode_json(await _own(session.agent, "get_polo_score"))


async def _deregister(session: IpcSession, payload: bytes) -> bytes:
    with operation("deregister"):
        body = await _own(session.agent, "deregister")
    session.agent.report("node.deregistered")
    return encode_json(body)


async def _rotate_key(session: IpcSession, payload: bytes) -> bytes:
    agent = session.agent
    with operation("rotate_key"):
        return encode_json(await agent.host.rotation.rotate(agent))


async def _set_webhook(session: IpcSession, payload: bytes) -> bytes:
    url = payload.decode("utf-8", "replace")
    if url:
        parse_url(url)
    # The webhook is a service, if this daemon has one.
    handler = session.agent.host.extensions.get("webhook.set")
    if handler is not None:
        await handler(session, session.agent, {"url": url})
    elif url:
        raise NotSupported("set_webhook: this daemon has no webhooks")
    return encode_json({"webhook": url})


async def _broadcast(session: IpcSession, payload: bytes) -> bytes:
    """Send a datagram to every member of a network (ipc.md section 5.5)."""
    message = wire.unpack_broadcast(payload)
    agent = session.agent
    expected = agent.host.config.admin_token.encode()
    if not expected:
        raise PermissionDenied(
            "broadcast: broadcast denied: daemon has no admin token configured"
        )
    if not hmac.compare_digest(message.token, expected):
        raise PermissionDenied("broadcast: broadcast denied: invalid admin token")
    if message.network == BACKBONE:
        raise PermissionDenied("broadcast: broadcast not permitted on backbone network")
    with operation("broadcast"), operation("list nodes for broadcast"):
        nodes = await _members(agent, message.network)
    remotes = (
        SocketAddress(Address(message.network, node), message.port) for node in nodes
    )
    # Answered when all are on their way: a client that has its answer hangs up,
    # and what then still waits in its session is dropped.
    async with asyncio.TaskGroup() as tasks:
        for number in range(min(len(nodes), MAX_BROADCASTS)):
            tasks.create_task(
                _send_to_each(agent, remotes, message.data), name=f"broadcast {number}"
            )
    return b""


async def _send_to_each(
    agent: Agent, remotes: Iterator[SocketAddress], data: bytes
) -> None:
    for remote in remotes:
        # A member that cannot be reached now is no reason to leave others out.
        with suppress(PilotError):
            await agent.send_datagram(remote, data)


async def _members(agent: Agent, network: int) -> list[int]:
    body = await agent.registry("list_nodes", network_id=network)
    rows = body.get("nodes")
    listed = rows if isinstance(rows, list) else ()
    nodes = [node_number(row) for row in listed if isinstance(row, dict)]
    return [node for node in nodes if node not in (0, agent.node_id)]


async def _prefer_direct(session: IpcSession, payload: bytes) -> bytes:
    """Forget the relay of a peer and try its own address (ipc.md section 10.5)."""
    if len(payload) != 4:
        raise DecodeError("prefer_direct: payload must be 4 bytes (node_id)")
    agent = session.agent
    node = wire.unpack_connection(payload, "prefer_direct: missing node_id")
    body: dict[str, Any] = {
        "node_id": node,
        "had_tunnel": any(peer.node == node for peer in agent.tunnels.peers()),
        "was_relay_active": agent.tunnels.is_relayed(node),
        "was_relay_pinned": False,
        "pila_pushed": False,
        "resolve_error": "",
    }
    agent.host.routing.forget_path(agent, node)
    try:
        path = await agent.host.routing.find_path(agent, node)
    except PilotError as error:
        body["resolve_error"] = str(error)
    else:
        agent.set_peer_path(node, path)
        # Makes a session where there is none, and shows that the path works.
        now = agent.host.now()
        agent.tunnels.ping(node, b"prefer-direct", src_port=0, seq=0, now=now)
        agent.mark_dirty()
        body["pila_pushed"] = True
    return encode_json(body)


async def _submit_badge(session: IpcSession, payload: bytes) -> bytes:
    return await _with_proof(session, payload, "submit_badge", "badge")


async def _enroll_recovery(session: IpcSession, payload: bytes) -> bytes:
    return await _with_proof(session, payload, "enroll_recovery", "enrollment")


async def _with_proof(
    session: IpcSession, payload: bytes, name: str, what: str
) -> bytes:
    """Pass on what an issuer signed; the registry checks it."""
    with operation(name):
        request = decode_object(payload)
        text, proof = request.get(what), request.get(f"{what}_sig")
        if not (isinstance(text, str) and isinstance(proof, str) and text and proof):
            raise DecodeError(f"{what} and {what}_sig required")
        fields = {what: text, f"{what}_sig": proof}
        return encode_json(await _own(session.agent, name, **fields))


async def _sign_envelope(session: IpcSession, payload: bytes) -> bytes:
    with operation("sign_envelope"):
        return encode_json(sign_envelope(session.agent, payload))


async def _verify_envelope(session: IpcSession, payload: bytes) -> bytes:
    with operation("verify_envelope"):
        return encode_json(await verify_envelope(session.agent, payload))


HANDLERS: Final[dict[int, CommandHandler]] = {
    Command.HANDSHAKE: _handshake,
    Command.RESOLVE_HOSTNAME: _resolve_hostname,
    Command.SET_HOSTNAME: _set_hostname,
    Command.SET_VISIBILITY: _set_visibility,
    Command.DEREGISTER: _deregister,
    Command.SET_TAGS: _set_tags,
    Command.SET_WEBHOOK: _set_webhook,
    Command.SET_TASK_EXEC: _set_task_exec,
    Command.NETWORK: _network,
    Command.MANAGED: _managed,
    Command.ROTATE_KEY: _rotate_key,
    Command.MY_POLO: _my_polo,
    Command.BROADCAST: _broadcast,
    Command.PREFER_DIRECT: _prefer_direct,
    Command.SUBMIT_BADGE: _submit_badge,
    Command.ENROLL_RECOVERY: _enroll_recovery,
    Command.SIGN_ENVELOPE: _sign_envelope,
    Command.VERIFY_ENVELOPE: _verify_envelope,
}


async def _own(agent: Agent, type: str, /, **fields: Any) -> dict[str, Any]:
    return await agent.registry(type, node_id=agent.node_id, **fields)
