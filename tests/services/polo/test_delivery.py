"""When receipts leave for the registry, and in which batches."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.protocol.services.receipts import RECEIPTS_EXTENSION, SignedReceipt
from pilotfleet.protocol.services.taskstate import Role
from pilotfleet.services.polo import receiptrows
from pilotfleet.services.polo.delivery import ReceiptDelivery
from pilotfleet.services.tasks.record import TaskKey
from pilotfleet.services.tasks.store import TaskStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliver at once, two receipts at a time."""
    module = "pilotfleet.services.polo.delivery"
    monkeypatch.setattr(f"{module}.GATHER_S", 0.0)
    monkeypatch.setattr(f"{module}.MAX_BATCH", 2)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[TaskStore]:
    async with TaskStore(tmp_path / "tasks.db") as store:
        yield store


class Desk:
    """A host, and a registry that counts what it is given when it may."""

    extensions = frozenset({RECEIPTS_EXTENSION})

    def __init__(self) -> None:
        self.registry = self
        self.batches: list[list[str]] = []
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.tasks: list[asyncio.Task[Any]] = []

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str) -> object:
        self.tasks.append(asyncio.create_task(coro, name=name))
        return self.tasks[-1]

    async def polo_receipts(
        self, receipts: list[SignedReceipt]
    ) -> list[dict[str, Any]]:
        self.batches.append([receipt.task_id for receipt in receipts])
        self.asked.set()
        await self.may_answer.wait()
        return [
            {"task_id": receipt.task_id, "status": "counted"} for receipt in receipts
        ]

    async def idle(self) -> None:
        """Wait for all deliveries, also those that others begin."""
        for task in self.tasks:
            await task


async def keep(store: TaskStore, *task_ids: str, role: Role = Role.SUBMITTED) -> None:
    for task_id in task_ids:
        receipt = SignedReceipt(task_id, 1, 7, "0" * 64, 1, 2, 3, 4, 1000, "a", "b")
        key = TaskKey("hub", role, task_id)
        await store.run(partial(receiptrows.keep, key=key, receipt=receipt, wall=1.0))


async def test_all_receipts_leave_in_batches_after_one_call(store: TaskStore) -> None:
    desk = Desk()
    desk.may_answer.set()
    await keep(store, *"abcde")
    delivery = ReceiptDelivery(store, desk)
    answered: list[str] = []
    delivery.on_counted = lambda receipt: answered.append(receipt.task_id)
    delivery.wake()
    await desk.idle()
    assert desk.batches == [["a", "b"], ["c", "d"], ["e"]]
    assert answered == [*"abcde"]


async def test_what_is_kept_while_the_last_batch_is_away_leaves_as_well(
    store: TaskStore,
) -> None:
    desk = Desk()
    delivery = ReceiptDelivery(store, desk)
    await keep(store, "a")
    delivery.wake()
    await desk.asked.wait()
    await keep(store, "b")
    delivery.wake()
    assert len(desk.tasks) == 1
    desk.may_answer.set()
    await desk.idle()
    assert desk.batches == [["a"], ["b"]]


async def test_a_claim_presents_each_receipt_of_a_worker_once(store: TaskStore) -> None:
    desk = Desk()
    desk.may_answer.set()
    await keep(store, *"abc", role=Role.RECEIVED)
    await keep(store, "given")
    claimed = await ReceiptDelivery(store, desk).claim("hub")
    assert claimed == {"presented": 3, "counted": 3, "known": 0, "refused": 0}
    assert desk.batches == [["a", "b"], ["c"]]
