"""The journal on a real file: what it said is kept, it keeps, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import AlreadyExists, Closed, InvalidArgument, StorageError
from pilotfleet.fleet import journal as journals
from pilotfleet.fleet.actions import TaskResult
from pilotfleet.fleet.journal import Journal
from pilotfleet.fleet.taskfile import TaskLine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def result(
    task_id: str, status: str = "SUCCEEDED", *, attempts: int = 1, text: str = "done"
) -> TaskResult:
    return TaskResult(task_id, status, "w1", text, attempts, 1.5, "")


def lines(*task_ids: str) -> list[TaskLine]:
    return [TaskLine(task_id, f"text of {task_id}", ("w",)) for task_id in task_ids]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "journal.db"


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[Journal]:
    async with Journal(path) as journal:
        yield journal


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def size(path: Path) -> int:
    return path.stat().st_size


def write_text(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all " * 100)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8192:-4096] = b"\xff" * (len(content) - 12288)
    path.write_bytes(content)


async def names(journal: Journal) -> list[str]:
    return [f"{batch}/{line.id}" for batch, line in await journal.pending()]


async def test_tasks_and_results_outlive_the_program(path: Path) -> None:
    async with Journal(path) as journal:
        run_id = journal.run_id
        assert await journal.add("b", lines("1", "2", "3")) == 3
        assert await journal.finish("b", result("2", attempts=2))
    async with Journal(path) as journal:
        assert journal.run_id == run_id
        assert await journal.pending() == [("b", line) for line in lines("1", "3")]
        [(number, kept)] = await journal.results("b")
        assert kept == result("2", attempts=2)
        assert await journal.results("b", number) == []
        [info] = await journal.batches()
        assert (info.tasks, info.succeeded, info.failed, info.retried) == (3, 1, 0, 1)
    assert mode(path) == 0o600


async def test_each_file_has_a_run_of_its_own(tmp_path: Path) -> None:
    async with Journal(tmp_path / "1") as one, Journal(tmp_path / "2") as two:
        assert one.run_id != two.run_id
        assert len(one.run_id) == 32


async def test_pending_tasks_come_by_priority_then_age(journal: Journal) -> None:
    await journal.add("b", [TaskLine("1", ""), TaskLine("2", "", priority=-3)])
    await journal.add("c", [TaskLine("1", "", priority=9), TaskLine("2", "")])
    await journal.add("b", [TaskLine("3", "", priority=9)])
    assert await names(journal) == ["c/1", "b/3", "b/1", "c/2", "b/2"]


async def test_many_pending_tasks_are_read_by_the_page(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "PAGE", 7)
    tasks = [TaskLine(str(n), "", priority=n % 3) for n in range(50)]
    await journal.add("b", tasks)
    seen = []
    async with contextlib.aclosing(journal.iter_pending()) as rows:
        async for _, line in rows:
            seen.append(line)
            if len(seen) == 1:
                await journal.add("b", [TaskLine("later", "")])
    assert seen == sorted(tasks, key=lambda line: (-line.priority, int(line.id)))


async def test_the_same_lines_again_are_ignored_also_when_done(
    journal: Journal,
) -> None:
    assert await journal.add("b", lines("1", "2")) == 2
    await journal.finish("b", result("1"))
    assert await journal.add("b", lines("1", "2", "3", "3")) == 1
    assert await names(journal) == ["b/2", "b/3"]
    assert await journal.add("other", lines("1")) == 1


async def test_another_task_under_a_known_id_is_refused_with_all_of_its_call(
    journal: Journal,
) -> None:
    await journal.add("b", lines("1"))
    await journal.finish("b", result("1"))
    with pytest.raises(AlreadyExists, match="another task '1'") as caught:
        await journal.add("b", [*lines("2"), TaskLine("1", "other text")])
    assert caught.value.hint
    assert await names(journal) == []
    with pytest.raises(AlreadyExists):
        await journal.add("new", [TaskLine("1", "x"), TaskLine("1", "y")])
    assert [info.name for info in await journal.batches()] == ["b"]


async def test_bad_lines_are_refused(journal: Journal) -> None:
    with pytest.raises(InvalidArgument, match="priority 101"):
        await journal.add("b", [TaskLine("1", "", priority=101)])
    assert await journal.batches() == []


async def test_a_result_counts_once(journal: Journal) -> None:
    await journal.add("b", lines("1", "2"))
    assert await journal.finish("b", result("1"))
    assert not await journal.finish("b", result("1", "FAILED", text="again"))
    assert not await journal.finish("b", result("unknown"))
    assert not await journal.finish("unknown", result("1"))
    assert await journal.finish("b", result("2", "FAILED", attempts=5))
    assert [kept for _, kept in await journal.results("b")] == [
        result("1"),
        result("2", "FAILED", attempts=5),
    ]
    [info] = await journal.batches()
    assert (info.succeeded, info.failed, info.retried) == (1, 1, 1)


async def test_results_come_in_pages_and_none_is_missed(journal: Journal) -> None:
    ids = [str(number) for number in range(25)]
    await journal.add("b", lines(*ids))
    await journal.add("c", lines(*ids))
    for task_id in ids:
        await journal.finish("b", result(task_id))
        await journal.finish("c", result(task_id))
    seen: list[str] = []
    after = 0
    while page := await journal.results("b", after, 10):
        seen += [kept.id for _, kept in page]
        after = page[-1][0]
    assert seen == ids
    assert await journal.results("unknown") == []


async def test_a_page_of_long_results_is_bounded(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "MAX_PAGE_BYTES", 1_000)
    await journal.add("b", lines("1", "2", "3"))
    for task_id in ("1", "2", "3"):
        await journal.finish("b", result(task_id, text="é" * 400))
    [(number, kept)] = await journal.results("b")
    assert kept.id == "1"
    assert [kept.id for _, kept in await journal.results("b", number)] == ["2"]


async def test_deadlines_go_on_while_nobody_works(path: Path) -> None:
    wall = 1_000.0
    async with Journal(path, wall=lambda: wall) as journal:
        await journal.add("b", [TaskLine("1", "", deadline="1m"), TaskLine("2", "")])
    wall += 45.0
    async with Journal(path, wall=lambda: wall) as journal:
        (_, first), (_, second) = await journal.pending()
        assert first.deadline_s == 15.0
        assert second.deadline == ""
        wall += 3600.0
        [(_, first), _] = await journal.pending()
        assert first.deadline_s == journals.LEAST_DEADLINE_S, "it is over"
        assert await journal.add("b", [TaskLine("1", "", deadline="1m")]) == 0


async def test_forgetting_a_batch_frees_its_space_and_its_ids(path: Path) -> None:
    async with Journal(path) as journal:
        await journal.add("keep", lines("1"))
        await journal.add("b", [TaskLine(str(n), "x" * 10_000) for n in range(500)])
        for number in range(250):
            await journal.finish("b", result(str(number), text="y" * 10_000))
        await journal.forget("b")
        assert size(path) < 200_000
        assert [info.name for info in await journal.batches()] == ["keep"]
        assert await names(journal) == ["keep/1"]
        assert await journal.results("b") == []
        assert not await journal.finish("b", result("300"))
        assert await journal.add("b", [TaskLine("1", "other")]) == 1
        await journal.forget("unknown")


async def test_forgetting_goes_on_after_a_crash(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "FORGET_STEP", 3)
    async with Journal(path) as journal:
        await journal.add("b", lines(*"123456789"))
        await journal._do(lambda database: journals._forget(database, "b"))
        assert await journal.add("b", lines("new")) == 1
    async with Journal(path) as journal:
        count = await journal._do(
            lambda database: database.execute("SELECT count(*) FROM tasks").fetchone()
        )
        assert count == (1,)
        assert await names(journal) == ["b/new"]


async def test_calls_at_once_share_commits_and_fail_alone(journal: Journal) -> None:
    await journal.add("b", lines("1"))
    done = await asyncio.gather(
        *[journal.finish("b", result("1")) for _ in range(10)],
        *[journal.add("c", lines(str(n))) for n in range(10)],
        journal.add("b", [TaskLine("1", "other")]),
        return_exceptions=True,
    )
    assert done[:10] == [True] + [False] * 9
    assert done[10:20] == [1] * 10
    assert isinstance(done[20], AlreadyExists)


async def test_a_call_given_up_harms_no_other(journal: Journal) -> None:
    given_up = asyncio.ensure_future(journal.add("b", lines("1")))
    await asyncio.sleep(0)
    given_up.cancel()
    assert await journal.add("b", lines("1", "2")) in (1, 2)
    assert await names(journal) == ["b/1", "b/2"]


async def test_a_closed_journal_says_so(path: Path) -> None:
    async with Journal(path) as journal:
        last = asyncio.ensure_future(journal.add("b", lines("1")))
        await asyncio.sleep(0)
    assert await last == 1, "what was asked for is finished"
    with pytest.raises(Closed):
        await journal.batches()


async def test_two_programs_cannot_have_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.transport.database.BUSY_TIMEOUT_S", 0.05)
    async with Journal(path):
        with pytest.raises(StorageError, match="used by another program") as caught:
            await Journal(path).__aenter__()
    assert caught.value.hint is not None
    assert "stop that one" in caught.value.hint
    async with Journal(path):
        pass


async def test_a_file_that_is_no_journal_is_named_with_the_remedy(path: Path) -> None:
    write_text(path)
    with pytest.raises(StorageError, match=f"{path} is damaged") as caught:
        await Journal(path).__aenter__()
    assert caught.value.hint is not None
    assert "move it away" in caught.value.hint


async def test_a_damaged_journal_is_noticed_when_it_is_read(path: Path) -> None:
    async with Journal(path) as journal:
        await journal.add("b", [TaskLine(str(n), "x" * 3000) for n in range(200)])
    damage(path)
    with pytest.raises(StorageError, match="is damaged"):
        async with Journal(path) as journal:
            await journal.pending()


async def test_a_journal_of_a_newer_version_is_left_alone(path: Path) -> None:
    async with Journal(path) as journal:
        await journal._do(lambda database: database.execute("PRAGMA user_version = 99"))
    with pytest.raises(StorageError, match="newer version"):
        await Journal(path).__aenter__()


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot open"):
        await Journal(tmp_path / "file" / "journal.db").__aenter__()


KILLED = """
import asyncio, sys
from pathlib import Path
from pilotfleet.fleet.actions import TaskResult
from pilotfleet.fleet.journal import Journal
from pilotfleet.fleet.taskfile import TaskLine

async def main():
    async with Journal(Path(sys.argv[1])) as journal:
        for number in range(10**6):
            await journal.add("b", [TaskLine(f"{number}", "text")])
            done = TaskResult(f"{number}", "SUCCEEDED", "w", "", 1, 1.0)
            assert await journal.finish("b", done)
            print(number, flush=True)

asyncio.run(main())
"""


def kill_in_the_middle(path: Path) -> int:
    """Run the program, kill it after a while; return the last number it has said."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        said = [program.stdout.readline() for _ in range(50)]
        program.send_signal(signal.SIGKILL)
        # Its last line may be cut.
        said += [line for line in program.stdout if line.endswith("\n")]
    return int(said[-1])


async def test_what_was_answered_survives_sigkill(path: Path) -> None:
    last = await asyncio.to_thread(kill_in_the_middle, path)
    async with Journal(path) as journal:
        [info] = await journal.batches()
        assert info.succeeded > last
        seen = [kept.id for _, kept in await journal.results("b", 0, 10**6)]
        assert seen == [str(number) for number in range(info.succeeded)]
        assert info.tasks - info.succeeded == len(await journal.pending()) <= 1
