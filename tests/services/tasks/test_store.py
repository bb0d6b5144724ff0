"""The task store on a real disk: durable, grouped, bounded."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import Closed, StorageError
from pilotfleet.protocol.services.receipts import SignedReceipt
from pilotfleet.protocol.services.taskstate import FINAL, Role, Status
from pilotfleet.services.polo import receiptrows
from pilotfleet.services.polo.receiptrows import State
from pilotfleet.services.tasks.record import Pending, TaskKey, TaskRecord
from pilotfleet.services.tasks.store import _OPEN as OPEN
from pilotfleet.services.tasks.store import Limits, TaskStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def task(task_id: str, **fields: Any) -> TaskRecord:
    defaults: dict[str, Any] = {
        "agent": "w1",
        "role": Role.RECEIVED,
        "peer": 7,
        "from_addr": "0:0000.0000.0007",
        "to_addr": "0:0000.0000.0001",
        "description": "text",
        "created": 1000.0,
    }
    return TaskRecord(task_id=task_id, **(defaults | fields))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[TaskStore]:
    async with TaskStore(tmp_path / "tasks.db") as store:
        yield store


async def test_a_task_comes_back_as_it_went_in(store: TaskStore) -> None:
    record = task("a", retryable=True, pending=Pending.RESULTS, error="é<>", staged=1.5)
    assert await store.insert(record)
    found = await store.get(record.key)
    assert found == record
    assert isinstance(found.status, Status)
    assert isinstance(found.pending, Pending)


async def test_an_id_is_taken_once_for_each_agent_and_role(store: TaskStore) -> None:
    assert await store.insert(task("a"))
    assert not await store.insert(task("a", description="another"))
    assert await store.insert(task("a", agent="w2"))
    assert await store.insert(task("a", role=Role.SUBMITTED))
    kept = await store.get(task("a").key)
    assert kept is not None
    assert kept.description == "text"


async def test_a_result_is_kept_with_the_change_that_brings_it(
    store: TaskStore,
) -> None:
    record = task("a")
    await store.insert(record)
    assert await store.result(record.key) is None
    record.status = Status.SUCCEEDED
    await store.update(record, b"\xff result")
    assert await store.result(record.key) == b"\xff result"
    await store.delete(record.key)
    assert await store.get(record.key) is None
    assert await store.result(record.key) is None


async def test_open_is_what_has_not_ended_or_is_still_to_be_told(
    store: TaskStore,
) -> None:
    for number, status in enumerate(Status):
        await store.insert(task(f"s{number}", status=status, created=number))
    told = task("p", status=Status.SUCCEEDED, pending=Pending.RESULTS, created=99)
    await store.insert(told)
    records = await store.open_tasks()
    assert [r.status for r in records[:-1]] == [s for s in Status if s not in FINAL]
    assert records[-1].task_id == "p"
    assert all(record.is_open for record in records)


async def test_collected_results_are_not_listed_again(store: TaskStore) -> None:
    for name in ("a", "b"):
        done = task(name, role=Role.SUBMITTED, status=Status.SUCCEEDED)
        await store.insert(done)
    await store.insert(task("open", role=Role.SUBMITTED))
    assert len(await store.uncollected("w1", 10)) == 2
    assert len(await store.uncollected("w1", 1)) == 1
    await store.collect("w1", ["a", "unknown"])
    assert [r.task_id for r in await store.uncollected("w1", 10)] == ["b"]
    assert await store.uncollected("w2", 10) == []


async def test_writes_of_one_turn_share_transactions(
    tmp_path: Path, store: TaskStore
) -> None:
    before = wal_frames(tmp_path)
    writes = [store.insert(task(f"t{number}")) for number in range(500)]
    assert all(await asyncio.gather(*writes))
    # 500 rows of about 200 bytes are 25 pages; 500 transactions were 1,000 and more.
    assert wal_frames(tmp_path) - before < 300


def wal_frames(folder: Path) -> int:
    return (folder / "tasks.db-wal").stat().st_size // 4096


async def test_writes_take_effect_in_their_order(store: TaskStore) -> None:
    record = task("a")
    inserted = store.insert(record)
    for number in range(50):
        record.error = str(number)
        last = store.update(record)
    read = store.get(record.key)
    await last
    assert await inserted
    found = await read
    assert found is not None
    assert found.error == "49"


async def test_an_unhurried_write_goes_with_the_next_one_and_before_it(
    store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.services.tasks.store.UNHURRIED_S", 1_000.0)
    record = task("a")
    await store.insert(record)
    record.error = "unhurried"
    unhurried = store.update(record, unhurried=True)
    assert not unhurried.done()
    found = await store.get(record.key)
    assert unhurried.done()
    assert found is not None
    assert found.error == "unhurried"


async def test_an_unhurried_write_is_done_though_none_follows(
    store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.services.tasks.store.UNHURRIED_S", 0.01)
    record = task("a")
    await store.insert(record)
    await store.update(record, unhurried=True)


async def test_unhurried_writes_do_not_gather_without_bound(
    store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "pilotfleet.services.tasks.store"
    monkeypatch.setattr(f"{module}.UNHURRIED_S", 1_000.0)
    monkeypatch.setattr(f"{module}._MAX_BATCH", 3)
    record = task("a")
    await store.insert(record)
    writes = [store.update(record, unhurried=True) for _ in range(3)]
    await asyncio.gather(*writes)


async def test_an_unhurried_write_is_done_before_the_store_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.services.tasks.store.UNHURRIED_S", 1_000.0)
    record = task("a", error="unhurried")
    async with TaskStore(tmp_path / "tasks.db") as store:
        await store.insert(task("a"))
        store.update(record, unhurried=True)
    async with TaskStore(tmp_path / "tasks.db") as store:
        found = await store.get(record.key)
    assert found is not None
    assert found.error == "unhurried"


async def test_a_write_that_cannot_be_done_harms_no_neighbour(
    store: TaskStore,
) -> None:
    writes = [
        store.insert(task("before")),
        store.insert(task("poison", description="\ud800")),
        store.insert(task("after", cpu_ms=1 << 80)),
        store.insert(task("last")),
    ]
    answers = await asyncio.gather(*writes, return_exceptions=True)
    assert answers[0] is True
    assert answers[3] is True
    assert isinstance(answers[1], StorageError)
    assert isinstance(answers[2], StorageError)
    assert {r.task_id for r in await store.open_tasks()} == {"before", "last"}


async def test_a_caller_who_gives_up_leaves_the_write_in_place(
    store: TaskStore,
) -> None:
    store.insert(task("a")).cancel()
    assert await store.get(task("a").key) is not None


async def test_oldest_finished_tasks_go_first(tmp_path: Path) -> None:
    limits = Limits(finished_per_agent=2, finished_total=3, retention_s=500.0)
    async with TaskStore(tmp_path / "tasks.db", limits=limits) as store:
        for number in range(4):
            for agent in ("w1", "w2"):
                record = task(
                    f"t{number}",
                    agent=agent,
                    status=Status.SUCCEEDED,
                    created=1000.0 + number,
                )
                await store.insert(record)
                await store.update(record, b"result")
        await store.insert(task("open", created=1.0))
        uncollected = task(
            "mine", role=Role.SUBMITTED, status=Status.SUCCEEDED, created=990.0
        )
        await store.insert(uncollected)
        assert await store.prune(1010.0) == 5
        kept = {key for key in await remaining(store) if key.role is Role.RECEIVED}
        assert {key.task_id for key in kept} == {"t2", "t3", "open"}
        assert await store.get(uncollected.key) is not None
        assert await store.result(TaskKey("w1", Role.RECEIVED, "t0")) is None
        assert await store.result(TaskKey("w1", Role.RECEIVED, "t3")) == b"result"
        await store.prune(2000.0)
        assert {key.task_id for key in await remaining(store)} == {"open"}


async def remaining(store: TaskStore) -> list[TaskKey]:
    found = []
    for agent in ("w1", "w2"):
        for role in Role:
            found += [r.key for r in await store.tasks_of(agent, role, 100)]
    return found


async def test_newest_tasks_are_listed_first(store: TaskStore) -> None:
    for number in range(5):
        await store.insert(task(f"t{number}", created=float(number)))
    rows = await store.tasks_of("w1", Role.RECEIVED, 2)
    assert [row.task_id for row in rows] == ["t4", "t3"]


async def test_database_is_the_owners_alone(tmp_path: Path, store: TaskStore) -> None:
    assert (tmp_path / "tasks.db").stat().st_mode & 0o777 == 0o600


async def test_closing_finishes_what_was_asked_for(tmp_path: Path) -> None:
    store = TaskStore(tmp_path / "tasks.db")
    async with store:
        writes = [store.insert(task(f"t{number}")) for number in range(100)]
    assert all(write.result() for write in writes)
    with pytest.raises(Closed):
        await store.insert(task("late"))


async def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StorageError, match="newer version"):
        await TaskStore(path).__aenter__()


@pytest.mark.parametrize("content", [b"not a database" * 100, None])
async def test_a_file_that_is_no_database_is_named(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "tasks.db"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(StorageError, match=r"tasks\.db"):
        await TaskStore(path).__aenter__()


WRITER = """
import asyncio, pathlib, sys
from pilotfleet.services.tasks.store import TaskStore
from tests.services.tasks.test_store import task

async def main():
    async with TaskStore(pathlib.Path(sys.argv[1])) as store:
        number = 0
        while True:
            batch = [store.insert(task(f"t{number + i}")) for i in range(20)]
            await asyncio.gather(*batch)
            number += 20
            print(number, flush=True)

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    writer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WRITER, str(path)), stdout=asyncio.subprocess.PIPE
    )
    assert writer.stdout is not None
    for _ in range(10):
        await writer.stdout.readline()
    writer.kill()
    rest, _ = await writer.communicate()
    lines = [json.loads(line) for line in rest.splitlines() if line.strip()]
    acknowledged = max([200, *lines])
    async with TaskStore(path) as store:
        kept = {record.task_id for record in await store.open_tasks()}
    assert kept >= {f"t{number}" for number in range(acknowledged)}


# Files of earlier versions

VERSION_1 = """
CREATE TABLE tasks (
    agent TEXT NOT NULL, role TEXT NOT NULL, task_id TEXT NOT NULL,
    peer INTEGER NOT NULL, from_addr TEXT NOT NULL, to_addr TEXT NOT NULL,
    description TEXT NOT NULL, created REAL NOT NULL,
    status TEXT NOT NULL, justification TEXT NOT NULL,
    accepted REAL NOT NULL, staged REAL NOT NULL, executing REAL NOT NULL,
    completed REAL NOT NULL, delivered REAL NOT NULL, deliver_by REAL NOT NULL,
    idle_ms INTEGER NOT NULL, staged_ms INTEGER NOT NULL, cpu_ms INTEGER NOT NULL,
    result_type TEXT NOT NULL, result_name TEXT NOT NULL, result_size INTEGER NOT NULL,
    error TEXT NOT NULL, retryable INTEGER NOT NULL,
    pending INTEGER NOT NULL, collected INTEGER NOT NULL,
    PRIMARY KEY (agent, role, task_id)
);
CREATE TABLE results (
    agent TEXT NOT NULL, role TEXT NOT NULL, task_id TEXT NOT NULL,
    content BLOB NOT NULL,
    PRIMARY KEY (agent, role, task_id)
);
CREATE INDEX open_tasks ON tasks (created)
    WHERE pending != 0 OR status IN ('NEW', 'ACCEPTED', 'EXECUTING');
INSERT INTO tasks VALUES ('w1', 'submitted', 'old', 7, '0:0000.0000.0001',
    '0:0000.0000.0007', 'text', 1000.0, 'SUCCEEDED', 'Task completed with results',
    1001.0, 0.0, 1002.0, 1003.0, 1000.5, 4600.0, 1, 2, 3, 'text', '', 4, '', 0, 0, 0);
INSERT INTO results VALUES ('w1', 'submitted', 'old', x'646f6e65');
INSERT INTO tasks VALUES ('w1', 'received', 'open', 7, '0:0000.0000.0007',
    '0:0000.0000.0001', 'text', 1000.0, 'ACCEPTED', 'Task accepted', 1001.0, 0.0, 0.0,
    0.0, 0.0, 0.0, 1, 0, 0, '', '', 0, '', 0, 0, 0);
"""


@pytest.mark.parametrize("version", [1, 0])
async def test_a_file_of_version_1_opens_and_keeps_its_tasks(
    tmp_path: Path, version: int
) -> None:
    # 0: the daemon was killed after it made the tables and before it said so.
    with closing(sqlite3.connect(tmp_path / "tasks.db")) as old:
        old.executescript(f"{VERSION_1} PRAGMA user_version = {version};")
    for _ in range(2):
        async with TaskStore(tmp_path / "tasks.db") as store:
            old_key = TaskKey("w1", Role.SUBMITTED, "old")
            kept = await store.get(old_key)
            assert kept is not None
            assert (kept.status, kept.cpu_ms) == (Status.SUCCEEDED, 3)
            assert (kept.priority, kept.deadline) == (0, 0.0)
            assert await store.result(old_key) == b"done"
            assert [r.task_id for r in await store.open_tasks()] == ["open"]
            await store.insert(task("new", priority=5, deadline=2000.0))
            new = await store.get(task("new").key)
            assert new is not None
            assert (new.priority, new.deadline) == (5, 2000.0)
            assert await store.run(partial(receiptrows.to_deliver, limit=9)) == []
            await store.delete(task("new").key)
            assert "open_by_age" in await store.run(plan_of_open)
            assert not await store.run(has_old_index)


def plan_of_open(database: sqlite3.Connection) -> str:
    query = f"EXPLAIN QUERY PLAN SELECT * FROM tasks WHERE {OPEN} ORDER BY created"
    return str(database.execute(query).fetchall())


def has_old_index(database: sqlite3.Connection) -> bool:
    query = "SELECT 1 FROM sqlite_schema WHERE name = 'open_tasks'"
    return database.execute(query).fetchone() is not None


# Receipts


def signed(task_id: str) -> SignedReceipt:
    return SignedReceipt(task_id, 1, 7, "0" * 64, 1, 2, 3, 4, 1000, "mine", "theirs")


async def test_receipts_that_are_old_or_too_many_are_forgotten(
    store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiptrows, "MAX_KEPT", 3)
    for number in range(6):
        record = task(f"t{number}", role=Role.SUBMITTED)
        receipt = signed(record.task_id)
        keep = partial(
            receiptrows.keep, key=record.key, receipt=receipt, wall=float(number)
        )
        await store.update(record, also=keep)
        await store.update(record, also=keep)
    await store.run(partial(receiptrows.prune, wall=receiptrows.RETENTION_S + 3.5))
    rows = await store.run(partial(receiptrows.to_deliver, limit=9))
    assert [row.receipt for row in rows] == [signed("t4"), signed("t5")]
    marks = [(rows[0].number, State.REFUSED, "too old")]
    await store.run(partial(receiptrows.mark, marks=marks))
    # What the registry said stays, should the receipt come again.
    refused = task("t4", role=Role.SUBMITTED).key
    await store.run(
        partial(receiptrows.keep, key=refused, receipt=signed("t4"), wall=9.0)
    )
    row = await store.run(
        partial(receiptrows.find, key=task("t4", role=Role.SUBMITTED).key)
    )
    assert row is not None
    assert (row.state, row.reason) == (State.REFUSED, "too old")
    sums = await store.run(partial(receiptrows.sums, agent="w1"))
    assert {(part.state, part.count, part.reward) for part in sums} == {
        (State.REFUSED, 1, 1),
        (State.PENDING, 1, 1),
    }
    await store.run(partial(receiptrows.prune, wall=receiptrows.RETENTION_S + 9.0))
    assert await store.run(partial(receiptrows.sums, agent="w1")) == []
