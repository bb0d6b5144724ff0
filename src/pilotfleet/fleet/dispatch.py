"""Gives attempts to the daemon, and takes back those that nobody wants any more.

What is wanted in one turn of the loop goes in one call. Between the wish and the
daemon's answer an attempt is *leaving*: a cancellation that comes meanwhile must not
overtake it, or the worker would do what nobody waits for. Before the call it is enough
to leave the attempt out; afterwards it is cancelled when the daemon has answered.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import PilotError, error_from_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

    from pilotfleet.client.daemon import DaemonClient
    from pilotfleet.fleet.actions import Submit

__all__ = ["Dispatch"]

MAX_SUBMITTED: Final = 64
MAX_SUBMITTED_CHARS: Final = 100_000
"""Tasks in one call, and their texts: a frame of the socket holds 1 MiB, and a
character may take six bytes or more of it."""
DEADLINE_SLACK_S: Final = 2.0
"""The daemon's deadline is later than ours, which ends the task with one reason; the
daemon's is for when we are not there any more."""


class Dispatch:
    """The attempts of an orchestrator on their way to its daemon."""

    def __init__(
        self,
        client: DaemonClient,
        slots: asyncio.Semaphore,
        *,
        as_agent: Mapping[str, Any],
        deliver_within_s: float,
        clock: Callable[[], float],
        start: Callable[[Coroutine[Any, Any, None]], None],
        refused: Callable[[str, PilotError], None],
    ) -> None:
        """Prepare to give attempts.

        Args:
            client: The daemon's.
            slots: One is held for each call that is under way.
            as_agent: The parameters that name the submitting agent.
            deliver_within_s: For the daemon.
            clock: What the deadlines of attempts are told by.
            start: Runs a coroutine as a task that the caller owns.
            refused: Called when the daemon does not take an attempt.
        """
        self._client = client
        self._slots = slots
        self._as_agent = as_agent
        self._deliver_within_s = deliver_within_s
        self._clock = clock
        self._start = start
        self._refused = refused
        self._wanted: list[Submit] = []
        """What is to be given to the daemon in this turn of the loop."""
        self._leaving: dict[str, bool] = {}
        """Attempts that the daemon has not answered for, and whether still wanted."""

    def submit(self, action: Submit) -> None:
        """Give an attempt to the daemon, soon."""
        if not self._wanted:
            self._start(self._submit_soon())
        self._wanted.append(action)
        self._leaving[action.wire_id] = True

    def cancel(self, wire_id: str) -> None:
        """Want an attempt no more, wherever it is."""
        if wire_id in self._leaving:
            self._leaving[wire_id] = False
        else:
            self._start(self._cancel(wire_id))

    async def _submit_soon(self) -> None:
        # One turn later everything that one read has brought about is there.
        await asyncio.sleep(0)
        wanted, self._wanted = self._wanted, []
        await asyncio.gather(*map(self._submit, _groups(wanted)))

    async def _submit(self, group: Sequence[Submit]) -> None:
        """Give attempts to the daemon, in one call and one write."""
        if len(group) == 1:
            await self._submit_one(group[0])
            return
        try:
            async with self._slots:
                # The wait for a slot may have been long.
                actions = self._still_wanted(group)
                if not actions:
                    return
                answer = await self._client.call(
                    "task.submit-all",
                    tasks=[self._submission(action) for action in actions],
                    **self._as_agent,
                )
        except PilotError:
            # A daemon that knows no groups, or a task that is no valid text: each has
            # its own answer then. One that was taken may be submitted again.
            for action in actions:
                await self._submit_one(action, is_again=True)
            return
        refused = answer.get("refused", {})
        for wire_id, fields in refused.items():
            if self._leaving.pop(wire_id, False):
                self._refused(wire_id, error_from_fields(fields))
        self._arrived(a.wire_id for a in actions if a.wire_id not in refused)

    async def _submit_one(self, action: Submit, *, is_again: bool = False) -> None:
        try:
            async with self._slots:
                # What the daemon may have taken the first time is cancelled below.
                if not is_again and not self._still_wanted([action]):
                    return
                if self._leaving[action.wire_id]:
                    await self._client.call(
                        "task.submit",
                        wait=False,
                        **self._submission(action),
                        **self._as_agent,
                    )
        except PilotError as error:
            if self._leaving.pop(action.wire_id):
                self._refused(action.wire_id, error)
        else:
            self._arrived([action.wire_id])

    def _still_wanted(self, group: Iterable[Submit]) -> list[Submit]:
        """Return what was not cancelled; the rest is forgotten."""
        wanted = []
        for action in group:
            if self._leaving[action.wire_id]:
                wanted.append(action)
            else:
                del self._leaving[action.wire_id]
        return wanted

    def _arrived(self, wire_ids: Iterable[str]) -> None:
        """Cancel what the daemon has taken and nobody wants any more."""
        for wire_id in wire_ids:
            if not self._leaving.pop(wire_id):
                self._start(self._cancel(wire_id))

    def _submission(self, action: Submit) -> dict[str, Any]:
        return {
            "target": action.address,
            "task": action.task,
            "task_id": action.wire_id,
            "priority": action.priority,
            "deadline_s": self._time_left(action),
            "deliver_within_s": self._deliver_within_s,
        }

    def _time_left(self, action: Submit) -> float | None:
        if action.deadline is None:
            return None
        return max(action.deadline - self._clock(), 0.0) + DEADLINE_SLACK_S

    async def _cancel(self, wire_id: str) -> None:
        # It may have ended meanwhile, which is as good.
        with suppress(PilotError):
            async with self._slots:
                await self._client.call(
                    "task.cancel", task_id=wire_id, **self._as_agent
                )


def _groups(submitted: Sequence[Submit]) -> list[list[Submit]]:
    """Divide tasks into calls."""
    groups: list[list[Submit]] = []
    chars = 0
    for action in submitted:
        chars += len(action.task)
        is_full = not groups or len(groups[-1]) >= MAX_SUBMITTED
        if is_full or chars > MAX_SUBMITTED_CHARS:
            groups.append([])
            chars = len(action.task)
        groups[-1].append(action)
    return groups
