"""Receipts of tasks: what both sides sign, and what the submitter checks first.

The worker's node signs when it tells the result, the submitter's node signs when it
has stored the result, and answers with its signature; then both have the whole
receipt. A signature that is under way need not be kept: Ed25519 gives the same one
for the same record, so a result that is sent again carries it again.

Signatures cost more than all else here, so each is verified where something depends
on it: the worker's by the submitter, which would otherwise put its name to anything,
and both by the registry, before it counts. The worker does not verify what it is
given: a submitter that does not want to sign could as well send nothing, and whether
it signed rightly the registry says when the receipt is presented.

To sign takes about 25 microseconds and to verify 65, which is less than it costs to
hand them to another thread.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.services.polo import reward
from pilotfleet.protocol.services.receipts import (
    Receipt,
    SignedReceipt,
    is_signature_text,
)
from pilotfleet.protocol.services.taskstate import Status
from pilotfleet.services.polo import receiptrows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pilotfleet.protocol.services.tasks import Results
    from pilotfleet.services.tasks.record import TaskKey, TaskRecord
    from pilotfleet.services.tasks.store import TaskStore, Work

__all__ = ["Offer", "Receipts"]

logger = logging.getLogger(__name__)

# Of our choosing.
SLACK_MS: Final = 2_000
"""How much longer than by our clock a task may have taken: clocks are corrected."""
SKEW_S: Final = 3_600
"""How far the worker's clock may be from ours."""
MAX_OFFERS: Final = 4_096
"""Signatures under way that are remembered; the oldest is made again if need be."""


class Offer(NamedTuple):
    """What the worker's side signed, for the message with the result."""

    receipt: Receipt
    signature: str


class Receipts:
    """Makes, checks and keeps the receipts of all agents of a host."""

    def __init__(
        self,
        store: TaskStore,
        agents: Mapping[str, Any],
        *,
        wall: Callable[[], float],
        is_on: bool = True,
    ) -> None:
        self._store = store
        self._agents = agents
        self._wall = wall
        self._is_on = is_on
        self._offers: dict[TaskKey, Offer] = {}
        self.rejected: Counter[str] = Counter()
        """Receipts of others that were not kept: ``malformed``, ``times``,
        ``signature``."""

    # The worker's side

    def offer(self, record: TaskRecord, content: bytes) -> Offer | None:
        """Sign for a task that succeeded; None where there is no receipt."""
        agent = self._agents.get(record.agent)
        if not self._is_on or agent is None or record.status is not Status.SUCCEEDED:
            return None
        receipt = _worker_receipt(record, agent.node_id, content)
        try:
            receipt.check()
        except DecodeError as error:
            # A worker program may claim any time, and an agent may serve itself.
            logger.debug("no receipt for task %s: %s", record.task_id, error)
            return None
        offer = Offer(receipt, receipt.sign(agent.identity))
        while len(self._offers) >= MAX_OFFERS:
            del self._offers[next(iter(self._offers))]
        self._offers[record.key] = offer
        return offer

    def countersigned(
        self, record: TaskRecord, content: bytes, signature: str
    ) -> Work[None] | None:
        """Take the submitter's signature; return what keeps the whole receipt."""
        offer = self._offers.pop(record.key, None) or self.offer(record, content)
        if offer is None or not signature:
            return None
        if not is_signature_text(signature):
            self._reject(record, "signature", "the submitter's is none")
            return None
        return self.keeping(
            record,
            offer.receipt.with_signatures(submitter=signature, worker=offer.signature),
        )

    # The submitter's side

    def co_sign(
        self, record: TaskRecord, message: Results, content: bytes
    ) -> SignedReceipt | None:
        """Check what the worker signed, and sign it; None where there is no receipt.

        Whatever is wrong with a receipt, the result it came with counts.
        """
        agent = self._agents.get(record.agent)
        if not self._is_on or agent is None or not message.receipt:
            return None
        receipt = Receipt(
            task_id=record.task_id,
            submitter=agent.node_id,
            worker=record.peer,
            digest=hashlib.sha256(content).hexdigest(),
            reward=message.reward,
            idle_ms=message.time_idle_ms,
            staged_ms=message.time_staged_ms,
            cpu_ms=message.time_cpu_ms,
            completed_at=message.completed_unix,
        )
        if not self._is_plausible(record, receipt):
            return None
        key = _key_of(agent, record.peer)
        if key is None or not receipt.is_signed_by(key, message.receipt):
            self._reject(record, "signature", "it is not the worker's")
            return None
        own = receipt.sign(agent.identity)
        return receipt.with_signatures(submitter=own, worker=message.receipt)

    def keeping(self, record: TaskRecord, receipt: SignedReceipt) -> Work[None]:
        """Return what keeps a receipt, to be done with the change it belongs to."""
        return functools.partial(
            receiptrows.keep, key=record.key, receipt=receipt, wall=self._wall()
        )

    async def signature_of(self, record: TaskRecord) -> str:
        """Return what we signed when the results came first; empty for nothing."""
        if not self._is_on:
            return ""
        row = await self._store.run(functools.partial(receiptrows.find, key=record.key))
        return "" if row is None else row.receipt.submitter_signature

    def _is_plausible(self, record: TaskRecord, receipt: Receipt) -> bool:
        """Return whether a receipt can be true, whoever signed it."""
        try:
            receipt.check()
        except DecodeError as error:
            self._reject(record, "malformed", str(error))
            return False
        now = self._wall()
        claimed_ms = receipt.idle_ms + receipt.staged_ms + receipt.cpu_ms
        if claimed_ms > (now - record.created) * 1000 + SLACK_MS:
            self._reject(record, "times", "it took longer than there was time")
            return False
        if not record.created - SKEW_S <= receipt.completed_at <= now + SKEW_S:
            self._reject(record, "times", "it did not end while the task was open")
            return False
        return True

    def _reject(self, record: TaskRecord, kind: str, reason: str) -> None:
        self.rejected[kind] += 1
        logger.warning(
            "no receipt for task %s with node %d: %s",
            record.task_id,
            record.peer,
            reason,
        )


def _worker_receipt(record: TaskRecord, node: int, content: bytes) -> Receipt:
    idle_ms, staged_ms, cpu_ms = record.idle_ms, record.staged_ms, record.cpu_ms
    return Receipt(
        task_id=record.task_id,
        submitter=record.peer,
        worker=node,
        digest=hashlib.sha256(content).hexdigest(),
        reward=reward(
            time_cpu_ms=cpu_ms, time_idle_ms=idle_ms, time_staged_ms=staged_ms
        ),
        idle_ms=idle_ms,
        staged_ms=staged_ms,
        cpu_ms=cpu_ms,
        completed_at=int(record.completed),
    )


def _key_of(agent: Any, peer: int) -> bytes | None:
    """Return the key that the peer's tunnel was made with.

    What we check came through this tunnel, so the registry need not be asked, which
    may be away just now.
    """
    key: bytes | None = agent.tunnels.peer_key(peer)
    return key
