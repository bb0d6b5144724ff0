"""What the administrator may do to a score (registry.md section 6.16)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pilotfleet.protocol.services.polo import MAX_SCORE
from pilotfleet.registry.directory.decision import Decision
from pilotfleet.registry.directory.ledger import within_range
from pilotfleet.registry.directory.records import encode_record, polo_key
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.store.base import Change

if TYPE_CHECKING:
    from pilotfleet.registry.directory.directory import Directory
    from pilotfleet.registry.directory.nodes import Node

__all__ = ["decide_add_polo", "decide_set_polo"]


def decide_set_polo(directory: Directory, node: Node, score: int) -> Decision:
    """Set the score of a node.

    Raises:
        Refused: It is out of range.
    """
    if abs(score) > MAX_SCORE:
        raise Refused(f"polo score out of range (max {MAX_SCORE})")
    return _decide(directory, node, score, "set_polo_score_ok")


def decide_add_polo(directory: Directory, node: Node, delta: int) -> Decision:
    """Add to the score of a node, within its range.

    Raises:
        Refused: The addition alone is out of range.
    """
    if abs(delta) > MAX_SCORE:
        raise Refused(f"polo score delta out of range (max {MAX_SCORE})")
    score = within_range(directory.polo_score(node.record.id) + delta)
    return _decide(directory, node, score, "update_polo_score_ok")


def _decide(directory: Directory, node: Node, score: int, kind: str) -> Decision:
    number = node.record.id
    reply = {
        "type": kind,
        "node_id": number,
        "address": node.address,
        "polo_score": score,
    }
    standing = directory.ledger.standing(number)
    # What receipts have brought stays what it is; the rest makes up the difference.
    base = score - standing.total
    record = msgspec.structs.replace(standing.record, score=base)
    change = Change(polo_key(number), encode_record(record), standing.revision)
    return Decision(reply, [change])
