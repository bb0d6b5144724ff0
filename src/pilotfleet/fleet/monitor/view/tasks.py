"""Ends of tasks: totals, sliding windows, and which ones came twice.

Time is counted in whole seconds. The open second takes what comes; when it is over,
it moves into the windows of one and of five minutes.
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from pilotfleet.errors import DecodeError
from pilotfleet.fleet.monitor.figures import TaskFigures
from pilotfleet.fleet.monitor.times import TimeHistogram

__all__ = ["SavedSeen", "SavedWindow", "Second", "SeenTasks", "TaskWindow"]

MINUTE_S: Final = 60
FIVE_MINUTES_S: Final = 300
SEEN_S: Final = 600.0
"""For how long a task that comes again is known at least,"""
SEEN_KEYS: Final = 100_000
"""unless so many others came meanwhile."""
KEY_SIZE: Final = 8


class Second(NamedTuple):
    """What ended in one second."""

    completed: int
    failed: int
    times: TimeHistogram | None


class SavedWindow(msgspec.Struct, frozen=True, array_like=True):
    """A window as it is kept over a restart."""

    completed: int
    failed: int
    minute: list[tuple[int, int, int]]
    steps: list[tuple[int, int, int, bytes]]
    open: tuple[int, int, bytes]


class _Step:
    """One bucket of the longer window."""

    __slots__ = ("completed", "failed", "start", "times")

    def __init__(self, start: int) -> None:
        self.start = start
        self.completed = self.failed = 0
        self.times = TimeHistogram()


class TaskWindow:
    """Tasks of a fleet, or of a tag."""

    __slots__ = (
        *("_failed", "_failed_minute", "_five", "_minute", "_open", "_step_s"),
        *("_steps", "completed", "failed", "_completed", "_completed_minute"),
    )

    def __init__(self, *, step_s: int = 1) -> None:
        """``step_s``: to how many seconds the window of five minutes is exact."""
        self.completed = self.failed = 0
        """Ever, without the open second."""
        self._step_s = step_s
        self._open = _Step(0)
        self._minute: deque[tuple[int, int, int]] = deque()
        self._completed_minute = self._failed_minute = 0
        self._steps: deque[_Step] = deque()
        self._five = TimeHistogram()
        self._completed = self._failed = 0
        """In the window of five minutes."""

    def add(self, ms: float, *, ok: bool) -> None:
        """Count the end of a task in the open second."""
        self._open.completed += ok
        self._open.failed += not ok
        self._open.times.add(ms)

    def close(self, second: int) -> Second:
        """End the open second, which was this one, and return what was in it."""
        ended, self._open = self._open, _Step(0)
        if not ended.times.count:
            return Second(0, 0, None)
        self.completed += ended.completed
        self.failed += ended.failed
        self._completed_minute += ended.completed
        self._failed_minute += ended.failed
        self._minute.append((second, ended.completed, ended.failed))
        start = second - second % self._step_s
        if not self._steps or self._steps[-1].start != start:
            self._steps.append(_Step(start))
        step = self._steps[-1]
        step.completed += ended.completed
        step.failed += ended.failed
        step.times.merge(ended.times)
        self._completed += ended.completed
        self._failed += ended.failed
        self._five.merge(ended.times)
        self._expire(second)
        return Second(ended.completed, ended.failed, ended.times)

    def figures(self, second: int) -> TaskFigures:
        """Return the figures when this is the open second."""
        self._expire(second)
        now = self._open
        failed = self._failed + now.failed
        ended = self._completed + now.completed + failed
        times = TimeHistogram()
        times.merge(self._five)
        times.merge(now.times)
        return TaskFigures(
            completed_per_minute=float(self._completed_minute + now.completed),
            failed_per_minute=float(self._failed_minute + now.failed),
            error_rate=failed / ended if ended else 0.0,
            completed=self.completed + now.completed,
            failed=self.failed + now.failed,
            p50_ms=times.quantile(0.50),
            p95_ms=times.quantile(0.95),
            p99_ms=times.quantile(0.99),
        )

    @property
    def open_times(self) -> TimeHistogram:
        """The times of the open second."""
        return self._open.times

    def save(self) -> SavedWindow:
        """Return it as it is kept over a restart."""
        now = self._open
        return SavedWindow(
            completed=self.completed,
            failed=self.failed,
            minute=list(self._minute),
            steps=[
                (step.start, step.completed, step.failed, step.times.encode())
                for step in self._steps
            ],
            open=(now.completed, now.failed, now.times.encode()),
        )

    @classmethod
    def load(cls, saved: SavedWindow, *, latest: int, step_s: int = 1) -> TaskWindow:
        """Return what was saved; seconds later than ``latest`` are forgotten.

        Raises:
            DecodeError: It is damaged.
        """
        window = cls(step_s=step_s)
        window.completed, window.failed = saved.completed, saved.failed
        for second, completed, failed in saved.minute:
            if second <= latest:
                window._minute.append((second, completed, failed))
                window._completed_minute += completed
                window._failed_minute += failed
        for start, completed, failed, times in saved.steps:
            if start <= latest:
                step = _load_step(start, completed, failed, times)
                window._steps.append(step)
                window._completed += completed
                window._failed += failed
                window._five.merge(step.times)
        window._open = _load_step(0, *saved.open)
        return window

    def _expire(self, second: int) -> None:
        """Take out of the windows what is too old when this is the open second."""
        while self._minute and self._minute[0][0] <= second - MINUTE_S:
            _, completed, failed = self._minute.popleft()
            self._completed_minute -= completed
            self._failed_minute -= failed
        oldest = second + 1 - FIVE_MINUTES_S
        while self._steps and self._steps[0].start + self._step_s <= oldest:
            step = self._steps.popleft()
            self._completed -= step.completed
            self._failed -= step.failed
            self._five.subtract(step.times)


def _load_step(start: int, completed: int, failed: int, times: bytes) -> _Step:
    step = _Step(start)
    step.completed, step.failed = completed, failed
    step.times = TimeHistogram.decode(times)
    if step.times.count != completed + failed or completed < 0 or failed < 0:
        raise DecodeError("damaged state: counts of tasks do not fit their times")
    return step


class SavedSeen(msgspec.Struct, frozen=True, array_like=True):
    """Known tasks as they are kept over a restart."""

    since: float
    young: bytes
    old: bytes


class SeenTasks:
    """Which ends of tasks are known, by (agent, task id, time of the worker).

    Two generations of at most 100,000 keys; the older one goes when the younger is
    full or ten minutes old. A key is eight bytes of a digest: with 200,000 known,
    one new task of 10^14 is taken for a known one.
    """

    def __init__(self) -> None:
        self._since = 0.0
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()

    def take(self, agent: str, task_id: str, ended: float, *, now: float) -> bool:
        """Tell whether it is new, and remember it."""
        text = f"{agent}\0{task_id}\0{ended!r}".encode()
        key = blake2b(text, digest_size=KEY_SIZE).digest()
        if key in self._young or key in self._old:
            return False
        if len(self._young) >= SEEN_KEYS or now - self._since >= SEEN_S:
            self._young, self._old, self._since = set(), self._young, now
        self._young.add(key)
        return True

    def save(self) -> SavedSeen:
        """Return it as it is kept over a restart."""
        return SavedSeen(self._since, b"".join(self._young), b"".join(self._old))

    @classmethod
    def load(cls, saved: SavedSeen, *, latest: float) -> SeenTasks:
        """Return what was saved.

        Raises:
            DecodeError: It is damaged.
        """
        seen = cls()
        seen._since = min(saved.since, latest)
        seen._young, seen._old = _keys(saved.young), _keys(saved.old)
        return seen


def _keys(data: bytes) -> set[bytes]:
    if len(data) % KEY_SIZE or len(data) > SEEN_KEYS * KEY_SIZE:
        raise DecodeError("damaged state: keys of known tasks")
    return {data[at : at + KEY_SIZE] for at in range(0, len(data), KEY_SIZE)}
