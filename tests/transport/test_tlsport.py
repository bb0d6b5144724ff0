"""The port that tells TLS from plain by the first byte, and its bounds."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING

import pytest

from pilotfleet.transport import tlsport
from pilotfleet.transport.certificates import self_signed_tls
from pilotfleet.transport.tls import TlsConfig, client_tls_context
from pilotfleet.transport.tlsport import TlsPort

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from pilotfleet.protocol.address import Endpoint

TIMEOUT_S = 20.0


class Greeter(asyncio.Protocol):
    """Says who it is to whoever says something, and hangs up."""

    def __init__(self, greeting: bytes) -> None:
        self._greeting = greeting
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(self._greeting)
        self._transport.close()


@contextlib.asynccontextmanager
async def running(
    folder: Path, *, handshake_s: float = TIMEOUT_S, max_arrivals: int = 10
) -> AsyncIterator[tuple[TlsPort, ssl.SSLContext]]:
    """Yield a port and what a client trusts it with."""
    tls = self_signed_tls(folder)
    port = TlsPort(
        tls.context,
        make=lambda: Greeter(b"secret"),
        make_plain=lambda: Greeter(b"plain"),
        handshake_s=handshake_s,
        max_arrivals=max_arrivals,
    )
    await port.open("127.0.0.1", 0, backlog=100)
    try:
        yield port, client_tls_context(TlsConfig(fingerprint=tls.fingerprint))
    finally:
        port.close()
        await port.wait_closed()


async def greeting(
    endpoint: Endpoint, context: ssl.SSLContext | None = None, first: bytes = b""
) -> bytes:
    """Return all that the port sends to somebody who begins with ``first``."""
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_connection(*endpoint, ssl=context)
        writer.write(first)
        data = b""
        with contextlib.suppress(ConnectionError):
            data = await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        return data


async def eventually(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not is_true():  # noqa: ASYNC110 - a number that nobody announces
            await asyncio.sleep(0.001)


async def test_first_byte_decides_who_answers(tmp_path: Path) -> None:
    async with running(tmp_path) as (port, context):
        assert await greeting(port.address, context, b"hello") == b"secret"
        assert await greeting(port.address, first=b"\0\0\0\x02{}") == b"plain"
        assert await greeting(port.address, first=b"PILT\1") == b"plain"
        assert port.arrival_count == 0
        assert port.failed_count == 0


@pytest.mark.parametrize("first", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
async def test_slow_handshake_is_given_up(tmp_path: Path, first: bytes) -> None:
    async with running(tmp_path, handshake_s=0.05) as (port, _):
        assert await greeting(port.address, first=first) == b""
        await eventually(lambda: port.arrival_count == 0)


async def test_handshake_of_garbage_fails(tmp_path: Path) -> None:
    async with running(tmp_path) as (port, context):
        await greeting(port.address, first=b"\x16" + bytes(100))
        await eventually(lambda: port.arrival_count == 0)
        assert port.failed_count == 1
        assert await greeting(port.address, context, b"hello") == b"secret"


async def test_who_hangs_up_at_once_is_forgotten(tmp_path: Path) -> None:
    async with running(tmp_path) as (port, _):
        _, writer = await asyncio.open_connection(*port.address)
        writer.close()
        await writer.wait_closed()
        await eventually(lambda: port.failed_count == 1)
        assert port.arrival_count == 0


async def test_too_many_arrivals_cost_the_oldest_its_place(tmp_path: Path) -> None:
    async with running(tmp_path, handshake_s=3600, max_arrivals=3) as (port, context):
        # Two say nothing, the second stops in the middle of its handshake.
        silent = [await asyncio.open_connection(*port.address) for _ in range(3)]
        silent[1][1].write(b"\x16\x03\x01\x02\x00\x01")
        await eventually(lambda: port.arrival_count == 3)
        for number in range(2):
            assert await greeting(port.address, context, b"hello") == b"secret"
            async with asyncio.timeout(TIMEOUT_S):
                with contextlib.suppress(ConnectionError):
                    assert await silent[number][0].read() == b""
            assert port.arrival_count == 2
            silent.append(await asyncio.open_connection(*port.address))
            await eventually(lambda: port.arrival_count == 3)
        for _, writer in silent:
            writer.close()
        await eventually(lambda: port.arrival_count == 0)


async def test_closing_gives_up_those_who_shake_hands(tmp_path: Path) -> None:
    async with running(tmp_path, handshake_s=3600) as (port, _):
        reader, writer = await asyncio.open_connection(*port.address)
        writer.write(b"\x16\x03\x01\x02\x00\x01")
        await eventually(lambda: port.arrival_count == 1)
        port.close()
        await port.wait_closed()
        async with asyncio.timeout(TIMEOUT_S):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()


async def test_port_goes_on_when_descriptors_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tlsport, "PAUSE_S", 0.01)
    async with running(tmp_path) as (port, context):
        [listener] = port._sockets
        broke = iter([OSError(errno.EMFILE, "too many open files")])
        real_accept = listener.accept

        class Exhausted:
            """The listening socket of a process that has no descriptor left."""

            def accept(self) -> tuple[socket.socket, object]:
                for error in broke:
                    raise error
                return real_accept()

            def fileno(self) -> int:
                return listener.fileno()

        port._accept(Exhausted())  # type: ignore[arg-type]
        assert await greeting(port.address, context, b"hello") == b"secret"


async def test_address_in_use_is_an_error(tmp_path: Path) -> None:
    async with running(tmp_path) as (port, _), running(tmp_path / "b") as (other, _):
        with pytest.raises(OSError, match="in use"):
            await other.open(*port.address, backlog=1)
