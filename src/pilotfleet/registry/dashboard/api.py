"""The JSON API of the public directory, version 1.

Everything here is about public agents. A private one is answered for exactly as one
that does not exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from starlette.responses import Response
from starlette.routing import Route

from pilotfleet.errors import Busy, DecodeError, InvalidArgument
from pilotfleet.protocol.address import BACKBONE, Address
from pilotfleet.registry.dashboard.parameters import integer, read_query, read_sort
from pilotfleet.registry.directory.search import MAX_LIMIT, Query, search
from pilotfleet.registry.limits import RateLimit
from pilotfleet.web.answers import json_answer, refuse
from pilotfleet.web.limits import client_network
from pilotfleet.web.sse import event_stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from pilotfleet.registry.dashboard.config import DashboardConfig
    from pilotfleet.registry.dashboard.figures import NetworkFigures
    from pilotfleet.registry.dashboard.listing import Listing
    from pilotfleet.registry.dashboard.survey import Surveyor
    from pilotfleet.registry.dashboard.view import RendezvousView
    from pilotfleet.registry.directory.nodes import Node

__all__ = ["CORS", "PublicApi"]

CORS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization",
    "Access-Control-Max-Age": "86400",
}
"""Any page may read what anyone may read. Cookies are not sent along with ``*``."""
STREAM_S: Final = 2.0
DEFAULT_TAGS: Final = 100


class PublicApi:
    """Answers under ``/api/v1``."""

    def __init__(
        self,
        view: RendezvousView,
        surveyor: Surveyor,
        listing: Listing,
        figures: NetworkFigures,
        config: DashboardConfig,
    ) -> None:
        self._view = view
        self._surveyor = surveyor
        self._listing = listing
        self._figures = figures
        self._limit = RateLimit(config.requests_per_second, burst=config.burst)

    def routes(self) -> list[Route]:
        """Return the routes of the API."""
        endpoints: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "figures": self._get_figures,
            "history": self._get_history,
            "polo": self._get_polo,
            "tags": self._get_tags,
            "agents": self._get_agents,
            "agents/{key}": self._get_agent,
            "stream": self._get_stream,
        }
        return [
            Route(f"/api/v1/{path}", self.limited(endpoint), methods=["GET", "OPTIONS"])
            for path, endpoint in endpoints.items()
        ]

    def limited(
        self, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return ``endpoint`` for anyone's page, with a limit on how often."""

        async def run(request: Request) -> Response:
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=CORS)
            answer = await self._answer(request, endpoint)
            answer.headers.update(CORS)
            return answer

        return run

    async def _answer(
        self, request: Request, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        if not self._limit.allow(client_network(request), self._view.clock.now()):
            return refuse(
                429,
                "connection_failed",
                "too many requests from this address",
                hint="wait a second; /api/v1/stream tells what changes",
                headers={"Retry-After": "1"},
            )
        try:
            return await endpoint(request)
        except InvalidArgument as error:
            return refuse(400, error.code, str(error), hint=error.hint)
        except Busy as error:
            return refuse(503, error.code, str(error), hint=error.hint)

    async def _get_figures(self, request: Request) -> Response:
        await self._surveyor.current()
        return json_answer(self._figures.now())

    async def _get_history(self, request: Request) -> Response:
        return json_answer(self._figures.history())

    async def _get_polo(self, request: Request) -> Response:
        survey = await self._surveyor.current()
        shares = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}
        return json_answer(
            {
                "agents": len(survey.polo),
                "total": survey.polo_total,
                "lowest": survey.polo[0] if survey.polo else 0,
                **{name: survey.percentile(share) for name, share in shares.items()},
                "highest": survey.polo[-1] if survey.polo else 0,
                "histogram": survey.polo_bins,
            }
        )

    async def _get_tags(self, request: Request) -> Response:
        parameters = request.query_params
        limit = integer(parameters, "limit", DEFAULT_TAGS, lowest=1, highest=MAX_LIMIT)
        prefix = parameters.get("prefix", "").strip().lower()
        survey = await self._surveyor.current()
        found = [pair for pair in survey.tags if pair[0].startswith(prefix)]
        rows = [{"tag": tag, "agents": count} for tag, count in found[:limit]]
        total = survey.tag_count if not prefix else len(found)
        return json_answer({"tags": rows, "total": total})

    async def _get_agents(self, request: Request) -> Response:
        parameters = request.query_params
        query, sort = read_query(parameters), read_sort(parameters)
        if sort is None:
            return self._page(query)
        order, down = sort
        offset = integer(parameters, "offset", 0)
        window = await self._listing.window(
            query, order, offset=offset, limit=query.limit, down=down
        )
        rows = [self._row(node) for node in window.nodes]
        return json_answer({"agents": rows, "total": window.total, "offset": offset})

    def _page(self, query: Query) -> Response:
        directory = self._view.directory
        directory.expire_online(self._view.clock.wall())
        page = search(directory, query, None)
        return json_answer(
            {
                "agents": [self._row(node) for node in page.nodes],
                "total": page.total,
                "next_cursor": page.next_cursor,
            }
        )

    async def _get_agent(self, request: Request) -> Response:
        key = request.path_params["key"]
        node = self._find(key)
        if node is None:
            return refuse(
                404,
                "not_found",
                "there is no public agent of this address or hostname",
                hint="agents are private unless they choose to be public",
            )
        survey = await self._surveyor.current()
        row = self._row(node)
        row["registered_unix"] = node.record.created
        row["polo_above"] = round(survey.share_below(row["polo"]), 4)
        return json_answer(row)

    async def _get_stream(self, request: Request) -> Response:
        return event_stream(request, self._figures.encoded, STREAM_S)

    def _find(self, key: str) -> Node | None:
        """Return the public agent of an address or hostname."""
        if ":" in key:
            try:
                address = Address.parse(key)
            except DecodeError:
                return None
            if address.network != BACKBONE:
                return None
            return self._view.public_node(address.node)
        claim = self._view.directory.hosts.get(key.lower())
        node = self._view.public_node(claim.node) if claim is not None else None
        return node if node is not None and node.hostname == key.lower() else None

    def _row(self, node: Node) -> dict[str, Any]:
        """Return what anyone may know of a public agent: never where it is."""
        record, directory = node.record, self._view.directory
        return {
            "node_id": record.id,
            "address": node.address,
            "hostname": node.hostname,
            "tags": record.tags,
            "polo": directory.polo_score(record.id),
            "online": directory.is_online(record.id),
            "last_seen_unix": int(node.last_seen),
            "version": record.version,
        }
