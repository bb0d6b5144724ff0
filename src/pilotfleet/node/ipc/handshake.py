"""Trust commands (ipc.md section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import DecodeError, NotSupported
from pilotfleet.node.ipc.texts import encode_json, encode_list, operation
from pilotfleet.protocol.ipc.commands import HandshakeSub, unpack_connection

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.trust import TrustService

__all__ = ["run_handshake"]

MAX_WAIT_MS: Final = 30_000
_NODE_SIZE: Final = 4

_NAMES: Final = {
    HandshakeSub.SEND: "request",
    HandshakeSub.APPROVE: "approve",
    HandshakeSub.REJECT: "reject",
    HandshakeSub.PENDING: "pending",
    HandshakeSub.TRUSTED: "trusted",
    HandshakeSub.REVOKE: "revoke",
    HandshakeSub.WAIT: "wait",
}


async def run_handshake(agent: Agent, payload: bytes) -> bytes:
    """Do one trust command and return the reply's JSON.

    Raises:
        PilotError: With the operation before its text.
    """
    service = agent.host.trust_service
    if not payload:
        raise DecodeError("handshake: missing sub-command")
    if service is None:
        raise NotSupported("handshake: service not registered")
    try:
        sub = HandshakeSub(payload[0])
    except ValueError:
        raise DecodeError(
            f"handshake: unknown sub-command 0x{payload[0]:02X}"
        ) from None
    with operation(f"handshake {_NAMES[sub]}"):
        return await _run(service, agent, sub, payload[1:])


async def _run(
    service: TrustService, agent: Agent, sub: HandshakeSub, rest: bytes
) -> bytes:
    match sub:
        case HandshakeSub.PENDING:
            rows = await service.pending(agent)
            return encode_list({"pending": rows}, "pending", newest_last=True)
        case HandshakeSub.TRUSTED:
            rows = await service.trusted(agent)
            return encode_list({"trusted": rows}, "trusted", newest_last=True)
        case HandshakeSub.WAIT:
            return encode_json(await _wait(service, agent, rest))
        case _:
            return encode_json(await _change(service, agent, sub, rest))


async def _wait(service: TrustService, agent: Agent, rest: bytes) -> dict[str, Any]:
    missing = "payload must be [nodeID(4)][timeoutMs(4)]"
    if len(rest) != 2 * _NODE_SIZE:
        raise DecodeError(missing)
    node = unpack_connection(rest, missing)
    wait_ms = min(unpack_connection(rest[_NODE_SIZE:], missing), MAX_WAIT_MS)
    trusted = await service.wait(agent, node, timeout=wait_ms / 1000)
    return {"node_id": node, "trusted": trusted}


async def _change(
    service: TrustService, agent: Agent, sub: HandshakeSub, rest: bytes
) -> dict[str, Any]:
    node = unpack_connection(rest, "missing node_id")
    text = rest[_NODE_SIZE:].decode("utf-8", "replace")
    status = ""
    match sub:
        case HandshakeSub.SEND:
            status = await service.request(agent, node, text)
        case HandshakeSub.APPROVE:
            await service.approve(agent, node)
            status = "approved"
        case HandshakeSub.REJECT:
            await service.reject(agent, node, text)
            status = "rejected"
        case HandshakeSub.REVOKE:
            await service.revoke(agent, node)
            status = "revoked"
    return {"status": status, "node_id": node}
