"""Check that a score is what its receipts say.

A registry lists what it counted, with both signatures and both public keys. Nothing
of it is believed but the keys: the signatures are verified, the reward is computed
again from the times, and the effects are added up.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.identity import PUBLIC_KEY_SIZE
from pilotfleet.protocol.services.polo import MAX_SCORE, SUBMITTER_DELTA
from pilotfleet.protocol.services.receipts import SignedReceipt, decode_receipt

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Audit"]


class Audit:
    """The receipts of one node, page by page, newest first.

    Args:
        node: Whose score it is.
        first: The registry's first page, which says what the score is. Receipts that
            are counted meanwhile are on no later page.
    """

    def __init__(self, node: int, first: dict[str, Any]) -> None:
        self.node = node
        self.score = _number(first.get("score"))
        self.base = _number(first.get("base"))
        folded = first.get("folded")
        folded = folded if isinstance(folded, dict) else {}
        self.folded_count = _number(folded.get("count"))
        self.folded_sum = _number(folded.get("sum"))
        self.earned = self.paid = 0
        self.as_worker = self.as_submitter = 0
        self.wrong: list[dict[str, str]] = []
        self._seen: set[tuple[str, int, int]] = set()

    @property
    def sum(self) -> int:
        """What the good receipts come to."""
        return self.earned + self.paid

    @property
    def computed(self) -> int:
        """The score that follows."""
        total = self.base + self.folded_sum + self.sum
        return max(-MAX_SCORE, min(MAX_SCORE, total))

    @property
    def is_ok(self) -> bool:
        """True when every receipt is good and their sum is the score."""
        return not self.wrong and self.computed == self.score

    def add(self, rows: Iterable[Any]) -> None:
        """Check the receipts of one page and add them up."""
        for row in rows:
            try:
                self._count(self._checked(row))
            except DecodeError as error:
                name = row.get("task_id") if isinstance(row, dict) else ""
                self.wrong.append({"task_id": str(name), "reason": str(error)})

    def as_dict(self) -> dict[str, Any]:
        """Return what the command prints for programs."""
        return {
            "node_id": self.node,
            "polo_score": self.score,
            "base": self.base,
            "folded": {"count": self.folded_count, "sum": self.folded_sum},
            "receipts": len(self._seen),
            "sum": self.sum,
            "computed": self.computed,
            "ok": self.is_ok,
            "wrong": self.wrong,
        }

    def as_text(self) -> str:
        """Return what the command prints for people."""
        lines = [
            f"Polo score of node {self.node}: {self.score}",
            f"  {self.base:+9d}  set by the administrator",
            f"  {self.folded_sum:+9d}  folded receipts ({self.folded_count})",
            f"  {self.earned:+9d}  earned as worker ({self.as_worker} receipts)",
            f"  {self.paid:+9d}  paid as submitter ({self.as_submitter} receipts)",
            f"  {self.computed:9d}  in all: "
            + ("the score" if self.computed == self.score else "NOT the score"),
        ]
        lines += [f"wrong: {row['task_id']}: {row['reason']}" for row in self.wrong]
        every = "NOT every" if self.wrong else "every"
        lines.append(f"{every} receipt is good")
        return "\n".join(lines)

    def _checked(self, row: Any) -> SignedReceipt:
        receipt = decode_receipt(row)
        if self.node not in (receipt.submitter, receipt.worker):
            raise DecodeError(f"it is not a receipt of node {self.node}")
        if (receipt.task_id, receipt.submitter, receipt.worker) in self._seen:
            raise DecodeError("it is counted twice")
        keys = _key(row, "submitter_key"), _key(row, "worker_key")
        if not receipt.is_signed_by_both(*keys):
            raise DecodeError("a signature is not valid")
        return receipt

    def _count(self, receipt: SignedReceipt) -> None:
        self._seen.add((receipt.task_id, receipt.submitter, receipt.worker))
        if receipt.worker == self.node:
            self.earned += receipt.reward
            self.as_worker += 1
        else:
            self.paid += SUBMITTER_DELTA
            self.as_submitter += 1


def _key(row: dict[str, Any], name: str) -> bytes:
    try:
        key = base64.b64decode(str(row.get(name, "")), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != PUBLIC_KEY_SIZE:
        raise DecodeError(f"{name} is not a public key")
    return key


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
