"""Listen to what the agents of a fleet publish about themselves on its broker."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.fleet.subscription import read_payload
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.ipc.commands import Command
from pilotfleet.protocol.services.events import EVENT_PORT, EventDecoder, encode_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.client.daemon import DaemonClient

__all__ = ["HealthWatch"]

TOPICS: Final = "fleet.*"
HEALTH: Final = "fleet.health"
TASK: Final = "fleet.task"
MAX_AGENTS: Final = 100_000
MAX_NAME: Final = 64
DIAL_S: Final = 30.0

MAX_STATES: Final = 8
MAX_STATE: Final = 32
FRESH_S: Final = 60.0
"""An agent that was silent for longer is not counted."""


class HealthWatch:
    """Counts health and task events, and keeps the last state of each agent."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.events = 0
        self.states: dict[str, str] = {}
        """``idle``, ``busy`` and so on, by agent; who was heard last comes last."""
        self._heard: dict[str, float] = {}
        self._runs = 0
        self._failed_runs = 0

    async def run(self, client: DaemonClient) -> None:
        """Subscribe at the broker of the client's agent; runs until cancelled.

        Raises:
            PilotError: The broker cannot be reached.
        """
        address = Address.parse((await client.request_json(Command.INFO))["address"])
        stream = await client.dial(address, EVENT_PORT, timeout=DIAL_S)
        await stream.write(encode_event(TOPICS))
        decoder = EventDecoder()
        while data := await stream.read():
            for event in decoder.feed(data):
                self.take(event.topic, event.payload)

    def status(self) -> dict[str, Any]:
        """Return how many agents are idle, busy and so on, and what they have run."""
        since = self._clock() - FRESH_S
        states = Counter(
            self.states[agent] for agent, heard in self._heard.items() if heard >= since
        )
        return {
            "events": self.events,
            "agents": dict(states.most_common(MAX_STATES)),
            "runs": self._runs,
            "failed_runs": self._failed_runs,
        }

    def take(self, topic: str, payload: bytes) -> None:
        """Take an event; what is of no known form is none."""
        event = read_payload(payload, dict[str, Any])
        if event is None:
            return
        if topic == HEALTH:
            self._take_health(event)
        elif topic == TASK:
            self._take_runs(event.get("tasks"))

    def _take_health(self, health: dict[str, Any]) -> None:
        self.events += 1
        agent, state = health.get("agent"), health.get("status", "")
        if not isinstance(agent, str) or not isinstance(state, str):
            return
        if len(agent) > MAX_NAME:
            return
        self.states.pop(agent, None)
        self.states[agent] = state[:MAX_STATE]
        self._heard[agent] = self._clock()
        if len(self.states) > MAX_AGENTS:
            oldest = next(iter(self.states))
            del self.states[oldest], self._heard[oldest]

    def _take_runs(self, tasks: Any) -> None:
        for task in tasks if isinstance(tasks, list) else ():
            if isinstance(task, dict):
                self._runs += 1
                self._failed_runs += task.get("status") != "SUCCEEDED"
