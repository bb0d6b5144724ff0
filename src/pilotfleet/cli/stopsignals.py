"""Signals that end a daemon: the first in good order, another one at once."""

from __future__ import annotations

import asyncio
import signal

__all__ = ["StopSignals"]


class StopSignals:
    """Listens to SIGTERM and SIGINT for the task that makes it.

    Before ``is_ready`` there is nothing that could stop in good order: then the first
    signal cancels the task, as later a second one does.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.is_ready = False
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def end(self) -> None:
        """Cancel the task."""
        self._task.cancel()

    def _on_signal(self) -> None:
        if self.is_ready and not self.stop.is_set():
            self.stop.set()
        else:
            self._task.cancel()
