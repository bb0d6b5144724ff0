"""``pilotctl events subscribe``: the events of a fleet's brokers, as they come."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pilotfleet.cli.events import event_row
from pilotfleet.errors import ConnectionFailed, DaemonError, Unavailable
from pilotfleet.fleet.agent import Agent
from pilotfleet.fleet.subscription import Mark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfleet.cli.connection import Deadline
    from pilotfleet.cli.invocation import Context
    from pilotfleet.cli.output import Output
    from pilotfleet.fleet.subscription import FleetSubscription

__all__ = ["Wish", "print_events"]

_LINE_ENDS = str.maketrans({"\n": "\\n", "\r": "\\r", "\x85": " ", "\u2028": " "})
"""An event is one line, or its payload could pass for other events."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be printed."""

    pattern: str
    brokers: Sequence[str]
    """None means those of the fleet."""
    since: float | None
    count: int
    """Events, after which it ends; 0 for no end."""
    deadline: Deadline


def print_events(wish: Wish, context: Context) -> None:
    """Print events until there are enough of them, or time is up.

    Raises:
        ConnectionFailed: No broker can be reached.
        NotFound: A broker's name does not resolve.
    """
    asyncio.run(_Printer(wish, context.output).run(context.socket, context.agent))


class _Printer:
    def __init__(self, wish: Wish, output: Output) -> None:
        self._wish = wish
        self._output = output
        self._rows: list[dict[str, Any]] = []
        self._seen = 0
        self._lost: dict[str, int] = {}

    async def run(self, socket: str, agent: str | None) -> None:
        """Follow, and print the result of a subscription with an end."""
        wish = self._wish
        async with (
            await Agent.connect(socket, name=agent) as client,
            await self._subscribe(client) as items,
        ):
            self._tell_following(items.following)
            teller = asyncio.create_task(self._tell_changes(items))
            try:
                is_late = await self._print(items)
            finally:
                teller.cancel()
                await asyncio.gather(teller, return_exceptions=True)
        if self._output.json and wish.count > 0:
            lost = sum(self._lost.values())
            result = {"events": self._rows, "timeout": is_late, "lost": lost}
            self._output.result(result)

    async def _subscribe(self, client: Agent) -> FleetSubscription:
        wish = self._wish
        try:
            return await client.subscribe(
                wish.pattern, broker=wish.brokers or None, since=wish.since, marks=True
            )
        except (DaemonError, Unavailable) as error:
            names = ", ".join(wish.brokers or await client.brokers())
            raise ConnectionFailed(
                f"cannot subscribe at {names}: {error}",
                hint="is the broker up? try: pilotctl ping BROKER",
            ) from error

    async def _print(self, items: FleetSubscription) -> bool:
        """Print what comes; tell whether time was up."""
        wish = self._wish
        try:
            async with asyncio.timeout(wish.deadline.remaining):
                async for item in items:
                    if isinstance(item, Mark):
                        self._note_lost(item)
                        continue
                    self._print_event(event_row(item.event))
                    if self._seen == wish.count:
                        return False
        except TimeoutError:
            return True
        return False

    def _print_event(self, row: dict[str, Any]) -> None:
        self._seen += 1
        if not self._output.json:
            topic, data = (row[key].translate(_LINE_ENDS) for key in ("topic", "data"))
            self._output.text(f"[{topic}] {data}")
        elif self._wish.count > 0:
            self._rows.append(row)
        else:
            self._output.line(row)

    def _note_lost(self, mark: Mark) -> None:
        more = mark.lost - self._lost.get(mark.broker, 0)
        self._lost[mark.broker] = mark.lost
        if more <= 0:
            return
        self._output.warn(f"lost {more} events: this subscriber was too slow")
        if self._output.json and not self._wish.count:
            self._output.line({"lost": more})

    async def _tell_changes(self, items: FleetSubscription) -> None:
        """Say which brokers went away, and which came back."""
        before = items.following
        while True:
            await items.wait_change()
            now = items.following
            errors = items.errors
            for name in sorted(before - now):
                why = errors.get(name, "it ended the subscription")
                self._output.note(f"broker {name} is away ({why}); trying again")
            for name in sorted(now - before):
                self._output.note(f"following at broker {name}")
            before = now

    def _tell_following(self, brokers: set[str]) -> None:
        if sys.stderr.isatty():
            names = ", ".join(sorted(brokers))
            self._output.note(f"following {self._wish.pattern} at {names}; Ctrl-C ends")
