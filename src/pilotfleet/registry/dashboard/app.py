"""The application that a rendezvous serves over HTTP (registry.md section 11)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from pilotfleet.registry.background import in_background
from pilotfleet.registry.dashboard.api import CORS, PublicApi
from pilotfleet.registry.dashboard.badges import badge
from pilotfleet.registry.dashboard.figures import NetworkFigures
from pilotfleet.registry.dashboard.listing import Listing
from pilotfleet.registry.dashboard.metrics import RendezvousCollector
from pilotfleet.registry.dashboard.survey import Surveyor
from pilotfleet.registry.directory.idset import first_ids
from pilotfleet.registry.limits import RateLimit
from pilotfleet.web.access import Access
from pilotfleet.web.answers import json_answer, refuse
from pilotfleet.web.assets import Assets, shared_assets
from pilotfleet.web.guard import guard
from pilotfleet.web.limits import client_network

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.registry.dashboard.config import DashboardConfig
    from pilotfleet.registry.dashboard.view import RendezvousView

__all__ = ["Dashboard"]

VERSION: Final = "1.0"
"""Of the health answer's form."""
LOCAL: Final = frozenset({"127.0.0.1", "::1"})
OPEN_PATHS: Final = ("/healthz", "/api/public-stats", "/metrics")
"""Never behind the token. Metrics have a rule of their own: this host only."""
MAX_NODES: Final = 10_000
BADGES_PER_S: Final = 0.5
BADGE_BURST: Final = 30
BADGE_HEADERS: Final = {
    "Cache-Control": "no-cache, max-age=60",
    # Other sites show them.
    "Cross-Origin-Resource-Policy": "cross-origin",
}


class Dashboard:
    """The pages, and the work behind them. An async context manager."""

    def __init__(
        self, view: RendezvousView, config: DashboardConfig, *, bind: Endpoint
    ) -> None:
        self._view = view
        self._config = config
        self._surveyor = Surveyor(view)
        self._figures = NetworkFigures(view, self._surveyor)
        self._metrics = CollectorRegistry()
        self._metrics.register(RendezvousCollector(view))
        self._badges = RateLimit(BADGES_PER_S, burst=BADGE_BURST)
        self._work = contextlib.AsyncExitStack()
        self.app = self._make_app(bind)

    async def __aenter__(self) -> Dashboard:
        """Start the work in the background."""
        if self._config.enabled:
            work = {"survey": self._surveyor.run, "figures": self._figures.run}
            for name, run in work.items():
                await self._work.enter_async_context(in_background(name, run))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """End it."""
        await self._work.aclose()

    def _make_app(self, bind: Endpoint) -> ASGIApp:
        config = self._config
        routes: list[BaseRoute] = [
            Route("/healthz", self._healthz),
            Route("/api/public-stats", self._public_stats),
            Route("/metrics", self._get_metrics),
            Route("/api/nodes", self._nodes),
        ]
        if config.enabled:
            routes += self._pages()
        app = Starlette(routes=routes, exception_handlers={404: _not_found})
        access = Access(config.token or None, open_paths=OPEN_PATHS)
        return guard(app, bind=bind, access=access, allow_hosts=config.allow_hosts)

    def _pages(self) -> list[BaseRoute]:
        listing = Listing(self._view, self._surveyor)
        api = PublicApi(
            self._view, self._surveyor, listing, self._figures, self._config
        )
        assets = Assets("pilotfleet.registry.dashboard")
        description = api.limited(assets.page("openapi.json"))
        return [
            Route("/", assets.page("directory.html")),
            Route("/agents/{key}", assets.page("agent.html")),
            assets.route("/static"),
            shared_assets(),
            Route("/api/openapi.json", description, methods=["GET", "OPTIONS"]),
            Route("/api/badge/{kind}", self._badge),
            *api.routes(),
        ]

    async def _healthz(self, request: Request) -> Response:
        return json_answer(
            {
                "status": "ok",
                "version": VERSION,
                "uptime_seconds": int(self._view.uptime_s),
                "nodes_online": self._view.online,
            }
        )

    async def _public_stats(self, request: Request) -> Response:
        dashboard = "up" if self._config.enabled else "down"
        stats = {
            "server_time": int(self._view.clock.wall()),
            "uptime_seconds": int(self._view.uptime_s),
            "active_nodes": self._view.online,
            "total_nodes": self._view.registered,
            "components": {"registry": "up", "beacon": "up", "dashboard": dashboard},
        }
        return json_answer(stats, headers=CORS)

    async def _get_metrics(self, request: Request) -> Response:
        if not _is_local(request):
            return PlainTextResponse("for this host only\n", status_code=403)
        text = generate_latest(self._metrics)
        return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def _nodes(self, request: Request) -> Response:
        """List nodes for this host.

        Public ones only: behind a proxy that does not say whom it speaks for,
        everybody seems to be this host.
        """
        if not _is_local(request):
            return PlainTextResponse("for this host only\n", status_code=403)
        rows = []
        for number in first_ids(self._view.public_bits, after=0, limit=MAX_NODES):
            node = self._view.directory.nodes.by_id[number]
            row = {
                "node_id": number,
                "address": node.address,
                "last_seen": int(node.last_seen),
            }
            rows.append(row | ({"hostname": node.hostname} if node.hostname else {}))
        return json_answer({"nodes": rows, "count": len(rows)})

    async def _badge(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        if not self._badges.allow(client_network(request), self._view.clock.now()):
            return refuse(429, "connection_failed", "too many requests")
        values = {
            "nodes": ("agents online", self._view.online),
            "requests": ("requests", self._view.stats.request_count),
        }
        if kind not in values:
            return refuse(404, "not_found", "there is no such badge")
        text = badge(*values[kind])
        return Response(text, media_type="image/svg+xml", headers=BADGE_HEADERS)


async def _not_found(request: Request, error: Exception) -> Response:
    if request.url.path.startswith("/api/"):
        return refuse(404, "not_found", "there is nothing of this name")
    return PlainTextResponse("there is no such page\n", status_code=404)


def _is_local(request: Request) -> bool:
    """Apply the rule for "localhost": the peer, and whom it speaks for."""
    peer = request.client.host if request.client is not None else ""
    return peer in LOCAL and request.headers.get("x-real-ip", peer) in LOCAL
