"""Hub and spoke: one agent finds workers by tag and has them do tasks.

Run it with: python examples/hub.py
"""

# ruff: noqa: T201 - printing is all it is for

from __future__ import annotations

import asyncio
import tempfile
from typing import TYPE_CHECKING

from pilotfleet import Fleet, TaskLine
from pilotfleet.fleet.orchestrator import OrchestratorConfig
from pilotfleet.fleet.patterns.hub import Hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SPEC = {
    "fleet": {"name": "hub"},
    "workers": {"count": 10, "tags": ["text"], "exec": "wc -w"},
}


async def lines() -> AsyncIterator[TaskLine]:
    for number in range(50):
        yield TaskLine(id=str(number), task="word " * number, tags=("text",))


async def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        async with (
            await Fleet.up(SPEC, home=home) as fleet,
            await fleet.agent() as agent,
            Hub.open(agent, OrchestratorConfig(tags=("text",))) as hub,
        ):
            async for result in hub.run(lines()):
                assert result.result.strip() == result.id
                print(result.id, result.agent)


if __name__ == "__main__":
    asyncio.run(main())
