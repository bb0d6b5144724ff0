"""``pilotctl fleet run``: start a fleet, run its tasks, stop it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.cli.arguments import parse_arguments
from pilotfleet.cli.fleetprogress import RunProgress
from pilotfleet.cli.output import Output
from pilotfleet.cli.settings import SYSTEM_TRUST, Settings
from pilotfleet.client.daemon import DaemonClient
from pilotfleet.errors import (
    InvalidArgument,
    NotSupported,
    PilotError,
    StorageError,
    Unavailable,
)
from pilotfleet.fleet.healthwatch import HealthWatch
from pilotfleet.fleet.launcher import Launcher
from pilotfleet.fleet.orchestrator import Orchestrator, OrchestratorConfig
from pilotfleet.fleet.retry import RetryPolicy
from pilotfleet.fleet.schedule import ScheduleConfig
from pilotfleet.fleet.spec import EMBEDDED, load_spec
from pilotfleet.fleet.taskfile import load_tasks
from pilotfleet.transport.tls import TlsConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from typing import BinaryIO

    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.fleet.schedule import TaskResult
    from pilotfleet.fleet.spec import FleetSpec
    from pilotfleet.fleet.taskfile import TaskLine

__all__ = ["main"]

USAGE: Final = (
    "usage: pilotctl fleet run SPEC --tasks FILE --results FILE [--home DIR] [--json]"
)
LATER: Final = frozenset(
    ["up", "status", "scale", "submit", "top", "logs", "rollout", "down", "systemd"]
)
EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
EXTRA_OPEN: Final = 1
"""Tasks given to a worker beyond those it runs, so that it never waits for one."""
LAST_WORDS_S: Final = 2.0
"""How long a program whose connection was lost may take to be seen to have ended."""
LOST_ATTEMPTS: Final = RetryPolicy().max_attempts


def main(arguments: list[str], json: bool) -> int:
    """Run a fleet command and return the exit code.

    Raises:
        PilotError: What is wrong, for ``pilotctl`` to print.
    """
    output = Output(json=json)
    words = parse_arguments(arguments)
    command = words.positional(0)
    if command in LATER:
        raise NotSupported(f"fleet {command} is not implemented yet", hint=USAGE)
    if words.has("help") or words.has("h"):
        output.text(USAGE)
        return EXIT_OK
    if command != "run":
        raise InvalidArgument(
            f"unknown fleet command: {command or '(none)'}", hint=USAGE
        )
    return _run(words, output)


def _run(words: Arguments, output: Output) -> int:
    if len(words.positionals) != 2 or not (
        words.text("tasks") and words.text("results")
    ):
        raise InvalidArgument("fleet run needs SPEC, --tasks and --results", hint=USAGE)
    spec = load_spec(Path(words.positional(1)))
    tasks = load_tasks(Path(words.text("tasks")))
    with contextlib.ExitStack() as stack:
        _check_results(words)
        results = stack.enter_context(_open_results(Path(words.text("results"))))
        home = _home(words, spec) or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="pilot-"))
        )
        progress = stack.enter_context(RunProgress(len(tasks), quiet=output.json))
        run = _Run(spec, tasks, home, results=results, progress=progress)
        try:
            summary = asyncio.run(_until_signal(run))
        except asyncio.CancelledError:
            return EXIT_INTERRUPTED
        progress.close()
    if output.json:
        output.line(summary)
    else:
        output.text(_describe(summary, words.text("results")))
    return EXIT_OK if summary["succeeded"] == summary["tasks"] else EXIT_FAILED


async def _until_signal(run: _Run) -> dict[str, Any]:
    """Run; a SIGTERM stops the fleet as an interrupt does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run.run()


class _Run:
    """One batch of tasks on one fleet."""

    def __init__(
        self,
        spec: FleetSpec,
        tasks: Sequence[TaskLine],
        home: Path,
        *,
        results: BinaryIO,
        progress: RunProgress,
    ) -> None:
        self._spec = spec
        self._tasks = tasks
        self._home = home
        self._results = results
        self._progress = progress
        self._health = HealthWatch()
        self._succeeded = 0
        self._retried = 0
        self._durations_ms: list[float] = []
        self._workers: set[str] = set()

    async def run(self) -> dict[str, Any]:
        """Start the fleet, run every task, stop the fleet, return the summary.

        Raises:
            PilotError: The fleet did not start, or a part of it ended.
        """
        launched = time.monotonic()
        async with Launcher(
            self._spec,
            self._home,
            progress=self._progress.say,
            tls=_registry_tls(),
        ) as fleet:
            started = time.monotonic()
            await self._work(fleet)
            wall_s = time.monotonic() - started
            self._progress.say("stopping")
        return self._summary(start_s=started - launched, wall_s=wall_s)

    async def _work(self, fleet: Launcher) -> None:
        """Run the tasks; stop at once when a program of the fleet ends."""
        work = asyncio.ensure_future(self._orchestrate(fleet))
        watch = asyncio.ensure_future(fleet.watch())
        try:
            await asyncio.wait([work, watch], return_when=asyncio.FIRST_COMPLETED)
            if work.done() and isinstance(work.exception(), Unavailable):
                # A program that ends takes its connections with it, and its own last
                # words say more than a lost connection.
                await asyncio.wait([watch], timeout=LAST_WORDS_S)
            for task in (watch, work):
                if task.done():
                    task.result()
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def _orchestrate(self, fleet: Launcher) -> None:
        async with (
            await DaemonClient.connect(fleet.hub_socket) as events,
            await DaemonClient.connect(fleet.hub_socket) as client,
        ):
            health = asyncio.ensure_future(self._health.run(events))
            orchestrator = Orchestrator(client, self._config())
            self._progress.say("working")
            run = orchestrator.run(_stream(self._tasks))
            try:
                async with contextlib.aclosing(run) as results:
                    async for result in results:
                        self._take(result)
            finally:
                health.cancel()
                # Health is for people; it never decides about the run.
                with contextlib.suppress(asyncio.CancelledError, PilotError):
                    await health

    def _config(self) -> OrchestratorConfig:
        workers = self._spec.workers
        return OrchestratorConfig(
            tags=workers.tags,
            schedule=ScheduleConfig(
                concurrency=workers.concurrency + EXTRA_OPEN,
                policy=RetryPolicy(
                    max_attempts=LOST_ATTEMPTS + workers.retry_failed,
                    retry_failed=workers.retry_failed,
                ),
            ),
        )

    def _take(self, result: TaskResult) -> None:
        self._succeeded += result.status == "SUCCEEDED"
        self._retried += result.attempts > 1
        self._durations_ms.append(result.wall_ms)
        if result.agent:
            self._workers.add(result.agent)
        line = {
            "id": result.id,
            "status": result.status,
            "agent": result.agent,
            "result": result.result or result.error,
            "attempts": result.attempts,
            "wall_ms": round(result.wall_ms, 1),
        }
        _write(self._results, msgspec.json.encode(line) + b"\n")
        self._progress.advance(succeeded=result.status == "SUCCEEDED")

    def _summary(self, *, start_s: float, wall_s: float) -> dict[str, Any]:
        done = len(self._durations_ms)
        return {
            "status": "ok",
            "agents": self._spec.workers.count,
            "agents_used": len(self._workers),
            "tasks": len(self._tasks),
            "succeeded": self._succeeded,
            "failed": done - self._succeeded,
            "retried": self._retried,
            "health_events": self._health.events,
            "tasks_per_second": round(done / wall_s, 1),
            "task_p50_ms": round(_percentile(self._durations_ms, 0.50), 1),
            "task_p99_ms": round(_percentile(self._durations_ms, 0.99), 1),
            "start_s": round(start_s, 2),
            "wall_s": round(wall_s, 2),
        }


async def _stream(tasks: Sequence[TaskLine]) -> AsyncIterator[TaskLine]:
    for task in tasks:
        yield task


def _open_results(path: Path) -> BinaryIO:
    try:
        # Unbuffered: a result that was counted is in the file.
        return open(path, "wb", buffering=0)
    except OSError as error:
        raise InvalidArgument(
            f"cannot write result file {path}: {error.strerror}"
        ) from None


def _write(results: BinaryIO, line: bytes) -> None:
    """Write a whole line; a disk that is nearly full takes a part of it first."""
    rest = memoryview(line)
    try:
        while rest:
            rest = rest[results.write(rest) :]
    except OSError as error:
        raise StorageError(
            f"cannot write result file {results.name}: {error.strerror}",
            hint="the tasks whose results it holds are done; run the others again",
        ) from None


def _check_results(words: Arguments) -> None:
    """Refuse to write results over the tasks they are of."""
    tasks, results = Path(words.text("tasks")), Path(words.text("results"))
    if results.exists() and results.samefile(tasks):
        raise InvalidArgument(f"{results} is the task file; results need their own")


def _registry_tls() -> TlsConfig | None:
    """Return how the user's other programs check a registry that runs already."""
    trust = Settings().registry_trust()
    if trust is None:
        return None
    return TlsConfig(fingerprint=None if trust == SYSTEM_TRUST else trust)


def _home(words: Arguments, spec: FleetSpec) -> Path | None:
    """Return where the fleet's files stay; None for nowhere.

    At a rendezvous that runs on, names and the network belong to identities, so
    the next run has to find them again.
    """
    if words.has("home"):
        return Path(words.text("home")).absolute()
    if spec.fleet.rendezvous == EMBEDDED:
        return None
    return Path(Settings().directory).absolute() / "fleets" / spec.fleet.name


def _percentile(values: Sequence[float], share: float) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0


def _describe(summary: dict[str, Any], results: str) -> str:
    """Return the summary for a person."""
    rows = [
        ("tasks", f"{summary['succeeded']} succeeded, {summary['failed']} failed"),
        ("retried", f"{summary['retried']}"),
        ("workers", f"{summary['agents_used']} of {summary['agents']} worked"),
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], json=False))
