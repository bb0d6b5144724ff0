"""Requests of many agents that travel to the registry as one.

Thousands of agents ask the same at the same time: when they start, when the registry
comes back, and with each keepalive. Where the registry offers ``batch``, what is asked
in one turn of the event loop is one message; elsewhere each request goes alone. Who
asks sees no difference: an answer is its own, and so are an error and a wish to wait.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pilotfleet.client.pacing import MAX_DEFERRALS, deferral_pause_s, deferral_s
from pilotfleet.client.requests import accepted
from pilotfleet.errors import Closed, NotSupported, PilotError, RegistryError
from pilotfleet.protocol.registry.batches import BATCH_EXTENSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host

__all__ = ["Gathering"]

_Waiting: TypeAlias = "tuple[dict[str, Any], asyncio.Future[dict[str, Any] | None]]"

UNKNOWN_TYPE: Final = "unknown message type"
"""How every registry refuses what it does not know."""
MAX_GATHERED: Final = 128
"""Requests in one message. Longer ones save little more, and with several under way
the registry works on one while the host reads the answers to another."""


class Gathering:
    """Gathers what the agents of a host ask the registry."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._waiting: list[_Waiting] = []

    async def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message, signed if it has to be, and return the reply.

        Raises:
            RegistryError: The registry refused this one, with this text.
            PilotError: It cannot be asked.
        """
        registry, reply = self._host.registry, None
        for _ in range(MAX_DEFERRALS):
            if not registry.offers(BATCH_EXTENSION):
                return await registry.request(message)
            reply = await self._exchange(message)
            if reply is None:
                continue  # The registry offers it no more.
            wait = deferral_s(reply)
            if not wait:
                break
            await asyncio.sleep(deferral_pause_s(wait, self._host.rng))
        return accepted(reply or {})

    async def heartbeats(self, agents: Sequence[Agent]) -> list[str | None] | None:
        """Say that agents live.

        Returns:
            For each what the registry has against it, or None; or None for all of
            them, when the registry takes heartbeats only one by one.

        Raises:
            PilotError: The registry cannot be asked.
        """
        registry = self._host.registry
        if not registry.offers(BATCH_EXTENSION):
            return None
        rows = [
            (agent.node_id, agent.signed("heartbeat", node_id=agent.node_id))
            for agent in agents
        ]
        try:
            failed = await registry.heartbeats(
                [(node, request["signature"]) for node, request in rows]
            )
        except (RegistryError, NotSupported) as error:
            if self._is_withdrawn(error):
                return None
            return [str(error)] * len(rows)
        return [failed.get(node) for node, _ in rows]

    async def _exchange(self, message: dict[str, Any]) -> dict[str, Any] | None:
        answer: asyncio.Future[dict[str, Any] | None]
        answer = self._host.loop.create_future()
        self._waiting.append((message, answer))
        if len(self._waiting) == 1:
            self._host.loop.call_soon(self._flush)
        return await answer

    def _flush(self) -> None:
        waiting = [each for each in self._waiting if not each[1].done()]
        self._waiting = []
        for start in range(0, len(waiting), MAX_GATHERED):
            self._host.spawn(
                self._send(waiting[start : start + MAX_GATHERED]),
                name="gathered requests",
            )

    async def _send(self, waiting: list[_Waiting]) -> None:
        registry, messages = self._host.registry, [message for message, _ in waiting]
        replies: Sequence[dict[str, Any] | None]
        try:
            if len(messages) == 1:
                replies = [await registry.request(messages[0])]
            else:
                replies = await registry.batch(messages)
            _settle(waiting, replies)
        except PilotError as error:
            if len(messages) > 1 and self._is_withdrawn(error):
                _settle(waiting, [None] * len(messages))
            for _, answer in waiting:
                if not answer.done():
                    answer.set_exception(error)
        finally:
            # Cancelled, or failed otherwise: nobody may wait for ever. To cancel the
            # answers would look to those who wait like the end of their own task.
            for _, answer in waiting:
                if not answer.done():
                    answer.set_exception(Closed("the request was given up"))

    def _is_withdrawn(self, error: PilotError) -> bool:
        """Tell whether a registry knows no batches that knew them before.

        An older one, or an official one, has come back in its place. It gets none
        until a registration says that they are offered.
        """
        if isinstance(error, RegistryError) and UNKNOWN_TYPE in str(error):
            self._host.registry.extensions -= {BATCH_EXTENSION}
        return not self._host.registry.offers(BATCH_EXTENSION)


def _settle(waiting: list[_Waiting], replies: Sequence[dict[str, Any] | None]) -> None:
    for (_, answer), reply in zip(waiting, replies, strict=True):
        if not answer.done():
            answer.set_result(reply)
