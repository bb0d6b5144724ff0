"""Result files: one JSON line for each task, each exactly once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

import msgspec

from pilotfleet.errors import InvalidArgument, StorageError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from pilotfleet.fleet.schedule import TaskResult

__all__ = ["ResultFile", "Tally", "check_result_path", "result_line"]


def check_result_path(results: Path, tasks: Path) -> None:
    """Refuse to write results over the tasks they are of.

    Raises:
        InvalidArgument: Both are the same file.
    """
    if results.exists() and tasks.exists() and results.samefile(tasks):
        raise InvalidArgument(f"{results} is the task file; results need their own")


def result_line(result: TaskResult) -> dict[str, Any]:
    """Return what a result file says of a task."""
    return {
        "id": result.id,
        "status": result.status,
        "agent": result.agent,
        "result": result.result or result.error,
        "attempts": result.attempts,
        "wall_ms": round(result.wall_ms, 1),
    }


class ResultFile:
    """A result file that is being written; a context manager."""

    def __init__(self, path: Path, *, go_on: bool) -> None:
        """Open a file.

        Args:
            path: The file.
            go_on: Keep the lines that it has, but for one that is torn; else empty it.

        Raises:
            InvalidArgument: It cannot be written.
        """
        self._path = path
        self._written: set[str] = set()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if go_on else os.O_TRUNC)
        try:
            # Unbuffered: a result that was counted is in the file.
            self._file = open(os.open(path, flags, 0o666), "r+b", buffering=0)  # noqa: SIM115
            if go_on and path.is_file():
                self._read()
        except OSError as error:
            raise InvalidArgument(
                f"cannot write result file {path}: {error.strerror}"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, result: TaskResult) -> None:
        """Write a result's line, unless the file has it.

        Raises:
            StorageError: The disk refuses.
        """
        if result.id in self._written:
            return
        rest = memoryview(msgspec.json.encode(result_line(result)) + b"\n")
        try:
            # A disk that is nearly full takes a part of it first.
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise StorageError(
                f"cannot write result file {self._path}: {error.strerror}",
                hint="what is done is kept; make room and give the command again",
            ) from None
        self._written.add(result.id)

    def sync(self) -> None:
        """Wait until the lines are on the disk, before their other copy goes."""
        if self._path.is_file():
            os.fsync(self._file.fileno())

    def _read(self) -> None:
        """Learn which results are there, and cut off a line that has no end."""
        end = 0
        for line in self._file.readlines():
            if not line.endswith(b"\n"):
                break
            end += len(line)
            try:
                row = msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            self._written.add(str(row.get("id")))
        self._file.truncate(end)
        self._file.seek(end)


class Tally:
    """Adds results up."""

    def __init__(self) -> None:
        self.succeeded = 0
        self.failed = 0
        self.retried = 0
        self.attempts = 0
        self.durations_ms: list[float] = []
        self.agents: set[str] = set()

    @property
    def done(self) -> int:
        """Results so far."""
        return self.succeeded + self.failed

    def add(self, result: TaskResult) -> None:
        """Count a result."""
        is_good = result.status == "SUCCEEDED"
        self.succeeded += is_good
        self.failed += not is_good
        self.retried += result.attempts > 1
        self.attempts += result.attempts
        self.durations_ms.append(result.wall_ms)
        if result.agent:
            self.agents.add(result.agent)

    def percentile_ms(self, share: float) -> float:
        """Return what this share of the tasks took at most."""
        ranked = sorted(self.durations_ms)
        last = len(ranked) - 1
        return round(ranked[min(last, int(share * len(ranked)))], 1) if ranked else 0.0

    def summary(self, tasks: int) -> dict[str, Any]:
        """Return the sums, of so many tasks in all."""
        return {
            "tasks": tasks,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "retried": self.retried,
            "attempts": self.attempts,
            "task_p50_ms": self.percentile_ms(0.50),
            "task_p99_ms": self.percentile_ms(0.99),
        }
