"""``pilot-monitor``: follow the events of a fleet, one JSON object a line."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import signal
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import pilotfleet
from pilotfleet.cli.logs import configure_logging
from pilotfleet.cli.serving import fast_loop, run_command, tell_ready
from pilotfleet.errors import Unavailable
from pilotfleet.fleet.agent import Agent

if TYPE_CHECKING:
    from typing import NoReturn

    from pilotfleet.protocol.services.events import Event

__all__ = ["main"]

logger = logging.getLogger(__name__)

PROGRAM: Final = "pilot-monitor"
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--broker", help="Agent whose broker is followed.", required=True)
@click.option("--topic", help="What is followed.", default="fleet.*")
@click.option("--agent", help="Hosted agent to follow as.", default=None)
@click.option("--socket", help="The daemon's.", default=None, envvar="PILOT_SOCKET")
@click.option("--ready-file", help="Written when it follows.", default="")
@click.option("--log-level", help="debug, info, warn or error.", default="info")
@click.option("--log-format", help="text or json.", default="text")
@click.version_option(pilotfleet.__version__, message="pilotfleet %(version)s")
def _command(**flags: Any) -> None:
    """Write every event of a fleet on standard output, as JSON."""
    configure_logging(flags["log_level"], flags["log_format"])
    with asyncio.Runner(loop_factory=fast_loop()) as loop:
        loop.run(_follow_until_signal(flags))


def main() -> NoReturn:
    """Run ``pilot-monitor`` with the arguments of the process."""
    sys.exit(run_command(_command, PROGRAM))


async def _follow_until_signal(flags: dict[str, Any]) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    feed = _Feed(flags)
    with suppress(asyncio.CancelledError):
        await feed.run()
    logger.info("stopped after %d events", feed.events)


class _Feed:
    """The events of one broker on standard output."""

    def __init__(self, flags: dict[str, Any]) -> None:
        self._flags = flags
        self._lost_at: float | None = None
        """When the broker went away, on the monotonic clock."""
        self._pause_s = FIRST_PAUSE_S
        self.events = 0

    async def run(self) -> None:
        """Follow; a broker that goes away is looked for again for ever.

        Raises:
            PilotError: It cannot be followed at first: what is wrong is in the flags,
                or systemd tries again.
        """
        while True:
            try:
                await self._follow()
            except Unavailable as error:
                if self._lost_at is None:
                    raise
                logger.warning("%s; trying again", error)
                await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.5))
                self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)

    async def _follow(self) -> None:
        flags, lost_at = self._flags, self._lost_at
        async with await Agent.connect(flags["socket"], name=flags["agent"]) as agent:
            # What was missed meanwhile is in the broker's log.
            since = None if lost_at is None else time.monotonic() - lost_at
            events = await agent.subscribe(
                flags["topic"], broker=flags["broker"], since=since
            )
            async with events:
                self._on_following()
                try:
                    async for event in events:
                        self._write(event)
                finally:
                    self._lost_at = time.monotonic()

    def _on_following(self) -> None:
        logger.info("following %s at %s", self._flags["topic"], self._flags["broker"])
        self._pause_s = FIRST_PAUSE_S
        if self._lost_at is None:
            ready_file = self._flags["ready_file"]
            path = Path(ready_file) if ready_file else None
            tell_ready(path, {"broker": self._flags["broker"]})

    def _write(self, event: Event) -> None:
        self.events += 1
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "topic": event.topic,
            "data": _read_payload(event.payload),
        }
        # Escapes, so that nothing in an event reaches the terminal as a command.
        sys.stdout.write(json.dumps(line, ensure_ascii=True) + "\n")
        sys.stdout.flush()


def _read_payload(payload: bytes) -> Any:
    """Return what an event says; as text, if that is not JSON."""
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return payload.decode(errors="replace")
