"""Network and managed-network commands (ipc.md sections 7 and 8).

Networks live in the registry; the daemon signs the request and passes the answer
on. Managed networks (an engine that chooses links) do not exist here, so their
commands give the replies of a node without any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.errors import DecodeError, NotFound, RegistryError
from pilotfleet.node.ipc.texts import encode_json, operation
from pilotfleet.protocol.ipc.commands import (
    ManagedSub,
    NetworkSub,
    unpack_connection,
    unpack_port,
)
from pilotfleet.protocol.policy import load_policy

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent

__all__ = ["decode_tags", "run_managed", "run_network"]

_NET_SIZE: Final = 2
_NODE_SIZE: Final = 4

_NAMES: Final = {
    NetworkSub.LIST: "list",
    NetworkSub.JOIN: "join",
    NetworkSub.LEAVE: "leave",
    NetworkSub.MEMBERS: "members",
    NetworkSub.INVITE: "invite",
    NetworkSub.POLL_INVITES: "poll-invites",
    NetworkSub.RESPOND_INVITE: "respond-invite",
}

_tags_decoder: Final = msgspec.json.Decoder(list[str] | None)


async def run_network(agent: Agent, payload: bytes) -> bytes:
    """Do one network command and return the registry's body."""
    if not payload:
        raise DecodeError("network: missing sub-command")
    try:
        sub = NetworkSub(payload[0])
    except ValueError:
        raise DecodeError(f"network: unknown sub-command 0x{payload[0]:02X}") from None
    with operation(f"network {_NAMES[sub]}"):
        return encode_json(await _network(agent, sub, payload[1:]))


async def _network(agent: Agent, sub: NetworkSub, rest: bytes) -> dict[str, Any]:
    me = agent.node_id
    if sub is NetworkSub.LIST:
        return await agent.registry("list_networks")
    if sub is NetworkSub.POLL_INVITES:
        return await agent.registry("poll_invites", node_id=me)
    net = unpack_port(rest, "missing network_id")
    rest = rest[_NET_SIZE:]
    match sub:
        case NetworkSub.JOIN:
            body = await agent.join_network(net, rest.decode("utf-8", "replace"))
            agent.report("network.joined", network_id=net)
            return body
        case NetworkSub.LEAVE:
            body = await agent.leave_network(net)
            agent.report("network.left", network_id=net)
            return body
        case NetworkSub.MEMBERS:
            return await agent.registry("list_nodes", network_id=net)
        case NetworkSub.INVITE:
            node = unpack_connection(rest, "missing node_id")
            return await agent.registry(
                "invite_to_network",
                network_id=net,
                inviter_id=me,
                target_node_id=node,
            )
        case NetworkSub.RESPOND_INVITE:
            if not rest:
                raise DecodeError("missing accept flag")
            accepts = rest[0] == 1
            body = await agent.registry(
                "respond_invite", node_id=me, network_id=net, accept=accepts
            )
            if accepts:
                agent.networks = tuple(sorted({*agent.networks, net}))
                agent.report("network.joined", network_id=net)
            return body


async def run_managed(agent: Agent, payload: bytes) -> bytes:
    """Answer a managed-network command as a node without such networks."""
    if not payload:
        raise DecodeError("managed: missing sub-command")
    try:
        sub = ManagedSub(payload[0])
    except ValueError:
        raise DecodeError(f"managed: unknown sub-command 0x{payload[0]:02X}") from None
    match sub:
        case ManagedSub.STATUS | ManagedSub.CYCLE:
            raise NotFound("managed: no active managed networks")
        case ManagedSub.RECONCILE:
            raise NotFound("managed: no active policy runner for network")
        case ManagedSub.POLICY:
            return encode_json(await _policy(agent, payload[1:]))
        case ManagedSub.MEMBER_TAGS:
            return encode_json(await _member_tags(agent, payload[1:]))


def decode_tags(payload: bytes, operation: str) -> list[str]:
    """Read a JSON array of strings; ``null`` counts as an empty one."""
    try:
        return _tags_decoder.decode(payload) or []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"{operation}: invalid JSON: {error}") from None


async def _policy(agent: Agent, rest: bytes) -> dict[str, Any]:
    """Read or store the expression policy of a network.

    The registry keeps it and members that run policies follow it; this daemon
    itself enforces the networks' ports only, and says so.
    """
    net = unpack_port(rest[1:], "managed policy: missing network_id")
    reply: dict[str, Any] = {"type": "managed_policy_ok", "network_id": net}
    with operation("managed policy"):
        if rest[0] == 0:
            stored = await _stored_policy(agent, net)
            return {**reply, "engine": "none", **stored}
        size = unpack_port(rest[1 + _NET_SIZE :], "missing token")
        body = rest[1 + 2 * _NET_SIZE :]
        policy = body[size:].decode("utf-8", "replace")
        load_policy(policy)
        await agent.registry(
            "set_expr_policy",
            network_id=net,
            node_id=agent.node_id,
            admin_token=body[:size].decode("utf-8", "replace"),
            expr_policy=policy,
        )
    return {**reply, "applied": False, "stored": True}


async def _stored_policy(agent: Agent, network: int) -> dict[str, Any]:
    try:
        answer = await agent.registry("get_expr_policy", network_id=network)
        return {"expr_policy": msgspec.json.decode(answer.get("expr_policy", ""))}
    except (RegistryError, msgspec.DecodeError, TypeError):
        # No such network, or none that has a policy.
        return {}


async def _member_tags(agent: Agent, rest: bytes) -> dict[str, Any]:
    with operation("managed member-tags"):
        net = unpack_port(rest[1:], "missing network_id")
        node = unpack_connection(rest[1 + _NET_SIZE :], "missing node_id")
    if rest[0] == 0:
        with operation("member-tags get"):
            return await agent.registry(
                "get_member_tags", network_id=net, target_node_id=node
            )
    tags = decode_tags(rest[1 + _NET_SIZE + _NODE_SIZE :], "managed member-tags")
    with operation("member-tags set"):
        return await agent.registry(
            "set_member_tags",
            network_id=net,
            target_node_id=node,
            tags=tags,
            node_id=agent.node_id,
        )
