"""Posting to real servers, good and bad ones."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import ConnectionFailed, PermissionDenied, ProtocolError
from pilotfleet.transport import httppost
from pilotfleet.transport.certificates import self_signed_tls
from pilotfleet.transport.httppost import HttpPoster
from pilotfleet.transport.tls import system_tls_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator
    from pathlib import Path

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HEADERS = [("Host", "x"), ("Content-Length", "4")]


@dataclass
class Place:
    """Where to post to."""

    host: str
    port: int
    is_tls: bool = False


@dataclass
class Bad:
    """A server that answers each request with given bytes, whatever they are."""

    answers: list[bytes]
    stays: bool = True
    requests: int = 0
    connections: int = 0

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while self.answers:
                await reader.readuntil(b"\r\n\r\n")
                assert await reader.readexactly(4) == b"body"
                self.requests += 1
                writer.write(self.answers.pop(0))
                await writer.drain()
                if not self.stays:
                    break
        writer.close()


@contextlib.asynccontextmanager
async def posting_to(
    server: Bad, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[HttpPoster]:
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    place = Place(host, port, is_tls=tls is not None)
    poster = HttpPoster(place, check_address=lambda address: None)
    try:
        yield poster
    finally:
        await poster.aclose()
        listener.close()


async def post(poster: HttpPoster) -> int:
    async with asyncio.timeout(10):
        return await poster.post("/", HEADERS, b"body")


async def test_one_connection_serves_many_posts() -> None:
    server = Bad([OK] * 5)
    async with posting_to(server) as poster:
        assert [await post(poster) for _ in range(5)] == [200] * 5
    assert server.connections == 1


async def test_interim_answers_are_skipped() -> None:
    server = Bad([b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK])
    async with posting_to(server) as poster:
        assert await post(poster) == 200


async def test_server_that_closes_between_posts_is_called_again() -> None:
    server = Bad([OK, OK, OK], stays=False)
    async with posting_to(server) as poster:
        assert [await post(poster) for _ in range(3)] == [200] * 3
    assert server.connections == 3


async def test_long_body_costs_the_connection_only() -> None:
    long = b"HTTP/1.1 500 No\r\nContent-Length: 99999999\r\n\r\n" + bytes(1 << 20)
    server = Bad([long, OK])
    async with posting_to(server) as poster:
        assert [await post(poster), await post(poster)] == [500, 200]
    assert server.connections == 2


async def test_body_that_never_ends_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(httppost, "REST_S", 0.05)
    server = Bad([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", b""])
    async with posting_to(server) as poster:
        assert await post(poster) == 200


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
    ],
)
async def test_what_is_no_http_is_an_error(answer: bytes) -> None:
    async with posting_to(Bad([answer])) as poster:
        with pytest.raises(ProtocolError):
            await post(poster)


async def test_connection_closed_without_an_answer_is_a_failure() -> None:
    async with posting_to(Bad([b""], stays=False)) as poster:
        with pytest.raises(ConnectionFailed, match="closed"):
            await post(poster)


async def test_post_that_is_given_up_is_not_sent_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(httppost, "CLOSE_S", 0.01)
    body = bytes(32 << 20)
    given_up, received = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await given_up.wait()
        count = 0
        with contextlib.suppress(ConnectionResetError):
            while data := await reader.read(1 << 20):
                count += len(data)
        received.set_result(count)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        place = Place(*listener.sockets[0].getsockname())
        poster = HttpPoster(place, check_address=lambda address: None)
        headers = [("Host", "x"), ("Content-Length", str(len(body)))]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await poster.post("/", headers, body)
        given_up.set()
        assert await received < len(body)


async def test_nobody_listening_is_a_failure() -> None:
    poster = HttpPoster(Place("127.0.0.1", 1), check_address=lambda address: None)
    with pytest.raises(ConnectionFailed):
        await post(poster)


async def test_unknown_name_is_a_failure() -> None:
    place = Place("nothing.invalid", 80)
    poster = HttpPoster(place, check_address=lambda address: None)
    with pytest.raises(ConnectionFailed, match="look up"):
        await post(poster)


async def test_name_of_a_refused_address_is_not_contacted() -> None:
    def refuse(address: str) -> None:
        raise PermissionDenied(f"not to {address}")

    server = Bad([OK])
    async with posting_to(server, "localhost") as poster:
        poster._check_address = refuse
        with pytest.raises(PermissionDenied, match="not to"):
            await post(poster)
    assert not server.connections


async def test_server_must_prove_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = self_signed_tls(tmp_path, hosts=["localhost"])
    server = Bad([OK] * 2)
    async with posting_to(server, "localhost", tls.context) as poster:
        with pytest.raises(ConnectionFailed, match=r"(?i)certificate"):
            await post(poster)
        monkeypatch.setenv("SSL_CERT_FILE", str(tls.certificate))
        system_tls_context.cache_clear()
        try:
            assert await post(poster) == 200
        finally:
            system_tls_context.cache_clear()
