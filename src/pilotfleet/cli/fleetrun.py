"""``pilotctl fleet run``: start a fleet, run its tasks, stop it.

A run that was killed is taken up again by the same command: the home keeps the
journal, the queues and a record of what the run was. The record is written when the
result file is empty, and goes when it is complete; while it is there, a result in the
file is one of this run's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.cli.fleethome import default_home, registry_tls, remember
from pilotfleet.cli.fleetprogress import RunProgress
from pilotfleet.cli.fleetresults import ResultFile, Tally, check_result_path
from pilotfleet.cli.fleetserve import log_to_file, stop_on_signals
from pilotfleet.errors import (
    InvalidArgument,
    InvalidState,
    PilotError,
    StorageError,
)
from pilotfleet.fleet.controller import Controller
from pilotfleet.fleet.spec import EMBEDDED, load_spec
from pilotfleet.fleet.taskfile import load_tasks
from pilotfleet.transport.files import replace_file

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.output import Output
    from pilotfleet.fleet.spec import FleetSpec
    from pilotfleet.fleet.taskfile import TaskLine

__all__ = ["run"]

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
RECORD: Final = "run.json"


class _Record(msgspec.Struct, frozen=True):
    """What an unfinished run was asked to do."""

    batch: str
    tasks: str
    """SHA-256 of the task file."""
    tasks_path: str
    results_path: str

    def is_of(self, other: _Record) -> bool:
        """Tell whether it is the same run; a task file may have moved."""
        return (self.tasks, self.results_path) == (other.tasks, other.results_path)


def run(words: Arguments, output: Output) -> int:
    """Run a batch of tasks on a fleet of its own."""
    tasks_path, results_path = Path(words.text("tasks")), Path(words.text("results"))
    if not words.positionals or not words.has("tasks") or not words.has("results"):
        raise InvalidArgument(
            "fleet run needs SPEC, --tasks and --results",
            hint="pilotctl fleet run --help",
        )
    spec = load_spec(Path(words.positional(0)))
    tasks = load_tasks(tasks_path)
    check_result_path(results_path, tasks_path)
    if not results_path.absolute().parent.is_dir():
        raise InvalidArgument(
            f"cannot write result file {results_path}: No such file or directory"
        )
    record = _record(tasks_path, results_path)
    home, is_own = _home(words, spec, results_path)
    with RunProgress(len(tasks), quiet=output.json) as progress:
        batch = _Run(spec, home, tasks, record=record, progress=progress)
        try:
            summary = asyncio.run(batch.run(fresh=words.has("fresh")))
        except asyncio.CancelledError:
            return EXIT_INTERRUPTED
        finally:
            if is_own and batch.is_settled:
                shutil.rmtree(home, ignore_errors=True)
    if output.json:
        output.line(summary)
    else:
        output.text(_describe(summary, str(results_path)))
    return EXIT_OK if summary["succeeded"] == summary["tasks"] else EXIT_FAILED


class _Run:
    """One batch of tasks on one fleet."""

    def __init__(
        self,
        spec: FleetSpec,
        home: Path,
        tasks: list[TaskLine],
        *,
        record: _Record,
        progress: RunProgress,
    ) -> None:
        self._spec = spec
        self._home = home
        self._tasks = tasks
        self._record = record
        self._progress = progress
        self._tally = Tally()
        self._resumed = 0
        self.is_settled = False
        """Whether the home holds nothing that another run could go on with."""

    async def run(self, *, fresh: bool) -> dict[str, Any]:
        """Start the fleet, run every task, stop the fleet, return the summary.

        Raises:
            PilotError: The fleet did not start, or cannot go on.
        """
        stop_on_signals()
        launched = time.monotonic()
        controller = Controller(
            self._spec, self._home, progress=self._progress.say, tls=registry_tls()
        )
        async with controller:
            log_to_file(self._home)
            remember(self._home)
            with await self._open(controller, fresh=fresh) as results:
                try:
                    await controller.start()
                except PilotError:
                    await self._give_up_untouched(controller)
                    raise
                started = time.monotonic()
                await self._work(controller, results)
                wall_s = time.monotonic() - started
                results.sync()
            await self._finish(controller)
            status = controller.status()
            self._progress.say("stopping")
        return self._summary(status, start_s=started - launched, wall_s=wall_s)

    async def _open(self, controller: Controller, *, fresh: bool) -> ResultFile:
        """Begin the batch, or go on with it."""
        path, found = Path(self._record.results_path), self._found()
        batches = controller.batches
        if found is not None and not fresh and not found.is_of(self._record):
            raise InvalidState(
                f"{self._home} holds an unfinished run of {found.tasks_path} with"
                f" results in {found.results_path}",
                hint="give that command again to finish it, or --fresh to drop it",
            )
        go_on = found is not None and not fresh
        if not go_on:
            for name in {self._record.batch, found.batch if found else ""}:
                await batches.drop(name)
        results = ResultFile(path, go_on=go_on)
        try:
            self._write(self._record)
            await batches.add(self._record.batch, self._tasks)
        except BaseException:
            results.__exit__(None, None, None)
            raise
        batch = batches.find(self._record.batch)
        self._resumed = batch.tasks - batch.open
        if go_on:
            self._progress.say(f"resuming: {self._resumed} of {batch.tasks} tasks done")
        return results

    async def _work(self, controller: Controller, results: ResultFile) -> None:
        """Write results until the batch is done; then have the fleet stop."""
        self._progress.say("working")
        serving = asyncio.ensure_future(controller.run())
        collecting = asyncio.ensure_future(self._collect(controller, results))
        try:
            await asyncio.wait(
                [serving, collecting], return_when=asyncio.FIRST_COMPLETED
            )
            if not collecting.done():
                serving.result()
                raise InvalidState(
                    "the fleet was stopped before its tasks were done",
                    hint="the same command goes on with them",
                )
            collecting.result()
            controller.stop()
            await serving
        finally:
            for task in (serving, collecting):
                task.cancel()
            await asyncio.gather(serving, collecting, return_exceptions=True)

    async def _collect(self, controller: Controller, results: ResultFile) -> None:
        found = controller.batches.results(self._record.batch, follow=True)
        async with contextlib.aclosing(found) as stream:
            async for _, result in stream:
                results.write(result)
                self._tally.add(result)
                self._progress.advance(succeeded=result.status == "SUCCEEDED")

    async def _finish(self, controller: Controller) -> None:
        """Forget the batch: all of it is in the result file."""
        # First the record: without it, what is left of the batch is not gone on with.
        (self._home / RECORD).unlink(missing_ok=True)
        await controller.batches.drop(self._record.batch)
        self.is_settled = True

    async def _give_up_untouched(self, controller: Controller) -> None:
        """Leave nothing to go on with when nothing has begun."""
        if not self._resumed:
            await self._finish(controller)

    def _found(self) -> _Record | None:
        try:
            data = (self._home / RECORD).read_bytes()
            return msgspec.json.decode(data, type=_Record)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _write(self, record: _Record) -> None:
        try:
            replace_file(self._home / RECORD, msgspec.json.encode(record) + b"\n")
        except OSError as error:
            raise StorageError(
                f"cannot write {self._home / RECORD}: {error.strerror}"
            ) from None

    def _summary(
        self, status: dict[str, Any], *, start_s: float, wall_s: float
    ) -> dict[str, Any]:
        done_now = self._tally.done - self._resumed
        return {
            "status": "ok",
            "agents": self._spec.workers.count,
            "agents_used": len(self._tally.agents),
            **self._tally.summary(len(self._tasks)),
            "resumed": self._resumed,
            "restarts": sum(member["restarts"] for member in status["members"]),
            "reparented": status["workers"].get("reparented", 0),
            "health_events": status["health"]["events"],
            "tasks_per_second": round(done_now / wall_s, 1),
            "start_s": round(start_s, 2),
            "wall_s": round(wall_s, 2),
        }


def _record(tasks: Path, results: Path) -> _Record:
    digest = hashlib.sha256(tasks.read_bytes()).hexdigest()
    return _Record(
        batch="run",
        tasks=digest,
        tasks_path=str(tasks.absolute()),
        results_path=str(results.absolute()),
    )


def _home(words: Arguments, spec: FleetSpec, results: Path) -> tuple[Path, bool]:
    """Return where the fleet lives, and whether that is for this run alone.

    At a rendezvous that runs on, names and the network belong to identities, so
    the next run has to find them again.
    """
    if words.has("home"):
        return Path(words.text("home")).absolute(), False
    if spec.fleet.rendezvous != EMBEDDED:
        return default_home(spec.fleet.name), False
    digest = hashlib.sha256(str(results.absolute()).encode()).hexdigest()
    return default_home(f"{spec.fleet.name}-{digest[:8]}"), True


def _describe(summary: dict[str, Any], results: str) -> str:
    """Return the summary for a person."""
    done = f"{summary['succeeded']} succeeded, {summary['failed']} failed"
    if summary["resumed"]:
        done += f" ({summary['resumed']} in an earlier run)"
    rows = [
        ("tasks", done),
        ("retried", f"{summary['retried']}, {summary['attempts']} attempts in all"),
        ("workers", f"{summary['agents_used']} of {summary['agents']} worked"),
        ("healed", f"{summary['restarts']} members restarted"),
        ("health", f"{summary['health_events']} events"),
        ("speed", f"{summary['tasks_per_second']:g} tasks/s"),
        (
            "per task",
            f"{summary['task_p50_ms']:g} ms median, {summary['task_p99_ms']:g} ms p99",
        ),
        ("time", f"{summary['start_s']:g} s start, {summary['wall_s']:g} s work"),
        ("results", results),
    ]
    return "\n".join(f"{name:<10}{value}" for name, value in rows)
