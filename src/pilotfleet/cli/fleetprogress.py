"""Progress of a batch, on stderr: a bar on a terminal, lines in a pipe."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final, Self

from pilotfleet.cli.terminal import printable

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress, TaskID

__all__ = ["RunProgress"]

LINE_EVERY_S: Final = 2.0


class RunProgress:
    """Says what is being done and how far it is."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._total = total
        self._quiet = quiet
        self._done = 0
        self._failed = 0
        self._next_line = 0.0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            self._open_bar()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def say(self, what: str) -> None:
        """Tell what is being done now."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=printable(what))
        elif not self._quiet:
            self._print(what)

    def advance(self, *, succeeded: bool) -> None:
        """Count one finished task."""
        self._done += 1
        self._failed += not succeeded
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=1, failed=self._failed)
        elif not self._quiet and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY_S
            self._print(f"{self._done}/{self._total} tasks, {self._failed} failed")

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _open_bar(self) -> None:
        # Imported here: it takes longer than everything else the command needs.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        self._bar = Progress(
            # No markup: what is said may quote a program.
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=self._total, failed=0)
        self._bar.start()

    @staticmethod
    def _print(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
