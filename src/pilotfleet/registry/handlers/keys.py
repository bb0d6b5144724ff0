"""Messages about a node's key (registry.md sections 6.13 and 6.14)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.identity import decode_key_text
from pilotfleet.protocol.registry.messages import Reply, Request, node_number, text
from pilotfleet.registry.directory.keys import (
    decide_rotate_key,
    decide_set_key_expiry,
    key_age_days,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.privacy import rfc3339

if TYPE_CHECKING:
    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.desk import Desk, Handler
    from pilotfleet.registry.directory.decision import Decision

__all__ = ["HANDLERS"]

NEVER: Final = "never"


def rotate_key(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Replace the key; the old one has signed."""
    new_key_text = text(request, "new_public_key")
    if not new_key_text:
        raise Refused("rotate_key requires new_public_key")
    try:
        new_key = decode_key_text(new_key_text)
    except DecodeError as error:
        raise Refused(f"invalid new_public_key: {error}") from None
    node = desk.directory.node(node_number(request))
    missing = "rotate_key requires a valid signature"
    desk.require_signature(node, request, peer, missing=missing)
    now = int(desk.clock.wall())
    return decide_rotate_key(desk.directory, node, new_key, now=now)


def get_key_info(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Tell how old the key is."""
    node = desk.directory.node(node_number(request))
    record = node.record
    reply: Reply = {
        "type": "get_key_info_ok",
        "node_id": record.id,
        "created_at": rfc3339(record.created),
        "rotate_count": record.rotations,
        "key_age_days": key_age_days(node, desk.clock.wall()),
    }
    if record.rotated:
        reply["rotated_at"] = rfc3339(record.rotated)
    if record.expires:
        reply["expires_at"] = rfc3339(record.expires)
    return reply


def set_key_expiry(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Set when the key expires."""
    wanted = text(request, "expires_at")
    node = desk.directory.node(node_number(request))
    desk.require_signature_or_admin(node, request, peer)
    expires = 0 if wanted in ("", NEVER) else _unix_time(wanted)
    reply = {
        "type": "set_key_expiry_ok",
        "node_id": node.record.id,
        "expires_at": rfc3339(expires) if expires else NEVER,
    }
    now = desk.clock.wall()
    return decide_set_key_expiry(desk.directory, node, expires, reply, now=now)


def _unix_time(wanted: str) -> int:
    try:
        moment = datetime.fromisoformat(wanted)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        # In other time zones the ends of the calendar lie outside of it.
        return max(1, int(moment.astimezone(UTC).timestamp()))
    except (ValueError, OverflowError):
        raise Refused(f'invalid expires_at "{wanted[:64]}"') from None


HANDLERS: Final[dict[str, Handler]] = {
    "rotate_key": rotate_key,
    "get_key_info": get_key_info,
    "set_key_expiry": set_key_expiry,
}
