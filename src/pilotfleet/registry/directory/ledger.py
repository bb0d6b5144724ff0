"""Scores, and the receipts that they are made of.

A node's score is not stored. It is *derived*: what the administrator has set,
plus what old receipts were folded into, plus the receipts that are kept. So a
receipt is counted by the mere existence of its key, which a store creates once
however many replicas try, and no crash can leave a score without its receipt.

Receipts would pile up, so old ones are folded in four steps, each of which may
be cut short, repeated, or done by several replicas:

1. *Close*: one record says that receipts completed before some hour are no
   longer taken.
2. *Wait*, until every replica has seen that for sure.
3. *Fold*: a node's record takes the sum of its receipts before that hour, and
   the hour, in one compare-and-set. From then on these receipts count through
   the record, whether or not their keys are still there.
4. *Forget*: a receipt that both its nodes have folded is deleted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.protocol.services.polo import MAX_SCORE, SUBMITTER_DELTA
from pilotfleet.registry.directory.records import (
    ClosedRecord,
    PoloRecord,
    ReceiptRecord,
    decode_record,
)
from pilotfleet.registry.store.base import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HOUR_S", "Kept", "Ledger", "Standing", "within_range"]

HOUR_S: Final = 3600


class Kept:
    """A receipt that counts by itself. Some hundred thousand of them exist."""

    __slots__ = ("hour", "key", "revision", "reward", "submitter", "value", "worker")

    def __init__(self, entry: Entry, record: ReceiptRecord) -> None:
        self.key = entry.key
        self.revision = entry.revision
        # Undecoded: only an audit reads the rest of it.
        self.value = entry.value or b""
        _, submitter, worker, _ = entry.key.split(".")
        self.submitter = int(submitter)
        self.worker = int(worker)
        self.reward = record.reward
        self.hour = record.completed_at // HOUR_S

    @property
    def task_id(self) -> str:
        """The task that it is for."""
        return self.key.rpartition(".")[2]

    @property
    def record(self) -> ReceiptRecord:
        """All that is stored of it."""
        return decode_record(Entry(self.key, self.value, self.revision), ReceiptRecord)

    def effect(self, node: int) -> int:
        """Return what it changes in the score of one of its two nodes."""
        return self.reward if node == self.worker else SUBMITTER_DELTA


class Standing:
    """What the score of one node is made of."""

    __slots__ = ("earned", "kept", "record", "revision")

    def __init__(self) -> None:
        self.record = PoloRecord()
        self.revision = 0
        self.kept: dict[int, Kept] = {}
        """By revision; also folded ones that were not forgotten. Not a sorted list:
        a hub has all receipts of its fleet, and is forgotten thousands at a time."""
        self.earned = 0
        """The sum of the kept receipts that are not folded."""

    @property
    def total(self) -> int:
        """All that receipts have brought."""
        return self.record.folded_sum + self.earned

    @property
    def score(self) -> int:
        """The score as it is shown."""
        return within_range(self.record.score + self.total)

    def counts(self, kept: Kept) -> bool:
        """Tell whether a receipt counts by itself, being not folded."""
        return kept.hour >= self.record.folded_to


class Ledger:
    """All standings and all kept receipts."""

    __slots__ = ("by_hour", "by_key", "closed", "closed_revision", "standings")

    def __init__(self) -> None:
        self.standings: dict[int, Standing] = {}
        self.by_key: dict[str, Kept] = {}
        self.by_hour: dict[int, set[Kept]] = {}
        self.closed = ClosedRecord()
        self.closed_revision = 0

    def standing(self, node: int) -> Standing:
        """Return the standing of a node, an empty one if it has none."""
        return self.standings.get(node) or Standing()

    def before(self, hour: int) -> Iterator[Kept]:
        """Yield the receipts that were completed before an hour, oldest first."""
        for at in sorted(at for at in self.by_hour if at < hour):
            yield from self.by_hour[at]

    def apply_standing(self, node: int, entry: Entry) -> None:
        """Take over a node's stored record."""
        standing = self.standings.setdefault(node, Standing())
        empty = entry.value is None
        standing.record = PoloRecord() if empty else decode_record(entry, PoloRecord)
        standing.revision = 0 if empty else entry.revision
        standing.earned = sum(
            kept.effect(node)
            for kept in standing.kept.values()
            if standing.counts(kept)
        )

    def apply_receipt(self, entry: Entry) -> None:
        """Take over a stored receipt, or its deletion."""
        old = self.by_key.pop(entry.key, None)
        if old is not None:
            self._remove(old)
        if entry.value is None:
            return
        kept = Kept(entry, decode_record(entry, ReceiptRecord))
        self.by_key[kept.key] = kept
        self.by_hour.setdefault(kept.hour, set()).add(kept)
        for node in (kept.submitter, kept.worker):
            standing = self.standings.setdefault(node, Standing())
            standing.kept[kept.revision] = kept
            if standing.counts(kept):
                standing.earned += kept.effect(node)

    def apply_closed(self, entry: Entry) -> None:
        """Take over up to when receipts are no longer taken."""
        empty = entry.value is None
        self.closed = ClosedRecord() if empty else decode_record(entry, ClosedRecord)
        self.closed_revision = 0 if empty else entry.revision

    def _remove(self, kept: Kept) -> None:
        of_hour = self.by_hour[kept.hour]
        of_hour.discard(kept)
        if not of_hour:
            del self.by_hour[kept.hour]
        for node in (kept.submitter, kept.worker):
            standing = self.standings[node]
            del standing.kept[kept.revision]
            if standing.counts(kept):
                standing.earned -= kept.effect(node)


def within_range(score: int) -> int:
    """Return a score as it is shown."""
    return max(-MAX_SCORE, min(MAX_SCORE, score))
