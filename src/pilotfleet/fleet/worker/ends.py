"""The ends of tasks that a worker has still to tell, as rows of ``fleet.task``."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from pilotfleet.protocol.services.fleetevents import split_rows

if TYPE_CHECKING:
    from pilotfleet.fleet.worker.job import Outcome

__all__ = ["EndedTasks"]

MAX_ROWS: Final = 10_000
MAX_TEXT: Final = 200


class _Row(msgspec.Struct, omit_defaults=True):
    agent: str
    task_id: str
    status: str
    ms: int
    at: float
    text: str = ""


class EndedTasks:
    """A bounded queue of rows; the oldest give way. Performs no I/O.

    A row is told again when it is not known whether it was heard. Whoever counts
    knows it by ``agent``, ``task_id`` and ``at``: the times of an agent's rows are
    all different, also of one task that it does twice.
    """

    def __init__(self) -> None:
        self._rows: deque[bytes] = deque()
        self._last_ms: dict[str, int] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._rows)

    def note(self, agent: str, task_id: str, outcome: Outcome, *, wall: float) -> None:
        """Add a task that ended at a Unix time."""
        at_ms = max(round(wall * 1000), self._last_ms.get(agent, 0) + 1)
        self._last_ms[agent] = at_ms
        text = outcome.result if outcome.ok else outcome.error
        row = _Row(
            agent,
            task_id,
            "SUCCEEDED" if outcome.ok else "FAILED",
            outcome.wall_ms,
            at_ms / 1000,
            # A command's output may hold what has no UTF-8 form.
            text[:MAX_TEXT].encode(errors="replace").decode(),
        )
        self._rows.append(msgspec.json.encode(row))
        self._make_room()

    def take(self) -> list[bytes]:
        """Take out the oldest rows, as many as one event has room for."""
        batch = next(split_rows(self._rows), [])
        for _ in batch:
            self._rows.popleft()
        return batch

    def restore(self, batch: list[bytes]) -> None:
        """Put rows that were taken, and perhaps not heard, back in front."""
        self._rows.extendleft(reversed(batch))
        self._make_room()

    def _make_room(self) -> None:
        while len(self._rows) > MAX_ROWS:
            self._rows.popleft()
            self.dropped += 1
