"""Which receipts are counted, and which are refused."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.identity import encode_key_text
from pilotfleet.protocol.registry.signatures import decode_signature
from pilotfleet.protocol.services.receipts import SignedReceipt, decode_receipt
from pilotfleet.registry.directory.decision import Decision
from pilotfleet.registry.directory.ledger import HOUR_S, Kept, Ledger
from pilotfleet.registry.directory.records import (
    ReceiptRecord,
    encode_record,
    receipt_key,
)
from pilotfleet.registry.directory.refusal import Refused
from pilotfleet.registry.store.base import Change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfleet.registry.directory.directory import Directory

__all__ = [
    "MAX_AGE_S",
    "MAX_AHEAD_S",
    "Claim",
    "decide_receipts",
    "newest",
    "prejudge",
]

DAY_S: Final = 86_400
MAX_AGE_S: Final = 30 * DAY_S
"""Receipts older than this are refused."""
MAX_AHEAD_S: Final = 3600
"""How far a worker's clock may be ahead."""
HARD_LIMIT: Final = 2
"""No receipts are taken at so many times the limit."""
RETRY_AFTER_S: Final = 30.0
MAX_TEXT: Final = 64
COUNTED: Final = "counted"
KNOWN: Final = "known"
ANOTHER: Final = "the task has another receipt"
UNSIGNED: Final = "signature verification failed"


@dataclass(slots=True)
class Claim:
    """One receipt of a request, while it is being judged."""

    task_id: str
    receipt: SignedReceipt | None = None
    submitter_key: bytes = b""
    worker_key: bytes = b""
    settled: str = ""
    """What became of it, whatever happens now; empty while it may be counted."""
    is_verified: bool = False

    @classmethod
    def read(cls, row: Any) -> Claim:
        """Read one row of a request."""
        task_id = row.get("task_id") if isinstance(row, dict) else None
        claim = cls(task_id[:MAX_TEXT] if isinstance(task_id, str) else "")
        try:
            claim.receipt = decode_receipt(row)
        except DecodeError as error:
            claim.settled = str(error)
        return claim

    @property
    def key(self) -> str:
        """The key that it is stored under."""
        assert self.receipt is not None
        return receipt_key(
            self.receipt.submitter, self.receipt.worker, self.receipt.task_id
        )

    @property
    def text(self) -> str:
        """What both sides have signed."""
        assert self.receipt is not None
        return self.receipt.text

    def verify(self) -> None:
        """Verify both signatures; takes about 0.13 ms and may run in a thread."""
        assert self.receipt is not None
        self.is_verified = self.receipt.is_signed_by_both(
            self.submitter_key, self.worker_key
        )
        if not self.is_verified:
            self.settled = UNSIGNED

    def record(self) -> ReceiptRecord:
        """Return what is stored of it."""
        receipt = self.receipt
        assert receipt is not None
        assert self.is_verified
        return ReceiptRecord(
            completed_at=receipt.completed_at,
            reward=receipt.reward,
            idle_ms=receipt.idle_ms,
            staged_ms=receipt.staged_ms,
            cpu_ms=receipt.cpu_ms,
            digest=bytes.fromhex(receipt.digest),
            submitter_signature=decode_signature(receipt.submitter_signature),
            worker_signature=decode_signature(receipt.worker_signature),
            submitter_key=self.submitter_key,
            worker_key=self.worker_key,
        )


def prejudge(directory: Directory, claims: Sequence[Claim], *, now: int) -> list[Claim]:
    """Settle the claims that need no verification; return the others."""
    open_claims = []
    for claim in claims:
        status = _judge(directory, claim, now)
        if status == COUNTED:
            open_claims.append(claim)
        else:
            claim.settled = status
    return open_claims


def decide_receipts(
    directory: Directory, claims: Sequence[Claim], *, now: int, max_receipts: int
) -> Decision:
    """Count the receipts that are good, new and verified.

    Raises:
        Refused: More receipts are kept than can be.
    """
    taken: dict[str, Claim] = {}
    results = []
    for claim in claims:
        status = _judge(directory, claim, now)
        if status == COUNTED:
            first = taken.setdefault(claim.key, claim)
            if first is not claim:
                status = KNOWN if first.text == claim.text else ANOTHER
        results.append(_result(claim.task_id, status))
    changes = [
        Change(key, encode_record(claim.record()), 0) for key, claim in taken.items()
    ]
    if changes and len(directory.ledger.by_key) >= HARD_LIMIT * max_receipts:
        raise Refused("too many receipts are kept", retry_after=RETRY_AFTER_S)
    reply = {"type": "polo_receipts_ok", "results": results}
    return Decision(reply, changes)


def newest(
    ledger: Ledger, node: int, *, before: int, limit: int
) -> list[tuple[int, dict[str, Any]]]:
    """Return receipts of a node with their revisions, newest first.

    Only those that count by themselves, so that their sum and the folded one make
    the score.

    Args:
        ledger: Where they are kept.
        node: Whose receipts.
        before: Only those with revisions below; 0: all.
        limit: How many at most.
    """
    standing = ledger.standing(node)
    revisions = sorted(standing.kept, reverse=True)
    asked = (standing.kept[at] for at in revisions if not before or at < before)
    counting = (one for one in asked if standing.counts(one))
    return [(one.revision, _row(one)) for one in islice(counting, limit)]


def _judge(directory: Directory, claim: Claim, now: int) -> str:
    """Return ``counted``, ``known``, or why the receipt is refused.

    Asked before the signatures are verified, since what is known or refused
    anyway is not worth that time, and again whenever it is decided.
    """
    receipt = claim.receipt
    if claim.settled or receipt is None:
        return claim.settled
    kept = directory.ledger.by_key.get(claim.key)
    if kept is not None:
        return KNOWN if _is_same(receipt, kept) else ANOTHER
    if receipt.completed_at > now + MAX_AHEAD_S:
        return "completed_at is in the future"
    closed = directory.ledger.closed.hour * HOUR_S
    if receipt.completed_at < max(now - MAX_AGE_S, closed):
        return "the receipt is too old"
    # Dead nodes keep their keys, and what they did still counts.
    for number in (receipt.submitter, receipt.worker):
        if number not in directory.nodes.by_id:
            return f"node {number} is not registered"
    keys = _keys(directory, receipt)
    if claim.is_verified and keys != (claim.submitter_key, claim.worker_key):
        return UNSIGNED
    claim.submitter_key, claim.worker_key = keys
    return COUNTED


def _is_same(receipt: SignedReceipt, kept: Kept) -> bool:
    """Tell whether two receipts of one task say the same; the reward follows."""
    record = kept.record
    return (
        receipt.digest == record.digest.hex()
        and receipt.completed_at == record.completed_at
        and (receipt.idle_ms, receipt.staged_ms, receipt.cpu_ms)
        == (record.idle_ms, record.staged_ms, record.cpu_ms)
    )


def _result(task_id: str, status: str) -> dict[str, str]:
    if status in (COUNTED, KNOWN):
        return {"task_id": task_id, "status": status}
    return {"task_id": task_id, "status": "refused", "reason": status}


def _keys(directory: Directory, receipt: SignedReceipt) -> tuple[bytes, bytes]:
    nodes = directory.nodes.by_id
    return nodes[receipt.submitter].record.key, nodes[receipt.worker].record.key


def _row(kept: Kept) -> dict[str, Any]:
    """Return a receipt as messages show it, with both public keys."""
    record = kept.record
    return {
        "task_id": kept.task_id,
        "submitter": kept.submitter,
        "worker": kept.worker,
        "digest": record.digest.hex(),
        "reward": record.reward,
        "idle_ms": record.idle_ms,
        "staged_ms": record.staged_ms,
        "cpu_ms": record.cpu_ms,
        "completed_at": record.completed_at,
        "submitter_signature": encode_key_text(record.submitter_signature),
        "worker_signature": encode_key_text(record.worker_signature),
        "submitter_key": encode_key_text(record.submitter_key),
        "worker_key": encode_key_text(record.worker_key),
    }
