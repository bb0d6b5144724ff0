"""One task as one request, against a real HTTP server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import (
    ConnectionFailed,
    InvalidArgument,
    NotFound,
    NotSupported,
    PermissionDenied,
)
from pilotfleet.fleet.worker.job import MAX_RESULT_BYTES, Job, Outcome
from pilotfleet.fleet.worker.openclaw.client import ask, check, session_key
from pilotfleet.fleet.worker.openclaw.http import Endpoint, parse_url
from tests.fleet.worker.openclaw.gatewayserver import GatewayServer
from tests.fleet.worker.openclaw.support import job

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server() -> Iterator[GatewayServer]:
    with GatewayServer() as server:
        yield server


def endpoint(server: GatewayServer, token: str = "secret") -> Endpoint:
    return parse_url(server.url, token=token)


async def asked(server: GatewayServer, text: str, **settings: Any) -> Outcome:
    async with asyncio.timeout(30):
        return await ask(endpoint(server), job(text), agent="main", **settings)


# What is asked


async def test_a_task_is_one_turn_in_a_session_of_its_own(
    server: GatewayServer,
) -> None:
    outcome = await asked(server, "hello é", model="stub/echo")
    assert outcome == Outcome(ok=True, result="did hello é")
    [seen] = server.seen
    assert seen["authorization"] == "Bearer secret"
    assert seen["model"] == "stub/echo"
    assert seen["session"].startswith("agent:main:worker-1-t-1-")
    assert seen["body"]["model"] == "openclaw/main"
    *_, message = seen["body"]["messages"]
    assert message == {"role": "user", "content": "hello é"}


async def test_the_agent_is_told_who_it_is(server: GatewayServer) -> None:
    await asked(server, "hello")
    first = server.seen[0]["body"]["messages"][0]
    assert first["role"] == "system"
    assert "worker-1" in first["content"]


async def test_a_text_that_cannot_be_encoded_is_asked_still(
    server: GatewayServer,
) -> None:
    assert (await asked(server, "a\ud800b")).result == "did a?b"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a-b", "c"), ("a", "b-c")),
        (("a", "T"), ("a", "t")),
        (("A", "t"), ("a", "t")),
        (("a", "t/1"), ("a", "t.1")),
        (("x" * 300, "t"), ("x" * 299 + "y", "t")),
    ],
)
def test_no_two_tasks_share_a_session(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    keys = [session_key("main", Job(*names, "")) for names in (one, other)]
    # OpenClaw makes no difference between upper and lower case.
    assert keys[0].lower() != keys[1].lower()
    for key in keys:
        assert key.startswith("agent:main:")
        assert len(key) < 200
        assert key.isascii()
        assert key.count(":") == 2


def test_a_session_is_the_same_for_the_same_task() -> None:
    assert session_key("main", job("one")) == session_key("main", job("two"))


# What is answered


@pytest.mark.parametrize(
    ("status", "retryable"),
    [
        (400, False),
        (404, False),
        (413, False),
        (401, True),
        (408, True),
        (429, True),
        (500, True),
        (503, True),
    ],
)
async def test_a_refusal_fails_the_task_with_its_reason(
    server: GatewayServer, status: int, *, retryable: bool
) -> None:
    outcome = await asked(server, f"status {status}")
    assert outcome.error == f"openclaw answered {status}: because"
    assert (outcome.ok, outcome.retryable) == (False, retryable)


async def test_an_answer_that_is_none_may_be_tried_again(
    server: GatewayServer,
) -> None:
    outcome = await asked(server, "nonsense")
    assert (outcome.ok, outcome.retryable) == (False, True)
    assert "no chat completion" in outcome.error


async def test_a_result_is_bounded(server: GatewayServer) -> None:
    assert (await asked(server, f"long {MAX_RESULT_BYTES - 10}")).ok
    outcome = await asked(server, f"long {MAX_RESULT_BYTES}")
    assert str(MAX_RESULT_BYTES) in outcome.error
    outcome = await asked(server, "long 9000000")
    assert not outcome.ok


@pytest.mark.parametrize("text", ["break off", "half"])
async def test_a_connection_that_breaks_is_the_gateways_failure(
    server: GatewayServer, text: str
) -> None:
    with pytest.raises(ConnectionFailed):
        await asked(server, text)


async def test_a_gateway_that_is_away_cannot_be_asked(server: GatewayServer) -> None:
    gone = endpoint(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionFailed, match="refused"):
        await ask(gone, job(), agent="main")


# Whether it would be


async def test_a_gateway_that_would_take_tasks_passes(server: GatewayServer) -> None:
    await check(endpoint(server), "main")


async def test_what_a_gateway_lacks_is_named(server: GatewayServer) -> None:
    with pytest.raises(PermissionDenied, match="token"):
        await check(endpoint(server, "wrong"), "main")
    with pytest.raises(NotFound, match="no agent scout") as caught:
        await check(endpoint(server), "scout")
    assert "openclaw/main" in (caught.value.hint or "")
    server.is_enabled = False
    with pytest.raises(NotSupported) as unsupported:
        await check(endpoint(server), "main")
    assert "chatCompletions.enabled" in (unsupported.value.hint or "")


# Addresses


def test_an_address_is_read() -> None:
    assert parse_url("http://127.0.0.1:18789") == Endpoint("127.0.0.1", 18789)
    secure = parse_url("https://claw.example/team/", token="t")
    assert secure == Endpoint("claw.example", 443, "t", is_tls=True, path="/team")
    assert parse_url("http://[::1]:8080/").url == "http://[::1]:8080"


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(parse_url("http://h", token="secret"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:1",
        "ftp://h",
        "http://",
        "http://u:p@h",
        "http://h:x",
        "http://h?a",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_url(text)
