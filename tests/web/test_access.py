"""The login: forms, cookies, bearer tokens, and those who guess."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pilotfleet.web import access as access_module
from pilotfleet.web.access import ALL_ATTEMPTS, ATTEMPTS, SESSION_S, Access
from tests.support.http import Answer, fetch, serve

if TYPE_CHECKING:
    from starlette.requests import Request

    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.web.server import HttpServer

TOKEN = "correct horse"
PAGE = {"Accept": "text/html"}


class Clock:
    """Time that stands until it is told to go."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def secret(request: Request) -> Response:
    return PlainTextResponse("the secret")


def guarded(clock: Clock | None = None) -> tuple[Access, HttpServer]:
    access = Access(TOKEN, clock=clock or Clock())
    routes = [Route(path, secret) for path in ("/", "/healthz", "/api/x", "/a/b")]
    return access, serve(access.wrap(Starlette(routes=routes)))


async def log_in(
    endpoint: Endpoint, token: str, *, path: str = "/", address: str = ""
) -> Answer:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    if address:
        headers["X-Forwarded-For"] = address
    body = urlencode({"token": token, "next": path}).encode()
    return await fetch(endpoint, "/login", method="POST", headers=headers, body=body)


def cookie_of(answer: Answer) -> dict[str, str]:
    return {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


async def test_without_a_token_everything_is_open() -> None:
    app = Starlette(routes=[Route("/", secret)])
    access = Access(None)
    assert access.wrap(app) is app
    assert not access.is_required


async def test_a_person_logs_in_and_out() -> None:
    _, server = guarded()
    async with server:
        there = server.address
        asked = await fetch(there, "/a/b?x=1&y=2", headers=PAGE)
        assert asked.status == 303
        assert asked.headers["location"] == f"/login?next={quote('/a/b?x=1&y=2')}"
        form = await fetch(there, asked.headers["location"])
        assert form.status == 200
        assert 'name="next" value="/a/b?x=1&amp;y=2"' in form.body.decode()
        done = await log_in(there, TOKEN, path="/a/b?x=1&y=2")
        assert (done.status, done.headers["location"]) == (303, "/a/b?x=1&y=2")
        settings = done.headers["set-cookie"].lower()
        for setting in ("httponly", "samesite=strict", "path=/"):
            assert setting in settings
        assert "secure" not in settings
        cookie = cookie_of(done)
        assert (await fetch(there, "/a/b", headers=cookie)).body == b"the secret"
        out = await fetch(there, "/logout", method="POST", headers=cookie)
        assert out.headers["location"] == "/login"
        assert (await fetch(there, "/a/b", headers=cookie)).status == 401


async def test_over_tls_the_cookie_stays_there() -> None:
    _, server = guarded()
    async with server:
        headers = {"X-Forwarded-Proto": "https"}
        body = urlencode({"token": TOKEN}).encode()
        answer = await fetch(
            server.address, "/login", method="POST", headers=headers, body=body
        )
    assert "secure" in answer.headers["set-cookie"].lower()


async def test_programs_send_the_token_in_a_header() -> None:
    _, server = guarded()
    async with server:
        there = server.address
        assert (await fetch(there, "/api/x")).status == 401
        for token, status in ((TOKEN, 200), ("wrong", 401), ("", 401)):
            headers = {"Authorization": f"Bearer {token}"}
            assert (await fetch(there, "/api/x", headers=headers)).status == status
        refused = await fetch(there, "/api/x")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["error"]["code"] == "auth_required"
        # In an address the token would be kept by browsers, proxies and logs.
        assert (await fetch(there, f"/api/x?token={quote(TOKEN)}")).status == 401
        basic = {"Authorization": "Basic Y29ycmVjdCBob3JzZQ=="}
        assert (await fetch(there, "/api/x", headers=basic)).status == 401


async def test_health_and_the_files_of_the_form_are_open() -> None:
    _, server = guarded()
    async with server:
        assert (await fetch(server.address, "/healthz")).status == 200
        # Open, though this application does not have them.
        assert (await fetch(server.address, "/shared/base.css")).status == 404


async def test_a_wrong_token_is_said_and_a_session_is_not_guessed() -> None:
    _, server = guarded()
    async with server:
        there = server.address
        answer = await log_in(there, "wrong")
        assert answer.status == 401
        assert "not the token" in answer.body.decode()
        assert "set-cookie" not in answer.headers
        forged = {"Cookie": f"pilotfleet-{there[1]}=AAAA"}
        assert (await fetch(there, "/", headers=forged)).status == 401


@pytest.mark.parametrize(
    "path",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example/",
        "/\t/evil.example",
        "javascript:alert(1)",
        "",
        "/" + "a" * 5000,
        "/\r\nSet-Cookie: a=b",
    ],
)
async def test_the_login_leads_nowhere_else(path: str) -> None:
    _, server = guarded()
    async with server:
        answer = await log_in(server.address, TOKEN, path=path)
        assert answer.headers["location"] == "/"
        form = await fetch(server.address, f"/login?next={quote(path)}")
        assert form.status in (200, 400)
        assert "evil" not in form.body.decode()


async def test_the_form_shows_markup_as_text() -> None:
    _, server = guarded()
    async with server:
        path = quote('/"><script>alert(1)</script>')
        form = (await fetch(server.address, f"/login?next={path}")).body.decode()
    assert "<script" not in form


async def test_who_guesses_is_held_back_even_with_the_right_token() -> None:
    clock = Clock()
    _, server = guarded(clock)
    async with server:
        there = server.address
        guesser = {"X-Forwarded-For": "203.0.113.9"}
        for _ in range(ATTEMPTS):
            assert (await log_in(there, "x", address="203.0.113.9")).status == 401
        held = await log_in(there, TOKEN, address="203.0.113.9")
        assert held.status == 429
        assert held.headers["retry-after"]
        headers = guesser | {"Authorization": f"Bearer {TOKEN}"}
        assert (await fetch(there, "/api/x", headers=headers)).status == 429
        # Another address is another one.
        assert (await log_in(there, TOKEN, address="203.0.113.10")).status == 303
        clock.now += 11
        assert (await log_in(there, TOKEN, address="203.0.113.9")).status == 303


async def test_wrong_tokens_do_not_shut_out_who_had_the_right_one_before() -> None:
    clock = Clock()
    _, server = guarded(clock)
    right = {"Authorization": f"Bearer {TOKEN}"}
    wrong = {"Authorization": "Bearer wrong"}
    async with server:
        there = server.address
        assert (await fetch(there, "/api/x", headers=right)).status == 200
        for _ in range(2 * ATTEMPTS):
            last = await fetch(there, "/api/x", headers=wrong)
        assert last.status == 429
        assert (await fetch(there, "/api/x", headers=right)).status == 200


async def test_guesses_from_many_addresses_are_limited_in_all() -> None:
    _, server = guarded()
    async with server:
        there = server.address
        session = cookie_of(await log_in(there, TOKEN))
        for number in range(ALL_ATTEMPTS):
            address = f"203.0.{number // 250}.{number % 250}"
            assert (await log_in(there, "x", address=address)).status == 401
        assert (await log_in(there, TOKEN, address="198.51.100.1")).status == 429
        # Who is logged in notices nothing.
        assert (await fetch(there, "/", headers=session)).status == 200


async def test_guesses_from_one_address_take_no_tries_from_the_others() -> None:
    _, server = guarded()
    async with server:
        for _ in range(ALL_ATTEMPTS + ATTEMPTS):
            await log_in(server.address, "x", address="203.0.113.9")
        answer = await log_in(server.address, TOKEN, address="203.0.113.10")
    assert answer.status == 303


async def test_no_part_of_the_host_counts_as_the_path() -> None:
    _, server = guarded()
    async with server:
        host = f"127.0.0.1:{server.address[1]}/healthz?"
        answer = await fetch(server.address, "/api/x", headers={"Host": host})
    assert answer.status == 401


async def test_the_right_token_may_come_as_often_as_it_likes() -> None:
    _, server = guarded()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with server:
        for _ in range(3 * ATTEMPTS):
            assert (await fetch(server.address, "/", headers=headers)).status == 200


async def test_sessions_end_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "MAX_SESSIONS", 2)
    clock = Clock()
    _, server = guarded(clock)
    async with server:
        there = server.address
        cookies = [cookie_of(await log_in(there, TOKEN)) for _ in range(3)]
        seen = [(await fetch(there, "/", headers=c)).status for c in cookies]
        assert seen == [401, 200, 200]
        clock.now += SESSION_S + 1
        assert (await fetch(there, "/", headers=cookies[2])).status == 401


async def test_odd_requests_to_the_login_are_refused() -> None:
    access, server = guarded()
    async with server:
        there = server.address
        assert (await fetch(there, "/login", method="PUT")).status == 405
        many = "&".join(f"a{number}=1" for number in range(50)).encode()
        for body in (b"\xff\xfe", b"token=%FF%FE", many):
            answer = await fetch(there, "/login", method="POST", body=body)
            assert answer.status in (400, 401)
    assert TOKEN not in repr(access) + str(vars(access))
