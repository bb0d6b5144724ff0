"""Handshake boxes: requests and answers that wait at the registry.

Registry.md section 6.11. All functions are pure: they take the box as it is
and return the box as it becomes; the caller stores it.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from pilotfleet.registry.directory.records import MailRecord, MailRequest, MailResponse
from pilotfleet.registry.directory.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "EMPTY",
    "MAX_JUSTIFICATION",
    "Mailbox",
    "add_request",
    "add_response",
    "emptied",
    "entry_id",
    "without_entries",
    "without_mark",
]

# From the specification.
MAX_JUSTIFICATION: Final = 1024
"""Bytes of a justification."""
MAX_REQUESTS: Final = 100
# Of our choosing.
MAX_RESPONSES: Final = 100
MAX_ASKED: Final = 1024
"""Marks kept per node; the oldest goes first."""
ID_SIZE: Final = 8
_ENCODER: Final = msgspec.msgpack.Encoder()


class Mailbox(NamedTuple):
    """A box and the revision it has in the store; 0: not stored."""

    record: MailRecord
    revision: int


EMPTY: Final = Mailbox(MailRecord(), 0)


def add_request(box: MailRecord, owner: int, request: MailRequest) -> MailRecord:
    """Return the box of ``owner`` with one more request.

    Raises:
        Refused: One from this sender waits already, or the box is full.
    """
    sender = request.sender
    size = len(request.justification.encode())
    if size > MAX_JUSTIFICATION:
        limit = f"(max {MAX_JUSTIFICATION})"
        raise Refused(f"justification too large: {size} bytes {limit}")
    if any(waiting.sender == sender for waiting in box.requests):
        raise Refused(f"handshake request already pending from node {sender}")
    if len(box.requests) >= MAX_REQUESTS:
        raise Refused(f"handshake inbox full for node {owner}")
    asked = (*(node for node in box.asked if node != sender), sender)
    return MailRecord((*box.requests, request), box.responses, asked[-MAX_ASKED:])


def add_response(box: MailRecord, response: MailResponse) -> MailRecord:
    """Return the box with an answer; a newer one by the same node replaces it.

    A full box loses its oldest answer: the trust pair, which is what an
    accepted request is about, does not depend on the answer being read.
    """
    others = (kept for kept in box.responses if kept.sender != response.sender)
    responses = (*others, response)[-MAX_RESPONSES:]
    return msgspec.structs.replace(box, responses=responses)


def without_mark(box: MailRecord, sender: int) -> MailRecord:
    """Return the box without the mark that ``sender`` asked."""
    asked = tuple(node for node in box.asked if node != sender)
    return msgspec.structs.replace(box, asked=asked)


def entry_id(entry: MailRequest | MailResponse) -> str:
    """Return what an entry is acknowledged by: all that it says, in short."""
    return blake2b(_ENCODER.encode(entry), digest_size=ID_SIZE).hexdigest()


def without_entries(box: MailRecord, ids: Collection[str]) -> MailRecord:
    """Return the box without the entries of these ids: the marks stay."""
    return MailRecord(
        tuple(entry for entry in box.requests if entry_id(entry) not in ids),
        tuple(entry for entry in box.responses if entry_id(entry) not in ids),
        box.asked,
    )


def emptied(box: MailRecord) -> MailRecord:
    """Return the box after a poll: the marks stay."""
    return MailRecord(asked=box.asked)
