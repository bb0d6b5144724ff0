"""What a fleet keeps of its tasks, over a real journal."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import AlreadyExists, Busy, Closed, InvalidState, NotFound
from pilotfleet.fleet import batches as module
from pilotfleet.fleet.batches import Batches
from pilotfleet.fleet.journal import Journal
from pilotfleet.fleet.schedule import TaskResult
from pilotfleet.fleet.taskfile import TaskLine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    async with Journal(tmp_path / "journal.db") as opened:
        yield opened


@pytest.fixture
async def batches(journal: Journal) -> Batches:
    made = Batches(journal)
    await made.load()
    return made


def lines(*names: str, priority: int = 0) -> list[TaskLine]:
    return [TaskLine(name, f"text {name}", priority=priority) for name in names]


def done(line: TaskLine, *, status: str = "SUCCEEDED", attempts: int = 1) -> TaskResult:
    return TaskResult(line.id, status, "w", "r", attempts, 1.0)


async def own_names(batches: Batches, count: int) -> list[str]:
    """Return the ids, as their batch knows them, of the next lines of a new reader."""
    async with aclosing(batches.lines()) as stream:
        return [(await anext(stream)).id.split("/")[-1] for _ in range(count)]


async def results_of(batches: Batches, name: str) -> list[str]:
    return [result.id async for _, result in batches.results(name)]


async def test_more_urgent_tasks_come_first_also_when_they_come_later(
    batches: Batches,
) -> None:
    await batches.add("a", lines("1", "2", "3"))
    async with aclosing(batches.lines()) as stream:
        first = await anext(stream)
        await batches.add("b", lines("urgent", priority=5))
        names = [first.id, *[(await anext(stream)).id for _ in range(3)]]
    assert [name.split("/")[-1] for name in names] == ["1", "urgent", "2", "3"]


async def test_task_is_given_once_whatever_ends_meanwhile(batches: Batches) -> None:
    await batches.add("a", lines(*"12345"))
    async with aclosing(batches.lines()) as stream:
        given = [await anext(stream) for _ in range(3)]
        await batches.add("a", lines("6"))
        given.append(await anext(stream))
        # It was given before the look that goes on now.
        await batches.finish(done(given[0]))
        given += [await anext(stream) for _ in range(2)]
        for line in given:
            await batches.finish(done(line))
            batches.returned(line.id)
        batches.close()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert sorted(line.id.split("/")[-1] for line in given) == list("123456")


async def test_new_reader_is_given_what_has_no_result(batches: Batches) -> None:
    await batches.add("a", lines("1", "2", "3"))
    async with aclosing(batches.lines()) as stream:
        first = await anext(stream)
        await anext(stream)
        await batches.finish(done(first))
    assert await own_names(batches, 2) == ["2", "3"]


async def test_reader_waits_for_more_until_the_end(batches: Batches) -> None:
    stream = batches.lines()
    waiting = asyncio.ensure_future(anext(stream))
    await batches.add("a", lines("1"))
    first = await waiting
    assert first.id.endswith("/1")
    waiting = asyncio.ensure_future(anext(stream))
    batches.close()
    ended, _ = await asyncio.wait([waiting], timeout=0.01)
    assert not ended
    batches.returned(first.id)
    with pytest.raises(StopAsyncIteration):
        await waiting


async def test_result_counts_once_under_its_own_id(batches: Batches) -> None:
    await batches.add("a", lines("x/1"))
    async with aclosing(batches.lines()) as stream:
        line = await anext(stream)
    kept = await batches.finish(done(line, attempts=2))
    assert kept is not None
    assert kept.id == "x/1"
    assert await batches.finish(done(line)) is None
    batch = batches.find("a")
    assert (batch.tasks, batch.open, batch.retried) == (1, 0, 1)


async def test_batch_made_again_has_other_tasks(batches: Batches) -> None:
    await batches.add("a", lines("1"))
    async with aclosing(batches.lines()) as stream:
        old = await anext(stream)
    await batches.finish(done(old))
    await batches.forget("a")
    await batches.add("a", lines("1"))
    async with aclosing(batches.lines()) as stream:
        new = await anext(stream)
    assert new.id != old.id
    assert await batches.finish(done(old)) is None
    assert batches.find("a").open == 1


async def test_counts_are_those_of_the_disk_after_a_restart(
    batches: Batches, journal: Journal
) -> None:
    await batches.add("a", lines("1", "2", "3"))
    async with aclosing(batches.lines()) as stream:
        await batches.finish(done(await anext(stream)))
        await batches.finish(done(await anext(stream), status="FAILED"))
    again = Batches(journal)
    await again.load()
    assert again.status() == batches.status()
    assert await own_names(again, 1) == ["3"]


async def test_adds_at_the_same_time_are_counted_once(batches: Batches) -> None:
    pieces = [lines(*(f"{piece}-{n}" for n in range(10))) for piece in range(5)]
    added = await asyncio.gather(*(batches.add("a", piece) for piece in pieces))
    assert added == [10] * 5
    assert batches.find("a").tasks == 50
    assert await batches.add("a", pieces[0]) == 0
    with pytest.raises(AlreadyExists):
        await batches.add("a", [TaskLine("0-0", "another text")])
    assert batches.find("a").tasks == 50


async def test_follower_is_woken_by_each_result(batches: Batches) -> None:
    await batches.add("a", lines("1", "2"))
    async with (
        aclosing(batches.lines()) as stream,
        aclosing(batches.results("a", follow=True)) as results,
    ):
        for name in "12":
            waiting = asyncio.ensure_future(anext(results))
            await asyncio.sleep(0)
            await batches.finish(done(await anext(stream)))
            assert (await waiting)[1].id == name
        with pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_results_without_follow_end_with_what_there_is(batches: Batches) -> None:
    await batches.add("a", lines("1", "2"))
    async with aclosing(batches.lines()) as stream:
        await batches.finish(done(await anext(stream)))
    assert await results_of(batches, "a") == ["1"]
    with pytest.raises(NotFound):
        await results_of(batches, "b")


async def test_follower_hears_of_the_end_of_the_fleet(batches: Batches) -> None:
    await batches.add("a", lines("1"))
    waiting = asyncio.ensure_future(anext(batches.results("a", follow=True)))
    for _ in range(1_000):
        # Again, until it waits: it looks at the disk first.
        await batches.end()
        await asyncio.wait([waiting], timeout=0.001)
    with pytest.raises(Closed):
        await waiting


async def test_only_a_finished_batch_may_be_forgotten(batches: Batches) -> None:
    await batches.add("a", lines("1"))
    with pytest.raises(InvalidState, match="1 open"):
        await batches.forget("a")
    with pytest.raises(NotFound):
        await batches.forget("b")
    await batches.drop("a")
    assert batches.status() == []


async def test_batches_and_tasks_are_bounded(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BATCHES", 2)
    monkeypatch.setattr(module, "MAX_OPEN", 3)
    await batches.add("a", lines("1"))
    async with aclosing(batches.lines()) as stream:
        await batches.finish(done(await anext(stream)))
    await batches.add("b", lines("1"))
    await batches.add("c", lines("1"))
    assert [row["name"] for row in batches.status()] == ["b", "c"]
    with pytest.raises(Busy, match="unfinished batches"):
        await batches.add("d", lines("1"))
    with pytest.raises(Busy, match="2 tasks are more than the 1"):
        await batches.add("c", lines("2", "3"))
    # What is known already takes no room: a run may be gone on with.
    assert await batches.add("c", lines("1", "2")) == 1
    assert await batches.add("c", lines("1", "2")) == 0


async def test_tasks_of_a_client_that_left_are_counted_and_given_out(
    batches: Batches,
) -> None:
    leaving = asyncio.ensure_future(batches.add("a", lines("1")))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    async with aclosing(batches.lines()) as stream:
        await batches.finish(done(await anext(stream)))
    assert await results_of(batches, "a") == ["1"]
    assert [(row["tasks"], row["open"]) for row in batches.status()] == [(1, 0)]
