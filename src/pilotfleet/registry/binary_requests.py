"""Requests of binary mode (registry.md section 2.4): the same rules as in JSON,
other error texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.registry.binary import (
    BinaryType,
    HeartbeatReply,
    HeartbeatRequest,
    LookupReply,
    LookupRequest,
    ResolveReply,
    ResolveRequest,
    encode_error,
)
from pilotfleet.registry.desk import SIGNATURE_FAILED
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.handlers.nodes import check_key_life, resolve_location
from pilotfleet.registry.privacy import public_endpoint

if TYPE_CHECKING:
    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.desk import Desk
    from pilotfleet.registry.directory.nodes import Node

__all__ = ["answer_binary"]


def answer_binary(
    desk: Desk, kind: int, payload: bytes, peer: PeerContext
) -> tuple[int, bytes]:
    """Answer a binary message other than a JSON passthrough."""
    try:
        match kind:
            case BinaryType.HEARTBEAT:
                return _heartbeat(desk, payload, peer)
            case BinaryType.LOOKUP:
                return _lookup(desk, payload)
            case BinaryType.RESOLVE:
                return _resolve(desk, payload, peer)
            case _:
                raise Refused(f"unknown message type 0x{kind:02X}")
    except (Refused, DecodeError) as error:
        return BinaryType.ERROR, encode_error(str(error))


def _heartbeat(desk: Desk, payload: bytes, peer: PeerContext) -> tuple[int, bytes]:
    request = HeartbeatRequest.decode(payload)
    number = request.node_id
    node = _node(desk, number)
    _verify(desk, node, f"heartbeat:{number}", request.signature, peer)
    wall = desk.clock.wall()
    reply = HeartbeatReply(int(wall), check_key_life(node, wall))
    desk.directory.touch(number, wall)
    return BinaryType.HEARTBEAT_OK, reply.encode()


def _lookup(desk: Desk, payload: bytes) -> tuple[int, bytes]:
    node = _node(desk, LookupRequest.decode(payload).node_id)
    record = node.record
    reply = LookupReply(
        node_id=record.id,
        public=record.public,
        task_exec=record.task_exec,
        networks=(0, *node.networks),
        public_key=record.key,
        hostname=node.hostname,
        tags=record.tags,
        real_addr=public_endpoint(desk, node) if record.public else "",
    )
    return BinaryType.LOOKUP_OK, reply.encode()


def _resolve(desk: Desk, payload: bytes, peer: PeerContext) -> tuple[int, bytes]:
    request = ResolveRequest.decode(payload)
    number, target = request.requester_id, request.node_id
    requester = desk.directory.nodes.get_live(number)
    if requester is None:
        raise Refused(f"resolve denied: requester node {number} is not registered")
    _verify(desk, requester, f"resolve:{number}:{target}", request.signature, peer)
    _node(desk, target)
    location = resolve_location(desk, requester, target)
    desk.note_contact(requester, target)
    reply = ResolveReply(
        target, location.real_addr, location.lan, location.key_age_days
    )
    return BinaryType.RESOLVE_OK, reply.encode()


def _node(desk: Desk, number: int) -> Node:
    node = desk.directory.nodes.get_live(number)
    if node is None:
        raise Refused(f"node {number}: not found")
    return node


def _verify(
    desk: Desk, node: Node, signed: str, signature: bytes, peer: PeerContext
) -> None:
    if not desk.signatures.verify_raw(node.record.key, signed, signature):
        raise Refused(SIGNATURE_FAILED)
    peer.verified_node = node.record.id
