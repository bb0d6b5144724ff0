"""What is kept of one agent's standing with the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfleet.client.pacing import REGISTER_PAUSE_S, register_pause_s

if TYPE_CHECKING:
    import asyncio
    import random

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.registration.registrar import Registrar
    from pilotfleet.protocol.address import Endpoint

__all__ = ["Membership"]


class Membership:
    """One agent's standing with the registry. Due once per keepalive."""

    __slots__ = (
        "advertised",
        "agent",
        "failures",
        "is_confirmed",
        "must_register",
        "observed",
        "pause",
        "reflected",
        "reflection",
        "registrar",
        "sync_at",
    )

    def __init__(self, registrar: Registrar, agent: Agent) -> None:
        self.registrar = registrar
        self.agent = agent
        self.failures = 0
        self.pause = REGISTER_PAUSE_S
        self.must_register = True
        self.is_confirmed = False
        """Whether the second discover was sent."""
        self.sync_at = 0.0
        """When the registry is asked again for the agent's networks."""
        self.reflected: Endpoint | None = None
        """Where the beacon last saw the agent."""
        self.advertised: Endpoint | None = None
        """The reflected endpoint that the registry was told, if it was."""
        self.observed: Endpoint | None = None
        """What the registry tells those who look for the agent."""
        self.reflection: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Membership of {self.agent.name}>"

    def handle_timer(self, now: float) -> None:
        """Have a worker talk to the registry."""
        self.registrar.enqueue(self)

    def succeeded(self) -> None:
        """Forget the failures: the registry knows the agent."""
        self.failures = 0
        self.pause = REGISTER_PAUSE_S

    def next_pause(self, rng: random.Random) -> float:
        """Return how long to wait before the next attempt; longer each time."""
        wait, self.pause = register_pause_s(self.pause, rng)
        return wait
