"""The daemon's socket: recorded exchanges, rules, bounds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilotfleet.errors import NotFound, RegistryError, StorageError
from pilotfleet.node.ipc import IpcServer
from pilotfleet.node.ipc import session as session_module
from pilotfleet.protocol.ipc.commands import Command
from pilotfleet.transport import peeruser
from tests.node.ipc.support import (
    BUFFER,
    RawClient,
    TinyHost,
    connect,
    raw_client,
    serving,
)
from tests.protocol.ipc.vectors import EXCHANGES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from pilotfleet.protocol.address import SocketAddress


@pytest.fixture
def host() -> TinyHost:
    return TinyHost()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pilot.sock"


@pytest.fixture
async def server(host: TinyHost, path: Path) -> AsyncIterator[IpcServer]:
    async with serving(host, path) as server:
        yield server


@pytest.fixture
async def client(server: IpcServer, path: Path) -> AsyncIterator[RawClient]:
    async with raw_client(path) as client:
        yield client


async def _replay(client: RawClient, name: str) -> None:
    """Play a recorded exchange, then make sure nothing else was answered."""
    for who, frame in EXCHANGES[name]:
        if who == "c2s":
            client.send(frame)
        else:
            assert (await client.receive()).hex() == frame
    assert (await client.ask("21"))[0] == Command.HEALTH_OK


# Exchanges recorded with the official daemon


@pytest.mark.parametrize(
    "name",
    [
        "close-unknown",
        "send-dead",
        "send-short",
        "empty-frame",
        "bind-zero",
        "bind-short",
        "dial-unknown-node",
        "tags-four",
        "approve-nothing-pending",
        "revoke-untrusted",
        "dial-closed-port",
    ],
)
async def test_recorded_exchange(client: RawClient, name: str) -> None:
    await _replay(client, name)


async def test_a_bad_broadcast_token_is_refused(
    client: RawClient, host: TinyHost
) -> None:
    host.config.admin_token = "adm"
    await _replay(client, "broadcast-bad-token")


async def test_a_port_is_bound_once(client: RawClient, path: Path) -> None:
    assert await client.ask("010bb8") == bytes.fromhex("020bb8")
    async with raw_client(path) as other:
        await _replay(other, "bind-taken")
        await _replay(other, "unbind-foreign")
    assert await client.ask("370bb8") == bytes.fromhex("380bb8")
    assert await client.ask("010bb8") == bytes.fromhex("020bb8")


async def test_closing_a_live_stream_is_said_twice(
    client: RawClient, host: TinyHost
) -> None:
    host.agents["two"].listeners[7] = lambda stream: None
    assert (await client.ask("030000000000020007")).hex() == "0400000009"
    await _replay(client, "close-live-stream")


async def test_cancel_answers_the_dial(client: RawClient, path: Path) -> None:
    client.send("030000000000420007")
    async with raw_client(path) as other:
        other.send("030000000000420007")
        client.send("2b")
        assert (await client.receive()).hex() == EXCHANGES["dial-then-cancel"][2][1]
        assert (await other.ask("21"))[0] == Command.HEALTH_OK


async def test_replies_come_in_completion_order(client: RawClient) -> None:
    client.send("0f0700000009000000c8")
    client.send("0d")
    client.send("21")
    replies = [(await client.receive())[0] for _ in range(3)]
    assert replies[-1] == Command.HANDSHAKE_OK
    assert set(replies[:2]) == {Command.HEALTH_OK, Command.INFO_OK}


# Error texts of section 3


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        ("7f", "unknown command: 0x7F"),
        ("02", "unknown command: 0x02"),
        ("2c", "unknown command: 0x2C"),
        ("37", "unbind: port is required"),
        ("03000000", "dial: missing address/port"),
        ("080000", "close: missing conn_id"),
        ("39000000", "sendto: missing header"),
        (
            "390000ffffffff0bb86869",
            "sendto: broadcast address requires admin token: use BroadcastDatagram",
        ),
        (
            "390000000000630bb86869",
            "sendto: resolve node 99: registry: node 99: node not found",
        ),
        ("29", "broadcast: missing header"),
        (
            "2900000bb8000361646d6869",
            "broadcast: broadcast denied: daemon has no admin token configured",
        ),
        ("0f", "handshake: missing sub-command"),
        ("0f09", "handshake: unknown sub-command 0x09"),
        ("0f01", "handshake request: missing node_id"),
        ("0f02", "handshake approve: missing node_id"),
        ("0f03", "handshake reject: missing node_id"),
        ("0f06", "handshake revoke: missing node_id"),
        (
            "0f0700",
            "handshake wait: payload must be [nodeID(4)][timeoutMs(4)]",
        ),
        (
            "0f0100000063",
            "handshake request: handshake relay: registry: node 99: node not found",
        ),
        ("11", "resolve_hostname: missing hostname"),
        ("15", "set_visibility: missing value"),
        ("1b" + b"ftp://x".hex(), 'URL must use http or https scheme, got "ftp"'),
        ("1f", "network: missing sub-command"),
        ("1f09", "network: unknown sub-command 0x09"),
        ("1f02", "network join: missing network_id"),
        ("23", "managed: missing sub-command"),
        ("2301", "managed: unknown sub-command 0x01"),
        ("23020003", "managed: no active managed networks"),
        ("23040003", "managed: no active managed networks"),
        ("23070003", "managed: no active policy runner for network"),
        ("2d0000", "prefer_direct: payload must be 4 bytes (node_id)"),
        ("2f7b7d", "submit_badge: badge and badge_sig required"),
        ("317b7d", "enroll_recovery: enrollment and enrollment_sig required"),
        ("337b7d", "sign_envelope: audience required"),
        ("357b7d", "verify_envelope: envelope and signature required"),
    ],
)
async def test_error_texts(client: RawClient, frame: str, text: str) -> None:
    assert await client.ask_error(frame) == text


async def test_texts_that_hold_a_parsers_words(client: RawClient) -> None:
    assert (await client.ask_error("197b")).startswith("set_tags: invalid JSON: ")
    assert (await client.ask_error("33")).startswith("sign_envelope: bad payload: ")


async def test_a_datagram_that_is_too_large_is_named(client: RawClient) -> None:
    frame = bytes.fromhex("390000000000020bb8") + bytes(70_000)
    text = "sendto: marshal: payload too large: 70000 bytes (max 65535)"
    assert await client.ask_error(frame) == text


async def test_registry_errors_are_named(client: RawClient, host: TinyHost) -> None:
    host.answers["resolve_hostname"] = RegistryError('hostname "nope" not found')
    text = 'resolve_hostname: registry: hostname "nope" not found'
    assert await client.ask_error(b"\x11nope") == text
    host.answers["join_network"] = RegistryError("network 9: network not found")
    text = "network join: registry: network 9: network not found"
    assert await client.ask_error("1f020009") == text


async def test_no_trust_service_is_said(client: RawClient, host: TinyHost) -> None:
    host.trust_service = None
    text = "handshake: service not registered"
    assert await client.ask_error("0f04") == text


# Commands that the registry answers


@pytest.mark.parametrize(
    ("frame", "reply", "request_"),
    [
        ("13666f6f", 0x14, {"type": "set_hostname", "node_id": 1, "hostname": "foo"}),
        ("1501", 0x16, {"type": "set_visibility", "node_id": 1, "public": True}),
        ("17", 0x18, {"type": "deregister", "node_id": 1}),
        (
            "195b2261222c2262225d",
            0x1A,
            {"type": "set_tags", "node_id": 1, "tags": ["a", "b"]},
        ),
        ("196e756c6c", 0x1A, {"type": "set_tags", "node_id": 1, "tags": []}),
        ("1d01", 0x1E, {"type": "set_task_exec", "node_id": 1, "enabled": True}),
        ("27", 0x28, {"type": "get_polo_score", "node_id": 1}),
        ("1f01", 0x20, {"type": "list_networks"}),
        (
            "1f020003746f6b",
            0x20,
            {"type": "join_network", "network_id": 3, "token": "tok"},
        ),
        ("1f030003", 0x20, {"type": "leave_network", "network_id": 3}),
        ("1f040003", 0x20, {"type": "list_nodes", "network_id": 3}),
        (
            "1f05000300000007",
            0x20,
            {
                "type": "invite_to_network",
                "network_id": 3,
                "inviter_id": 1,
                "target_node_id": 7,
            },
        ),
        ("1f06", 0x20, {"type": "poll_invites", "node_id": 1}),
        (
            "1f07000301",
            0x20,
            {"type": "respond_invite", "node_id": 1, "network_id": 3, "accept": True},
        ),
        (
            "230600000300000007",
            0x24,
            {"type": "get_member_tags", "network_id": 3, "target_node_id": 7},
        ),
        (
            "2306010003000000075b2261222c2262225d",
            0x24,
            {
                "type": "set_member_tags",
                "network_id": 3,
                "target_node_id": 7,
                "tags": ["a", "b"],
                "node_id": 1,
            },
        ),
    ],
)
async def test_requests_are_passed_to_the_registry(
    client: RawClient,
    host: TinyHost,
    frame: str,
    reply: int,
    request_: dict[str, Any],
) -> None:
    host.answers[request_["type"]] = {"type": request_["type"] + "_ok", "x": 1}
    answer = await client.ask(frame)
    assert answer[0] == reply
    assert json.loads(answer[1:]) == {"type": request_["type"] + "_ok", "x": 1}
    assert host.default_agent.requests == [request_]


async def test_settings_are_kept_by_the_agent(
    client: RawClient, host: TinyHost
) -> None:
    agent = host.default_agent
    host.answers |= {"set_hostname": {}, "set_tags": {}, "set_visibility": {}}
    await client.ask("13666f6f")
    await client.ask("195b2261225d")
    await client.ask("1501")
    assert (agent.hostname, agent.tags) == ("foo", ("a",))
    assert agent.is_public
    assert agent.streams.is_public


async def test_trust_commands(client: RawClient, host: TinyHost) -> None:
    assert host.trust_service is not None
    assert json.loads((await client.ask("0f0100000007776879"))[1:]) == {
        "status": "sent",
        "node_id": 7,
    }
    assert (await client.ask("0f04")) == b'\x10{"pending":[]}'
    assert json.loads((await client.ask("0f030000000762656361757365"))[1:]) == {
        "status": "rejected",
        "node_id": 7,
    }
    host.trust_service.trusted_nodes.add(7)
    assert json.loads((await client.ask("0f05"))[1:]) == {"trusted": [{"node_id": 7}]}
    assert json.loads((await client.ask("0f070000000700000000"))[1:])["trusted"]
    assert host.trust_service.calls == [("request", 7, "why"), ("reject", 7, "because")]


async def test_a_policy_does_not_exist(client: RawClient) -> None:
    answer = await client.ask("2305000003")
    assert answer[0] == Command.MANAGED_OK
    assert json.loads(answer[1:])["engine"] == "none"


async def test_envelopes_are_signed_and_checked(
    client: RawClient, host: TinyHost
) -> None:
    body = b'{"audience":"svc","body_b64":"aGk=","nonce":"5a4cc8988eea604f"}'
    signed = json.loads((await client.ask(b"\x33" + body))[1:])
    assert signed["address"] == "0:0000.0000.0001"
    assert signed["envelope"].startswith("pilot-req-v1|000000000001|1795355870|5a4c")

    host.answers["lookup"] = RegistryError("node 1: node not found")
    request = {"envelope": signed["envelope"], "signature": signed["signature"]}
    answer = await client.ask(b"\x35" + json.dumps(request).encode())
    assert answer[0] == Command.VERIFY_ENVELOPE_OK
    assert json.loads(answer[1:])["valid"] is False


# Streams


async def _dialled(client: RawClient, host: TinyHost) -> tuple[int, Any]:
    """Dial agent two; return the connection id and the far end."""
    accepted: list[Any] = []
    host.agents["two"].listeners[7] = accepted.append
    reply = await client.ask("030000000000020007")
    assert reply[0] == Command.DIAL_OK
    return int.from_bytes(reply[1:]), accepted[0]


async def test_stream_bytes_arrive_in_order_both_ways(
    client: RawClient, host: TinyHost
) -> None:
    number, far = await _dialled(client, host)
    head = number.to_bytes(4)
    for part in (b"a", b"b" * 1000, b"c"):
        client.send(b"\x06" + head + part)
    await client.ask("21")
    assert b"".join(far.received) == b"a" + b"b" * 1000 + b"c"

    far.write_nowait(b"hello")
    assert await client.receive() == b"\x07" + head + b"hello"
    far.write_nowait(b"end")
    far.close_nowait()
    assert await client.receive() == b"\x07" + head + b"end"
    assert await client.receive() == b"\x09" + head


async def test_only_the_binding_client_is_told_of_a_stream(
    client: RawClient, host: TinyHost, path: Path
) -> None:
    async with raw_client(path) as other:
        await client.ask("010bb9")
        await other.ask("21")
        near, far = connect(host.agents["two"], host.default_agent, 3001)
        host.default_agent.listeners[3001](far)
        accept = bytes.fromhex("050bb9") + far.id.to_bytes(4)
        assert await client.receive() == accept + bytes.fromhex("000000000002c00f")
        assert (await other.ask("21"))[0] == Command.HEALTH_OK
        # Ids belong to the daemon: another client may send and close.
        other.send(b"\x06" + far.id.to_bytes(4) + b"x")
        assert await other.ask(
            b"\x08" + far.id.to_bytes(4)
        ) == b"\x09" + far.id.to_bytes(4)
        assert await client.receive() == b"\x09" + far.id.to_bytes(4)
        assert near.read_nowait(9) == b"x"
        assert near.ended


async def test_the_end_of_a_fresh_stream_is_held_back(
    client: RawClient, host: TinyHost
) -> None:
    await client.ask("010bb9")
    near, far = connect(host.agents["two"], host.default_agent, 3001)
    near.write_nowait(b"x")
    near.close_nowait()
    loop = asyncio.get_running_loop()
    before = loop.time()
    host.default_agent.listeners[3001](far)
    assert [(await client.receive())[0] for _ in range(3)] == [5, 7, 9]
    assert loop.time() - before >= 0.09


async def test_a_client_that_leaves_releases_everything(
    host: TinyHost, server: IpcServer, path: Path
) -> None:
    left = asyncio.Event()
    async with raw_client(path) as client:
        await client.ask("010bb9")
        _, far = await _dialled(client, host)
        far.on_event = lambda stream: left.set()
        client.send("030000000000420007")
        await client.ask("21")
    async with asyncio.timeout(5):
        await left.wait()
    assert far.ended
    assert host.default_agent.listeners == {}
    assert not server.sessions
    assert not server._streams


async def test_a_stream_that_takes_nothing_stops_its_client(
    host: TinyHost, server: IpcServer, path: Path
) -> None:
    async with raw_client(path) as client:
        number, far = await _dialled(client, host)
        frame = b"\x06" + number.to_bytes(4) + bytes(64 * 1024)
        total = 0
        session = next(iter(server.sessions))
        while session._is_reading:
            client.send(frame)
            total += 64 * 1024
            await asyncio.sleep(0)
        assert session._backlog <= session_module.MAX_BACKLOG + len(frame)

        read = 0
        async with asyncio.timeout(20):
            while read < total:
                read += len(far.read_nowait(1 << 20))
                await asyncio.sleep(0)
        assert (await client.ask("21"))[0] == Command.HEALTH_OK


async def test_what_was_sent_before_leaving_still_arrives(
    host: TinyHost, server: IpcServer, path: Path
) -> None:
    async with raw_client(path) as client:
        number, far = await _dialled(client, host)
        client.send(b"\x06" + number.to_bytes(4) + bytes(3 * BUFFER))
        client.send(b"\x08" + number.to_bytes(4))
    read = 0
    async with asyncio.timeout(10):
        while not far.at_eof:
            read += len(far.read_nowait(1 << 20))
            await asyncio.sleep(0)
    assert read == 3 * BUFFER


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_client_that_leaves_while_it_is_not_read_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., None]
) -> None:
    monkeypatch.setattr(session_module, "HANG_UP_CHECK_S", 0.01)
    run(_leave_while_not_read(tmp_path / "pilot.sock"))


async def _leave_while_not_read(path: Path) -> None:
    host = TinyHost()
    async with serving(host, path) as server:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(raw, str(path))
            accepted: list[Any] = []
            host.agents["two"].listeners[7] = accepted.append
            await loop.sock_sendall(raw, bytes.fromhex("00000009030000000000020007"))
            number = (await loop.sock_recv(raw, 9))[5:]
            frame = struct.pack("!IB", 5 + 64 * 1024, 6) + number + bytes(64 * 1024)
            sent = 0
            # Until the socket is full, because nobody reads it any more.
            with contextlib.suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(0.3):
                        await loop.sock_sendall(raw, frame)
                    sent += 64 * 1024
        assert sent >= session_module.MAX_BACKLOG
        async with asyncio.timeout(10):
            await server._empty.wait()
        read = 0
        async with asyncio.timeout(10):
            while not accepted[0].at_eof:
                read += len(accepted[0].read_nowait(1 << 20))
                await asyncio.sleep(0)
        assert read >= sent


async def test_one_timer_watches_a_client_that_is_read_by_fits_and_starts(
    server: IpcServer, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.send(b"\x0d")
    await client.receive()
    (session,) = server.sessions
    timers = 0

    class Loop:
        def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
            nonlocal timers
            timers += 1
            return asyncio.get_running_loop().call_later(delay, callback)

    monkeypatch.setattr(session, "loop", Loop())
    for _ in range(100):
        session._set_reading(False)
        session._set_reading(True)
    assert timers == 1


async def test_a_client_that_reads_nothing_stops_the_stream(
    host: TinyHost, server: IpcServer, path: Path
) -> None:
    async with raw_client(path) as client:
        number, far = await _dialled(client, host)
        session = next(iter(server.sessions))
        sent = 0
        while not session.is_congested:
            sent += far.write_nowait(bytes(BUFFER))
            await asyncio.sleep(0)
        sent += far.write_nowait(bytes(BUFFER))
        await asyncio.sleep(0)
        assert session._unread() < 1 << 20
        far.close_nowait()
        received = 0
        while (frame := await client.receive())[0] == Command.RECV:
            received += len(frame) - 5
        assert frame == b"\x09" + number.to_bytes(4)
        assert received == sent


async def test_a_reply_that_is_not_read_ends_the_client(
    host: TinyHost, server: IpcServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "STALL_S", 0.05)
    monkeypatch.setattr(session_module, "MAX_REPLIES", 1 << 30)
    host.default_agent.info = lambda: {  # type: ignore[method-assign]
        "conn_list": [],
        "peer_list": [],
        "x": "x" * 900_000,
    }
    async with raw_client(path) as client:
        await client.ask("21")
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(5):
            client.send("0d")
        async with asyncio.timeout(10):
            await server._empty.wait()
    assert not server.sessions


# Datagrams


async def test_datagrams_reach_every_client_of_the_agent(
    client: RawClient, host: TinyHost, path: Path
) -> None:
    async with raw_client(path) as other:
        await other.ask("21")
        await client.ask("21")
        assert await client.ask("390000000000010bb8" + b"dg".hex()) in (
            b"\x3a",
            bytes.fromhex("0c000000000001c0090bb8") + b"dg",
        )
        expected = bytes.fromhex("0c000000000001c0090bb8") + b"dg"
        assert await other.receive() == expected


async def test_datagrams_to_one_node_keep_their_order(
    client: RawClient, host: TinyHost
) -> None:
    for number in range(50):
        client.send(bytes.fromhex("0b0000000000020bb8") + bytes([number]))
    client.send("390000000000020bb8ff")
    assert await client.receive() == b"\x3a"
    assert [data[0] for _, data in host.default_agent.sent] == [*range(50), 255]


async def test_a_broadcast_reaches_all_of_a_large_network_before_its_answer(
    host: TinyHost, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, sent = host.default_agent, []

    async def list_nodes(type: str, /, **fields: Any) -> dict[str, Any]:
        return {"nodes": [{"node_id": node} for node in range(10_000, 13_000)]}

    async def send_datagram(remote: SocketAddress, data: bytes) -> None:
        await asyncio.sleep(0)
        sent.append(remote.address.node)
        if remote.address.node % 2:
            raise NotFound("gone")

    monkeypatch.setattr(agent, "registry", list_nodes)
    monkeypatch.setattr(agent, "send_datagram", send_datagram)
    host.config.admin_token = "secret"
    header = struct.pack("!HHH", 5, 1001, 6)
    assert await client.ask(b"\x29" + header + b"secret" + b"hello") == b"\x2a"
    assert sorted(sent) == list(range(10_000, 13_000))


async def test_a_broadcast_reaches_the_members(
    client: RawClient, host: TinyHost
) -> None:
    host.config.admin_token = "adm"
    host.answers["list_nodes"] = {"nodes": [{"node_id": 1}, {"node_id": 2}, {}, 5]}
    frame = bytes.fromhex("2900030bb80003") + b"adm" + b"hi"
    assert await client.ask(frame) == b"\x2a"
    await client.ask("390000000000020bb8ff")
    sent = [(remote.address.node, data) for remote, data in host.default_agent.sent]
    assert sent[0] == (2, b"hi")
    text = "broadcast: broadcast not permitted on backbone network"
    assert await client.ask_error("2900000bb8000361646d6869") == text


# Extension


async def _call(client: RawClient, op: str, **params: Any) -> dict[str, Any]:
    body = json.dumps({"id": 5, "op": op, **params}).encode()
    reply = await client.ask(b"\x80" + body)
    assert reply[0] == Command.EXTENSION_OK
    answer = json.loads(reply[1:])
    assert answer.pop("id") == 5
    return dict(answer)


async def test_a_client_can_act_as_another_agent(
    client: RawClient, host: TinyHost
) -> None:
    listed = (await _call(client, "agents"))["result"]["agents"]
    assert [row["name"] for row in listed] == ["one", "two"]
    assert listed[0]["state"] == "online"
    chosen = await _call(client, "select-agent", name="two")
    assert chosen["result"]["node_id"] == 2
    assert json.loads((await client.ask("0d"))[1:])["node_id"] == 2
    failed = await _call(client, "select-agent", name="three")
    assert failed["error"]["code"] == "not_found"
    await client.ask("010bb9")
    refused = await _call(client, "select-agent", name="one")
    assert refused["error"]["code"] == "invalid_argument"
    assert list(host.agents["two"].listeners) == [3001]


async def test_datagrams_follow_the_selected_agent(
    client: RawClient, host: TinyHost
) -> None:
    await _call(client, "select-agent", name="two")
    assert not host.agents["one"].datagram_listeners
    assert len(host.agents["two"].datagram_listeners) == 1


async def test_search_and_broker(client: RawClient, host: TinyHost) -> None:
    host.answers["search"] = {"agents": [], "total": 0}
    host.config.brokers = ("hub", "other")
    found = await _call(client, "search", tags=["text"], limit=5, junk=1)
    assert found["result"] == {"agents": [], "total": 0}
    request = {"type": "search", "tags": ["text"], "limit": 5}
    assert host.default_agent.requests == [request]
    host.answers["cached search"] = {"agents": [], "total": 0, "age_s": 1.0}
    found = await _call(client, "search", cached=True)
    assert found["result"]["age_s"] == 1.0
    assert (await _call(client, "broker"))["result"] == {
        "broker": "hub",
        "brokers": ["hub", "other"],
        "subscribe": ["hub", "other"],
    }


async def test_operations_of_services(
    client: RawClient, host: TinyHost, server: IpcServer
) -> None:
    sessions: list[Any] = []

    async def watch(session: Any, agent: Any, params: dict[str, Any]) -> dict[str, Any]:
        sessions.append(session)
        assert session.push({"push": "hello", "agent": agent.name})
        return {"got": params["x"]}

    async def fail(session: Any, agent: Any, params: dict[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError

    host.extensions |= {"x.watch": watch, "x.fail": fail}
    client.send(b'\x80{"id":5,"op":"x.watch","agent":"two","x":1}')
    assert await client.receive() == b'\x82{"push":"hello","agent":"two"}'
    assert json.loads((await client.receive())[1:])["result"] == {"got": 1}
    assert (await _call(client, "x.fail"))["error"]["code"] == "internal"
    assert (await _call(client, "x.none"))["error"]["code"] == "not_implemented"

    gone = asyncio.Event()
    sessions[0].on_close(gone.set)
    client.writer.close()
    async with asyncio.timeout(5):
        await gone.wait()
    assert not sessions[0].push({})


async def test_a_socket_can_be_for_one_agent(host: TinyHost, tmp_path: Path) -> None:
    path = tmp_path / "two.sock"
    async with (
        serving(host, path, agent=host.agents["two"]),
        raw_client(path) as client,
    ):
        assert json.loads((await client.ask("0d"))[1:])["node_id"] == 2
        rows = (await _call(client, "agents"))["result"]["agents"]
        assert [row["name"] for row in rows] == ["two"]
        refused = await _call(client, "select-agent", name="one")
        assert refused["error"]["code"] == "permission_denied"


# The socket itself


async def test_the_socket_is_for_its_owner_only(server: IpcServer, path: Path) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert os.listdir(path.parent) == ["pilot.sock"]


async def test_the_socket_is_removed_and_clients_see_the_end(
    host: TinyHost, path: Path
) -> None:
    async with serving(host, path), raw_client(path) as client:
        await client.ask("21")
        client.send("030000000000420007")
        await client.ask("21")
        ended = asyncio.create_task(client.receive())
    assert await ended == b""
    assert not os.listdir(path.parent)


async def test_a_file_in_its_place_is_replaced(host: TinyHost, path: Path) -> None:
    await asyncio.to_thread(path.write_text, "left over")
    async with serving(host, path), raw_client(path) as client:
        assert (await client.ask("21"))[0] == Command.HEALTH_OK


async def test_a_folder_that_does_not_exist_is_an_error(
    host: TinyHost, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match="cannot make socket"):
        async with serving(host, tmp_path / "none" / "pilot.sock"):
            pass


async def test_other_users_are_refused(
    host: TinyHost, server: IpcServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    # The tests themselves may run as root, who may do everything.
    monkeypatch.setattr(peeruser, "ROOT", 54321)
    async with raw_client(path) as client:
        assert await client.receive() == b""


async def test_root_may_use_the_socket_of_any_user(
    host: TinyHost, server: IpcServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peeruser, "ROOT", os.geteuid())
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    async with raw_client(path) as client:
        assert (await client.ask("21"))[0] == Command.HEALTH_OK


async def test_clients_are_bounded(
    server: IpcServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.node.ipc.server.MAX_CLIENTS", 1)
    async with raw_client(path) as first:
        await first.ask("21")
        async with raw_client(path) as second:
            assert await second.receive() == b""
        assert (await first.ask("21"))[0] == Command.HEALTH_OK


async def test_requests_in_flight_are_bounded(
    server: IpcServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MAX_REQUESTS", 2)
    async with raw_client(path) as client:
        for _ in range(3):
            client.send("0f070000000900000032")
        client.send("21")
        replies = [(await client.receive())[0] for _ in range(4)]
    # Health waited behind the third request, which waited for a place.
    assert replies.index(Command.HEALTH_OK) >= 1
    assert replies.count(Command.HANDSHAKE_OK) == 3


async def test_an_oversized_frame_ends_the_client(client: RawClient) -> None:
    client.writer.write(struct.pack("!IB", (1 << 20) + 1, 0x0D))
    assert await client.receive() == b""


async def test_the_largest_frame_is_processed(client: RawClient) -> None:
    client.send(b"\x06" + bytes((1 << 20) - 1))
    assert (await client.ask("21"))[0] == Command.HEALTH_OK


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.binary(min_size=1, max_size=200), framed=st.booleans())
def test_garbage_never_stops_the_server(
    tmp_path: Path, data: bytes, framed: bool
) -> None:
    asyncio.run(_send_garbage(tmp_path / "pilot.sock", data, framed=framed))


async def _send_garbage(path: Path, data: bytes, *, framed: bool) -> None:
    async with serving(TinyHost(), path):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(path))
            raw.sendall(struct.pack("!I", len(data)) * framed + data)
            raw.shutdown(socket.SHUT_WR)
        async with raw_client(path) as client:
            assert (await client.ask("21"))[0] == Command.HEALTH_OK
