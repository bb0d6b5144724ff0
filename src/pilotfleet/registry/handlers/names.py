"""Messages by which a node describes itself (registry.md section 6.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.errors import InvalidArgument
from pilotfleet.protocol.registry.messages import (
    Request,
    flag,
    node_number,
    text,
    texts,
)
from pilotfleet.protocol.registry.names import check_hostname, normalise_tags
from pilotfleet.registry.directory.names import (
    decide_set_hostname,
    decide_set_tags,
    decide_set_task_exec,
    decide_set_visibility,
)
from pilotfleet.registry.directory.refusal import Refused

if TYPE_CHECKING:
    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.desk import Desk, Handler
    from pilotfleet.registry.directory.decision import Decision
    from pilotfleet.registry.directory.nodes import Node

__all__ = ["HANDLERS", "checked_tags"]


def set_hostname(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Take a hostname; an empty one clears."""
    name = text(request, "hostname")
    if name:
        try:
            check_hostname(name)
        except InvalidArgument as error:
            raise Refused(f"invalid hostname: {error}") from None
    node = _authorised(desk, request, peer)
    return decide_set_hostname(desk.directory, node, name)


def set_tags(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Replace the tags."""
    tags = checked_tags(request)
    return decide_set_tags(_authorised(desk, request, peer), tags)


def set_visibility(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Become public or private."""
    node = _authorised(desk, request, peer)
    return decide_set_visibility(node, public=flag(request, "public"))


def set_task_exec(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Say whether tasks are executed; sent by old releases (section 6.16)."""
    node = desk.signed_node(request, peer, node_number(request))
    return decide_set_task_exec(node, enabled=flag(request, "enabled"))


def checked_tags(request: Request) -> tuple[str, ...]:
    """Return the tags of a request in their normal form.

    Raises:
        Refused: One is not allowed.
    """
    try:
        return normalise_tags(texts(request, "tags"))
    except InvalidArgument as error:
        raise Refused(str(error)) from None


def _authorised(desk: Desk, request: Request, peer: PeerContext) -> Node:
    node = desk.directory.node(node_number(request))
    desk.require_signature_or_admin(node, request, peer)
    return node


HANDLERS: Final[dict[str, Handler]] = {
    "set_hostname": set_hostname,
    "set_tags": set_tags,
    "set_visibility": set_visibility,
    "set_task_exec": set_task_exec,
}
