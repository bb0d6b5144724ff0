"""Messages about trust and relayed handshakes (sections 6.10 and 6.11)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.protocol.registry.messages import (
    Reply,
    Request,
    flag,
    node_number,
    text,
)
from pilotfleet.registry.directory.handshakes import (
    decide_poll,
    decide_report_trust,
    decide_request,
    decide_respond,
    decide_revoke_trust,
)
from pilotfleet.registry.directory.visibility import are_connected

if TYPE_CHECKING:
    from pilotfleet.registry.context import PeerContext
    from pilotfleet.registry.desk import Desk, Handler
    from pilotfleet.registry.directory.decision import Decision

__all__ = ["HANDLERS"]


def report_trust(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Make a trust pair."""
    number = node_number(request)
    desk.signed_node(request, peer, number)
    return decide_report_trust(desk.directory, number, node_number(request, "peer_id"))


def revoke_trust(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Undo a trust pair."""
    number = node_number(request)
    desk.signed_node(request, peer, number)
    return decide_revoke_trust(desk.directory, number, node_number(request, "peer_id"))


def check_trust(desk: Desk, request: Request, _: PeerContext) -> Reply:
    """Tell whether two nodes may connect without being public."""
    nodes = desk.directory.nodes
    one = nodes.get_live(node_number(request))
    other = nodes.get_live(node_number(request, "peer_id"))
    trusted = False
    if one is not None and other is not None:
        trusted = are_connected(desk.directory, one, other)
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


def poll_handshakes(desk: Desk, request: Request, peer: PeerContext) -> Decision:
    """Collect what waits for the node."""
    number = node_number(request)
    desk.signed_node(request, peer, number)
    return decide_poll(desk.directory, number)


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


HANDLERS: Final[dict[str, Handler]] = {
    "report_trust": report_trust,
    "revoke_trust": revoke_trust,
    "check_trust": check_trust,
    "request_handshake": request_handshake,
    "poll_handshakes": poll_handshakes,
    "respond_handshake": respond_handshake,
}
