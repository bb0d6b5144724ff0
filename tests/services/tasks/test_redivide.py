"""Tasks are found again when a daemon gets more processes, or fewer."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import StorageError
from pilotfleet.node.processes.division import process_of
from pilotfleet.protocol.services.taskstate import Role, Status
from pilotfleet.services.tasks.record import TaskRecord
from pilotfleet.services.tasks.redivide import redivide, remove
from pilotfleet.services.tasks.store import TaskStore

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [f"w-{number}" for number in range(1, 9)]


def record(agent: str, task_id: str) -> TaskRecord:
    return TaskRecord(
        agent=agent,
        role=Role.SUBMITTED,
        task_id=task_id,
        peer=7,
        from_addr="0:0000.0000.0001",
        to_addr="0:0000.0000.0007",
        description=f"{task_id} of {agent}",
        created=1_795_355_870.0,
    )


def paths(folder: Path, count: int) -> dict[int, Path]:
    return {n: folder / f"{n}-of-{count}" / "tasks.db" for n in range(1, count + 1)}


async def fill(stores: dict[int, Path]) -> None:
    for place, path in stores.items():
        async with TaskStore(path) as store:
            for name in NAMES:
                if process_of(name, len(stores)) == place:
                    for number in range(3):
                        task = record(name, f"t-{number}")
                        await store.insert(task)
                        task.status = Status.SUCCEEDED
                        task.result_type = "text"
                        task.result_size = 4
                        await store.update(task, content=b"done")


async def found(path: Path) -> dict[str, list[str]]:
    async with TaskStore(path) as store:
        kept = {}
        for name in NAMES:
            tasks = await store.tasks_of(name, Role.SUBMITTED, 100)
            for task in tasks:
                assert task.description == f"{task.task_id} of {name}"
                assert task.status is Status.SUCCEEDED
                assert await store.result(task.key) == b"done"
            if tasks:
                kept[name] = sorted(task.task_id for task in tasks)
        return kept


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 2), (3, 1), (2, 3)])
async def test_every_task_goes_to_the_process_of_its_agent(
    tmp_path: Path, before: int, after: int
) -> None:
    old, new = paths(tmp_path, before), paths(tmp_path, after)
    await fill(old)
    for _ in range(2):
        # Again, as after a run that was broken off behind it.
        redivide(old.values(), new, lambda name: process_of(name, after))
    for place, path in new.items():
        assert await found(path) == {
            name: ["t-0", "t-1", "t-2"]
            for name in NAMES
            if process_of(name, after) == place
        }
    # The old ones are as they were, until they are removed.
    assert sum([len(await found(path)) for path in old.values()]) == len(NAMES)
    remove(old.values())
    assert not any(path.exists() for path in old.values())
    assert not any(path.with_name("tasks.db-wal").exists() for path in old.values())


def test_nothing_is_made_of_nothing(tmp_path: Path) -> None:
    new = paths(tmp_path, 2)
    redivide(paths(tmp_path, 3).values(), new, lambda name: 1)
    assert not any(path.exists() for path in new.values())


async def test_some_processes_may_not_have_kept_anything(tmp_path: Path) -> None:
    old, new = paths(tmp_path, 4), paths(tmp_path, 1)
    await fill(old)
    old[2].unlink()
    redivide(old.values(), new, lambda name: 1)
    assert set(await found(new[1])) == {n for n in NAMES if process_of(n, 4) != 2}


def test_a_file_that_is_none_of_ours_stops_it(tmp_path: Path) -> None:
    bad = tmp_path / "tasks.db"
    bad.write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match=r"tasks\.db"):
        redivide([bad], paths(tmp_path, 2), lambda name: 1)
    assert bad.exists()
    bad.unlink()
    with closing(sqlite3.connect(bad)) as database:
        database.execute("CREATE TABLE others (x INTEGER)")
        database.commit()
    with pytest.raises(StorageError, match="whose"):
        redivide([bad], paths(tmp_path, 2), lambda name: 1)
