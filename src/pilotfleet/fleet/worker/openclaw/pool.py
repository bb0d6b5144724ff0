"""A few gateways for many identities: who gets a turn, and on which gateway.

Each gateway has a number of turns at a time; a task goes to the one that is least
busy. Tasks that find none free wait, and their identities take turns, so that one
with many tasks does not hold up the others. A task whose gateway dies is given to
the next that is ready, the same one after its restart as like as not; the work begins
again from the task's text.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, Self

from pilotfleet.errors import ConnectionFailed, PilotError, Unavailable
from pilotfleet.fleet.worker.fairqueue import FairQueue
from pilotfleet.fleet.worker.job import Outcome
from pilotfleet.fleet.worker.openclaw.client import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfleet.fleet.worker.job import Job
    from pilotfleet.fleet.worker.openclaw.config import OpenClawConfig
    from pilotfleet.fleet.worker.openclaw.gateway import Gateway

__all__ = ["GatewayPool"]

logger = logging.getLogger(__name__)

MAX_RUNS: Final = 3
"""Of one task, when a gateway of ours dies each time: it may be the task's doing."""
WAIT_LIMIT_S: Final = 300.0
"""How long a task waits while no gateway is ready at all."""


class GatewayPool:
    """Runs tasks on gateways. An async context manager, which runs the gateways."""

    def __init__(self, config: OpenClawConfig, gateways: Sequence[Gateway]) -> None:
        self.gateways = tuple(gateways)
        self._config = config
        self._waiting: FairQueue[asyncio.Future[Gateway]] = FairQueue()
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        for gateway in self.gateways:
            gateway.on_change = self._on_change

    async def __aenter__(self) -> Self:
        """Start the gateways and wait until one is ready.

        Raises:
            PilotError: None of them can be.
        """
        self._tasks = [
            asyncio.create_task(gateway.run(), name=gateway.name)
            for gateway in self.gateways
        ]
        try:
            while not any(gateway.is_ready for gateway in self.gateways):
                failures = [gateway.failure for gateway in self.gateways]
                if None not in failures:
                    raise failures[0] or Unavailable("no gateway")
                self._changed.clear()
                await self._changed.wait()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the gateways."""
        await self._close()

    async def run(self, job: Job) -> Outcome:
        """Run a task on one of the gateways; never raises for what they do.

        May be cancelled: its gateway ends the turn.
        """
        started = time.monotonic()
        for _ in range(MAX_RUNS):
            try:
                gateway = await self._take(job.agent)
            except Unavailable as error:
                return Outcome(ok=False, error=str(error), retryable=True)
            try:
                return await self._run_on(gateway, job, started)
            except ConnectionFailed as error:
                gateway.suspect()
                failure = error
                if not gateway.is_ours:
                    break
                logger.warning("task %s of %s: %s", job.task_id, job.agent, error)
            finally:
                self._give_back(gateway)
        return Outcome(
            ok=False,
            error=f"the gateway was lost: {failure}",
            retryable=True,
            wall_ms=_since(started),
        )

    async def _run_on(self, gateway: Gateway, job: Job, started: float) -> Outcome:
        config, endpoint = self._config, gateway.endpoint
        if endpoint is None:
            # It died after its turn was promised.
            raise ConnectionFailed(f"{gateway.name} is away")
        try:
            async with asyncio.timeout(config.timeout_s):
                outcome = await ask(
                    endpoint, job, agent=config.agent, model=config.model
                )
        except TimeoutError:
            error = f"no answer within the time limit of {config.timeout_s:g} s"
            outcome = Outcome(ok=False, error=error, retryable=True)
        return Outcome(
            ok=outcome.ok,
            result=outcome.result,
            error=outcome.error,
            retryable=outcome.retryable,
            wall_ms=_since(started),
        )

    # Turns

    async def _take(self, owner: str) -> Gateway:
        """Wait for a turn on the gateway that is least busy.

        Raises:
            Unavailable: No gateway was ready for a long time.
        """
        gateway = None if self._waiting else self._least_busy()
        if gateway is not None:
            gateway.busy += 1
            return gateway
        turn: asyncio.Future[Gateway] = asyncio.get_running_loop().create_future()
        self._waiting.push(owner, turn)
        try:
            while not turn.done():
                await asyncio.wait([turn], timeout=WAIT_LIMIT_S)
                if not turn.done() and not any(g.is_ready for g in self.gateways):
                    raise self._unavailable()
            return turn.result()
        except BaseException:
            self._waiting.discard(owner, turn)
            if turn.done():
                # It came in the same moment.
                self._give_back(turn.result())
            turn.cancel()
            raise

    def _give_back(self, gateway: Gateway) -> None:
        gateway.busy -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and (gateway := self._least_busy()) is not None:
            turn = self._waiting.pop()
            if not turn.done():
                gateway.busy += 1
                turn.set_result(gateway)

    def _least_busy(self) -> Gateway | None:
        """Return the ready gateway with the fewest tasks, if it can take one more."""
        ready = [gateway for gateway in self.gateways if gateway.is_ready]
        gateway = min(ready, key=lambda gateway: gateway.busy, default=None)
        if gateway is None or gateway.busy >= self._config.turns:
            return None
        return gateway

    def _unavailable(self) -> Unavailable:
        reasons = [str(g.failure) for g in self.gateways if g.failure is not None]
        return Unavailable(f"no gateway is ready: {'; '.join(reasons) or 'starting'}")

    def _on_change(self) -> None:
        self._changed.set()
        self._hand_out()

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, PilotError):
                logger.error("a gateway's keeper failed", exc_info=result)


def _since(started: float) -> int:
    return int((time.monotonic() - started) * 1000)
