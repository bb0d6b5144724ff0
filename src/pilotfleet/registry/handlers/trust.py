"""Messages about trust and relayed handshakes (sections 6.10 and 6.11)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.registry.messages import (
    MAX_NODE,
    Reply,
    Request,
    flag,
    node_number,
    number,
    text,
    texts,
)
from pilotfleet.registry.directory.handshakes import (
    decide_acknowledge,
    decide_poll,
    decide_report_trust,
    decide_request,
    decide_respond,
    decide_revoke_trust,
    look_into_box,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.directory.trustlinks import (
    MAX_GENERATION,
    MAX_LINKS,
    decode_place,
    list_links,
)
from pilotfleet.registry.directory.visibility import admits

if TYPE_CHECKING:
    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.desk import Desk, Handler
    from pilotfleet.registry.directory.decision import Decision

__all__ = ["HANDLERS"]

MAX_ACKNOWLEDGED: Final = 200
"""As many as a box can hold."""


def report_trust(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Note that the node trusts its peer."""
    number, other = node_number(request), node_number(request, "peer_id")
    desk.signed_node(request, peer, number)
    is_contact = desk.contacts.has(other, number)
    return decide_report_trust(desk.directory, number, other, is_contact=is_contact)


def revoke_trust(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Undo a trust pair."""
    number, other = node_number(request), node_number(request, "peer_id")
    desk.signed_node(request, peer, number)
    desk.contacts.forget(number, other)
    return decide_revoke_trust(desk.directory, number, other)


def check_trust(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Tell whether the node, which asks about a peer at its gate, lets it in.

    Only what the node said itself counts: a peer that reports trust lets nobody in
    but the node.
    """
    nodes = desk.directory.nodes
    node = nodes.get_live(node_number(request))
    other = nodes.get_live(node_number(request, "peer_id"))
    trusted = False
    if node is not None and other is not None:
        trusted = admits(desk.directory, node, other)
    return {"type": "check_trust_ok", "trusted": trusted}


def request_handshake(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Park a request for another node."""
    sender = node_number(request, "from_node_id")
    desk.require_signature(
        desk.directory.node(sender),
        request,
        peer,
        missing="handshake request requires signature",
        wrong="handshake request signature verification failed",
    )
    return decide_request(
        desk.directory,
        sender,
        node_number(request, "to_node_id"),
        text(request, "justification"),
        now=int(desk.clock.wall()),
    )


def poll_handshakes(
    desk: Desk, request: Request, peer: PeerContext
) -> Decision | Reply:
    """Collect what waits for the node; with ``keep`` (extension) it stays."""
    number = node_number(request)
    desk.signed_node(request, peer, number)
    if flag(request, "keep"):
        return look_into_box(desk.directory, number)
    return decide_poll(desk.directory, number)


def ack_handshakes(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Remove what the node has kept (extension ``mailbox-ack``)."""
    number = node_number(request)
    desk.signed_node(request, peer, number)
    ids = frozenset(texts(request, "ids")[:MAX_ACKNOWLEDGED])
    return decide_acknowledge(desk.directory, number, ids)


def respond_handshake(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Answer a parked request."""
    number = node_number(request)
    desk.require_signature(
        desk.directory.node(number),
        request,
        peer,
        missing="handshake response requires signature",
        wrong="handshake response signature verification failed",
    )
    return decide_respond(
        desk.directory,
        number,
        node_number(request, "peer_id"),
        accept=flag(request, "accept"),
        now=int(desk.clock.wall()),
    )


def list_trust(desk: Desk, request: Request, peer: PeerContext) -> Reply:
    """List the links that the node may see (extension ``trust-links``)."""
    requester = None
    if not desk.is_admin(request):
        requester = desk.signed_node(request, peer, node_number(request))
    generation = desk.directory.trust.links.generation(requester)
    reply: Reply = {"type": "list_trust_ok", "generation": generation}
    cursor = text(request, "cursor")
    if not cursor and number(request, "generation", MAX_GENERATION) == generation:
        return {**reply, "unchanged": True}
    try:
        after = decode_place(cursor)
    except DecodeError as error:
        raise Refused(str(error)) from None
    limit = min(number(request, "limit", MAX_NODE) or MAX_LINKS, MAX_LINKS)
    page = list_links(desk.directory, requester, after=after, limit=limit)
    links = [{"a": one, "b": other} for one, other in page.links]
    return {**reply, "links": links, "next_cursor": page.next_cursor}


HANDLERS: Final[dict[str, Handler]] = {
    "list_trust": list_trust,
    "report_trust": report_trust,
    "revoke_trust": revoke_trust,
    "check_trust": check_trust,
    "request_handshake": request_handshake,
    "poll_handshakes": poll_handshakes,
    "ack_handshakes": ack_handshakes,
    "respond_handshake": respond_handshake,
}
