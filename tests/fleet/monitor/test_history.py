"""The history on a real file: what belongs together is kept together, and once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import Closed, StorageError
from pilotfleet.fleet.monitor.history import file as historyfile
from pilotfleet.fleet.monitor.history import recent as recentrows
from pilotfleet.fleet.monitor.history.history import History, Retention
from pilotfleet.fleet.monitor.samples import Recent
from tests.fleet.monitor.historysupport import NOON, Wall, query, sample

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.fleet.monitor.samples import Sample

POSITIONS = {"hub": ("log-1", 7)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "monitor.db"


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
async def history(path: Path, wall: Wall) -> AsyncIterator[History]:
    async with History(path, wall=wall) as history:
        yield history


async def store(history: History, *samples: Sample, fleet: str = "f") -> bool:
    return await history.store(fleet, samples, state=b"s", positions=POSITIONS)


async def limit_pages(history: History, pages: int) -> None:
    """Make the disk full: SQLite then raises what it raises on a full one."""
    assert history._file is not None
    database = history._file._database
    await history._thread.run(
        lambda: database.execute(f"PRAGMA max_page_count = {pages}").fetchone()
    )


async def total(history: History, fleet: str = "f") -> float:
    """Return how many tasks of the last hour history knows."""
    series = await history.series(
        fleet, ["completed_per_minute"], start=NOON - 3600, end=NOON + 60, points=100
    )
    assert series.resolution_s == 60
    return sum(value or 0 for value in series.values["completed_per_minute"])


async def test_state_positions_and_samples_outlive_the_program(path: Path) -> None:
    wall = Wall(NOON + 0.5)
    async with History(path, wall=wall) as history:
        assert await history.load("f") is None
        assert await history.store(
            "f",
            [sample(NOON - 1, completed=3, agents_alive=5)],
            state=b"\x00state",
            positions={"hub": ("log", 2**63), "b2": ("other", 0)},
        )
    async with History(path, wall=wall) as history:
        saved = await history.load("f")
        assert saved is not None
        assert saved.state == b"\x00state"
        assert saved.positions == {"hub": ("log", 2**63), "b2": ("other", 0)}
        assert saved.saved_at == NOON + 0.5
        series = await history.series(
            "f", ["agents_alive"], start=NOON - 2, end=NOON, points=10
        )
        assert series.values == {"agents_alive": (None, 5.0)}


async def test_file_is_for_its_owner_only(history: History, path: Path) -> None:
    await store(history, sample(NOON))
    modes = {name.name: name.stat().st_mode & 0o777 for name in path.parent.iterdir()}
    assert modes
    assert set(modes.values()) == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_each_second_is_added_to_its_minute_and_hour(
    history: History, path: Path
) -> None:
    await store(history, sample(NOON, completed=1, failed=2, ms=[10], linked=1))
    await store(history, sample(NOON + 1, completed=4, ms=[20, 30]))
    await store(
        history, sample(NOON + 60, completed=8), sample(NOON + 61, completed=16)
    )
    await history.aclose()
    text = "SELECT at, samples, completed, failed, trust_linked FROM {} ORDER BY at"
    assert query(path, text.format("seconds")) == [
        (NOON, 1, 1, 2, 1),
        (NOON + 1, 1, 4, 0, 0),
        (NOON + 60, 1, 8, 0, 0),
        (NOON + 61, 1, 16, 0, 0),
    ]
    assert query(path, text.format("minutes")) == [
        (NOON, 2, 5, 2, 1),
        (NOON + 60, 2, 24, 0, 0),
    ]
    assert query(path, text.format("hours")) == [(NOON, 4, 29, 2, 1)]


@pytest.mark.parametrize("reopens", [False, True])
async def test_late_seconds_go_into_their_rows(path: Path, reopens: bool) -> None:
    late, wall = NOON - 1800, Wall()
    history = await History(path, wall=wall).__aenter__()
    await store(history, sample(late, completed=1, ms=[10], agents_alive=1))
    await store(history, sample(NOON, completed=1, ms=[1000], agents_alive=2))
    if reopens:
        await history.aclose()
        history = await History(path, wall=wall).__aenter__()
    await store(history, sample(late, completed=2, ms=[20, 20], agents_alive=9))
    await store(history, sample(late - 5, completed=4, ms=[20], agents_alive=7))
    minute = {"start": late, "end": late + 120, "points": 2}
    metrics = ["completed_per_minute", "p50_ms", "p99_ms", "agents_alive"]
    series = await history.series("f", metrics, **minute)  # type: ignore[arg-type]
    assert series.resolution_s == 60
    assert series.values["completed_per_minute"] == (3 * 60 / 10, None)
    assert series.values["p50_ms"][0] == pytest.approx(20, rel=0.01)
    assert series.values["agents_alive"] == (9.0, None)
    # The level of the hour is the one of its newest second, not of the last stored.
    await history.aclose()
    text = f"SELECT agents_alive, completed FROM hours WHERE at = {NOON - 3600}"
    assert query(path, text) == [(9.0, 7)]


async def test_one_second_may_be_told_twice(history: History) -> None:
    await store(history, sample(NOON - 1, completed=1, ms=[5]))
    await store(history, sample(NOON - 1, completed=2, ms=[5, 5]))
    assert await total(history) == 3 * 60 / 10


async def test_time_of_a_wrong_clock_is_refused(history: History, path: Path) -> None:
    ahead = NOON + 86_400
    await store(history, sample(ahead), sample(ahead + 1), sample(-1), sample(NOON))
    assert history.refused == 2
    await history.aclose()
    assert query(path, "SELECT at FROM seconds ORDER BY at") == [(NOON,), (ahead,)]


async def test_own_clock_gone_wrong_removes_nothing(
    history: History, wall: Wall
) -> None:
    await store(history, sample(NOON - 100, completed=1))
    wall.now = NOON + 400 * 86_400
    await store(history, sample(NOON, completed=1))
    wall.now = NOON
    assert await total(history) == 2 * 60 / 10


async def test_old_rows_are_removed_table_by_table(path: Path, wall: Wall) -> None:
    retention = Retention(seconds_s=120, minutes_s=7200, hours_s=36_000)
    async with History(path, retention=retention, wall=wall) as history:
        for hours in range(24):
            wall.now = NOON + hours * 3600
            await store(history, sample(int(wall.now), completed=1))
    counts = [
        query(path, f"SELECT count(*) FROM {name}")[0][0]
        for name in ("seconds", "minutes", "hours")
    ]
    # One more of each: a row goes when all of it is too old.
    assert counts == [1, 3, 12]


async def test_file_stays_below_its_cap(path: Path, wall: Wall) -> None:
    cap = 2 << 20
    async with History(path, retention=Retention(max_bytes=cap), wall=wall) as history:
        for minute in range(150):
            wall.now = NOON + minute * 60
            batch = [
                sample(NOON + minute * 60 + second, f"t{tag}", ms=range(1, 40))
                for second in range(0, 60, 20)
                for tag in range(20)
            ]
            await store(history, *batch)
    assert size(path) < cap * 1.5
    # The newest are there, the oldest made room.
    [(oldest, newest)] = query(path, "SELECT min(at), max(at) FROM seconds")
    assert newest == NOON + 149 * 60 + 40
    assert oldest > NOON + 600


async def test_tags_beyond_the_bound_replace_the_silent_ones(
    history: History, wall: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(historyfile, "MAX_SUBJECTS", 3)
    await store(history, sample(NOON), sample(NOON, "old", completed=1))
    wall.now = later = NOON + 7200
    await store(history, sample(later, "busy", completed=1))
    await store(history, sample(later, "new", completed=1), sample(later))
    for tag, is_there in (("old", False), ("busy", True), ("new", True)):
        series = await history.series(
            "f", ["completed_per_minute"], start=NOON, end=later + 60, tag=tag
        )
        values = series.values["completed_per_minute"]
        assert any(value is not None for value in values) is is_there, tag


async def test_alerts_are_kept(history: History) -> None:
    assert await history.load_alerts() is None
    assert await history.store_alerts(b"one")
    assert await history.store_alerts(b"two")
    assert await history.load_alerts() == b"two"


async def test_full_disk_loses_and_doubles_nothing(
    path: Path, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Wall(0)
    async with History(path, wall=wall, clock=clock) as history:
        await store(history, sample(NOON - 9, completed=1, ms=[1]))
        await limit_pages(history, 1)
        big = b"s" * 100_000
        for second in range(8):
            clock.now += 10
            assert not await history.store(
                "f",
                [sample(NOON - 8 + second, completed=1, ms=[1])],
                state=big,
                positions={"hub": ("log", second)},
            )
        assert not await history.store_alerts(big)
        assert history.waiting == 8
        # What is on the disk belongs together still.
        saved = await history.load("f")
        assert saved is not None
        assert saved.positions == POSITIONS
        await limit_pages(history, 1 << 30)
        assert await store(history, sample(NOON, completed=1, ms=[1]), fleet="g")
        assert history.waiting == 0
        assert await total(history) == 9 * 60 / 10
        saved = await history.load("f")
        assert saved is not None
        assert saved.positions == {"hub": ("log", 7)}
    told = [record for record in caplog.records if record.levelno >= logging.ERROR]
    # After 10 s, and after 70.
    assert len(told) == 2
    assert "full" in told[0].getMessage()
    assert str(path) in told[0].getMessage()
    assert "free space" in told[0].getMessage()


async def test_samples_in_memory_are_bounded(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(historyfile, "MAX_WAITING", 10)
    await limit_pages(history, 1)
    for start in range(0, 30, 5):
        seconds = range(NOON - 30 + start, NOON - 25 + start)
        batch = [sample(each, completed=1) for each in seconds]
        await history.store("f", batch, state=b"s" * 100_000, positions={})
    assert (history.waiting, history.lost) == (10, 20)
    await limit_pages(history, 1 << 30)
    assert await store(history)
    assert await total(history) == 10 * 60 / 10


async def test_values_sqlite_cannot_hold_are_not_tried_for_ever(
    history: History,
) -> None:
    with pytest.raises(OverflowError):
        await store(history, sample(NOON, completed=2**64))
    assert await store(history, sample(NOON, completed=1))


async def use(path: Path) -> None:
    async with History(path, wall=Wall()) as history:
        await history.series("f", ["tunnels"], start=NOON, end=NOON + 9, tag="t9")


def size(path: Path) -> int:
    return path.stat().st_size


def content(path: Path) -> bytes:
    return path.read_bytes()


def damage(path: Path) -> None:
    whole = path.read_bytes()
    rest = len(whole) - 8192
    path.write_bytes(whole[:4096] + b"\xff" * rest + whole[-4096:])


def write_text(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all " * 100)


def write_foreign(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (x)")
        database.commit()


async def write_newer(path: Path) -> None:
    async with History(path):
        pass
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")


async def write_damaged(path: Path) -> None:
    async with History(path, wall=Wall()) as history:
        await store(history, *(sample(NOON + n, f"t{n}") for n in range(200)))
    damage(path)


@pytest.mark.parametrize(
    ("make", "message", "hint"),
    [
        (write_text, "is damaged: file is not a database", "move it away"),
        (write_foreign, "is the database of another program", "--home"),
        (write_newer, "was written by a newer version", "version"),
        (write_damaged, "is damaged: database disk image is malformed", "move it away"),
    ],
)
async def test_what_is_no_history_is_refused_and_left_alone(
    path: Path, make: Any, message: str, hint: str
) -> None:
    made = make(path)
    if made is not None:
        await made
    before = content(path)
    with pytest.raises(StorageError, match=message) as caught:
        await use(path)
    assert hint in (caught.value.hint or "")
    assert str(path) in str(caught.value)
    if make is not write_damaged:
        assert content(path) == before


async def test_two_monitors_cannot_have_one_file(history: History, path: Path) -> None:
    await store(history, sample(NOON))
    with pytest.raises(StorageError, match="used by another program") as caught:
        await History(path).__aenter__()
    assert "--home" in (caught.value.hint or "")


async def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "monitor.db"
    with pytest.raises(StorageError, match=str(path)):
        await History(path).__aenter__()


async def test_closed_history_says_so(path: Path) -> None:
    async with History(path) as history:
        pass
    with pytest.raises(Closed):
        await history.load("f")


async def test_cancelled_call_is_done_all_the_same(history: History) -> None:
    task = asyncio.create_task(store(history, sample(NOON - 1, completed=5)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert await total(history) == 30
    assert await store(history, sample(NOON - 2, completed=5))
    assert await total(history) == 60


KILLED = """
import asyncio, os, sys
from pathlib import Path
from pilotfleet.fleet.monitor.history.history import History
from pilotfleet.fleet.monitor.samples import Recent
from tests.fleet.monitor.historysupport import NOON, sample

async def main():
    async with History(Path(sys.argv[1]), wall=lambda: NOON + 0.0) as history:
        saved = await history.load("f")
        done = int(saved.state) if saved else 0
        while True:
            second = NOON - 3000 + done % 2500
            samples = [sample(second, tag, completed=1, ms=[5.0]) for tag in ("", "t")]
            done += 1
            task = ("a", (1.0, f"{done}", "SUCCEEDED", 1.0, ""))
            await history.store(
                "f", samples, state=b"%d" % done, positions={"hub": ("log", done)},
                recent=Recent([task], [], 20),
            )
            os.write(1, b"%d\\n" % done)

asyncio.run(main())
"""


def run_and_kill(path: Path, *, after: int) -> int:
    """Return what the program said last before it was killed."""
    told = 0
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for _ in range(after):
            told = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    return told


async def test_killed_program_leaves_what_belongs_together(path: Path) -> None:
    """Samples, state and positions agree after each SIGKILL."""
    for rounds in range(1, 6):
        told = run_and_kill(path, after=40 * rounds)
        async with History(path, wall=Wall()) as history:
            saved = await history.load("f")
            assert saved is not None
            done = int(saved.state)
            assert done >= told
            assert saved.positions == {"hub": ("log", done)}
            shown = [int(row[1]) for _, row in saved.recent.tasks]
            assert shown == [*range(done - 19, done + 1)]
        for table in ("seconds", "minutes", "hours"):
            sums = query(path, f"SELECT sum(completed) FROM {table} GROUP BY id >> 33")
            assert sums == [(done,), (done,)], table


def tasks_of(agent: str, numbers: range, *, keep: int = 20) -> Recent:
    records = [(agent, (NOON + 0.5, f"t-{n}", "FAILED", 1.5, "why")) for n in numbers]
    events = [(agent, (NOON + 0.5, "fleet.health", b"\xff{")) for _ in numbers]
    return Recent(records, events, keep)


async def put(history: History, *recents: Recent, fleet: str = "f") -> None:
    for recent in recents:
        await history.store(
            fleet, [sample(NOON)], state=b"", positions={}, recent=recent
        )


async def kept(history: History, fleet: str = "f") -> Recent:
    saved = await history.load(fleet)
    assert saved is not None
    assert len(saved.recent.tasks) == len(saved.recent.events)
    return saved.recent


async def test_what_pages_show_outlives_the_program(path: Path) -> None:
    async with History(path, wall=Wall()) as history:
        quiet = tasks_of("quiet", range(2))
        await put(history, quiet)
        await put(history, *(tasks_of("a", range(n, n + 8)) for n in range(0, 48, 8)))
        await put(history, tasks_of("a", range(3)), fleet="g")
    async with History(path, wall=Wall()) as history:
        recent = await kept(history)
        # Of one that says much the last are kept; the others keep theirs.
        expected = tasks_of("a", range(28, 48))
        assert recent.tasks == [*quiet.tasks, *expected.tasks]
        assert recent.events == [*quiet.events, *expected.events]
        assert (await kept(history, "g")).tasks == tasks_of("a", range(3)).tasks
        await put(history, tasks_of("a", range(48, 49), keep=2))
        tasks = (await kept(history)).tasks
        assert tasks == [*quiet.tasks, *tasks_of("a", range(47, 49)).tasks]


async def test_what_pages_show_is_bounded_and_goes_in_steps(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(history, *(tasks_of(f"a-{n}", range(1)) for n in range(60)))
    monkeypatch.setattr(recentrows, "MAX_RECORDS", 50)
    monkeypatch.setattr(recentrows, "PRUNE_STEP", 4)
    file = history._file
    assert file is not None
    sizes = []
    for number in range(60, 64):
        await put(history, tasks_of(f"a-{number}", range(1)))
        query = "SELECT count(*), min(id) FROM recent_tasks"
        sizes.append(await history._thread.run(_first, file, query))
    assert sizes == [(56, 6), (52, 11), (50, 14), (50, 15)]


def _first(file: historyfile.HistoryFile, query: str) -> Any:
    return file._database.execute(query).fetchone()


async def test_what_pages_show_waits_for_the_disk(history: History) -> None:
    await put(history, tasks_of("a", range(2)))
    await limit_pages(history, 1)
    big = tasks_of("b" * 60, range(20))
    for _ in range(40):
        await put(history, big, big)
    assert history.waiting
    await limit_pages(history, 1 << 30)
    await put(history, tasks_of("c", range(1)))
    assert not history.waiting
    found = [agent[0] for agent, _ in (await kept(history)).tasks]
    assert [found.count(name) for name in "abc"] == [2, 20, 1]


async def test_damaged_row_of_a_page_is_left_out(path: Path) -> None:
    async with History(path, wall=Wall()) as history:
        await put(history, tasks_of("a", range(3)))
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE recent_tasks SET ms = 'x' WHERE task_id = 't-1'")
        database.execute("UPDATE recent_events SET data = 'x' WHERE id = 2")
        database.commit()
    async with History(path, wall=Wall()) as history:
        assert [row[1] for _, row in (await kept(history)).tasks] == ["t-0", "t-2"]
