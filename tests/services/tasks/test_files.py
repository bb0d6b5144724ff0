"""Task files: the official layout, written by the store after its commits."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import stat
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pilotfleet.errors import StorageError
from pilotfleet.protocol.services.taskstate import Role, Status
from pilotfleet.services.tasks.files import (
    AT_ONCE,
    FEW,
    LAG_S,
    TaskFiles,
    task_file,
)
from pilotfleet.services.tasks.record import TaskRecord
from pilotfleet.services.tasks.store import Limits, TaskStore

VECTORS = Path(__file__).parents[2] / "vectors" / "services.json"
RECORDED: str = json.loads(VECTORS.read_text())["tasks"][
    "task_file_received_after_accept"
]["text"]
TASK_ID = "a79295a4-5513-9cac-947f-062ea80c2c8f"


def task(task_id: str = TASK_ID, **fields: Any) -> TaskRecord:
    defaults: dict[str, Any] = {
        "agent": "alice",
        "role": Role.SUBMITTED,
        "peer": 2,
        "from_addr": "0:0000.0000.0001",
        "to_addr": "0:0000.0000.0002",
        "description": "do it",
        "created": 1000.0,
    }
    return TaskRecord(task_id=task_id, **(defaults | fields))


def unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def open_store(tmp_path: Path, **limits: Any) -> TaskStore:
    return TaskStore(
        tmp_path / "tasks.db",
        limits=Limits(**limits),
        files=TaskFiles({"alice": tmp_path / "tasks"}),
    )


def names(tmp_path: Path) -> list[str]:
    folder = tmp_path / "tasks"
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )


async def succeed(store: TaskStore, record: TaskRecord, content: bytes) -> None:
    record.status = Status.SUCCEEDED
    record.justification = "Task completed with results"
    record.result_type = "file" if record.result_name else "text"
    record.result_size = len(content)
    await store.update(record, content)


def test_the_file_is_the_recorded_one_to_the_byte() -> None:
    record = task(
        role=Role.RECEIVED,
        description='Summarize "x" <b>&</b>',
        created=unix("2026-11-22T14:02:20.399476+00:00"),
        status=Status.ACCEPTED,
        justification="Task accepted",
        accepted=unix("2026-11-22T14:02:22.441+00:00"),
        idle_ms=2042,
    )
    # A float holds microseconds, not the nanoseconds of the official clock.
    assert task_file(record).decode() == RECORDED.replace("399476515Z", "399476Z")


def test_every_field_has_its_place() -> None:
    record = task(
        role=Role.RECEIVED,
        accepted=1001.0,
        staged=1002.0,
        executing=1003.0,
        completed=1004.0,
        idle_ms=1,
        staged_ms=2,
        cpu_ms=3,
        result_type="text",
    )
    assert list(json.loads(task_file(record))) == [
        *("task_id", "task_description", "created_at", "status"),
        *("status_justification", "from", "to", "accepted_at", "staged_at"),
        *("execute_started_at", "completed_at"),
        *("time_idle_ms", "time_staged_ms", "time_cpu_ms"),
    ]
    record.role = Role.SUBMITTED
    fields = json.loads(task_file(record, "é".encode()))
    assert list(fields)[7:] == ["accepted_at", "result_type", "results"]
    assert fields["results"] == "é"


def test_line_separators_are_written_as_the_official_encoder_does() -> None:
    text = task_file(task(description="a\u2028b\u2029\u0007")).decode()
    assert r'"a\u2028b\u2029\u0007"' in text


async def test_a_task_and_its_text_are_files_once_it_is_committed(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path) as store:
        record = task()
        await store.insert(record)
        path = tmp_path / "tasks" / "submitted" / f"{TASK_ID}.json"
        assert json.loads(path.read_bytes())["status"] == "NEW"
        await succeed(store, record, b"done ok")
    result = tmp_path / "tasks" / "results" / f"{TASK_ID}_result.txt"
    assert result.read_bytes() == b"done ok"
    fields = json.loads(path.read_bytes())
    assert (fields["status"], fields["results"]) == ("SUCCEEDED", "done ok")
    for made in (path, result):
        assert stat.S_IMODE(made.stat().st_mode) == 0o600
        assert stat.S_IMODE(made.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(made.parent.parent.stat().st_mode) == 0o700


async def test_a_file_result_has_its_name_and_stays_in_its_folder(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path) as store:
        for task_id, name in (("a", "out put.csv"), ("b", "../../evil.csv")):
            record = task(task_id, result_name=name)
            await store.insert(record)
            await succeed(store, record, b"1,2\n")
        long = task("c", result_name="é" * 126 + ".csv")
        await store.insert(long)
        await succeed(store, long, b"3")
    assert names(tmp_path)[:2] == ["results/a_out put.csv", "results/b_evil.csv"]
    assert names(tmp_path)[2].endswith("é.csv")
    fields = json.loads((tmp_path / "tasks/submitted/a.json").read_bytes())
    assert (fields["result_type"], fields["results"]) == ("file", "out put.csv")


async def test_what_was_not_committed_is_in_no_file(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        record = task("a")
        await store.insert(record)
        with closing(sqlite3.connect(tmp_path / "tasks.db")) as disk, disk:
            disk.execute(
                "CREATE TRIGGER full BEFORE INSERT ON results"
                " BEGIN SELECT RAISE(ABORT, 'disk full'); END"
            )
        with pytest.raises(StorageError):
            await succeed(store, record, b"done")
        assert not await store.insert(task("a", description="another"))
    fields = json.loads((tmp_path / "tasks/submitted/a.json").read_bytes())
    assert (fields["status"], fields["task_description"]) == ("NEW", "do it")
    assert names(tmp_path) == ["submitted/a.json"]


async def test_files_go_with_their_tasks_and_others_stay(tmp_path: Path) -> None:
    async with open_store(tmp_path, retention_s=10.0) as store:
        for task_id in ("old", "withdrawn"):
            await store.insert(task(task_id))
        await succeed(store, task("old", result_name="x.csv"), b"1")
        foreign = tmp_path / "tasks" / "submitted" / "foreign.json"
        foreign.write_text("{}")
        await store.delete(task("withdrawn").key)
        assert await store.prune(5000.0) == 1
    assert names(tmp_path) == ["submitted/foreign.json"]


async def test_a_restart_writes_what_is_missing_and_leaves_the_rest(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path) as store:
        for task_id in ("a", "b"):
            await store.insert(task(task_id))
            await succeed(store, task(task_id), b"done")
    wanted = {
        name: (tmp_path / "tasks" / name).read_bytes() for name in names(tmp_path)
    }
    kept = (tmp_path / "tasks/submitted/b.json").stat().st_mtime_ns
    (tmp_path / "tasks/results/a_result.txt").unlink()
    (tmp_path / "tasks/submitted/a.json").write_text("half")
    (tmp_path / "tasks/submitted/foreign.json").write_text("{}")
    async with open_store(tmp_path):
        pass
    for name, content in wanted.items():
        assert (tmp_path / "tasks" / name).read_bytes() == content
    assert (tmp_path / "tasks/submitted/b.json").stat().st_mtime_ns == kept
    assert (tmp_path / "tasks/submitted/foreign.json").read_text() == "{}"


async def test_other_agents_and_unsafe_ids_have_no_files(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await store.insert(task("a", agent="bob"))
        await store.insert(task("../evil"))
    assert names(tmp_path) == []


async def test_a_folder_that_cannot_be_written_harms_no_task(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tasks").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        async with open_store(tmp_path) as store:
            for task_id in ("a", "b"):
                assert await store.insert(task(task_id))
                await succeed(store, task(task_id), b"done")
            assert await store.result(task("b").key) == b"done"
    assert len(caplog.records) == 1


async def test_a_burst_reaches_the_files_in_the_end(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        records = [task(f"t{number}") for number in range(50)]
        await asyncio.gather(*map(store.insert, records))
        withdrawn = records.pop()
        await asyncio.gather(
            store.delete(withdrawn.key),
            *(succeed(store, record, record.task_id.encode()) for record in records),
        )
    assert len(names(tmp_path)) == 2 * len(records)
    for record in records:
        path = tmp_path / "tasks" / "submitted" / f"{record.task_id}.json"
        fields = json.loads(path.read_bytes())
        assert (fields["status"], fields["results"]) == ("SUCCEEDED", record.task_id)


def test_many_changes_wait_a_little_for_the_next_to_the_same_task(
    tmp_path: Path,
) -> None:
    now = 100.0
    files = TaskFiles({"alice": tmp_path}, clock=lambda: now)
    assert files.pause is None
    count = FEW + AT_ONCE + 1
    for status in (Status.NEW, Status.ACCEPTED):
        for number in range(count):
            record = task(f"t{number}", status=status)
            files.changed(record, has_new_result=False)
        files.commit()
    files.catch_up(lambda key: None)
    assert list(tmp_path.rglob("*.json")) == []
    assert files.pause == LAG_S
    now += LAG_S
    assert files.pause == 0.0
    files.catch_up(lambda key: None)
    assert len(list(tmp_path.rglob("*.json"))) == AT_ONCE
    files.catch_up(lambda key: None, wait=False)
    assert files.pause is None
    written = [json.loads(path.read_bytes()) for path in tmp_path.rglob("*.json")]
    assert [fields["status"] for fields in written] == ["ACCEPTED"] * count


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotfleet.services.tasks.files.MAX_WAITING", 10)
    files = TaskFiles({"alice": tmp_path})
    for number in range(30):
        files.changed(task(f"t{number}"), has_new_result=False)
    files.commit()
    files.catch_up(lambda key: None)
    assert len(list(tmp_path.rglob("*.json"))) == 20
