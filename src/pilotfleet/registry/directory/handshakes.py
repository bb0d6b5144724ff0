"""Trust pairs and relayed handshakes (registry.md sections 6.10 and 6.11)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfleet.registry.directory import mailbox
from pilotfleet.registry.directory.decision import Decision
from pilotfleet.registry.directory.records import (
    MailRecord,
    MailRequest,
    MailResponse,
    encode_record,
    mail_key,
    trust_key,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.store.base import Change

if TYPE_CHECKING:
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.mailbox import Mailbox

__all__ = [
    "decide_poll",
    "decide_report_trust",
    "decide_request",
    "decide_respond",
    "decide_revoke_trust",
]


def decide_report_trust(directory: Directory, node: int, peer: int) -> Decision:
    """Make a trust pair; ``node`` has signed.

    Raises:
        Refused: One of the two is not live.
    """
    directory.node(peer)
    reply = {"type": "report_trust_ok"}
    return Decision(reply, _trust(directory, node, peer))


def decide_revoke_trust(directory: Directory, node: int, peer: int) -> Decision:
    """Undo a trust pair.

    Raises:
        Refused: There is none.
    """
    if not directory.trust.has(node, peer):
        raise Refused(f"no trust pair between {node} and {peer}")
    change = Change(trust_key(node, peer), None, None)
    return Decision({"type": "revoke_trust_ok"}, [change])


def decide_request(
    directory: Directory, sender: int, target: int, justification: str, *, now: int
) -> Decision:
    """Park a handshake request for ``target``.

    Raises:
        Refused: No such target, or its box does not take the request.
    """
    directory.node(target)
    box = directory.mailbox(target)
    request = MailRequest(sender, justification, now)
    record = mailbox.add_request(box.record, target, request)
    reply = {"type": "request_handshake_ok", "status": "delivered"}
    return Decision(reply, [_mail(target, box, record)], notify=(target,))


def decide_poll(directory: Directory, node: int) -> Decision:
    """Hand out what waits for ``node`` and empty its box."""
    box = directory.mailbox(node)
    requests, responses = box.record.requests, box.record.responses
    changes = []
    if requests or responses:
        changes.append(_mail(node, box, mailbox.emptied(box.record)))
    reply = {
        "type": "poll_handshakes_ok",
        "requests": [
            {
                "from_node_id": request.sender,
                "justification": request.justification,
                "timestamp": request.at,
            }
            for request in requests
        ],
        "responses": [
            {
                "from_node_id": response.sender,
                "accept": response.accept,
                "timestamp": response.at,
            }
            for response in responses
        ],
    }
    return Decision(reply, changes, locks=(mail_key(node),))


def decide_respond(
    directory: Directory, node: int, peer: int, *, accept: bool, now: int
) -> Decision:
    """Answer the request of ``peer`` on behalf of ``node``.

    The mark that ``peer`` asked is cleared last: an answer that was cut short
    can be repeated.

    Raises:
        Refused: ``peer`` is unknown, or accepted without having asked.
    """
    own = directory.mailbox(node)
    changes = []
    if accept:
        settled = mailbox.settled(own.record, peer)
        changes = [*_trust(directory, node, peer), _mail(node, own, settled)]
    if peer not in directory.nodes.by_id:
        raise Refused(f"node {peer}: node not found")
    # A request to oneself ends up in one box; its mark is all there is to it.
    if peer != node:
        theirs = directory.mailbox(peer)
        response = MailResponse(node, accept, now)
        record = mailbox.add_response(theirs.record, response)
        changes.insert(len(changes) - 1, _mail(peer, theirs, record))
    reply = {"type": "respond_handshake_ok", "accept": accept, "peer_id": peer}
    return Decision(reply, changes, notify=(peer,))


def _trust(directory: Directory, node: int, peer: int) -> list[Change]:
    if directory.trust.has(node, peer):
        return []
    return [Change(trust_key(node, peer), b"1", None)]


def _mail(node: int, box: Mailbox, record: MailRecord) -> Change:
    value = None if record == MailRecord() else encode_record(record)
    return Change(mail_key(node), value, box.revision)
