"""A monitor of a broker, as real programs."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pilotfleet.fleet.agent import Agent
from tests.support.programs import BIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.programs import Program, World

__all__ = ["FLEET", "Watched", "publisher", "start_hub"]

FLEET = "words"
REQUEST_S = 10


def start_hub(net: World) -> Program:
    """Start a rendezvous, and a daemon whose agent is the fleet's broker."""
    net.start_rendezvous()
    return net.start_daemon("hub", "--hostname", "words-hub", "--broker", "words-hub")


@asynccontextmanager
async def publisher(
    net: World, daemon: str = "hub", *, broker: str | None = None
) -> AsyncIterator[Publisher]:
    """Yield what publishes at the broker."""
    async with await Agent.connect(net.socket(daemon)) as agent:
        yield Publisher(agent, broker)


@dataclass
class Publisher:
    """Publishes events as workers do."""

    agent: Agent
    broker: str | None = None
    count: int = 0

    async def tasks(self, number: int, *, failed: int = 0) -> None:
        """Publish that so many more tasks ended, each in an event of its own."""
        for each in range(number):
            self.count += 1
            row = {
                "agent": f"worker-{each % 3}",
                "task_id": f"t-{self.count}",
                "status": "FAILED" if each < failed else "SUCCEEDED",
                "ms": 12.0,
                "at": time.time(),
            }
            await self._publish("fleet.task", {"tasks": [row]})

    async def health(self, *names: str, status: str = "idle") -> None:
        """Publish how agents are."""
        for name in names:
            row = {"agent": name, "status": status, "interval_s": 60}
            await self._publish("fleet.health", row)

    async def _publish(self, topic: str, data: dict[str, Any]) -> None:
        await self.agent.publish(topic, data, broker=self.broker, confirm=True)


@dataclass
class Watched:
    """A ``pilot-monitor`` that can be stopped and started again."""

    net: World
    flags: tuple[object, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    token: str = ""
    daemon: str = "hub"
    fleet: str = FLEET
    program: Program | None = None
    http: str = ""

    def start(self) -> None:
        """Start it; return when it follows."""
        ready = self.net.home / "monitor.ready.json"
        ready.unlink(missing_ok=True)
        self.program = self.launch("--ready-file", ready)
        self.program.wait_until(ready.exists)
        state = json.loads(ready.read_text())
        assert state["fleets"] == [self.fleet]
        self.http = state["http"]

    def launch(self, *flags: object) -> Program:
        """Start it, whatever becomes of it."""
        return self.net.start(
            "monitor",
            BIN / "pilot-monitor",
            *("--socket", self.net.socket(self.daemon), "--http", "127.0.0.1:0"),
            *self.flags,
            *flags,
            **self.env,
        )

    def running(self) -> Program:
        """Return the program, which was started."""
        assert self.program is not None
        return self.program

    def refusal(self, *flags: object) -> str:
        """Return what it says when it does not start."""
        program = self.launch(*flags)
        assert program.process.wait(60) == 1
        text = program.log.read_text()
        assert "Traceback" not in text
        program.log.write_text("")
        return text

    def get(self, path: str) -> bytes:
        """Return what a path has."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        request = urllib.request.Request(f"http://{self.http}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=REQUEST_S) as answer:
            data: bytes = answer.read()
        return data

    def status(self, path: str) -> int:
        """Return the status of an answer."""
        try:
            self.get(path)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        return 200

    def figures(self) -> dict[str, Any]:
        """Return the figures of now."""
        path = f"/api/fleets/{self.fleet}/figures"
        figures: dict[str, Any] = json.loads(self.get(path))
        return figures

    def wait_tasks(self, completed: int, failed: int) -> dict[str, Any]:
        """Return the figures when so many tasks are counted, and not more."""
        try:
            self.wait(
                lambda now: (
                    now["tasks"]["completed"] >= completed
                    and now["tasks"]["failed"] >= failed
                )
            )
        except AssertionError as error:
            raise AssertionError(f"{(completed, failed)}: {self.figures()}") from error
        figures = self.figures()
        tasks = figures["tasks"]
        assert (tasks["completed"], tasks["failed"]) == (completed, failed)
        return figures

    def wait(self, is_so: Callable[[dict[str, Any]], bool]) -> None:
        """Return when the figures are so."""
        self.running().wait_until(lambda: is_so(self.figures()))
