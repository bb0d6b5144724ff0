"""The table of open tasks, and what happens when the disk refuses a change."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import Busy, Expired, InvalidState, StorageError
from pilotfleet.protocol.services.tasks import Results, Submit
from pilotfleet.protocol.services.taskstate import Input, Role, Status
from pilotfleet.services.polo.receipts import Receipts
from pilotfleet.services.tasks.received import Outcome, Received, received_record
from pilotfleet.services.tasks.record import Pending, TaskRecord
from pilotfleet.services.tasks.serving import Serving
from pilotfleet.services.tasks.store import TaskStore
from pilotfleet.services.tasks.submitted import Submitted
from pilotfleet.services.tasks.table import Bounds, TaskTable
from tests.services.tasks.support import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

PEER = 7


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[TaskStore]:
    async with TaskStore(tmp_path / "tasks.db") as store:
        yield store


@contextmanager
def full_disk(folder: Path, *, on: str = "UPDATE ON tasks") -> Iterator[None]:
    """Let the database refuse something."""
    with closing(sqlite3.connect(folder / "tasks.db")) as disk:
        with disk:
            disk.execute(
                f"CREATE TRIGGER full BEFORE {on}"
                " BEGIN SELECT RAISE(ABORT, 'disk full'); END"
            )
        yield
        with disk:
            disk.execute("DROP TRIGGER full")


def task(task_id: str, text: str = "text") -> TaskRecord:
    return received_record("w1", PEER, Submit(task_id, text), now=1000.0)


class Side:
    """The worker's side of one agent, and what it told."""

    def __init__(self, store: TaskStore) -> None:
        self.now = 1000.0
        self.table = TaskTable(store)
        receipts = Receipts(store, {}, wall=lambda: self.now)
        self.received = Received(self.table, receipts, wall=lambda: self.now)
        self.told: list[tuple[str, Status]] = []
        self.received.on_pending = lambda r: self.told.append((r.task_id, r.status))

    async def accepted(self, task_id: str) -> TaskRecord:
        response = await self.received.take_submission(task(task_id))
        assert response.is_accepted
        record = self.received.find("w1", task_id)
        await self.received.accept(record)
        return record


async def settle(store: TaskStore) -> None:
    """Wait until all writes that were asked for have been answered."""
    await store.get(task("nothing").key)


async def test_a_refused_change_is_taken_back(tmp_path: Path, store: TaskStore) -> None:
    table = TaskTable(store)
    record = task("a")
    assert await table.add(record)
    with full_disk(tmp_path):
        done = table.change(record, Input.DECLINE, "no")
        assert done is not None
        assert record.status == "DECLINED"
        assert table.find("w1", Role.RECEIVED, "a") is None
        with pytest.raises(StorageError, match="disk full"):
            await done
    assert record.status is Status.NEW
    assert table.find("w1", Role.RECEIVED, "a") is record
    assert table.change(record, Input.EXECUTE, "no such move") is None


async def test_a_refused_task_is_not_kept(tmp_path: Path, store: TaskStore) -> None:
    table = TaskTable(store, bounds=Bounds(open_bytes=4))
    with full_disk(tmp_path, on="INSERT ON tasks"), pytest.raises(StorageError):
        await table.add(task("a"))
    assert list(table) == []
    # Neither is its place in the memory bound.
    assert await table.add(task("b"))
    with pytest.raises(Busy):
        table.add(task("c"))
    assert not await TaskTable(store).add(task("b"))


async def test_a_result_leaves_the_memory_with_its_task(store: TaskStore) -> None:
    bounds = Bounds(cached_result_bytes=10)
    table = TaskTable(store, bounds=bounds)
    for round_ in range(3):
        record = task(f"t{round_}")
        await table.add(record)
        record.move(Input.ACCEPT, "")
        for size in (4, 11):
            fields: dict[str, Any] = {"result_size": size, "pending": Pending.RESULTS}
            record.status = Status.ACCEPTED
            done = table.change(
                record, Input.SUCCEED, "", content=bytes(size), **fields
            )
            assert done is not None
            await done
        await table.set(record, pending=Pending.NOTHING)
        assert await table.result(record) == bytes(11)
    assert list(table) == []


async def test_a_submission_that_cannot_be_stored_is_not_taken(
    tmp_path: Path, store: TaskStore
) -> None:
    side = Side(store)
    with full_disk(tmp_path, on="INSERT ON tasks"), pytest.raises(StorageError):
        await side.received.take_submission(task("a"))
    assert (await side.received.take_submission(task("a"))).is_accepted


async def test_a_task_stays_queued_when_its_end_cannot_be_stored(
    tmp_path: Path, store: TaskStore
) -> None:
    side = Side(store)
    first, second = await side.accepted("a"), await side.accepted("b")
    side.now += 3601.0
    with full_disk(tmp_path):
        side.received.check_limits(first)
        await settle(store)
        with pytest.raises(StorageError):
            await side.received.finish(second, Outcome(content=b"x"))
    assert side.told == []
    assert {record.task_id for record in side.received.queue("w1")} == {"a", "b"}
    assert first.status is second.status is Status.ACCEPTED


async def test_a_task_that_is_cancelled_while_it_is_accepted_is_not_offered(
    store: TaskStore,
) -> None:
    side = Side(store)
    serving = Serving(side.received)
    side.received.on_queued = serving.offer
    assert (await side.received.take_submission(task("a"))).is_accepted
    record = side.received.find("w1", "a")
    accepting = asyncio.ensure_future(side.received.accept(record))
    await asyncio.sleep(0)
    await side.received.cancel("w1", PEER, "a")
    await accepting
    assert record.status is Status.CANCELLED
    assert side.received.head("w1") is None
    serving.offer_all()


async def test_a_connection_that_takes_nothing_holds_up_no_other(
    store: TaskStore,
) -> None:
    side = Side(store)
    serving = Serving(side.received)
    stuck, reader = Connection(room=0), Connection(room=9)
    for connection in (stuck, reader):
        serving.serve(connection, ["w1"], 2)
    for name in "abc":
        await side.accepted(name)
    serving.offer_all()
    assert [push["task"]["task_id"] for push in reader.pushes] == ["a", "b"]
    stuck.room = 1
    serving.offer_all()
    assert [push["task"]["task_id"] for push in stuck.pushes] == ["c"]


async def test_a_minute_is_over_even_before_somebody_looks(store: TaskStore) -> None:
    side = Side(store)
    assert (await side.received.take_submission(task("a"))).is_accepted
    side.now += 61.0
    with pytest.raises(Expired, match="a has expired"):
        await side.received.accept(side.received.find("w1", "a"))


async def test_a_program_that_comes_while_a_task_is_written_gets_it(
    store: TaskStore,
) -> None:
    side = Side(store)
    taking = asyncio.ensure_future(side.received.take_submission(task("a")))
    await asyncio.sleep(0)
    side.received.is_served = lambda agent: True
    await taking
    await settle(store)
    assert [record.task_id for record in side.received.queue("w1")] == ["a"]


async def test_a_task_that_is_cancelled_while_it_is_written_is_gone(
    store: TaskStore,
) -> None:
    side = Side(store)
    side.received.is_served = lambda agent: True
    taking = asyncio.ensure_future(side.received.take_submission(task("a")))
    await asyncio.sleep(0)
    await side.received.cancel("w1", PEER, "a")
    assert (await taking).is_accepted
    assert side.received.queue("w1") == []
    kept = await store.get(task("a").key)
    assert kept is not None
    assert kept.status is Status.CANCELLED


async def test_a_limit_and_an_answer_cannot_both_end_a_task(store: TaskStore) -> None:
    side = Side(store)
    record = await side.accepted("a")
    side.now += 3601.0
    side.received.check_limits(record)
    with pytest.raises(InvalidState, match="cannot receive results"):
        await side.received.finish(record, Outcome())
    await settle(store)
    assert side.told == [("a", Status.EXPIRED)]


async def test_results_that_come_twice_at_once_count_once_though_given_up(
    store: TaskStore,
) -> None:
    receipts = Receipts(store, {}, wall=lambda: 2000.0)
    submitted = Submitted(TaskTable(store), receipts, wall=lambda: 2000.0)
    taken: list[bytes] = []
    submitted.on_update = lambda record, content: taken.append(content)
    record = task("a")
    record.role, record.status = Role.SUBMITTED, Status.EXPIRED
    await store.insert(record)
    both = [Results("a", result_text="first"), Results("a", result_text="second")]
    await asyncio.gather(*(submitted.take_results("w1", PEER, one) for one in both))
    assert taken == [b"first"]
    assert await store.result(record.key) == b"first"


async def test_loaded_tasks_queue_in_the_order_of_their_acceptance(
    store: TaskStore,
) -> None:
    side = Side(store)
    for name in "abc":
        assert (await side.received.take_submission(task(name))).is_accepted
    for name in "cab":
        side.now += 1.0
        await side.received.accept(side.received.find("w1", name))
    executing = await side.received.execute("w1")
    assert executing.task_id == "c"
    again = Side(store)
    again.received.load(await again.table.load())
    assert [record.task_id for record in again.received.queue("w1")] == ["c", "a", "b"]
