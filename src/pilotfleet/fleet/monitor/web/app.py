"""The web pages of the monitor: one shell of HTML, its modules, and the JSON API.

Nothing here changes anything: all requests are reads. The rings around it (headers,
Host check, login) are those of ``pilotfleet.web.guard``, put on by who serves it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.routing import Route

from pilotfleet import __version__
from pilotfleet.fleet.monitor.web.api import Live, MonitorApi, error_handlers
from pilotfleet.web.answers import json_answer
from pilotfleet.web.assets import Assets, shared_assets
from pilotfleet.web.sse import event_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

    from pilotfleet.fleet.monitor.source import MonitorSource
    from pilotfleet.web.access import Access

__all__ = ["make_app"]

PAGES: Final = ("/", "/agents", "/agent", "/trust", "/alerts", "/events")
"""Paths of the one shell; its modules read the path and show what belongs there."""
INTERVAL_S: Final = 1.0


def make_app(
    source: MonitorSource,
    *,
    access: Access,
    started: float,
    routes: Sequence[BaseRoute] = (),
    wall: Callable[[], float] = time.time,
) -> Starlette:
    """Return the application.

    Args:
        source: What is shown.
        access: Tells the pages whether there is a login to leave again.
        started: Wall time of the start of the monitor.
        routes: More of them, such as that of ``/metrics``.
        wall: The clock.
    """
    live = Live(source)
    assets = Assets("pilotfleet.fleet.monitor.web")
    shell = assets.page("index.html")

    async def healthz(request: Request) -> Response:
        status = {
            "status": "ok",
            "version": __version__,
            "uptime_seconds": int(wall() - started),
            "fleets": len(source.fleets()),
        }
        return json_answer(status)

    async def session(request: Request) -> Response:
        return json_answer({"login": access.is_required, "version": __version__})

    async def stream(request: Request) -> Response:
        return event_stream(request, live.data, INTERVAL_S)

    return Starlette(
        routes=[
            *(Route(path, shell) for path in PAGES),
            Route("/healthz", healthz),
            Route("/api/session", session),
            Route("/api/stream", stream),
            *MonitorApi(source, wall=wall).routes(),
            assets.route("/static"),
            shared_assets(),
            *routes,
        ],
        exception_handlers=error_handlers(),
    )
