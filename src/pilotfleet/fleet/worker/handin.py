"""Hands the outcomes of tasks to the daemon, those of one moment in one call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import Closed, PilotError, error_from_fields

if TYPE_CHECKING:
    from pilotfleet.client.daemon import DaemonClient

__all__ = ["HandIn"]

MAX_OUTCOMES: Final = 64
MAX_CHARS: Final = 100_000
"""In one call: a frame of the socket holds 1 MiB, and a character may take six bytes
or more of it."""


class _Waiting:
    """An outcome, and who waits for the daemon to have it."""

    __slots__ = ("outcome", "size", "taken")

    def __init__(self, outcome: dict[str, Any]) -> None:
        self.outcome = outcome
        self.size = len(outcome["result"]) + len(outcome["error"])
        self.taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, error: PilotError | None) -> None:
        if self.taken.done():
            return
        if error is None:
            self.taken.set_result(None)
        else:
            self.taken.set_exception(error)


class HandIn:
    """The outcomes on their way to a daemon, over one connection."""

    def __init__(self, client: DaemonClient) -> None:
        self._client = client
        self._waiting: list[_Waiting] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def finish(self, outcome: dict[str, Any]) -> None:
        """Hand in one outcome: the fields of ``task.finish`` with the agent.

        Durable when it returns. Cancelled, it may be handed in all the same.

        Raises:
            PilotError: What the daemon says of it.
        """
        item = _Waiting(outcome)
        if not self._waiting:
            self._start()
        self._waiting.append(item)
        await item.taken

    async def close(self) -> None:
        """Give up what is under way."""
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def _start(self) -> None:
        call = asyncio.create_task(self._send_all(), name="outcomes")
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _send_all(self) -> None:
        # One turn later the outcomes of everything that one read brought are there.
        await asyncio.sleep(0)
        waiting, self._waiting = self._waiting, []
        groups: list[list[_Waiting]] = []
        chars = 0
        for item in waiting:
            chars += item.size
            if not groups or len(groups[-1]) >= MAX_OUTCOMES or chars > MAX_CHARS:
                groups.append([])
                chars = item.size
            groups[-1].append(item)
        try:
            await asyncio.gather(*map(self._send, groups))
        finally:
            # Given up, or failed otherwise: nobody may wait for ever.
            for item in waiting:
                item.settle(Closed("the outcome was not handed in"))

    async def _send(self, group: list[_Waiting]) -> None:
        if len(group) == 1:
            await self._send_one(group[0])
            return
        outcomes = [item.outcome for item in group]
        try:
            answer = await self._client.call("task.finish-all", outcomes=outcomes)
        except PilotError:
            # A daemon that knows no groups, or an outcome that is no valid text: each
            # has its own answer then.
            for item in group:
                await self._send_one(item)
            return
        refused = answer.get("refused", {})
        for place, item in enumerate(group):
            fields = refused.get(str(place))
            item.settle(error_from_fields(fields) if fields else None)

    async def _send_one(self, item: _Waiting) -> None:
        try:
            await self._client.call("task.finish", **item.outcome)
        except PilotError as error:
            item.settle(error)
        else:
            item.settle(None)
