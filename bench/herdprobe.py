"""A program that searches all the time, and writes down how long each search took.

``python -m bench.herdprobe HOST:PORT TAG`` prints one JSON object per search, until its
standard input ends: when it was sent (unix time), milliseconds (null: no answer) and
how many agents matched.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop

from pilotfleet.client.links import LinkConfig
from pilotfleet.client.registry import RegistryClient
from pilotfleet.errors import PilotError
from pilotfleet.protocol.registry.endpoints import parse_endpoint

PAUSE_S = 0.02
ONCE = LinkConfig(connections=1, attempts=1, dial_s=1.0, reply_s=10.0)
"""A search that finds no registry fails at once, and the next one tries again."""


async def _probe(registry: str, tag: str) -> None:
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    async with RegistryClient(parse_endpoint(registry), config=ONCE) as client:
        while not ended.done():
            sent, begin = time.time(), time.perf_counter()
            try:
                found = await client.search(tags=[tag], limit=50)
            except PilotError:
                row = {"at": sent, "ms": None, "total": 0}
            else:
                spent = 1000 * (time.perf_counter() - begin)
                row = {"at": sent, "ms": spent, "total": found["total"]}
            print(json.dumps(row), flush=True)
            await asyncio.wait([ended], timeout=PAUSE_S)


if __name__ == "__main__":
    uvloop.run(_probe(*sys.argv[1:3]))
