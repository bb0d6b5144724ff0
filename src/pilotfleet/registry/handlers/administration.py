"""Beacons (section 8) and the old reputation messages (section 6.16)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.registry.endpoints import parse_endpoint
from pilotfleet.protocol.registry.messages import (
    MAX_NODE,
    Reply,
    Request,
    node_number,
    number,
    text,
)
from pilotfleet.registry.directory.polo import decide_add_polo, decide_set_polo
from pilotfleet.registry.directory.refusal import Refused

if TYPE_CHECKING:
    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.desk import Desk, Handler
    from pilotfleet.registry.directory.decision import Decision
    from pilotfleet.registry.directory.nodes import Node

__all__ = ["HANDLERS"]

MAX_ADDR: Final = 255


def beacon_register(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Note another beacon for a minute."""
    desk.require_admin(request)
    beacon = number(request, "beacon_id", MAX_NODE)
    addr = text(request, "addr")
    if not beacon:
        raise Refused("beacon_id required")
    if not addr:
        raise Refused("addr required")
    try:
        host, _port = parse_endpoint(addr)
    except DecodeError as error:
        raise Refused(f"beacon addr invalid: {error}") from None
    if not host or len(addr) > MAX_ADDR:
        raise Refused("beacon addr invalid: no host")
    desk.beacons.register(beacon, addr, desk.clock.now())
    return {"type": "beacon_register_ok", "beacon_id": beacon}


def beacon_list(desk: Desk, _: Request, __: PeerContext) -> Reply:
    """Tell which beacons there are."""
    beacons = desk.beacons.listed(desk.clock.now())
    rows = [{"id": beacon, "addr": addr} for beacon, addr in beacons.items()]
    return {"type": "beacon_list_ok", "beacons": rows}


def get_polo_score(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Tell the reputation of a node."""
    node = _scored(desk, request)
    return {
        "type": "get_polo_score_ok",
        "node_id": node.record.id,
        "address": node.address,
        "polo_score": desk.directory.polo_score(node.record.id),
    }


def set_polo_score(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Set a score. Unsigned in the protocol, so it takes the admin token."""
    desk.require_admin(request)
    score = _score(request, "set_polo_score", "polo_score")
    return decide_set_polo(desk.directory, _scored(desk, request).record.id, score)


def update_polo_score(desk: Desk, request: Request, _: PeerContext) -> Decision:
    """Add to a score. Unsigned in the protocol, so it takes the admin token."""
    desk.require_admin(request)
    delta = _score(request, "update_polo_score", "delta")
    return decide_add_polo(desk.directory, _scored(desk, request).record.id, delta)


def _scored(desk: Desk, request: Request) -> Node:
    number = node_number(request)
    node = desk.directory.nodes.get_live(number)
    if node is None:
        raise Refused(f"node {number} not found")
    return node


def _score(request: Request, kind: str, name: str) -> int:
    """Return a number that, unlike others, may be negative."""
    value = request.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(f"{kind} requires {name} field")
    # Only the range matters for what does not fit it; infinity has no integer.
    return int(max(-MAX_NODE, min(MAX_NODE, value)))


HANDLERS: Final[dict[str, Handler]] = {
    "beacon_register": beacon_register,
    "beacon_list": beacon_list,
    "get_polo_score": get_polo_score,
    "set_polo_score": set_polo_score,
    "update_polo_score": update_polo_score,
}
