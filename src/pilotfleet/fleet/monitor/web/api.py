"""The JSON API of the monitor: what the pages show, for programs.

Every answer is one object. What goes wrong is ``{"error": {"code", "message"}}`` with
the code of the error tree, and with a ``hint`` where there is one.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.routing import Route

from pilotfleet.errors import (
    AuthRequired,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PilotError,
    StorageError,
    Unavailable,
)
from pilotfleet.fleet.monitor.source import SERIES
from pilotfleet.fleet.monitor.web.params import (
    AgentParams,
    FeedParams,
    GraphParams,
    NoParams,
    SeriesParams,
    read_params,
)
from pilotfleet.web.answers import json_answer, refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from pilotfleet.fleet.monitor.source import MonitorSource

__all__ = ["Live", "MonitorApi", "error_handlers"]

FRESH_S: Final = 0.5
"""For so long all streams share one state: many watchers cost what one costs."""
REPEAT_S: Final = 5.0

_STATUS: Final[tuple[tuple[type[PilotError], HTTPStatus], ...]] = (
    (InvalidArgument, HTTPStatus.BAD_REQUEST),
    (NotFound, HTTPStatus.NOT_FOUND),
    (AuthRequired, HTTPStatus.UNAUTHORIZED),
    (PermissionDenied, HTTPStatus.FORBIDDEN),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (StorageError, HTTPStatus.SERVICE_UNAVAILABLE),
)


class MonitorApi:
    """Answers requests from a source; holds nothing of its own."""

    def __init__(
        self, source: MonitorSource, *, wall: Callable[[], float] = time.time
    ) -> None:
        self._source = source
        self._wall = wall

    def routes(self) -> list[Route]:
        """Return the routes, below ``/api``."""
        fleet = "/api/fleets/{fleet}"
        return [
            Route("/api/fleets", self._fleets),
            Route(f"{fleet}/figures", self._figures),
            Route(f"{fleet}/tags", self._tags),
            Route(f"{fleet}/agents", self._agents),
            # A name is what its owner chose; one with a slash is a name as well.
            Route(f"{fleet}/agents/{{name:path}}", self._agent),
            Route(f"{fleet}/trust", self._trust),
            Route(f"{fleet}/trust-changes", self._trust_changes),
            Route(f"{fleet}/events", self._events),
            Route(f"{fleet}/series", self._series),
            Route("/api/alerts", self._alerts),
            Route("/api/{rest:path}", self._nothing),
        ]

    async def _fleets(self, request: Request) -> Response:
        read_params(NoParams, request.query_params)
        return json_answer({"fleets": self._source.fleets()})

    async def _figures(self, request: Request) -> Response:
        read_params(NoParams, request.query_params)
        return json_answer(self._source.figures(_fleet(request)))

    async def _tags(self, request: Request) -> Response:
        read_params(NoParams, request.query_params)
        return json_answer({"tags": self._source.tags(_fleet(request))})

    async def _agents(self, request: Request) -> Response:
        params = read_params(AgentParams, request.query_params)
        return json_answer(self._source.agents(_fleet(request), params.query))

    async def _agent(self, request: Request) -> Response:
        read_params(NoParams, request.query_params)
        name = request.path_params["name"]
        return json_answer(self._source.agent(_fleet(request), name))

    async def _trust(self, request: Request) -> Response:
        params = read_params(GraphParams, request.query_params)
        graph = self._source.trust_graph(_fleet(request), limit=params.limit)
        return json_answer(graph)

    async def _trust_changes(self, request: Request) -> Response:
        params = read_params(FeedParams, request.query_params)
        changes = self._source.trust_changes(_fleet(request), limit=params.limit)
        return json_answer({"changes": changes})

    async def _events(self, request: Request) -> Response:
        params = read_params(FeedParams, request.query_params)
        events = self._source.recent_events(_fleet(request), limit=params.limit)
        return json_answer({"events": events})

    async def _series(self, request: Request) -> Response:
        params = read_params(SeriesParams, request.query_params)
        start, end = params.span(self._wall())
        series = await self._source.series(
            _fleet(request),
            params.metric or SERIES,
            start=start,
            end=end,
            tag=params.tag,
            points=params.points,
        )
        return json_answer(series)

    async def _alerts(self, request: Request) -> Response:
        read_params(NoParams, request.query_params)
        return json_answer({"alerts": self._source.alerts()})

    async def _nothing(self, request: Request) -> Response:
        raise NotFound("there is no such page of the API")


class Live:
    """The state that streams send: figures of all fleets, and the alerts."""

    def __init__(self, source: MonitorSource) -> None:
        self._source = source
        self._taken = self._sent = float("-inf")
        self._seen = self._data = b""

    def data(self) -> bytes:
        """Return the state as JSON; the same bytes as before if nothing moved.

        A state that does not move is made anew from time to time: watchers see by it
        that the monitor is alive.
        """
        now = time.monotonic()
        if now - self._taken < FRESH_S:
            return self._data
        self._taken = now
        fleets = [self._source.figures(fleet) for fleet in self._source.fleets()]
        alerts = self._source.alerts()
        timeless = [msgspec.structs.replace(figures, at=0.0) for figures in fleets]
        seen = msgspec.json.encode((timeless, alerts))
        if seen != self._seen or now - self._sent >= REPEAT_S:
            self._seen, self._sent = seen, now
            self._data = msgspec.json.encode({"fleets": fleets, "alerts": alerts})
        return self._data


def error_handlers() -> Mapping[Any, Any]:
    """Return what turns errors into answers, for Starlette."""
    return {
        PilotError: _pilot_error,
        HTTPException: _http_error,
        Exception: _other_error,
    }


def _fleet(request: Request) -> str:
    name: str = request.path_params["fleet"]
    return name


async def _pilot_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PilotError)
    status = next(
        (status for kind, status in _STATUS if isinstance(error, kind)),
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
    return refuse(status, error.code, str(error), hint=error.hint)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    code = NotFound.code if status is HTTPStatus.NOT_FOUND else InvalidArgument.code
    return refuse(status, code, status.phrase.lower(), headers=error.headers)


async def _other_error(request: Request, error: Exception) -> Response:
    """Say no more than that; the server logs what it was."""
    return refuse(
        HTTPStatus.INTERNAL_SERVER_ERROR, PilotError.code, "the monitor has a fault"
    )
