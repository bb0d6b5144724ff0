"""Mesh: every agent reaches every other, and several share one batch.

Run it with: python examples/mesh.py
"""

# ruff: noqa: T201 - printing is all it is for

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from pilotfleet import Fleet, TaskLine
from pilotfleet.fleet.orchestrator import OrchestratorConfig
from pilotfleet.fleet.patterns.mesh import Mesh, measure_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

COUNT = 5
SPEC = {
    "fleet": {"name": "mesh", "pattern": "mesh"},
    "workers": {"count": COUNT, "tags": ["text"], "exec": "wc -w"},
}


async def lines() -> AsyncIterator[TaskLine]:
    for number in range(50):
        yield TaskLine(id=str(number), task="word " * number)


async def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        async with await Fleet.up(SPEC, home=home) as fleet, AsyncExitStack() as stack:
            agents = [
                await stack.enter_async_context(await fleet.agent(f"worker-{number}"))
                for number in range(1, COUNT + 1)
            ]
            print(await measure_mesh(agents))
            config = OrchestratorConfig(tags=("text",))
            async with Mesh.open(agents[:2], config) as mesh:
                async for result in mesh.run(lines()):
                    assert result.result.strip() == result.id
                    print(result.id, result.agent)


if __name__ == "__main__":
    asyncio.run(main())
