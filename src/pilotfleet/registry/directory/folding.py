"""How old receipts become a sum, so that there is a bound on what is kept.

The four steps are those of ``ledger``: close, wait, fold, forget.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from pilotfleet.registry.directory.decision import Decision
from pilotfleet.registry.directory.ledger import HOUR_S, Kept, Ledger
from pilotfleet.registry.directory.records import (
    CLOSED_KEY,
    ClosedRecord,
    encode_record,
    polo_key,
)
from pilotfleet.registry.store.base import Change

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotfleet.registry.directory.directory import Directory

__all__ = ["GRACE_S", "KEEP_S", "decide_close", "decide_fold", "decide_forget"]

KEEP_S: Final = 31 * 86_400
"""How long receipts are kept one by one. A day more than they are taken, so that
replicas whose clocks differ agree on what may be forgotten."""
GRACE_S: Final = 600
"""Between closing and folding. Much more than a replica's watch is ever behind."""
MIN_OPEN_H: Final = 1
"""The current hour and this many before it stay open even if there are too many."""
SCAN_AT_ONCE: Final = 10_000
FOLD_AT_ONCE: Final = 200
FORGET_AT_ONCE: Final = 1_000


def decide_close(directory: Directory, *, now: int, max_receipts: int) -> Decision:
    """Close the hours that are old, or that there is no room for."""
    ledger = directory.ledger
    hour = max((now - KEEP_S) // HOUR_S, _crowded_to(ledger, now, max_receipts))
    oldest = min(ledger.by_hour, default=hour)
    # One closing at a time: another one would begin the waiting anew.
    if not ledger.closed.hour <= oldest < hour:
        return Decision({})
    value = encode_record(ClosedRecord(hour, now))
    return Decision({}, [Change(CLOSED_KEY, value, ledger.closed_revision)])


def decide_fold(directory: Directory, *, now: int) -> Decision:
    """Fold closed receipts into the records of some of their nodes."""
    ledger = directory.ledger
    nodes: set[int] = set()
    for kept in _closed(ledger, now):
        nodes.update(_unfolded(ledger, kept))
        if len(nodes) >= FOLD_AT_ONCE:
            break
    return Decision({}, [_fold(ledger, node) for node in sorted(nodes)])


def decide_forget(directory: Directory, *, now: int) -> Decision:
    """Delete receipts that both nodes have folded."""
    ledger = directory.ledger
    folded = (k.key for k in _closed(ledger, now) if not _unfolded(ledger, k))
    keys = islice(folded, FORGET_AT_ONCE)
    return Decision({}, [Change(key, None, None) for key in keys])


def _closed(ledger: Ledger, now: int) -> Iterator[Kept]:
    """Return some closed receipts, if every replica knows that they are."""
    if now - ledger.closed.at < GRACE_S:
        return iter(())
    return islice(ledger.before(ledger.closed.hour), SCAN_AT_ONCE)


def _unfolded(ledger: Ledger, kept: Kept) -> list[int]:
    """Return which of its nodes count a receipt by itself."""
    nodes = (kept.submitter, kept.worker)
    return [node for node in nodes if ledger.standings[node].counts(kept)]


def _fold(ledger: Ledger, node: int) -> Change:
    standing = ledger.standings[node]
    effects = [
        kept.effect(node)
        for kept in standing.kept.values()
        if kept.hour < ledger.closed.hour and standing.counts(kept)
    ]
    record = msgspec.structs.replace(
        standing.record,
        folded_count=standing.record.folded_count + len(effects),
        folded_sum=standing.record.folded_sum + sum(effects),
        folded_to=ledger.closed.hour,
    )
    return Change(polo_key(node), encode_record(record), standing.revision)


def _crowded_to(ledger: Ledger, now: int, max_receipts: int) -> int:
    """Return the hour before which receipts must go to make room; 0: none."""
    if len(ledger.by_key) <= max_receipts:
        return 0
    # A quarter at once, so that it is rare.
    surplus = len(ledger.by_key) - max_receipts * 3 // 4
    hour = 0
    for at in sorted(ledger.by_hour):
        if surplus <= 0:
            break
        surplus -= len(ledger.by_hour[at])
        hour = at + 1
    return min(hour, now // HOUR_S - MIN_OPEN_H)
