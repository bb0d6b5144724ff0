"""Telling of alerts: to a webhook, a command or a topic.

Each target has a queue of its own and one task while something waits there, so a slow
one holds up no other, and nothing here holds up the rules. A delivery is repeated until
it is confirmed; what is not confirmed outlives the program. So a receiver may be told
twice, and knows it by the id and the state.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from pilotfleet.errors import DecodeError, PilotError
from pilotfleet.fleet.exitstatus import describe_exit
from pilotfleet.fleet.monitor.outputs.health import OutputCounters
from pilotfleet.fleet.worker.child import Child
from pilotfleet.fleet.worker.environment import task_environment
from pilotfleet.protocol.services.webhook import Target, check_address
from pilotfleet.transport.backoff import backoff_s
from pilotfleet.transport.httppost import HttpPoster

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfleet.fleet.monitor.alerts.book import AlertChange
    from pilotfleet.fleet.monitor.alerts.rules import Rule
    from pilotfleet.fleet.monitor.alerts.targets import Action

__all__ = ["AlertActions", "Publish"]

logger = logging.getLogger(__name__)

Publish: TypeAlias = Callable[[str, str, bytes], Awaitable[None]]
"""Publishes for a fleet: its name, the topic, the payload."""

MAX_WAITING: Final = 1_000
"""Of one target; then the oldest are given up."""
MAX_AGE_S: Final = 86_400.0
"""A delivery that was not confirmed for so long is given up."""
MAX_RUNS: Final = 5
"""Of a command for one alert: one that always fails has side effects each time."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
POST_S: Final = 10.0
PUBLISH_S: Final = 60.0
"""At the broker, and at its stand-bys one after the other."""
COMMAND_S: Final = 30.0
MAX_OUTPUT: Final = 64 * 1024
MAX_ERRORS: Final = 500
MAX_COMMANDS: Final = 4
"""That run at a time."""
_RETRIED_REFUSALS: Final = (408, 425, 429)


class _Delivery(msgspec.Struct):
    """One alert for one target."""

    target: str
    """Which one, without its secrets: this stands in the history."""
    body: dict[str, Any]
    since: float
    """When it was to be told first."""


_saved: Final = msgspec.msgpack.Decoder(list[_Delivery])


class _Failed(Exception):
    """A delivery that was not confirmed; the text is fit for a log."""

    def __init__(self, reason: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final


class _Queue:
    """What waits for one target."""

    def __init__(self, action: Action) -> None:
        self.action = action
        self.waiting: deque[_Delivery] = deque()
        self.task: asyncio.Task[None] | None = None
        self.poster: HttpPoster | None = None


class AlertActions:
    """All targets and what waits for them.

    Args:
        publish: For alerts that go to a topic.
        counters: Where alerts that are given up are counted.
        wall: Unix time.
        sleep: Waits between two tries.
    """

    def __init__(
        self,
        publish: Publish,
        *,
        counters: OutputCounters | None = None,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._publish = publish
        self._wall = wall
        self._sleep = sleep
        self._queues: dict[str, _Queue] = {}
        self._commands = asyncio.Semaphore(MAX_COMMANDS)
        self.delivered = 0
        """Confirmed by the target."""
        self._counters = counters or OutputCounters()
        self.version = 0
        """Grows with each change that must survive a restart."""

    @property
    def given_up(self) -> int:
        """Refused, too old, or more than a queue holds."""
        return self._counters.dropped

    @property
    def waiting(self) -> int:
        """Deliveries that are not confirmed."""
        return sum(len(queue.waiting) for queue in self._queues.values())

    def offer(self, change: AlertChange) -> None:
        """Queue a change for all targets of its rule; :meth:`start` delivers it."""
        for action in change.rule.to:
            delivery = _Delivery(_key(action), change.payload(), change.at)
            self._queue(action).waiting.append(delivery)
            self._shorten(self._queue(action))
            self.version += 1

    def start(self) -> None:
        """Begin to deliver what waits, once it is saved."""
        for key, queue in list(self._queues.items()):
            if queue.waiting and queue.task is None:
                name = f"alerts to {queue.action.label}"
                queue.task = asyncio.create_task(self._deliver(key, queue), name=name)

    async def aclose(self) -> None:
        """End what is under way; what is not confirmed goes on waiting."""
        tasks = [each.task for each in self._queues.values() if each.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def save(self) -> bytes:
        """Return what is not confirmed yet."""
        waiting = [each for queue in self._queues.values() for each in queue.waiting]
        return msgspec.msgpack.encode(waiting)

    def load(self, data: bytes, rules: Sequence[Rule]) -> None:
        """Go on with what :meth:`save` returned.

        What was for a target that no rule has any more is given up.

        Raises:
            DecodeError: It is something else.
        """
        try:
            deliveries = _saved.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise DecodeError(f"damaged deliveries of alerts: {error}") from error
        actions = {_key(action): action for rule in rules for action in rule.to}
        for delivery in deliveries:
            action = actions.get(delivery.target)
            if action is None:
                self._counters.dropped += 1
                continue
            self._queue(action).waiting.append(delivery)
            self._shorten(self._queue(action))

    # Private

    def _queue(self, action: Action) -> _Queue:
        return self._queues.setdefault(_key(action), _Queue(action))

    def _shorten(self, queue: _Queue) -> None:
        while len(queue.waiting) > MAX_WAITING:
            queue.waiting.popleft()
            self._counters.dropped += 1
            logger.warning("%s: too many alerts wait", queue.action.label)

    async def _deliver(self, key: str, queue: _Queue) -> None:
        """Empty a queue, in order; this task lives as long as that takes."""
        try:
            while queue.waiting:
                delivery = queue.waiting[0]
                await self._deliver_one(queue, delivery)
                # A full queue may have thrown it away meanwhile.
                if queue.waiting and queue.waiting[0] is delivery:
                    queue.waiting.popleft()
                self.version += 1
        finally:
            try:
                if queue.poster is not None:
                    await queue.poster.aclose()
            finally:
                # Only now: until then the task is known to whoever ends all of them,
                # and what is offered meanwhile waits for the next one.
                queue.task = queue.poster = None
                if not queue.waiting:
                    self._queues.pop(key, None)

    async def _deliver_one(self, queue: _Queue, delivery: _Delivery) -> None:
        """Try until it is confirmed or given up."""
        label, tries = queue.action.label, 0
        while True:
            tries += 1
            try:
                await self._attempt(queue, delivery.body)
            except _Failed as failure:
                is_over = self._is_over(queue.action, delivery, tries)
                if failure.is_final or is_over:
                    self._counters.dropped += 1
                    logger.error("%s: an alert is given up: %s", label, failure)
                    return
                level = logging.WARNING if tries == 1 else logging.DEBUG
                logger.log(level, "%s: %s; trying again", label, failure)
            else:
                self.delivered += 1
                if tries > 1:
                    logger.info("%s: takes alerts again", label)
                return
            await self._sleep(
                backoff_s(tries, first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S)
            )

    def _is_over(self, action: Action, delivery: _Delivery, tries: int) -> bool:
        if action.command and tries >= MAX_RUNS:
            return True
        return self._wall() - delivery.since > MAX_AGE_S

    async def _attempt(self, queue: _Queue, body: dict[str, Any]) -> None:
        """Deliver once.

        Raises:
            _Failed: It was not confirmed.
        """
        action, data = queue.action, json.dumps(body).encode()
        if action.webhook is not None:
            await self._post(queue, action.webhook, data)
        elif action.command:
            async with self._commands:
                await _run(action.command, body, data)
        else:
            try:
                async with asyncio.timeout(PUBLISH_S):
                    await self._publish(str(body["fleet"]), action.topic, data)
            except (PilotError, OSError) as error:  # Also no answer in time.
                raise _Failed(str(error) or "not published in time") from error

    async def _post(self, queue: _Queue, target: Target, data: bytes) -> None:
        if queue.poster is None:
            queue.poster = HttpPoster(target, check_address=check_address)
        headers = [
            ("Host", target.authority),
            ("User-Agent", "pilotfleet"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(data))),
        ]
        if target.authorization:
            headers.append(("Authorization", target.authorization))
        try:
            async with asyncio.timeout(POST_S):
                status = await queue.poster.post(target.path, headers, data)
        except (PilotError, TimeoutError) as error:
            raise _Failed(str(error) or "no answer in time") from error
        if not 200 <= status < 300:
            is_final = 300 <= status < 500 and status not in _RETRIED_REFUSALS
            raise _Failed(f"answers with {status}", is_final=is_final)


async def _run(command: tuple[str, ...], body: dict[str, Any], data: bytes) -> None:
    """Run a command for an alert.

    Raises:
        _Failed: It cannot be started, fails, or takes too long.
    """
    try:
        child = Child(
            command,
            data,
            environment=task_environment() | _variables(body),
            max_output=MAX_OUTPUT,
            max_errors=MAX_ERRORS,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _Failed(f"cannot be started: {reason}") from error
    try:
        async with asyncio.timeout(COMMAND_S):
            await child.wait()
    except TimeoutError:
        raise _Failed(f"killed after {COMMAND_S:g} s") from None
    finally:
        await child.end()
    if child.status:
        # What it wrote may hold a secret that it was given.
        raise _Failed(f"ended with {describe_exit(child.status)}")


def _variables(body: dict[str, Any]) -> dict[str, str]:
    """Return ``ALERT_RULE`` and so on; names of agents come from outside."""
    return {
        f"ALERT_{key.upper()}": "" if value is None else str(value).replace("\0", "")
        for key, value in body.items()
    }


def _key(action: Action) -> str:
    """Return what a target is known by in a file, without telling its secrets."""
    return hashlib.blake2b(action.text.encode(), digest_size=16).hexdigest()
