"""The old messages about reputation (registry.md section 6.16)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.registry.directory.decision import Decision
from pilotfleet.registry.directory.records import PoloRecord, encode_record, polo_key
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.store.base import Change

if TYPE_CHECKING:
    from pilotfleet.registry.directory.directory import Directory

__all__ = ["MAX_SCORE", "decide_add_polo", "decide_set_polo"]

MAX_SCORE: Final = 1_000_000


def decide_set_polo(directory: Directory, node: int, score: int) -> Decision:
    """Set the score of a node.

    Raises:
        Refused: It is out of range.
    """
    if abs(score) > MAX_SCORE:
        raise Refused(f"polo score out of range (max {MAX_SCORE})")
    return _decide(directory, node, score, "set_polo_score_ok")


def decide_add_polo(directory: Directory, node: int, delta: int) -> Decision:
    """Add to the score of a node, within its range.

    Raises:
        Refused: The addition alone is out of range.
    """
    if abs(delta) > MAX_SCORE:
        raise Refused(f"polo score delta out of range (max {MAX_SCORE})")
    score = directory.polo_score(node) + delta
    score = max(-MAX_SCORE, min(MAX_SCORE, score))
    return _decide(directory, node, score, "update_polo_score_ok")


def _decide(directory: Directory, node: int, score: int, kind: str) -> Decision:
    reply = {"type": kind, "node_id": node, "polo_score": score}
    _, revision = directory.polo.get(node, (0, 0))
    change = Change(polo_key(node), encode_record(PoloRecord(score)), revision)
    return Decision(reply, [change])
