"""Beacons (registry.md section 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.registry.endpoints import parse_endpoint
from pilotfleet.protocol.registry.messages import (
    MAX_NODE,
    Reply,
    Request,
    number,
    text,
)
from pilotfleet.registry.directory.refusal import Refused

if TYPE_CHECKING:
    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.desk import Desk, Handler

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


HANDLERS: Final[dict[str, Handler]] = {
    "beacon_register": beacon_register,
    "beacon_list": beacon_list,
}
