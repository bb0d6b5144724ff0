"""Tasks to a pattern and results to the disk, over a real journal."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import ConnectionFailed, InvalidArgument
from pilotfleet.fleet import work as module
from pilotfleet.fleet.batches import Batches
from pilotfleet.fleet.journal import Journal
from pilotfleet.fleet.schedule import TaskResult
from pilotfleet.fleet.taskfile import TaskLine
from pilotfleet.fleet.work import Work

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from pilotfleet.fleet.patterns import PatternRun


class Daemon:
    """What patterns are opened at: goes away after so many results each time."""

    def __init__(self, journal: Journal, batches: Batches) -> None:
        self.journal = journal
        self.batches = batches
        self.lives: list[int] = []
        self.opened = 0
        self.runs: list[str] = []
        self.taken: list[str] = []
        self.lost: list[str] = []
        self.refusal: Exception | None = None

    async def open(self) -> AbstractAsyncContextManager[PatternRun]:
        self.opened += 1
        if self.refusal is not None:
            raise self.refusal
        return self._pattern()

    @asynccontextmanager
    async def _pattern(self) -> AsyncIterator[PatternRun]:
        yield Pattern(self, self.lives.pop(0) if self.lives else 1_000_000)


class Pattern:
    """Does each task at once, until its daemon goes away."""

    def __init__(self, daemon: Daemon, life: int) -> None:
        self._daemon = daemon
        self._life = life

    async def run(
        self, tasks: AsyncIterable[TaskLine]
    ) -> AsyncGenerator[TaskResult, None]:
        async for line in tasks:
            self._daemon.runs.append(line.id)
            yield TaskResult(line.id, "SUCCEEDED", "w", line.task, 1, 1.0)
            self._life -= 1
            if not self._life:
                raise ConnectionFailed("the daemon closed the connection")

    def taken(self, task_id: str) -> None:
        self._daemon.taken.append(task_id)

    def status(self) -> dict[str, Any]:
        return {"workers": 1, "clusters": [{"name": "c1"}]}

    def lost(self, name: str) -> None:
        self._daemon.lost.append(name)


@pytest.fixture
async def daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Daemon]:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)
    async with Journal(tmp_path / "journal.db") as journal:
        batches = Batches(journal)
        await batches.load()
        yield Daemon(journal, batches)


def lines(count: int) -> list[TaskLine]:
    return [TaskLine(f"t{number}", f"text {number}") for number in range(count)]


async def results_of(daemon: Daemon, name: str) -> list[str]:
    found = daemon.batches.results(name, follow=True)
    return [result.id async for _, result in found]


async def test_every_task_has_one_result_while_daemons_come_and_go(
    daemon: Daemon,
) -> None:
    daemon.lives = [1, 7, 1, 40]
    work = Work(daemon.batches, daemon.open)
    running = asyncio.ensure_future(work.run())
    await daemon.batches.add("a", lines(100))
    results = await results_of(daemon, "a")
    assert sorted(results) == sorted(f"t{number}" for number in range(100))
    work.end()
    await running
    assert daemon.opened == 5
    assert len(set(daemon.runs)) == 100
    assert work.status()["tasks_per_second"] > 0


async def test_every_result_on_the_disk_is_taken(daemon: Daemon) -> None:
    work = Work(daemon.batches, daemon.open)
    running = asyncio.ensure_future(work.run())
    await daemon.batches.add("a", lines(300))
    await results_of(daemon, "a")
    work.end()
    await running
    assert sorted(daemon.taken) == sorted(daemon.runs)
    assert len(await daemon.journal.results("a")) == 300


async def test_trouble_is_told_while_it_lasts(daemon: Daemon) -> None:
    daemon.refusal = ConnectionFailed("no daemon yet")
    work = Work(daemon.batches, daemon.open)
    running = asyncio.ensure_future(work.run())
    await daemon.batches.add("a", lines(1))
    while not work.status()["trouble"]:
        await asyncio.wait([running], timeout=0.001)
    assert work.status()["trouble"] == "no daemon yet"
    daemon.refusal = None
    assert await results_of(daemon, "a") == ["t0"]
    assert work.status()["trouble"] == ""
    assert work.status()["clusters"] == [{"name": "c1"}]
    work.lost(["worker-1", "worker-2"])
    assert daemon.lost == ["worker-1", "worker-2"]
    work.end()
    await running


async def test_renewed_pattern_goes_on_with_the_rest(daemon: Daemon) -> None:
    work = Work(daemon.batches, daemon.open)
    running = asyncio.ensure_future(work.run())
    await daemon.batches.add("a", lines(3))
    await results_of(daemon, "a")
    work.renew()
    await daemon.batches.add("b", lines(3))
    assert await results_of(daemon, "b") == ["t0", "t1", "t2"]
    assert daemon.opened == 2
    work.end()
    await running
    assert len(daemon.runs) == 6


async def test_what_trying_again_does_not_change_ends_the_work(daemon: Daemon) -> None:
    daemon.refusal = InvalidArgument("nobody can submit")
    with pytest.raises(InvalidArgument):
        await Work(daemon.batches, daemon.open).run()
    assert daemon.opened == 1
