"""``pilotctl fleet submit``: give tasks to a fleet that runs."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.fleethome import select_home
from pilotfleet.cli.fleetprogress import RunProgress
from pilotfleet.cli.fleetresults import (
    ResultFile,
    Tally,
    check_result_path,
    result_line,
)
from pilotfleet.errors import InvalidArgument
from pilotfleet.fleet.control import FleetControl, check_batch
from pilotfleet.fleet.taskfile import TaskLine, load_tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.output import Output
    from pilotfleet.fleet.schedule import TaskResult

__all__ = ["submit"]

EXIT_FAILED: Final = 1
STEM_LENGTH: Final = 40


def submit(words: Arguments, output: Output) -> int:
    """Give tasks to a fleet; with ``--wait`` or ``--results`` wait for their ends."""
    lines, name = _single(words) if words.has("task") else _file(words)
    name = check_batch(words.text("batch", name))
    control = FleetControl(select_home(words, words.positional(0)))
    results = Path(words.text("results")) if words.has("results") else None
    if results is not None:
        check_result_path(results, Path(words.text("tasks")))
    waits = words.has("wait") or results is not None
    with contextlib.ExitStack() as stack:
        # Written anew: the fleet has kept every result of the batch.
        file = (
            stack.enter_context(ResultFile(results, go_on=False)) if results else None
        )
        added = asyncio.run(control.submit(name, lines))
        if not waits:
            data = {"batch": name, "tasks": len(lines), "added": added}
            output.result(data, f"batch {name}: {added} of {len(lines)} tasks are new")
            return 0
        progress = stack.enter_context(RunProgress(len(lines), quiet=output.json))
        wait = _Wait(control, name, {line.id for line in lines}, file, progress)
        summary = asyncio.run(wait.run())
    last = wait.last if words.has("task") else None
    if last is not None:
        summary["result"] = result_line(last)
    output.result(summary, _describe(summary, last))
    return 0 if summary["succeeded"] == summary["tasks"] else EXIT_FAILED


class _Wait:
    """Waits for the results of some tasks of a batch."""

    def __init__(
        self,
        control: FleetControl,
        batch: str,
        wanted: set[str],
        file: ResultFile | None,
        progress: RunProgress,
    ) -> None:
        self._control = control
        self._batch = batch
        self._wanted = wanted
        self._file = file
        self._progress = progress
        self.last: TaskResult | None = None

    async def run(self) -> dict[str, Any]:
        """Take results until all that are wanted have come; return their sums."""
        tally, count, started = Tally(), len(self._wanted), time.monotonic()
        self._progress.say("waiting")
        async with contextlib.aclosing(self._control.results(self._batch)) as results:
            async for _, result in _numbered(results):
                if result.id not in self._wanted:
                    continue
                self._wanted.discard(result.id)
                self.last = result
                tally.add(result)
                if self._file is not None:
                    self._file.write(result)
                self._progress.advance(succeeded=result.status == "SUCCEEDED")
                if not self._wanted:
                    break
        wall_s = round(time.monotonic() - started, 2)
        return {"batch": self._batch, **tally.summary(count), "wall_s": wall_s}


async def _numbered(results: Any) -> Any:
    async for item in results:
        yield item.seq, item.result


def _file(words: Arguments) -> tuple[Sequence[TaskLine], str]:
    """Return the tasks of a file, and a batch name that the same file has again.

    So a submit that is repeated, because nobody knows how it ended, changes nothing.
    """
    if not words.has("tasks"):
        raise InvalidArgument(
            "fleet submit needs --tasks FILE or --task TEXT",
            hint="pilotctl fleet submit --help",
        )
    for flag in ("tag", "priority", "deadline"):
        if words.has(flag):
            raise InvalidArgument(f"--{flag} goes with --task; a task file says it")
    path = Path(words.text("tasks"))
    lines = load_tasks(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem)[:STEM_LENGTH].lstrip("._-")
    return lines, f"{stem or 'tasks'}-{digest}"


def _single(words: Arguments) -> tuple[Sequence[TaskLine], str]:
    if words.has("tasks"):
        raise InvalidArgument("--tasks and --task do not go together")
    name = f"task-{secrets.token_hex(4)}"
    line = TaskLine(
        id=name,
        task=words.text("task"),
        tags=tuple(words.texts("tag")),
        priority=words.integer("priority", 0),
        deadline=words.text("deadline"),
    )
    line.check()
    return [line], name


def _describe(summary: dict[str, Any], last: TaskResult | None) -> str:
    if last is not None:
        return (last.result or last.error).rstrip("\n")
    return (
        f"batch {summary['batch']}: {summary['succeeded']} succeeded,"
        f" {summary['failed']} failed, {summary['retried']} retried"
        f" in {summary['wall_s']:g} s"
    )
