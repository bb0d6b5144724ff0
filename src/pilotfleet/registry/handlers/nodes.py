"""Messages about being there and being found (registry.md sections 6.1 to 6.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.identity import decode_key_text, encode_key_text
from pilotfleet.protocol.registry.endpoints import stored_endpoint
from pilotfleet.protocol.registry.messages import (
    Reply,
    Request,
    flag,
    node_number,
    text,
    texts,
)
from pilotfleet.protocol.registry.signatures import signed_text
from pilotfleet.registry.directory.names import hostname_holder
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.directory.registration import (
    Registration,
    decide_deregister,
    decide_register,
)
from pilotfleet.registry.directory.visibility import may_reach
from pilotfleet.registry.privacy import Location, locate, public_endpoint, rfc3339

if TYPE_CHECKING:
    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.desk import Desk, Handler
    from pilotfleet.registry.directory.decision import Decision
    from pilotfleet.registry.directory.nodes import Node

__all__ = ["HANDLERS", "check_key_life", "resolve_location"]

# Of our choosing: a message may have 64 MiB, a record must not.
MAX_ENDPOINT: Final = 255
MAX_OWNER: Final = 320
MAX_VERSION: Final = 64
MAX_LAN: Final = 16

EXPIRY_WARNING_S: Final = 86_400


def register(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Section 6.1."""
    listen_addr = text(request, "listen_addr")
    owner = text(request, "owner")
    if len(listen_addr) > MAX_ENDPOINT:
        raise Refused(f"listen_addr too long (max {MAX_ENDPOINT} chars)")
    if len(owner) > MAX_OWNER:
        raise Refused(f"owner too long (max {MAX_OWNER} chars)")
    key, verified = _registering_key(desk, request, peer)
    asked = Registration(
        key,
        stored_endpoint(listen_addr, peer.endpoint),
        verified,
        owner=owner,
        lan=_lan(request),
        version=text(request, "version")[:MAX_VERSION],
        relay_only=flag(request, "relay_only"),
        hostname=text(request, "hostname"),
    )
    now = int(desk.clock.wall())
    decision = decide_register(
        desk.directory, asked, now=now, max_nodes=desk.config.max_nodes
    )
    if verified:
        peer.verified_node = decision.seen
    return decision


def deregister(desk: Desk, request: Request, peer: PeerContext) -> Decision | Reply:
    """Section 6.2; nothing to do for a node that is not there."""
    node = desk.directory.nodes.get_live(node_number(request))
    if node is None:
        return {"type": "deregister_ok"}
    desk.require_signature_or_admin(node, request, peer)
    return decide_deregister(desk.directory, node)


def heartbeat(desk: Desk, request: Request, peer: PeerContext) -> Reply:
    """Section 6.4."""
    number = node_number(request)
    node = desk.signed_node(request, peer, number)
    wall = desk.clock.wall()
    expires_soon = check_key_life(node, wall)
    desk.directory.touch(number, wall)
    reply: Reply = {"type": "heartbeat_ok", "time": int(wall)}
    if expires_soon:
        reply["key_expiry_warning"] = True
    return reply


def lookup(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Section 6.5."""
    node = desk.directory.node(node_number(request))
    record = node.record
    reply: Reply = {
        "type": "lookup_ok",
        "node_id": record.id,
        "address": node.address,
        "networks": [0, *node.networks],
        "public_key": encode_key_text(record.key),
        "public": record.public,
        "last_seen_unix": int(node.last_seen),
        "key_generation": record.rotations,
    }
    if node.hostname:
        reply["hostname"] = node.hostname
    if record.tags:
        reply["tags"] = list(record.tags)
    if record.task_exec:
        reply["task_exec"] = True
    if record.version:
        reply["version"] = record.version
    if record.public:
        reply["real_addr"] = reply["endpoint"] = public_endpoint(desk, node)
        if record.relay_only:
            reply["relay_only"] = True
    return reply


def resolve(desk: Desk, request: Request, peer: PeerContext) -> Reply:
    """Section 6.6."""
    requester = _requester(desk, node_number(request, "requester_id"))
    desk.require_signature(requester, request, peer)
    target = node_number(request)
    location = resolve_location(desk, requester, target)
    desk.note_contact(requester, target)
    reply: Reply = {
        "type": "resolve_ok",
        "node_id": target,
        "real_addr": location.real_addr,
        "key_age_days": location.key_age_days,
    }
    if location.lan:
        reply["lan_addrs"] = list(location.lan)
    if location.relay_only:
        reply["relay_only"] = True
    return reply


def resolve_hostname(desk: Desk, request: Request, peer: PeerContext) -> Reply:
    """Section 6.7, with its friendly rule.

    A 1.18.0 daemon names no requester. Then it is whoever has last proved its
    identity on the same connection.
    """
    name = text(request, "hostname")
    if not name:
        raise Refused("hostname required")
    number = node_number(request, "requester_id") or peer.verified_node
    node = hostname_holder(desk.directory, name)
    if node is None or not _may_find(desk, number, node):
        raise Refused(f'hostname "{name[:64]}" not found')
    return {
        "type": "resolve_hostname_ok",
        "node_id": node.record.id,
        "address": node.address,
        "public": node.record.public,
        "hostname": name,
        "last_seen_unix": int(node.last_seen),
    }


def punch(desk: Desk, request: Request, peer: PeerContext) -> Reply:
    """Section 6.12: tells each of two nodes where the other one is."""
    number = node_number(request, "requester_id")
    first, second = node_number(request, "node_a"), node_number(request, "node_b")
    if number not in (first, second):
        raise Refused("punch denied: requester must be participant")
    requester = desk.signed_node(request, peer, number)
    other = second if number == first else first
    # Endpoints are revealed, so what holds for resolve holds here.
    theirs = resolve_location(desk, requester, other).real_addr
    own = public_endpoint(desk, requester)
    return {
        "type": "punch_ok",
        "node_a": first,
        "node_a_addr": own if number == first else theirs,
        "node_b": second,
        "node_b_addr": theirs if number == first else own,
    }


def resolve_location(desk: Desk, requester: Node, target: int) -> Location:
    """Return where ``target`` is.

    Raises:
        Refused: There is no such node, or it is private.
    """
    location = locate(desk, requester, desk.directory.node(target))
    if location is None:
        raise Refused(
            f"resolve denied: node {target} is private (establish mutual trust first)"
        )
    return location


def check_key_life(node: Node, wall: float) -> bool:
    """Tell whether the node's key expires within a day.

    Raises:
        Refused: It has expired.
    """
    expires = node.record.expires
    if not expires:
        return False
    if expires <= wall:
        number = node.record.id
        raise Refused(f"node {number}: key expired at {rfc3339(expires)}")
    return expires - wall <= EXPIRY_WARNING_S


def _registering_key(
    desk: Desk, request: Request, peer: PeerContext
) -> tuple[bytes, bool]:
    """Return the key and whether it signed the request: rules 2, 3 and 5."""
    key_text = text(request, "public_key")
    signature = text(request, "signature")
    if not key_text:
        raise Refused("registration requires public_key")
    if not signature and desk.config.require_signed_registration:
        raise Refused("registration requires a signature")
    problem = "registration: invalid public_key" if signature else "invalid public key"
    try:
        key = decode_key_text(key_text)
    except DecodeError as error:
        raise Refused(f"{problem}: {error}") from None
    if signature:
        _verify_registration(desk, request, key, signature)
    return key, bool(signature)


def _verify_registration(
    desk: Desk, request: Request, key: bytes, signature: str
) -> None:
    failed = "registration signature verification failed"
    try:
        good = desk.signatures.verify_text(key, signed_text(request), signature)
    except DecodeError as error:
        raise Refused(f"{failed}: {error}") from None
    if not good:
        raise Refused(f"{failed}: the signature is not by this key")


def _requester(desk: Desk, number: int) -> Node:
    requester = desk.directory.nodes.get_live(number)
    if requester is None:
        raise Refused(f"resolve denied: requester node {number} is not registered")
    return requester


def _may_find(desk: Desk, requester: int, target: Node) -> bool:
    if target.record.public or requester == target.record.id:
        return True
    node = desk.directory.nodes.get_live(requester)
    return node is not None and may_reach(desk.directory, node, target)


def _lan(request: Request) -> tuple[str, ...]:
    usable = [a for a in texts(request, "lan_addrs") if 0 < len(a) <= MAX_ENDPOINT]
    return tuple(usable[:MAX_LAN])


HANDLERS: Final[dict[str, Handler]] = {
    "register": register,
    "deregister": deregister,
    "heartbeat": heartbeat,
    "lookup": lookup,
    "resolve": resolve,
    "resolve_hostname": resolve_hostname,
    "punch": punch,
}
