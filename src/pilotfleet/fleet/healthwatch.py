"""Listen to the health events of a fleet on its broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from pilotfleet.protocol.address import Address
from pilotfleet.protocol.ipc.commands import Command
from pilotfleet.protocol.services.events import EVENT_PORT, EventDecoder, encode_event

if TYPE_CHECKING:
    from pilotfleet.client.daemon import DaemonClient

__all__ = ["HealthWatch"]

TOPIC = "fleet.health"
MAX_AGENTS = 100_000
DIAL_S = 30.0


class HealthWatch:
    """Counts health events and keeps the last one of each agent."""

    def __init__(self) -> None:
        self.events = 0
        self.agents: dict[str, dict[str, Any]] = {}

    async def run(self, client: DaemonClient) -> None:
        """Subscribe at the broker of the client's agent; runs until cancelled.

        Raises:
            PilotError: The broker cannot be reached.
        """
        address = Address.parse((await client.request_json(Command.INFO))["address"])
        stream = await client.dial(address, EVENT_PORT, timeout=DIAL_S)
        await stream.write(encode_event(TOPIC))
        decoder = EventDecoder()
        while data := await stream.read():
            for event in decoder.feed(data):
                self._take(event.payload)

    def _take(self, payload: bytes) -> None:
        try:
            health = msgspec.json.decode(payload, type=dict[str, Any])
        except msgspec.DecodeError:
            return
        self.events += 1
        agent = str(health.get("agent", ""))
        if agent in self.agents or len(self.agents) < MAX_AGENTS:
            self.agents[agent] = health
