"""Hierarchical: a hub over sub-orchestrators, each over its own workers.

Run it with: python examples/hierarchy.py
"""

# ruff: noqa: T201 - printing is all it is for

from __future__ import annotations

import asyncio
import tempfile

from pilotfleet import Fleet

SPEC = {
    "fleet": {"name": "tree", "pattern": "hierarchical"},
    "workers": {"count": 6, "tags": ["text"], "exec": "wc -w"},
    "hierarchy": {"cluster_size": 3},
}


async def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        async with await Fleet.up(SPEC, home=home) as fleet:
            tasks = ["word " * number for number in range(1, 51)]
            async for result in fleet.map(tasks, tags=["text"]):
                assert result.result.strip() == result.id
                print(result.id, result.agent)
            for cluster in (await fleet.status())["clusters"]:
                print(cluster["cluster"], "under", cluster["parent"])


if __name__ == "__main__":
    asyncio.run(main())
