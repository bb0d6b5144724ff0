"""Brings receipts to the registry, which counts each of them once.

The submitter's daemon delivers what its agents signed: soon after the first it sends
all there are, and it tries again until the registry has answered for each. What the
registry said is on the disk before the next batch leaves; a batch that is sent again,
because an answer was lost or a daemon was killed, is answered ``known``. A worker can
present its own receipts, should its submitter never do so.

A registry without the extension is sent nothing. Receipts wait for a better one until
they are too old.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

from pilotfleet.errors import NotSupported, PilotError, ProtocolError
from pilotfleet.protocol.services.receipts import MAX_BATCH, RECEIPTS_EXTENSION
from pilotfleet.services.polo import receiptrows
from pilotfleet.services.polo.receiptrows import ReceiptRow, State
from pilotfleet.transport.backoff import backoff_s

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from pilotfleet.protocol.services.receipts import SignedReceipt
    from pilotfleet.services.tasks.store import TaskStore

__all__ = ["LedgerRegistry", "ReceiptDelivery"]

logger = logging.getLogger(__name__)

# Of our choosing.
GATHER_S: Final = 1.0
"""How long the first receipt waits for others, so that a batch is worth its cost."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
_MAX_REASON: Final = 200

_ANSWERS: Final = {
    "counted": State.COUNTED,
    "known": State.KNOWN,
    "refused": State.REFUSED,
}


class LedgerRegistry(Protocol):
    """What is needed of the registry's client."""

    @property
    def extensions(self) -> frozenset[str]:
        """What the registry offers."""

    async def polo_receipts(
        self, receipts: list[SignedReceipt]
    ) -> list[dict[str, Any]]:
        """Present receipts; return what became of each, in their order."""


class DeliveryHost(Protocol):
    """What is needed of a host."""

    @property
    def registry(self) -> LedgerRegistry:
        """The registry's client."""

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str) -> object:
        """Run a coroutine as a task that the host owns."""


class ReceiptDelivery:
    """Delivers the receipts of all agents of a host."""

    def __init__(self, store: TaskStore, host: DeliveryHost) -> None:
        self._store = store
        self._host = host
        self._is_running = False
        self._has_more = False
        self.on_counted: Callable[[SignedReceipt], None] = lambda receipt: None
        """Called when the registry has answered for a receipt."""

    @property
    def is_offered(self) -> bool:
        """True when the registry takes receipts."""
        return RECEIPTS_EXTENSION in self._host.registry.extensions

    def wake(self) -> None:
        """Deliver what there is, soon. Costs nothing when that is under way."""
        self._has_more = True
        if not self._is_running and self.is_offered:
            self._is_running = True
            self._host.spawn(self._run(), name="receipts")

    async def claim(self, agent: str) -> dict[str, int]:
        """Present all receipts of a worker that the registry has not judged for it.

        Returns:
            How many were presented, and how many of them the registry ``counted``,
            ``known`` already or ``refused``.

        Raises:
            NotSupported: The registry takes none.
            PilotError: It cannot be asked.
        """
        if not self.is_offered:
            raise NotSupported(
                "the registry takes no receipts",
                hint="scores need a pilotfleet rendezvous",
            )
        counts = dict.fromkeys(("presented", *map(str, _ANSWERS.values())), 0)
        next_rows = functools.partial(
            receiptrows.to_claim, agent=agent, limit=MAX_BATCH
        )
        while rows := await self._store.run(next_rows):
            for state in await self._present(rows):
                counts[state] += 1
            counts["presented"] += len(rows)
        return counts

    async def _run(self) -> None:
        try:
            await asyncio.sleep(GATHER_S)
            await self._deliver_all()
        finally:
            self._is_running = False
        if self._has_more:
            self.wake()

    async def _deliver_all(self) -> None:
        failures = 0
        while self.is_offered:
            self._has_more = False
            next_rows = functools.partial(receiptrows.to_deliver, limit=MAX_BATCH)
            try:
                rows = await self._store.run(next_rows)
                if rows:
                    await self._present(rows)
                failures = 0
            except PilotError as error:
                failures += 1
                if failures == 1:
                    logger.info("receipts wait for the registry: %s", error)
                pause_s = backoff_s(
                    failures, first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S
                )
                await asyncio.sleep(pause_s)
            else:
                if len(rows) < MAX_BATCH:
                    return

    async def _present(self, rows: list[ReceiptRow]) -> list[State]:
        """Send a batch and keep what the registry says of each."""
        answers = await self._host.registry.polo_receipts([r.receipt for r in rows])
        verdicts = _verdicts(rows, answers)
        marks = [
            (row.number, state, reason)
            for row, (state, reason) in zip(rows, verdicts, strict=True)
        ]
        await self._store.run(functools.partial(receiptrows.mark, marks=marks))
        for row in rows:
            self.on_counted(row.receipt)
        refused = [mark for mark in marks if mark[1] is State.REFUSED]
        if refused:
            logger.warning(
                "the registry refused %d receipts: %s", len(refused), refused[0][2]
            )
        return [state for state, _ in verdicts]


def _verdicts(
    rows: list[ReceiptRow], answers: list[dict[str, Any]]
) -> list[tuple[State, str]]:
    """Read what the registry said of each receipt, in their order.

    Raises:
        ProtocolError: It did not say it of each.
    """
    if [answer.get("task_id") for answer in answers] != [
        row.receipt.task_id for row in rows
    ]:
        raise ProtocolError("the registry did not answer for each receipt")
    verdicts = []
    for answer in answers:
        state = _ANSWERS.get(str(answer.get("status")))
        if state is None:
            raise ProtocolError("the registry's answer for a receipt is none")
        verdicts.append((state, str(answer.get("reason", ""))[:_MAX_REASON]))
    return verdicts
