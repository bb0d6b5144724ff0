"""Headers on every response, names that are answered to, bounds on bodies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pilotfleet.protocol.registry.endpoints import is_loopback
from pilotfleet.web import limits
from pilotfleet.web.access import Access
from pilotfleet.web.guard import guard
from pilotfleet.web.limits import MAX_BODY, client_network
from pilotfleet.web.security import HEADERS
from pilotfleet.web.sse import event_stream
from tests.support.http import LOOPBACK, TIMEOUT_S, fetch, serve

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from pilotfleet.protocol.address import Endpoint


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def echo(request: Request) -> Response:
    return Response(await request.body())


async def crash(request: Request) -> Response:
    raise RuntimeError("a fault of ours")


async def own(request: Request) -> Response:
    policy = {"Cross-Origin-Resource-Policy": "cross-origin"}
    return PlainTextResponse("x", headers=policy)


async def stream(request: Request) -> Response:
    return event_stream(request, lambda: b"{}")


def app(
    *, bind: Endpoint = LOOPBACK, allow: tuple[str, ...] = (), token: str = ""
) -> ASGIApp:
    routes = [
        Route("/hello", hello),
        Route("/echo", echo, methods=["POST"]),
        Route("/crash", crash),
        Route("/own", own),
        Route("/stream", stream),
    ]
    return guard(
        Starlette(routes=routes),
        bind=bind,
        access=Access(token or None),
        allow_hosts=allow,
    )


@pytest.mark.parametrize(
    ("path", "method", "headers", "status"),
    [
        ("/hello", "GET", {}, 200),
        ("/nothing", "GET", {}, 404),
        ("/hello", "PUT", {}, 405),
        ("/hello", "GET", {"Host": "evil.example"}, 421),
        ("/crash", "GET", {}, 500),
    ],
)
@pytest.mark.filterwarnings("default")
async def test_every_answer_has_the_headers(
    path: str, method: str, headers: dict[str, str], status: int
) -> None:
    async with serve(app()) as server:
        answer = await fetch(server.address, path, method=method, headers=headers)
    assert answer.status == status
    for name, value in HEADERS.items():
        assert answer.headers[name.lower()] == value
    assert "fault of ours" not in answer.body.decode()


async def test_refusals_and_streams_have_them_too() -> None:
    async with serve(app(token="secret")) as server:
        for path in ("/hello", "/login"):
            answer = await fetch(server.address, path)
            assert answer.headers["x-content-type-options"] == "nosniff"
    async with serve(app()) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(TIMEOUT_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        writer.close()
    assert "content-security-policy: default-src 'none'" in head
    assert "content-type: text/event-stream" in head


async def test_a_response_keeps_what_it_says_itself() -> None:
    async with serve(app()) as server:
        answer = await fetch(server.address, "/own")
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"


OWN_NAMES = ("localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:1", "[::1]:80")
OTHER_NAMES = (
    "evil.example",
    "localhost.evil.example",
    "",
    "127.0.0.1.evil.example",
    "[::1].evil.example",
    "evil.example:127.0.0.1",
)


async def test_loopback_answers_to_its_own_names_only() -> None:
    async with serve(app()) as server:
        for names, status in ((OWN_NAMES, 200), (OTHER_NAMES, 421)):
            for host in names:
                answer = await fetch(server.address, "/hello", headers={"Host": host})
                assert answer.status == status, host


async def test_a_name_can_be_allowed() -> None:
    async with serve(app(allow=("Fleet.Example",))) as server:
        for host, status in (("fleet.example:443", 200), ("other.example", 421)):
            answer = await fetch(server.address, "/hello", headers={"Host": host})
            assert answer.status == status


async def test_bound_to_the_world_any_name_is_right_unless_some_are_named() -> None:
    for allow, status in (((), 200), (("fleet.example",), 421)):
        world = app(bind=("0.0.0.0", 0), allow=allow)
        async with serve(world) as server:
            headers = {"Host": "any.example"}
            answer = await fetch(server.address, "/hello", headers=headers)
        assert answer.status == status


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.1.1.1", False),
        ("fleet.example", False),
    ],
)
def test_what_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


async def test_bodies_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(app()) as server:
        for body, status in ((b"abc", 200), (bytes(MAX_BODY + 1), 413)):
            answer = await fetch(server.address, "/echo", method="POST", body=body)
            assert answer.status == status
        assert (await fetch(server.address, "/echo", method="POST")).body == b""
        chunked = {"Transfer-Encoding": "chunked"}
        answer = await fetch(
            server.address,
            "/echo",
            method="POST",
            headers=chunked | {"Content-Length": "0"},
            body=b"3\r\nabc\r\n0\r\n\r\n",
        )
        assert answer.status in (200, 400)
        monkeypatch.setattr(limits, "BODY_S", 0.05)
        late = {"Content-Length": "100"}
        answer = await fetch(
            server.address, "/echo", method="POST", headers=late, body=b"slow"
        )
        assert answer.status == 413


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("203.0.113.5", "203.0.113.5"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.5", "203.0.113.5"),
        ("::1", "::1"),
        ("testclient", "testclient"),
    ],
)
def test_whom_a_request_counts_for(host: str, expected: str) -> None:
    scope = {"type": "http", "client": (host, 1), "headers": []}
    assert client_network(Request(scope)) == expected
