"""The event log: order, replay, caps, restart, trouble with the disk."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import StorageError
from pilotfleet.protocol.services.events import Event
from pilotfleet.protocol.topics import matches
from pilotfleet.services.events import log as log_module
from pilotfleet.services.events.log import EventLog, EventLogConfig

if TYPE_CHECKING:
    from pathlib import Path


async def replay(log: EventLog, pattern: str = "*", since: float = 0) -> list[str]:
    pages = log.replay(since=since, until_id=log.last_id)
    rows = [row async for page in pages for row in page]
    return [row.topic for row in rows if matches(pattern, row.topic)]


def count_rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        rows: int = database.execute("SELECT count(*) FROM events").fetchone()[0]
        return rows


async def test_events_come_back_in_order_and_by_pattern(tmp_path: Path) -> None:
    async with EventLog(tmp_path / "new" / "events.db") as log:
        for number in range(600):
            log.append(Event(f"fleet.{number}", b"\0x"), wall=float(number))
            log.append(Event("other", b""), wall=float(number))
        assert await replay(log, "fleet.*") == [f"fleet.{n}" for n in range(600)]
        assert await replay(log, "fleet.*", since=598) == ["fleet.598", "fleet.599"]
        assert await replay(log, "fleet.*", since=1e9) == []
        pages = [page async for page in log.replay(until_id=1)]
        assert pages == [[(1, 0.0, "fleet.0", b"\0x")]]


async def test_replay_stops_at_the_given_event(tmp_path: Path) -> None:
    async with EventLog(tmp_path / "events.db") as log:
        log.append(Event("before", b""), wall=1)
        until = log.last_id
        log.append(Event("after", b""), wall=2)
        pages = [page async for page in log.replay(until_id=until)]
        assert [row.topic for row in pages[0]] == ["before"]


async def test_log_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    async with EventLog(path) as log:
        log.append(Event("one", b""), wall=1)
    assert path.stat().st_mode & 0o777 == 0o600
    async with EventLog(path) as log:
        log.append(Event("two", b""), wall=2)
        assert await replay(log) == ["one", "two"]


async def test_oldest_events_go_beyond_the_number_cap(tmp_path: Path) -> None:
    config = EventLogConfig(max_events=1000)
    async with EventLog(tmp_path / "events.db", config=config) as log:
        for start in range(0, 5000, 500):
            for number in range(start, start + 500):
                log.append(Event(str(number), b""), wall=1)
            await log.flush()
        topics = await replay(log)
    assert 800 <= len(topics) <= 1000
    assert topics[-1] == "4999"
    assert count_rows(tmp_path / "events.db") == len(topics)


async def test_oldest_events_go_beyond_the_byte_cap(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    config = EventLogConfig(max_bytes=1 << 20)
    for _ in range(2):
        # The second run counts what the first one left.
        async with EventLog(path, config=config) as log:
            for _ in range(400):
                log.append(Event("t", bytes(8 << 10)), wall=1)
            await log.flush()
    assert 0 < count_rows(path) <= 128
    assert path.stat().st_size < 6 << 20


async def test_events_go_with_age(tmp_path: Path) -> None:
    config = EventLogConfig(max_age_s=100)
    async with EventLog(tmp_path / "events.db", config=config) as log:
        log.append(Event("old", b""), wall=1000)
        await log.flush()
        log.append(Event("new", b""), wall=1101)
        assert await replay(log) == ["new"]


async def test_what_nobody_waits_for_is_written_in_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "GATHER_S", 60.0)
    async with EventLog(tmp_path / "events.db") as log:
        writing = asyncio.create_task(log.run())
        for number in range(100):
            log.append(Event("small", b""), wall=number)
            await asyncio.sleep(0)
        assert log.logged == 0
        async with asyncio.timeout(20):
            # Much is written at once.
            log.append(Event("large", bytes(log_module.GROUP_BYTES)), wall=101)
            while log.logged < 101:  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.001)
            monkeypatch.setattr(log_module, "GATHER_S", 0.01)
            log.append(Event("last", b""), wall=102)
            while log.logged < 102:  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.001)
        writing.cancel()
        await asyncio.wait([writing])


async def test_events_are_lost_when_the_disk_cannot_follow(tmp_path: Path) -> None:
    config = EventLogConfig(max_waiting_bytes=170)
    async with EventLog(tmp_path / "events.db", config=config) as log:
        for _ in range(3):
            log.append(Event("t", bytes(49)), wall=1)
        assert log.lost == 1
        assert await replay(log) == ["t", "t"]
        log.append(Event("t", bytes(49)), wall=1)
        assert log.lost == 1


async def test_refused_write_is_counted_and_the_log_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    async with EventLog(path) as log:
        with closing(sqlite3.connect(path)) as database:
            database.execute("ALTER TABLE events RENAME TO away")
            log.append(Event("lost", b""), wall=1)
            await log.flush()
            assert log.lost == 1
            with pytest.raises(StorageError, match="no such table"):
                await replay(log)
            database.execute("ALTER TABLE away RENAME TO events")
        log.append(Event("kept", b""), wall=1)
        assert await replay(log) == ["kept"]


@pytest.mark.parametrize("content", [b"this is not a database" * 100, None])
async def test_file_that_is_no_database_is_refused(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "events.db"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(StorageError, match=r"events\.db"):
        await EventLog(path).__aenter__()


@pytest.mark.parametrize("promised", ["many", 2**63 - 1])
async def test_file_whose_numbers_are_none_is_refused(
    tmp_path: Path, promised: object
) -> None:
    path = tmp_path / "events.db"
    async with EventLog(path):
        pass
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "UPDATE meta SET value = ? WHERE key = 'promised'", (promised,)
        )
        database.commit()
    with pytest.raises(StorageError, match=r"events\.db is damaged"):
        await EventLog(path).__aenter__()


async def test_closed_log_replays_nothing(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.db")
    async with log:
        log.append(Event("t", b""), wall=1)
    assert await replay(log) == []


async def test_file_keeps_its_identity_and_numbers_never_come_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "events.db"
    async with EventLog(path) as log:
        log.append(Event("one", b""), wall=1)
        identity, number = log.uuid, log.last_id
    with closing(sqlite3.connect(path)) as database:
        database.execute("DELETE FROM events")
        database.commit()
    async with EventLog(path) as log:
        assert log.uuid == identity
        assert log.last_id > number
    async with EventLog(tmp_path / "other.db") as other:
        assert other.uuid != identity


async def test_file_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "CREATE TABLE events (id INTEGER PRIMARY KEY, wall REAL NOT NULL,"
            " topic TEXT NOT NULL, payload BLOB NOT NULL)"
        )
        database.execute("INSERT INTO events VALUES (7, 1.0, 'old', x'')")
        database.commit()
    async with EventLog(path) as log:
        assert len(log.uuid) == 36
        log.append(Event("new", b""), wall=2)
        assert log.last_id == 8
        assert await replay(log) == ["old", "new"]


async def test_numbers_are_promised_before_they_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "ID_BLOCK", 10)
    async with EventLog(tmp_path / "events.db") as log:
        for _ in range(12):
            log.append(Event("t", b""), wall=1)
        # Two more than promised before the file could promise again.
        assert log.lost == 2
        await log.flush()
        for _ in range(5):
            log.append(Event("t", b""), wall=1)
        assert (log.lost, log.last_id) == (2, 15)


async def test_pages_are_bounded_in_bytes(tmp_path: Path) -> None:
    async with EventLog(tmp_path / "events.db") as log:
        for _ in range(10):
            log.append(Event("t", bytes(100 << 10)), wall=1)
        pages = [page async for page in log.replay(until_id=log.last_id)]
        assert [len(page) for page in pages] == [3, 3, 3, 1]
