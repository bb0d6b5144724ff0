"""A process of its own for each task: ``openclaw agent exec``, without a gateway.

Simple and dear: every task pays for a start of OpenClaw, some ten seconds and most of
a gigabyte. It is for a few tasks an hour, or where no gateway may run.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Final

import msgspec

from pilotfleet.fleet.worker.command import CommandRunner

if TYPE_CHECKING:
    from pilotfleet.fleet.worker.job import Job, Outcome
    from pilotfleet.fleet.worker.openclaw.config import OpenClawConfig

__all__ = ["OneShotRunner"]

GRACE_S: Final = 30.0
"""How long OpenClaw may take to start, and to end by itself after its time limit."""


class _Error(msgspec.Struct):
    message: str = ""
    kind: str = ""


class _Envelope(msgspec.Struct):
    ok: bool
    status: str = ""
    final: str | None = None
    error: _Error = msgspec.field(default_factory=_Error)


class OneShotRunner:
    """Runs each task by a process of OpenClaw."""

    def __init__(self, config: OpenClawConfig) -> None:
        self._config = config
        self._commands = CommandRunner(
            _command(config),
            timeout_s=config.timeout_s + GRACE_S,
            folder=config.folder,
            # It tells by its exit status, too, but more in what it prints.
            statuses=(0, 1, 2),
        )

    async def run(self, job: Job) -> Outcome:
        """Run a task; never raises for what OpenClaw does.

        May be cancelled: the process and everything it started is killed.
        """
        outcome = await self._commands.run(job)
        if not outcome.ok:
            return outcome
        try:
            envelope = msgspec.json.decode(outcome.result, type=_Envelope)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            error = "openclaw agent exec printed no result"
            return dataclasses.replace(outcome, ok=False, result="", error=error)
        if envelope.ok:
            return dataclasses.replace(outcome, result=envelope.final or "")
        reason = envelope.error.message or envelope.status
        return dataclasses.replace(
            outcome,
            ok=False,
            result="",
            error=f"openclaw: {reason}",
            # The model did not answer; the task is not to blame for it.
            retryable=True,
        )


def _command(config: OpenClawConfig) -> list[str]:
    # The task comes on the standard input: arguments are there for all to see.
    command = [config.program, "agent", "exec", "--message-file", "-", "--json"]
    command += ["--timeout", str(math.ceil(config.timeout_s))]
    if config.model:
        command += ["--model", config.model]
    if config.file is not None:
        command += ["--config", str(config.file)]
    if config.folder is not None:
        command += ["--cwd", str(config.folder)]
    return command
