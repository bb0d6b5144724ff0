"""Receipts for tests of the registry."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec

from pilotfleet.protocol.services.polo import reward
from pilotfleet.protocol.services.receipts import Receipt, SignedReceipt
from tests.registry.world import START

if TYPE_CHECKING:
    from pilotfleet.protocol.identity import Identity
    from tests.registry.world import Agent

__all__ = ["make_receipt", "receipt", "row", "statuses"]


def make_receipt(
    submitter: tuple[int, Identity],
    worker: tuple[int, Identity],
    task: str,
    *,
    cpu_ms: int = 0,
    completed_at: float = START,
    digest: str = sha256(b"result").hexdigest(),
) -> SignedReceipt:
    """Return a receipt that both sides have signed."""
    unsigned = Receipt(
        task_id=task,
        submitter=submitter[0],
        worker=worker[0],
        digest=digest,
        reward=reward(time_cpu_ms=cpu_ms),
        idle_ms=0,
        staged_ms=0,
        cpu_ms=cpu_ms,
        completed_at=int(completed_at),
    )
    return unsigned.with_signatures(
        submitter=unsigned.sign(submitter[1]), worker=unsigned.sign(worker[1])
    )


def receipt(
    submitter: Agent, worker: Agent, task: str = "task-1", **fields: Any
) -> SignedReceipt:
    """Return a receipt of two agents, completed now."""
    fields.setdefault("completed_at", submitter.world.clock.wall())
    return make_receipt(
        (submitter.node, submitter.identity),
        (worker.node, worker.identity),
        task,
        **fields,
    )


def row(signed: SignedReceipt) -> dict[str, Any]:
    """Return a receipt as it is sent."""
    fields: dict[str, Any] = msgspec.to_builtins(signed)
    return fields


def statuses(reply: dict[str, Any]) -> list[str]:
    """Return what became of the receipts of a request, or why they were refused."""
    return [result.get("reason", result["status"]) for result in reply["results"]]
