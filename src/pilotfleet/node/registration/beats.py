"""Heartbeats of many agents at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from pilotfleet.errors import PilotError, RegistryError
from pilotfleet.node.parallel import for_each
from pilotfleet.protocol.registry.batches import MAX_BATCH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host

__all__ = ["MAX_BEATS", "Outcome", "send_heartbeats"]

Outcome: TypeAlias = "PilotError | None"
"""Why a heartbeat was not taken, or None."""

MAX_BEATS: Final = MAX_BATCH
"""Heartbeats that are sent at a time."""
PARALLEL_BEATS: Final = 64
"""Single heartbeats under way at a time."""


async def send_heartbeats(host: Host, agents: Sequence[Agent]) -> list[Outcome]:
    """Say that agents live; return for each what came of it. Never raises."""
    try:
        texts = await host.gathering.heartbeats(agents)
    except PilotError as error:
        return [error] * len(agents)
    if texts is None:
        return await _one_by_one(agents)
    return [None if text is None else RegistryError(text) for text in texts]


async def _one_by_one(agents: Sequence[Agent]) -> list[Outcome]:
    outcomes: list[Outcome] = [None] * len(agents)
    failure: Outcome = None

    async def beat(index: int) -> None:
        nonlocal failure
        agent = agents[index]
        try:
            # One failure stands for all: each dialling on its own would be a storm.
            if failure is None:
                await agent.registry("heartbeat", node_id=agent.node_id)
            outcomes[index] = failure
        except RegistryError as error:
            outcomes[index] = error
        except PilotError as error:
            outcomes[index] = failure = error

    workers = min(PARALLEL_BEATS, len(agents))
    await for_each(range(len(agents)), beat, workers=workers)
    return outcomes
