"""Run a command for a task: its text on stdin, the result on stdout.

In its environment, ``PILOT_AGENT`` and ``PILOT_TASK_ID`` tell whose task it is; with
the first, a ``pilotctl`` that it calls acts as that agent. The worker's secrets are not
in it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from pilotfleet.fleet.exitstatus import describe_exit
from pilotfleet.fleet.worker.child import Child
from pilotfleet.fleet.worker.environment import task_environment
from pilotfleet.fleet.worker.job import MAX_RESULT_BYTES, Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from pilotfleet.fleet.worker.job import Job

__all__ = ["CommandRunner"]

STDERR_TAIL_BYTES: Final = 2_000


class CommandRunner:
    """Runs one command line for any number of tasks."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        timeout_s: float,
        folder: Path | None = None,
        statuses: Collection[int] = (0,),
    ) -> None:
        """Prepare a runner.

        Args:
            command: The program and its arguments.
            timeout_s: Longest run for one task.
            folder: Where it runs; None is where we run.
            statuses: Exit statuses with which its output counts as a result.
        """
        self._command = tuple(command)
        self._timeout_s = timeout_s
        self._folder = folder
        self._statuses = statuses
        self._environment = task_environment()

    async def run(self, job: Job) -> Outcome:
        """Run the command on a task's text; never raises for what the command does.

        May be cancelled: the command and everything it started is killed.
        """
        started = time.monotonic()
        try:
            child = Child(
                self._command,
                job.text.encode(errors="replace"),
                folder=self._folder,
                environment=self._environment
                | {"PILOT_AGENT": job.agent, "PILOT_TASK_ID": job.task_id},
                max_output=MAX_RESULT_BYTES,
                max_errors=STDERR_TAIL_BYTES,
            )
        except OSError as error:
            # Nothing that is wrong with this machine is the task's fault.
            return Outcome(
                ok=False,
                error=f"cannot start {self._command[0]}: {error.strerror}",
                retryable=True,
            )
        try:
            async with asyncio.timeout(self._timeout_s):
                await child.wait()
        except TimeoutError:
            return Outcome(
                ok=False,
                error=f"killed after the time limit of {self._timeout_s:g} s",
                retryable=True,
                wall_ms=_since(started),
            )
        finally:
            await child.end()
        return self._outcome(child, _since(started))

    def _outcome(self, child: Child, wall_ms: int) -> Outcome:
        """Return what an ended command means for its task."""
        result = child.output.decode(errors="replace")
        # What is no UTF-8 is replaced by characters of up to three bytes for one.
        if child.is_too_long or len(result.encode()) > MAX_RESULT_BYTES:
            error = f"the result is longer than {MAX_RESULT_BYTES} bytes"
            return Outcome(ok=False, error=error, wall_ms=wall_ms)
        if child.status in self._statuses:
            return Outcome(ok=True, result=result, wall_ms=wall_ms)
        error, tail = describe_exit(child.status), child.errors.decode(errors="replace")
        if child.status > 0 and tail.strip():
            error = f"{error}: {tail.strip()}"
        return Outcome(
            ok=False, error=error, retryable=child.status < 0, wall_ms=wall_ms
        )


def _since(started: float) -> int:
    return int((time.monotonic() - started) * 1000)
