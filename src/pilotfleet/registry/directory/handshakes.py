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
    grant_key,
    mail_key,
    trust_key,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.directory.trust import Grant
from pilotfleet.registry.store.base import Change

if TYPE_CHECKING:
    from collections.abc import Collection

    from pilotfleet.protocol.registry.messages import Reply
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.mailbox import Mailbox

__all__ = [
    "decide_acknowledge",
    "decide_poll",
    "decide_report_trust",
    "decide_request",
    "decide_respond",
    "decide_revoke_trust",
    "look_into_box",
]


def decide_report_trust(
    directory: Directory, node: int, peer: int, *, is_contact: bool
) -> Decision:
    """Note that ``node``, which has signed, trusts ``peer``.

    What ``peer`` itself has asked for by relay counts as its consent. If all it did
    was to look for ``node`` (``is_contact``), as before a request that it makes
    directly, ``node`` may find it again to answer.

    Raises:
        Refused: One of the two is not live.
    """
    directory.node(peer)
    changes = _grant(directory, node, peer, Grant.CONSENT)
    if peer in directory.mailbox(node).record.asked:
        changes += _grant(directory, peer, node, Grant.CONSENT)
    elif is_contact and not directory.trust.shows(peer, node):
        changes += _grant(directory, peer, node, Grant.LOCATION)
    return Decision({"type": "report_trust_ok"}, changes)


def decide_revoke_trust(directory: Directory, node: int, peer: int) -> Decision:
    """Undo a trust pair, whoever of the two made it.

    Raises:
        Refused: There is none.
    """
    if not directory.trust.has_pair(node, peer):
        raise Refused(f"no trust pair between {node} and {peer}")
    changes = []
    for one, other in ((node, peer), (peer, node)):
        if directory.trust.has_grant(one, other):
            changes.append(Change(grant_key(one, other), None, None))
        # An earlier request must not bring the pair back when the other side, which
        # may not have heard of this yet, reports it again.
        box = directory.mailbox(other)
        if one in box.record.asked:
            asked = mailbox.without_mark(box.record, one)
            changes.append(_mail(other, box, asked))
    if directory.trust.is_old(node, peer):
        changes.append(Change(trust_key(node, peer), None, None))
    return Decision({"type": "revoke_trust_ok"}, changes)


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
    changes = []
    if box.record.requests or box.record.responses:
        changes.append(_mail(node, box, mailbox.emptied(box.record)))
    return Decision(_waiting(box.record), changes, locks=(mail_key(node),))


def look_into_box(directory: Directory, node: int) -> Reply:
    """Hand out what waits for ``node``, and the ids to acknowledge it by."""
    record = directory.mailbox(node).record
    reply = _waiting(record)
    for row, request in zip(reply["requests"], record.requests, strict=True):
        row["id"] = mailbox.entry_id(request)
    for row, response in zip(reply["responses"], record.responses, strict=True):
        row["id"] = mailbox.entry_id(response)
    return reply


def decide_acknowledge(
    directory: Directory, node: int, ids: Collection[str]
) -> Decision:
    """Remove from the box of ``node`` what it has kept.

    Unknown ids are no error: a request may be repeated.
    """
    box = directory.mailbox(node)
    record = mailbox.without_entries(box.record, ids)
    changes = [] if record == box.record else [_mail(node, box, record)]
    reply = {"type": "ack_handshakes_ok"}
    return Decision(reply, changes, locks=(mail_key(node),))


def decide_respond(
    directory: Directory, node: int, peer: int, *, accept: bool, now: int
) -> Decision:
    """Answer the request of ``peer`` on behalf of ``node``.

    ``peer`` need not have asked here: a direct request leaves no mark. Then the
    answer still goes to its box, where it counts only if it asked, and makes the
    consent of ``node`` alone.

    The mark that ``peer`` asked is cleared last: an answer that was cut short
    can be repeated.

    Raises:
        Refused: ``peer`` is unknown, or there is nothing left to accept.
    """
    own = directory.mailbox(node)
    has_asked = peer in own.record.asked
    changes, last = [], []
    if accept:
        if not has_asked and directory.trust.admits(peer, node):
            raise Refused(f"no pending handshake request from node {peer}")
        changes = _grant(directory, node, peer, Grant.CONSENT)
        if has_asked:
            changes += _grant(directory, peer, node, Grant.CONSENT)
            last = [_mail(node, own, mailbox.without_mark(own.record, peer))]
    if peer not in directory.nodes.by_id:
        raise Refused(f"node {peer}: node not found")
    # A request to oneself ends up in one box; its mark is all there is to it.
    if peer != node:
        theirs = directory.mailbox(peer)
        response = MailResponse(node, accept, now)
        record = mailbox.add_response(theirs.record, response)
        changes.append(_mail(peer, theirs, record))
    reply = {"type": "respond_handshake_ok", "accept": accept, "peer_id": peer}
    return Decision(reply, changes + last, notify=(peer,))


def _waiting(record: MailRecord) -> Reply:
    return {
        "type": "poll_handshakes_ok",
        "requests": [
            {
                "from_node_id": request.sender,
                "justification": request.justification,
                "timestamp": request.at,
            }
            for request in record.requests
        ],
        "responses": [
            {
                "from_node_id": response.sender,
                "accept": response.accept,
                "timestamp": response.at,
            }
            for response in record.responses
        ],
    }


def _grant(directory: Directory, node: int, peer: int, grant: Grant) -> list[Change]:
    if directory.trust.admits(node, peer):
        return []
    return [Change(grant_key(node, peer), grant.value, None)]


def _mail(node: int, box: Mailbox, record: MailRecord) -> Change:
    value = None if record == MailRecord() else encode_record(record)
    return Change(mail_key(node), value, box.revision)
