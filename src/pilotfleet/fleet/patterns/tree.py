"""The hub's side of a hierarchy: who lives, and who is under whom for now.

Sub-orchestrators publish their health on the hub's broker every two seconds. Who is
not heard, or is known to have died, loses its cluster to a living one, and gets it
back when it is heard again. The hub publishes the assignment on every change and
every two seconds, so that one who missed it, or has just started, soon knows::

    fleet.tree {"epoch":3,"parents":{"c1":"fleet-sub-1","c2":"fleet-sub-1"},
                "lost":{"fleet-sub-2":1,"worker-60":2}}

``lost`` numbers the deaths of the last seconds, of workers as well: whoever has given
one of them a task gives it to another at once.

For two seconds two may believe that a cluster is theirs. That is harmless: they then
give its workers tasks of their own, which queue there.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import PilotError
from pilotfleet.fleet.subscription import read_payload
from pilotfleet.protocol.services.fleetevents import HEALTH_TOPIC, STOPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pilotfleet.fleet.agent import Agent
    from pilotfleet.fleet.patterns.hierarchy import Topology

__all__ = ["HEARTBEAT_S", "TREE_TOPIC", "Tree"]

TREE_TOPIC: Final = "fleet.tree"
HEARTBEAT_S: Final = 2.0
SILENT_S: Final = 5 * HEARTBEAT_S
"""Who was not heard for so long counts as dead. Less takes a busy machine for a dead
one, and what is under way there is done twice."""
DEAF_S: Final = 15 * HEARTBEAT_S
"""The same while most are silent: then it is rather the hub that hears nothing, and
giving everybody's tasks to others would be the last straw."""
NEVER: Final = -math.inf
LOST_S: Final = 3 * HEARTBEAT_S
"""How long a death is told."""
MAX_LOST: Final = 1_000
LATE_S: Final = 1.0
"""Health heard so soon after a death was published before it. So was later health of a
connection (``connected_s``) that had lasted for longer than that one is dead."""
PAUSE_S: Final = 1.0
COUNTS: Final = ("workers", "workers_busy", "tasks_completed", "tasks_failed")
"""What is shown of the health of a sub-orchestrator."""
MAX_COUNT: Final = 10**12


class Tree:
    """Follows the sub-orchestrators of a fleet and says who has which cluster."""

    def __init__(
        self,
        topology: Topology,
        *,
        on_change: Callable[[Collection[str]], None] = lambda dead: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with all sub-orchestrators alive.

        Args:
            topology: Who is there.
            on_change: Called when others live than before, with who died.
            clock: Tells the time, in seconds.
        """
        self._topology = topology
        self._on_change = on_change
        self._clock = clock
        self._deaths = 0
        self._lost: dict[str, tuple[int, float]] = {}
        """Number and time of the last deaths, oldest first."""
        self._heard = dict.fromkeys(topology.home_parents.values(), clock())
        """When each was last heard; all count as heard at the beginning."""
        self._died: dict[str, float] = {}
        self._health: dict[str, dict[str, int]] = {}
        self._has_changed = asyncio.Event()
        self.epoch = 0
        """Counts the changes of the assignment."""
        self.reparented = 0
        """How often a cluster got another parent than its home."""
        self.live: frozenset[str] = frozenset()
        """Names of the sub-orchestrators that live."""
        self.parents: dict[str, str] = {}
        """The parent of each cluster, by its tag."""
        self.update()

    def lost(self, name: str) -> None:
        """Note that a sub-orchestrator or a worker has died."""
        now = self._clock()
        self._deaths += 1
        self._lost.pop(name, None)
        self._lost[name] = self._deaths, now
        if len(self._lost) > MAX_LOST:
            del self._lost[next(iter(self._lost))]
        self._has_changed.set()
        if name in self._heard:
            self._heard[name] = NEVER
            self._died[name] = now
            self.update()

    def take(self, health: dict[str, Any]) -> None:
        """Take a health event; those of other agents are left alone."""
        name = health.get("agent")
        now = self._clock()
        if not isinstance(name, str) or name not in self._heard:
            return
        # Its last words are no sign of life.
        if health.get("status") == STOPPED:
            return
        connected_s = health.get("connected_s")
        age_s = connected_s if isinstance(connected_s, int | float) else 0.0
        if now - self._died.get(name, NEVER) < max(LATE_S, age_s):
            return
        self._heard[name] = now
        self._health[name] = {key: _count(health.get(key)) for key in COUNTS}
        self.update()

    def update(self) -> None:
        """Decide again who has which cluster."""
        until = self._clock() - self._patience_s()
        before = self.live
        self.live = frozenset(
            name for name, heard in self._heard.items() if heard > until
        )
        if self.live != before:
            self._on_change(before - self.live)
        parents = self._topology.assign(self.live, self.parents)
        if parents == self.parents:
            return
        homes = self._topology.home_parents
        self.reparented += sum(
            parent not in (homes[tag], self.parents.get(tag))
            for tag, parent in parents.items()
        )
        self.parents = parents
        self.epoch += 1
        self._has_changed.set()

    def _patience_s(self) -> float:
        """Return how long one may be silent now."""
        # Half the time: the first to be missed must not be judged before the others.
        until = self._clock() - SILENT_S / 2
        heard = [when for when in self._heard.values() if when != NEVER]
        silent = sum(when <= until for when in heard)
        return DEAF_S if 2 * silent > len(heard) else SILENT_S

    def event(self) -> dict[str, Any]:
        """Return the event that tells all of it."""
        until = self._clock() - LOST_S
        recent = {name: nr for name, (nr, when) in self._lost.items() if when > until}
        return {"epoch": self.epoch, "parents": self.parents, "lost": recent}

    def status(self) -> list[dict[str, Any]]:
        """Return a row for each cluster: whose it is, and its own one's health."""
        return [
            {
                "name": cluster.home,
                "cluster": cluster.tag,
                "level": cluster.level,
                "state": "up" if cluster.home in self.live else "down",
                "parent": self.parents[cluster.tag],
                "members": cluster.members,
                **self._health.get(cluster.home, dict.fromkeys(COUNTS, 0)),
            }
            for cluster in self._topology.clusters
        ]

    async def run(self, agent: Agent) -> None:
        """Listen and publish at the agent's own broker until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(agent), name="tree: listen")
            tasks.create_task(self._publish(agent), name="tree: publish")

    async def _listen(self, agent: Agent) -> None:
        while True:
            with suppress(PilotError):
                events = await agent.subscribe(HEALTH_TOPIC, broker=agent.address)
                async with events:
                    async for event in events:
                        self.take(read_payload(event.payload, dict[str, Any]) or {})
            await asyncio.sleep(PAUSE_S)

    async def _publish(self, agent: Agent) -> None:
        while True:
            self._has_changed.clear()
            with suppress(PilotError):
                await agent.publish(TREE_TOPIC, self.event(), broker=agent.address)
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._has_changed.wait()
            self.update()


def _count(value: Any) -> int:
    """Return what a member says that it counted; 0 for what is no such number."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and 0 <= value <= MAX_COUNT else 0
