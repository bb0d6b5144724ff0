"""The registry over TLS: its server, and the program that an operator runs."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.links import LinkConfig
from pilotfleet.client.registry import RegistryClient
from pilotfleet.errors import ConnectionFailed
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.registry.binary import BinaryType, decode_error
from pilotfleet.protocol.registry.framing import BINARY_PREAMBLE, encode_binary_frame
from pilotfleet.registry.server import (
    TLS_ONLY,
    PlainClients,
    RegistryServer,
    ServerConfig,
)
from pilotfleet.transport.certificates import ServerTls, self_signed_tls
from pilotfleet.transport.tls import TlsConfig
from tests.registry.support import eventually, raw_client
from tests.support.certificates import make_authority, make_certificate
from tests.support.programs import BIN, READY_S, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.registry.context import PeerContext
    from tests.support.programs import World

ONCE = LinkConfig(attempts=1)


class Echo:
    """Answers with the request."""

    async def handle(
        self, request: dict[str, Any], peer: PeerContext
    ) -> dict[str, Any]:
        return {**request, "type": f"{request['type']}_ok"}

    async def handle_binary(
        self, kind: int, payload: bytes, peer: PeerContext
    ) -> tuple[int, bytes]:
        return kind | 0x80, payload


@pytest.fixture
def tls(tmp_path: Path) -> ServerTls:
    """Return a certificate of the server's own."""
    return self_signed_tls(tmp_path)


def serve(tls: ServerTls, plain: PlainClients = PlainClients.NONE) -> RegistryServer:
    config = ServerConfig(plain_clients=plain)
    return RegistryServer(Echo(), ("127.0.0.1", 0), config=config, tls=tls.context)


async def test_many_requests_are_out_on_a_tls_connection(tls: ServerTls) -> None:
    config = TlsConfig(fingerprint=tls.fingerprint)
    async with (
        serve(tls) as server,
        RegistryClient(server.address, connections=1, tls=config) as client,
    ):
        client._pool.allow_pipelining()
        requests = ({"type": "echo", "n": n} for n in range(500))
        replies = await asyncio.gather(*map(client.request, requests))
        assert [reply["n"] for reply in replies] == list(range(500))
        assert server.connection_count == 1


async def test_plain_client_is_told_to_use_tls(tls: ServerTls) -> None:
    async with serve(tls) as server:
        async with raw_client(server.address) as plain:
            refused = {"type": "error", "error": TLS_ONLY}
            assert await plain.ask({"type": "echo"}) == refused
            assert await plain.ask({"type": "echo"}) == refused
        async with raw_client(server.address) as plain:
            plain.send(BINARY_PREAMBLE)
            plain.send(encode_binary_frame(BinaryType.LOOKUP, b"\0\0\0\1"))
            frame = await plain.receive_frame()
            assert frame[0] == BinaryType.ERROR
            assert decode_error(frame[1:]) == TLS_ONLY
        await eventually(lambda: server.connection_count == 0)


@pytest.mark.parametrize("plain", [PlainClients.LOOPBACK, PlainClients.ALL])
async def test_plain_clients_are_served_where_allowed(
    tls: ServerTls, plain: PlainClients
) -> None:
    config = TlsConfig(fingerprint=tls.fingerprint)
    async with (
        serve(tls, plain) as server,
        RegistryClient(server.address, tls=config) as client,
        raw_client(server.address) as other,
    ):
        assert await other.ask({"type": "echo"}) == {"type": "echo_ok"}
        assert await client.request({"type": "echo"}) == {"type": "echo_ok"}


async def test_wrong_pin_never_sends_the_request(tls: ServerTls) -> None:
    wrong = TlsConfig(fingerprint="0" * 64)
    async with serve(tls) as server:
        async with RegistryClient(server.address, tls=wrong, config=ONCE) as client:
            with pytest.raises(ConnectionFailed, match="not the pinned one"):
                await client.request({"type": "echo"})
        assert server.stats.request_count == 0
        await eventually(lambda: server.connection_count == 0)


async def test_tls_client_at_a_plain_registry_is_not_served() -> None:
    async with RegistryServer(Echo(), ("127.0.0.1", 0)) as server:
        config = TlsConfig(fingerprint="0" * 64)
        async with RegistryClient(server.address, tls=config, config=ONCE) as client:
            with pytest.raises(ConnectionFailed, match="no TLS with") as caught:
                await client.request({"type": "echo"})
        assert caught.value.hint is not None
        assert "start it with --tls" in caught.value.hint
        assert server.stats.garbage == 1


# As programs


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        yield made


def fingerprint_of(net: World) -> str:
    ready = json.loads((net.home / "rendezvous.ready.json").read_text())
    return str(ready["tls_fingerprint"])


def endpoint_of(net: World) -> Endpoint:
    host, _, port = net.registry.rpartition(":")
    return host, int(port)


async def register(net: World, config: TlsConfig) -> None:
    async with RegistryClient(endpoint_of(net), tls=config, config=ONCE) as client:
        await client.register(Identity(bytes(32)), "127.0.0.1:1000")


async def test_own_certificate_outlives_a_restart(net: World) -> None:
    net.start_rendezvous(None, "--tls")
    fingerprint = fingerprint_of(net)
    assert (net.home / "tls-key.pem").stat().st_mode & 0o777 == 0o600
    assert fingerprint in net.programs[0].log.read_text()
    net.programs[0].kill()
    net.start_rendezvous(None, "--tls")
    assert fingerprint_of(net) == fingerprint
    await register(net, TlsConfig(fingerprint=fingerprint))
    assert await show_fingerprint(net) == f"{fingerprint}\n"


async def show_fingerprint(net: World) -> str:
    """Return what the command for operators prints."""
    program = await asyncio.create_subprocess_exec(
        *(BIN / "pilot-rendezvous", "--tls-fingerprint"),
        *("--store", f"sqlite:///{net.home / 'registry.db'}"),
        env=net.environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(READY_S):
        output, _ = await program.communicate()
    return output.decode()


async def test_renewed_certificate_is_used_without_a_restart(net: World) -> None:
    authority = make_authority(net.home)
    old, new = (make_certificate(net.home, name, authority) for name in ("a", "b"))
    flags = ("--tls", "--tls-cert", old.cert_path, "--tls-key", old.key_path)
    program = net.start_rendezvous("memory:", *flags)
    trusting = TlsConfig(authorities=authority.cert_path)
    await register(net, trusting)
    assert fingerprint_of(net) == old.fingerprint

    new.cert_path.replace(old.cert_path)
    program.process.send_signal(signal.SIGHUP)
    program.wait_until(lambda: "old TLS certificate stays" in program.log.read_text())
    await register(net, TlsConfig(fingerprint=old.fingerprint))

    new.key_path.replace(old.key_path)
    program.process.send_signal(signal.SIGHUP)
    program.wait_until(lambda: new.fingerprint in program.log.read_text())
    await register(net, TlsConfig(fingerprint=new.fingerprint))
    await register(net, trusting)
