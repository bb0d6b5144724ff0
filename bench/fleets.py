"""A fleet under measurement: ``pilotctl fleet up`` and its control socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bench.processmemory import cpu_seconds, tree_of
from pilotfleet.fleet.control import FleetControl
from pilotfleet.fleet.taskfile import TaskLine
from tests.fleet.upsupport import fleet_world
from tests.support.programs import BIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from pilotfleet.fleet.control import BatchResult
    from tests.support.programs import World

ROOT = Path(__file__).parent.parent
"""Where workers import ``bench.work`` from."""
SAMPLE_S = 0.25
UP_S = 600.0
DO_S = 1_800.0
"""For a batch; after that it hangs."""

Tables: TypeAlias = "Mapping[str, Mapping[str, str | int | bool]]"


@dataclass(frozen=True, slots=True)
class Measured:
    """A batch that was done."""

    tasks: int
    wall_s: float
    """From the submission of the batch to the last result, at the client."""
    cpu_s: float
    """Of all programs of the fleet and the commands that they ran."""
    open_per_worker: float
    """Tasks that were given out, by the number of workers; median of samples."""
    retried: int
    """Tasks that took more than one attempt."""
    wrong: tuple[str, ...] = ()
    """What is wrong with results, each wrong, missing or second one."""

    @property
    def per_s(self) -> float:
        """Tasks per second."""
        return self.tasks / self.wall_s

    @property
    def cpu_ms(self) -> float:
        """Processor time for each task."""
        return 1000 * self.cpu_s / self.tasks


@dataclass(frozen=True, slots=True)
class Steady:
    """Tasks that were done with a fixed number of them open."""

    per_s: float
    latencies_ms: list[float]
    """From the submission of each task to its result, at the client."""


class BenchFleet:
    """A fleet that runs."""

    def __init__(self, home: Path, spec: Tables, *, start_s: float) -> None:
        self.home = home
        self.spec = spec
        self.start_s = start_s
        """From the command until it said that everything is up."""
        self.control = FleetControl(home)
        self._batches = 0

    @classmethod
    async def up(cls, net: World, spec: Tables) -> BenchFleet:
        """Start a fleet in the world's folder.

        Raises:
            RuntimeError: It did not come up.
        """
        home, path = net.home / "fleet", net.home / "spec.toml"
        path.write_text(_toml(spec))
        started = time.monotonic()
        async with asyncio.timeout(UP_S):
            process = await asyncio.create_subprocess_exec(
                *(BIN / "pilotctl", "--json", "fleet", "up", path, "--home", home),
                cwd=ROOT,
                env=net.environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            _, errors = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"the fleet did not start: {errors.decode()}")
        return cls(home, spec, start_s=time.monotonic() - started)

    async def pids(self) -> list[int]:
        """Return every process of the fleet."""
        return tree_of((await self.control.status())["pid"])

    async def do(self, count: int) -> Measured:
        """Have so many tasks done at once, and check every result.

        Raises:
            ValueError: One is not as it should be.
        """
        measured = await self.try_to_do(count)
        if measured.wrong:
            raise ValueError(measured.wrong[0])
        return measured

    async def try_to_do(self, count: int) -> Measured:
        """Have so many tasks done at once, and tell what is wrong with results."""
        self._batches += 1
        name = f"batch-{self._batches}"
        lines = [TaskLine(id=str(n), task=f"task {n}") for n in range(count)]
        pids = await self.pids()
        before, started = cpu_seconds(*pids), time.monotonic()
        samples = asyncio.create_task(self._sample())
        try:
            await self.control.submit(name, lines)
            results = await self._results(name)
            wall_s = time.monotonic() - started
        finally:
            samples.cancel()
            await asyncio.wait([samples])
        return Measured(
            tasks=count,
            wall_s=wall_s,
            cpu_s=cpu_seconds(*pids) - before,
            open_per_worker=_median(self._open),
            retried=sum(row.result.attempts > 1 for row in results),
            wrong=tuple(mistakes(lines, results)),
        )

    async def do_steadily(self, count: int, *, open_tasks: int) -> Steady:
        """Have tasks done, so many open at a time, and check every result.

        When one has its result in the client's hand, another one is submitted.
        """
        self._batches += 1
        load = _SteadyLoad(self.control, f"batch-{self._batches}", count)
        return await load.run(open_tasks)

    async def _results(self, batch: str) -> list[BatchResult]:
        """Return the results of a batch; of one that hangs, those that are there."""
        rows: list[BatchResult] = []
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(DO_S),
                aclosing(self.control.results(batch)) as results,
            ):
                async for row in results:
                    rows.append(row)  # noqa: PERF401 - kept if time runs out
        return rows

    async def _sample(self) -> None:
        """Look now and then at how many tasks the workers have."""
        self._open: list[float] = []
        while True:
            await asyncio.sleep(SAMPLE_S)
            work = (await self.control.status())["workers"]
            if work and work["open"] > work["waiting"]:
                given = work["open"] - work["waiting"]
                self._open.append(given / int(self.spec["workers"]["count"]))


class _SteadyLoad:
    """A batch that is submitted little by little."""

    def __init__(self, control: FleetControl, batch: str, count: int) -> None:
        self._control = control
        self._batch = batch
        self._lines = [TaskLine(str(n), f"task {n}") for n in range(count)]
        self._sent: list[float] = []
        """When each task was submitted."""
        self._rows: list[BatchResult] = []
        self._latencies_ms: list[float] = []
        self._news = asyncio.Event()

    async def run(self, open_tasks: int) -> Steady:
        started = time.perf_counter()
        await self._submit(open_tasks)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._feed(open_tasks))
            group.create_task(self._collect())
        wall_s = time.perf_counter() - started
        check(self._lines, self._rows)
        return Steady(len(self._lines) / wall_s, self._latencies_ms)

    async def _submit(self, count: int) -> None:
        at = len(self._sent)
        lines = self._lines[at : at + count]
        self._sent += [time.perf_counter()] * len(lines)
        await self._control.submit(self._batch, lines)

    async def _feed(self, open_tasks: int) -> None:
        while len(self._sent) < len(self._lines):
            await self._news.wait()
            self._news.clear()
            await self._submit(open_tasks - (len(self._sent) - len(self._rows)))

    async def _collect(self) -> None:
        while len(self._rows) < len(self._lines):
            # It ends whenever all that was submitted is done.
            after = self._rows[-1].seq if self._rows else 0
            found = self._control.results(self._batch, after=after)
            async with aclosing(found) as results:
                async for row in results:
                    sent = self._sent[int(row.result.id)]
                    self._latencies_ms.append(1000 * (time.perf_counter() - sent))
                    self._rows.append(row)
                    self._news.set()
            await asyncio.sleep(0)


@asynccontextmanager
async def running(spec: Tables) -> AsyncIterator[BenchFleet]:
    """Yield a fleet of its own; at the end it is stopped without a word."""
    with fleet_world() as net:
        yield await BenchFleet.up(net, spec)


def check(lines: Sequence[TaskLine], results: Sequence[BatchResult]) -> None:
    """Check that each task was done once, and as it should be.

    Raises:
        ValueError: One was not.
    """
    wrong = mistakes(lines, results)
    if wrong:
        raise ValueError(wrong[0])


def mistakes(lines: Sequence[TaskLine], results: Sequence[BatchResult]) -> list[str]:
    """Return what is wrong with the results of tasks that return their text."""
    wanted = Counter((line.id, line.task) for line in lines)
    found = Counter((row.result.id, row.result.result) for row in results)
    errors = {row.result.id: row.result.error for row in results}
    return [
        *(f"wrong or second result: {each}" for each in (found - wanted).elements()),
        *(
            f"no right result: {task_id}: {errors.get(task_id, 'none at all')}"
            for task_id, _ in (wanted - found).elements()
        ),
    ]


def percentile(values: Sequence[float], share: float) -> float:
    """Return what this share of the values is at most; 0 where there are none."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0


def _median(values: Sequence[float]) -> float:
    return percentile(values, 0.5)


def _toml(spec: Tables) -> str:
    lines: list[str] = []
    for name, table in spec.items():
        lines += [f"[{name}]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join([*lines, ""])


def spec_of(
    pattern: str, workers: int, *, work: Mapping[str, str], **fleet: bool
) -> dict[str, dict[str, Any]]:
    """Return the specification of a fleet whose other keys are as usual."""
    return {
        "fleet": {"pattern": pattern, **fleet},
        "workers": {"count": workers, **work},
    }
