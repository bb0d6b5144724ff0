"""What the workers of the benchmarks do: ``call = "bench.work:…"``."""

from __future__ import annotations

import asyncio


async def echo(text: str) -> str:
    """Return the text: what is measured is everything around it."""
    return text


async def rest(text: str) -> str:
    """Take as many seconds as the text's first word says, and no processor."""
    await asyncio.sleep(float(text.split()[0]))
    return text
