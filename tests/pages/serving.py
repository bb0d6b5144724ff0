"""Serve pages beside a test that drives a browser."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from tests.fleet.monitor.websupport import served

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from pilotfleet.fleet.monitor.source import MonitorSource

__all__ = ["serving"]

READY_S = 20


@contextlib.contextmanager
def serving(
    source: MonitorSource,
    *,
    port: int = 0,
    token: str | None = None,
    beside: Callable[[], Coroutine[None, None, None]] | None = None,
) -> Iterator[str]:
    """Yield the address of the monitor's pages; they run in a thread of their own.

    Args:
        source: What they show.
        port: Where; 0 for any that is free.
        token: What the login asks for; None for no login.
        beside: Runs in the same loop meanwhile, to feed the source.
    """
    started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        async with served(source, port=port, token=token) as site:
            feeder = asyncio.ensure_future(beside()) if beside is not None else None
            started.set_result((site.url, asyncio.get_running_loop(), stop))
            await stop.wait()
            if feeder is not None:
                feeder.cancel()
                await asyncio.gather(feeder, return_exceptions=True)

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # Whatever it is, the test must hear of it.
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=run, name="pages")
    thread.start()
    try:
        url, loop, stop = started.result(READY_S)
        try:
            yield url
        finally:
            loop.call_soon_threadsafe(stop.set)
    finally:
        thread.join(READY_S)
