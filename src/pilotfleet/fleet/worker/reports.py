"""What a worker tells the fleet: the health of its agents and the ends of tasks.

Health is told again soon, so nobody waits for it. The ends of tasks are counted, so
they are kept until the broker confirms that it has them, over lost connections and
restarts of it; a broker that cannot confirm gets them as it can.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.errors import NotSupported, PilotError
from pilotfleet.fleet.worker.ends import EndedTasks
from pilotfleet.fleet.worker.health import HealthBook
from pilotfleet.protocol.services.fleetevents import HEALTH_TOPIC, TASK_TOPIC
from pilotfleet.transport.backoff import backoff_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfleet.client.daemon import DaemonClient
    from pilotfleet.fleet.worker.job import Outcome

__all__ = ["WorkerReports"]

logger = logging.getLogger(__name__)

GATHER_S: Final = 1.0
"""Ends of tasks are told together, so often at most: an event for each costs a fifth
of what the daemons can do."""
RETRY_FIRST_S: Final = 1.0
RETRY_MAX_S: Final = 30.0
UNCONFIRMED_S: Final = 60.0
"""A broker that cannot confirm is not asked to again for so long."""
LAST_WORDS_S: Final = 2.0
"""How long the end of a worker may wait for the broker to take what is left, and then
again for the farewell."""
AT_ONCE: Final = 256


class WorkerReports:
    """The events of one worker program, for all agents that it serves.

    Args:
        agents: Names of the agents.
        interval_s: Between two health events of one agent; 0 publishes nothing.
    """

    def __init__(self, agents: Sequence[str], *, interval_s: float) -> None:
        self._agents = agents
        self._interval_s = interval_s
        self.book = HealthBook(agents, now=time.monotonic(), interval_s=interval_s)
        self._ends = EndedTasks()
        self._has_ends = asyncio.Event()
        self._telling = asyncio.Lock()
        self._unconfirmed_until = 0.0
        self._losses_known = 0

    @property
    def dropped(self) -> int:
        """Ends of tasks that nobody was told, as too many waited."""
        return self._ends.dropped

    def ended(self, agent: str, task_id: str, outcome: Outcome) -> None:
        """Have the end of a task told."""
        if self._interval_s > 0:
            self._ends.note(agent, task_id, outcome, wall=time.time())
            self._has_ends.set()

    async def run(self, client: DaemonClient) -> None:
        """Publish over a connection until cancelled."""
        if self._interval_s <= 0:
            return
        # A connection that broke may have seemed to be the last.
        self.book.is_stopped = False
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell_health(client), name="health")
            tasks.create_task(self._tell_ends(client), name="ends")

    async def end(self, client: DaemonClient) -> None:
        """Tell what is left to tell, and that the agents are served no more."""
        if self._interval_s <= 0 or client.is_closed:
            return
        for tell in (self._flush, self._say_goodbye):
            with suppress(PilotError, TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await tell(client)
        if len(self._ends):
            logger.warning("the ends of %d tasks were not told", len(self._ends))

    # Health

    async def _tell_health(self, client: DaemonClient) -> None:
        """Publish every agent's health, spread evenly over the interval.

        In turns, so that the events of a second leave in one datagram or two.
        """
        turns = max(1, round(self._interval_s / GATHER_S))
        # All at once the first time: the monitor should see a fleet that is up.
        for agent in self._agents:
            await self._tell_one(client, agent)
        while True:
            for turn in range(turns):
                await asyncio.sleep(self._interval_s / turns)
                for agent in self._agents[turn::turns]:
                    await self._tell_one(client, agent)

    async def _tell_one(
        self, client: DaemonClient, agent: str, *, wait: bool = False
    ) -> None:
        report = self.book.report(agent, now=time.monotonic())
        data = msgspec.json.encode(report)
        # A broker that is away is no reason to stop working.
        with suppress(PilotError):
            await self._publish(client, HEALTH_TOPIC, data, wait=wait)

    async def _say_goodbye(self, client: DaemonClient) -> None:
        self.book.is_stopped = True
        *others, last = self._agents
        for start in range(0, len(others), AT_ONCE):
            some = others[start : start + AT_ONCE]
            await asyncio.gather(*(self._tell_one(client, agent) for agent in some))
        # When the last one is written, so are those before it. The daemon may be
        # stopped next.
        await self._tell_one(client, last, wait=True)

    # Ends of tasks

    async def _tell_ends(self, client: DaemonClient) -> None:
        """Tell how tasks ended, many in one event."""
        failures = 0
        while True:
            await self._has_ends.wait()
            await asyncio.sleep(GATHER_S)
            try:
                await self._flush(client)
                failures = 0
                self._admit_losses()
            except PilotError as error:
                failures += 1
                logger.log(
                    logging.WARNING if failures == 1 else logging.DEBUG,
                    "the ends of %d tasks cannot be told yet: %s",
                    *(len(self._ends), error),
                )
                await asyncio.sleep(
                    backoff_s(failures, first_s=RETRY_FIRST_S, longest_s=RETRY_MAX_S)
                )

    def _admit_losses(self) -> None:
        lost = self._ends.dropped - self._losses_known
        if lost:
            self._losses_known += lost
            logger.warning("the ends of %d tasks were not told: too many waited", lost)

    async def _flush(self, client: DaemonClient) -> None:
        """Tell all ends there are.

        Raises:
            PilotError: The broker has not got them; those are kept.
        """
        async with self._telling:
            while batch := self._ends.take():
                try:
                    await self._publish_ends(client, batch)
                except BaseException:
                    self._ends.restore(batch)
                    raise
            self._has_ends.clear()

    async def _publish_ends(self, client: DaemonClient, batch: list[bytes]) -> None:
        rows = [msgspec.Raw(row) for row in batch]
        data = msgspec.json.encode({"tasks": rows})
        if time.monotonic() >= self._unconfirmed_until:
            try:
                await self._publish(client, TASK_TOPIC, data, wait=True, confirm=True)
            except NotSupported as error:
                logger.info("ends of tasks go unconfirmed: %s", error)
                self._unconfirmed_until = time.monotonic() + UNCONFIRMED_S
            else:
                return
        await self._publish(client, TASK_TOPIC, data, wait=False)

    async def _publish(
        self, client: DaemonClient, topic: str, data: bytes, **options: Any
    ) -> None:
        """Publish through the first agent, whichever the event is of.

        A tunnel from each of a thousand agents costs the broker more than all events.
        """
        await client.call(
            "publish",
            agent=self._agents[0],
            topic=topic,
            data=data.decode(),
            **options,
        )
