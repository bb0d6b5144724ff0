"""The whole rendezvous: in this process, and as the program that users start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.registry import RegistryClient
from pilotfleet.errors import AlreadyExists, RegistryError, StorageError
from pilotfleet.protocol.beacon import Discover, Notify
from pilotfleet.protocol.identity import Identity
from pilotfleet.registry.rendezvous import Rendezvous, RendezvousConfig
from pilotfleet.registry.service import ServiceConfig
from pilotfleet.transport.tls import TlsConfig
from tests.registry.receipts import make_receipt
from tests.registry.support import TIMEOUT_S, eventually, raw_client
from tests.support.http import fetch
from tests.support.nats import run_nats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.protocol.services.receipts import SignedReceipt

LOCAL: Endpoint = ("127.0.0.1", 0)
CONFIG = RendezvousConfig(
    registry=LOCAL,
    beacon=LOCAL,
    http=LOCAL,
    service=ServiceConfig(admin_token="secret"),
)


def identity(number: int) -> Identity:
    return Identity(number.to_bytes(32, "big"))


async def http_get(
    endpoint: Endpoint, path: str, *headers: str
) -> tuple[int, dict[str, str], str]:
    """Return the status, headers and body of a page."""
    async with asyncio.timeout(TIMEOUT_S), raw_client(endpoint) as client:
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close"]
        client.send("\r\n".join([*lines, *headers, "", ""]).encode())
        answer = (await client.reader.read()).decode()
    head, _, body = answer.partition("\r\n\r\n")
    status, *fields = head.split("\r\n")
    pairs = (field.partition(": ") for field in fields)
    return int(status.split()[1]), {key.lower(): value for key, _, value in pairs}, body


async def fill(client: RegistryClient) -> None:
    """Make nodes with everything that must not be lost."""
    for number in (1, 2, 3):
        await client.register(identity(number), f"127.0.0.1:{number}000")
        await client.set_hostname(identity(number), number, f"node-{number}")
        await client.set_tags(identity(number), number, ["text", f"tag-{number}"])
    await client.set_visibility(identity(1), 1, public=True)
    await client.report_trust(identity(1), 1, 2)
    await client.request_handshake(identity(3), 3, 2, justification="please")
    network = await client.create_network(2, "fleet", admin_token="secret")
    await client.join_network(identity(3), 3, network)
    await client.request(
        {
            "type": "set_polo_score",
            "node_id": 1,
            "polo_score": 5,
            "admin_token": "secret",
        }
    )
    await client.register(identity(4), "127.0.0.1:4000")
    await client.deregister(identity(4), 4)


async def describe(client: RegistryClient) -> dict[str, Any]:
    """Return all that a client can see, apart from times."""
    networks = await client.list_networks(admin_token="secret")
    nodes = await client.list_nodes(0, admin_token="secret")
    for item in (*networks, *nodes):
        item.pop("last_seen", None)
    lookups = [await client.lookup(number) for number in (1, 2, 3)]
    for lookup in lookups:
        lookup.pop("last_seen_unix")
    return {
        "networks": networks,
        "nodes": nodes,
        "lookups": lookups,
        "names": [await client.resolve_hostname("node-1")],
        "trust": [await client.check_trust(1, n) for n in (2, 3)],
        "shared": await client.check_trust(2, 3),
        "tags": [
            agent["node_id"]
            for agent in (await client.search(identity(2), 2, tags=["text"]))["agents"]
        ],
        "polo": await client.request({"type": "get_polo_score", "node_id": 1}),
    }


# In this process


async def test_handshake_request_makes_the_beacon_notify() -> None:
    async with (
        Rendezvous(CONFIG) as rendezvous,
        RegistryClient(rendezvous.addresses.registry) as client,
    ):
        await client.register(identity(1), "127.0.0.1:1000")
        await client.register(identity(2), "127.0.0.1:2000")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as node:
            node.setblocking(False)
            node.connect(rendezvous.addresses.beacon)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(node, Discover(2).encode())
            async with asyncio.timeout(TIMEOUT_S):
                await loop.sock_recv(node, 100)
                await client.request_handshake(identity(1), 1, 2)
                assert await loop.sock_recv(node, 100) == Notify().encode()


async def test_beacon_knows_registered_nodes_before_it_hears_them() -> None:
    loop = asyncio.get_running_loop()
    async with (
        Rendezvous(CONFIG) as rendezvous,
        RegistryClient(rendezvous.addresses.registry) as client,
    ):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as node:
            node.setblocking(False)
            node.bind(LOCAL)
            port = node.getsockname()[1]
            await client.register(identity(1), f"127.0.0.1:{port}")
            # An address that may be somebody else's is not used.
            await client.register(identity(2), f"203.0.113.5:{port}")
            assert rendezvous._registered_endpoint(2) is None
            await loop.sock_sendto(
                node, b"\x05\0\0\0\2\0\0\0\1PILA", rendezvous.addresses.beacon
            )
            async with asyncio.timeout(TIMEOUT_S):
                assert await loop.sock_recv(node, 100) == b"\x06\0\0\0\2PILA"


async def test_http_pages() -> None:
    async with (
        Rendezvous(CONFIG) as rendezvous,
        RegistryClient(rendezvous.addresses.registry) as client,
    ):
        await fill(client)
        with pytest.raises(RegistryError):
            await client.lookup(99)
        http = rendezvous.addresses.http
        assert http is not None
        status, _, body = await http_get(http, "/healthz")
        assert status == 200
        health = json.loads(body)
        assert (health["status"], health["version"]) == ("ok", "1.0")
        assert health["nodes_online"] == 3
        assert health["uptime_seconds"] >= 0
        status, headers, body = await http_get(http, "/api/public-stats")
        assert status == 200
        assert headers["access-control-allow-origin"] == "*"
        stats = json.loads(body)
        assert (stats["active_nodes"], stats["total_nodes"]) == (3, 3)
        assert stats["components"]["registry"] == "up"
        status, headers, body = await http_get(http, "/metrics")
        assert status == 200
        assert "version=0.0.4" in headers["content-type"]
        lines = body.splitlines()
        for line in (
            "pilot_nodes_online 3.0",
            "pilot_nodes_total 3.0",
            "pilot_trust_links 1.0",
            "pilot_networks_total 1.0",
            'pilot_requests_total{type="register"} 4.0',
            'pilot_errors_total{type="lookup"} 1.0',
            'pilot_request_duration_seconds_count{type="register"} 4.0',
            "pilot_registrations_total 4.0",
            "pilot_deregistrations_total 1.0",
            "pilot_connections 1.0",
        ):
            assert line in lines
        assert (await http_get(http, "/nothing"))[0] == 404


async def test_metrics_are_for_this_host_only() -> None:
    async with Rendezvous(CONFIG) as rendezvous:
        http = rendezvous.addresses.http
        assert http is not None
        assert (await http_get(http, "/metrics", "X-Real-IP: 203.0.113.5"))[0] == 403
        assert (await http_get(http, "/metrics", "X-Real-IP: 127.0.0.1"))[0] == 200


@pytest.mark.parametrize(
    ("part", "flag"),
    [
        ("registry", "--registry-addr"),
        ("beacon", "--beacon-addr"),
        ("http", "--http"),
    ],
)
async def test_port_in_use_is_named_and_nothing_is_left_open(
    part: str, flag: str
) -> None:
    async with Rendezvous(CONFIG) as first:
        taken = getattr(first.addresses, part)
        second = Rendezvous(replace(CONFIG, **{part: taken}))
        with pytest.raises(AlreadyExists, match=str(taken[1])) as caught:
            await second.__aenter__()
        assert flag in (caught.value.hint or "")


async def test_store_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"certainly not a database" * 100)
    with pytest.raises(StorageError, match=str(path)):
        await Rendezvous(replace(CONFIG, store=f"sqlite://{path}")).__aenter__()


async def test_stop_and_start_keeps_everything(tmp_path: Path) -> None:
    config = replace(CONFIG, store=f"sqlite://{tmp_path}/registry.db")
    async with (
        Rendezvous(config) as rendezvous,
        RegistryClient(rendezvous.addresses.registry) as client,
    ):
        await fill(client)
        before = await describe(client)
    async with (
        Rendezvous(config) as rendezvous,
        RegistryClient(rendezvous.addresses.registry) as client,
    ):
        assert await describe(client) == before


@pytest.mark.nats
async def test_two_replicas_share_one_directory(tmp_path: Path) -> None:
    with run_nats(tmp_path) as server:
        config = replace(CONFIG, store=server.url)
        async with (
            Rendezvous(config) as first,
            Rendezvous(config) as second,
            RegistryClient(first.addresses.registry) as one,
            RegistryClient(second.addresses.registry) as two,
        ):
            await fill(one)
            expected = await describe(one)
            await _eventually_equal(two, expected)
            # A name is given once, whoever asks first.
            await asyncio.gather(
                one.register(identity(5), "127.0.0.1:5"),
                two.register(identity(6), "127.0.0.1:6"),
            )
            results = await asyncio.gather(
                _register_and_name(one, identity(7)),
                _register_and_name(two, identity(8)),
                return_exceptions=True,
            )
            refused = [r for r in results if isinstance(r, RegistryError)]
            assert len(refused) == 1
            assert "already in use" in str(refused[0])


@pytest.mark.nats
async def test_two_replicas_that_get_the_same_receipts_count_them_once(
    tmp_path: Path,
) -> None:
    now = time.time()
    receipts = [
        make_receipt((1, identity(1)), (2, identity(2)), f"t-{n}", completed_at=now)
        for n in range(200)
    ]
    with run_nats(tmp_path) as server:
        config = replace(CONFIG, store=server.url)
        async with (
            Rendezvous(config) as first,
            Rendezvous(config) as second,
            RegistryClient(first.addresses.registry) as one,
            RegistryClient(second.addresses.registry) as two,
        ):
            for number in (1, 2):
                await one.register(identity(number), f"127.0.0.1:{number}000")
            await eventually(lambda: len(second.directory.nodes.live) == 2)
            asked = [
                _deliver(client, receipts[start : start + 50])
                for start in range(0, 200, 50)
                for client in (one, two)
            ]
            found = [
                status for batch in await asyncio.gather(*asked) for status in batch
            ]
            assert sorted(found) == ["counted"] * 200 + ["known"] * 200
            await eventually(lambda: second.directory.polo_score(2) == 200)
            for client in (one, two):
                assert [await client.get_polo_score(n) for n in (1, 2)] == [-200, 200]


async def _deliver(client: RegistryClient, batch: list[SignedReceipt]) -> list[str]:
    """Deliver receipts, again if the other replica was faster too often."""
    while True:
        with contextlib.suppress(RegistryError):
            return [r["status"] for r in await client.polo_receipts(batch)]


async def _register_and_name(client: RegistryClient, who: Identity) -> None:
    node = (await client.register(who, "127.0.0.1:7")).node_id
    await client.set_hostname(who, node, "contested")


async def _eventually_equal(client: RegistryClient, expected: dict[str, Any]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with contextlib.suppress(RegistryError):
                if await describe(client) == expected:
                    return
            await asyncio.sleep(0.01)


# The program


class Program:
    """``pilot-rendezvous`` as a process."""

    def __init__(self, process: asyncio.subprocess.Process, ready: Path) -> None:
        self.process = process
        self._ready = ready

    def __getattr__(self, name: str) -> Endpoint:
        """Return the endpoint of ``registry``, ``beacon`` or ``http``."""
        host, _, port = json.loads(self._ready.read_text())[name].rpartition(":")
        return host, int(port)

    async def wait_ready(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not self._ready.exists():
                if self.process.returncode is not None:
                    raise AssertionError(await self.output())
                await asyncio.sleep(0.01)

    async def output(self) -> str:
        """Return what it wrote, when it has ended."""
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await self.process.communicate()
        return (out + err).decode()

    async def kill(self, number: int = signal.SIGKILL) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        async with asyncio.timeout(TIMEOUT_S):
            return await self.process.wait()


async def start(home: Path, *flags: str) -> Program:
    ready = home / "ready.json"
    ready.unlink(missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pilotfleet.cli.rendezvous"),
        *("--registry-addr", "127.0.0.1:0", "-beacon-addr", "127.0.0.1:0"),
        *("--http=127.0.0.1:0", "-ready-file", str(ready), *flags),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
    )
    return Program(process, ready)


@contextlib.asynccontextmanager
async def running(home: Path, *flags: str) -> AsyncIterator[Program]:
    program = await start(home, *flags)
    try:
        await program.wait_ready()
        yield program
    finally:
        if program.process.returncode is None:
            await program.kill()
        # Reads the pipes to their ends, so that they are closed.
        await program.output()


@contextlib.asynccontextmanager
async def connected(
    home: Path, *flags: str
) -> AsyncIterator[tuple[Program, RegistryClient]]:
    async with (
        running(home, *flags) as program,
        RegistryClient(program.registry) as client,
    ):
        yield program, client


async def test_sigkill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    flags = (
        *("-store", f"sqlite://{tmp_path}/var/registry.db"),
        *("-admin-token-file", str(token)),
    )
    async with connected(tmp_path, *flags) as (program, client):
        await fill(client)
        before = await describe(client)
        assert await program.kill() == -signal.SIGKILL
    mode = (tmp_path / "var" / "registry.db").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    async with connected(tmp_path, *flags) as (program, client):
        assert await describe(client) == before
        # The handshake still waits, and a known key gets its old ID back.
        polled = await client.poll_handshakes(identity(2), 2)
        assert [r["justification"] for r in polled["requests"]] == ["please"]
        again = await client.register(identity(4), "127.0.0.1:4000")
        assert again.node_id == 4
        new = await client.register(identity(9), "127.0.0.1:9000")
        assert new.node_id == 5


async def test_receipts_survive_sigkill_between_any_two_steps(tmp_path: Path) -> None:
    store = ("-store", f"sqlite://{tmp_path}/registry.db")
    now = time.time()
    receipts = [
        make_receipt((1, identity(1)), (2, identity(2)), f"t-{n}", completed_at=now)
        for n in range(400)
    ]
    batches = [receipts[start : start + 10] for start in range(0, len(receipts), 10)]
    answered: set[str] = set()

    async def deliver(client: RegistryClient, batch: list[SignedReceipt]) -> None:
        for result in await client.polo_receipts(batch):
            assert result["status"] in ("counted", "known"), result
            answered.add(result["task_id"])

    async with connected(tmp_path, *store) as (_, client):
        for number in (1, 2):
            await client.register(identity(number), f"127.0.0.1:{number}000")
        assert "receipts" in client.extensions
    for share in (1, 100, 200):
        # All are delivered, and each time it is killed in the middle of them.
        answered.clear()
        async with connected(tmp_path, *store) as (program, client):
            asked = [asyncio.create_task(deliver(client, b)) for b in batches]
            await eventually(lambda: len(answered) >= share)  # noqa: B023
            await program.kill()
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        async with connected(tmp_path, *store) as (_, client):
            shown = await client.list_receipts(identity(2), 2, limit=1000)
            found = {row["task_id"] for row in shown["receipts"]}
            assert answered <= found
            assert shown["score"] == len(shown["receipts"])
    async with connected(tmp_path, *store) as (_, client):
        for batch in batches:
            await deliver(client, batch)
        assert [await client.get_polo_score(node) for node in (1, 2)] == [-400, 400]
        shown = await client.list_receipts(identity(2), 2, limit=1000)
        tasks = sorted(row["task_id"] for row in shown["receipts"])
        assert tasks == sorted(receipt.task_id for receipt in receipts)


async def test_sigterm_stops_in_good_order(tmp_path: Path) -> None:
    async with running(tmp_path, "--store", "memory:") as program:
        async with RegistryClient(program.registry) as client:
            await client.register(identity(1), "127.0.0.1:1000")
            assert await program.kill(signal.SIGTERM) == 0
        output = await program.output()
    assert "ready: registry 127.0.0.1:" in output
    assert "stopped" in output
    assert "Traceback" not in output


async def test_the_dashboard_is_closed_by_its_flags(tmp_path: Path) -> None:
    token = tmp_path / "http-token"
    token.write_text("door\n")
    flags = ("--store=memory:", "-http-token-file", str(token))
    async with running(
        tmp_path, *flags, "--http-allow-host", "polo.example"
    ) as program:
        there = program.http
        assert (await http_get(there, "/api/v1/agents"))[0] == 401
        bearer = "Authorization: Bearer door"
        assert (await http_get(there, "/api/v1/agents", bearer))[0] == 200
        other = await fetch(there, "/healthz", headers={"Host": "other.example"})
        named = await fetch(there, "/healthz", headers={"Host": "polo.example:443"})
        assert (other.status, named.status) == (421, 200)
    async with running(tmp_path, "--store=memory:", "-dashboard", "off") as program:
        assert (await http_get(program.http, "/"))[0] == 404
        assert (await http_get(program.http, "/healthz"))[0] == 200


async def test_log_in_json(tmp_path: Path) -> None:
    flags = ("--store", "memory:", "--log-format", "json")
    async with running(tmp_path, *flags) as program:
        await program.kill(signal.SIGINT)
        output = await program.output()
    lines = [json.loads(line) for line in output.splitlines()]
    assert any(line["message"].startswith("ready: ") for line in lines)


async def test_tls_with_a_certificate_of_its_own(tmp_path: Path) -> None:
    async with running(tmp_path, "--store", "memory:", "-tls") as program:
        assert program.process.stderr is not None
        line = (await program.process.stderr.readline()).decode()
        assert "fingerprint" in line
        tls = TlsConfig(fingerprint=line.split()[-1])
        async with RegistryClient(program.registry, tls=tls) as client:
            await client.register(identity(1), "127.0.0.1:1000")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--store", "postgres://db"], "postgres://db"),
        (["--store", "sqlite:///proc/nothing/registry.db"], "/proc/nothing"),
        (["--store", "nats://127.0.0.1:1"], "127.0.0.1:1"),
        (["--registry-addr", "here"], "'here' is not host:port"),
        (["--registry-addr", "192.0.2.1:9000"], "192.0.2.1:9000"),
        (["--beacon-addr", "192.0.2.1:9001"], "192.0.2.1:9001"),
        (["--admin-token-file", "/no/such/file"], "/no/such/file"),
        (["--http-token-file", "/no/such/file"], "the HTTP token file /no/such/file"),
        (["--dashboard", "perhaps"], "perhaps"),
        (["--stale-threshold", "soon"], "--stale-threshold"),
        (["--tls-cert", "cert.pem"], "--tls"),
        (["--tls", "--tls-cert", "/no/cert", "--tls-key", "/no/key"], "/no/cert"),
        (["--log-level", "loud"], "loud"),
        (["--log-format", "xml"], "xml"),
        (["--ready-file", "/no/such/dir/ready"], "/no/such/dir/ready"),
        (["--no-such-flag"], "no-such-flag"),
    ],
)
async def test_bad_input_is_named_without_a_traceback(
    tmp_path: Path, flags: list[str], message: str
) -> None:
    store = [] if "--store" in flags else ["--store", "memory:"]
    program = await start(tmp_path, *store, *flags)
    output = await program.output()
    assert program.process.returncode in (1, 2)
    assert message in output
    assert "Traceback" not in output


async def test_port_in_use_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = ("--registry-addr", f"127.0.0.1:{port}", "--store", "memory:")
        program = await start(tmp_path, *flags)
        output = await program.output()
    assert program.process.returncode == 1
    assert f"tcp port {port} on 127.0.0.1 is in use" in output
    assert "hint:" in output
    assert "--registry-addr" in output
