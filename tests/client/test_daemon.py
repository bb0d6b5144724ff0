"""The client of the daemon's socket, against scripted daemons and our own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilotfleet.client import streams
from pilotfleet.client.daemon import MAX_DATAGRAMS, DaemonClient
from pilotfleet.errors import (
    Closed,
    ConnectionFailed,
    ConnectionRefused,
    ConnectionReset,
    DaemonError,
    InvalidArgument,
    NotFound,
    NotRunning,
    NotSupported,
    PilotError,
    TimedOut,
)
from pilotfleet.protocol.address import Address, SocketAddress
from pilotfleet.protocol.ipc.commands import Command
from tests.client.support import ScriptedDaemon, scripted
from tests.node.ipc.support import TinyHost, serving
from tests.protocol.ipc.vectors import EXCHANGES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from pilotfleet.client.streams import ClientStream

NODE_2 = Address(0, 2)
DATAGRAM = "0c000000000001c0090bb8646732"


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[ScriptedDaemon, DaemonClient]]:
    async with scripted(tmp_path / "s") as pair:
        yield pair


Pair = tuple[ScriptedDaemon, DaemonClient]


# Requests


async def test_no_daemon_is_said_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="daemon is not running") as caught:
        await DaemonClient.connect(tmp_path / "none")
    assert f"tried {tmp_path / 'none'}" in str(caught.value.hint)


async def test_a_request_gets_its_reply(pair: Pair) -> None:
    daemon, client = pair
    asking = asyncio.create_task(client.request_json(Command.HEALTH))
    await daemon.expect("21")
    daemon.send(b'\x22{"status":"ok"}')
    assert await asking == {"status": "ok"}


async def test_an_error_frame_raises_its_text(pair: Pair) -> None:
    daemon, client = pair
    asking = asyncio.create_task(client.bind(3000))
    await daemon.expect(EXCHANGES["bind-taken"][0][1])
    daemon.send(EXCHANGES["bind-taken"][1][1])
    with pytest.raises(DaemonError, match=r"^port 3000 already bound$"):
        await asking


async def test_requests_go_one_at_a_time(pair: Pair) -> None:
    daemon, client = pair
    first = asyncio.create_task(client.request(Command.INFO))
    second = asyncio.create_task(client.request(Command.HEALTH))
    await daemon.expect("0d")
    daemon.send("0e01")
    await daemon.expect("21")
    daemon.send("2202")
    assert (await first, await second) == (b"\x01", b"\x02")


async def test_other_replies_and_stray_errors_are_dropped(pair: Pair) -> None:
    daemon, client = pair
    daemon.send(b"\x0a\x00\x01send: missing conn_id", "22ff", "3a", DATAGRAM)
    await anext(client.datagrams())
    asking = asyncio.create_task(client.request(Command.INFO))
    await daemon.expect("0d")
    daemon.send("2200", "3a", "0e01")
    assert await asking == b"\x01"


async def test_a_late_reply_is_never_given_to_the_next_request(pair: Pair) -> None:
    daemon, client = pair
    with pytest.raises(TimedOut):
        await client.request(Command.INFO, timeout=0.01)
    again = asyncio.create_task(client.request(Command.INFO))
    await daemon.expect("0d")
    daemon.send("0e01")
    await daemon.expect("0d")
    daemon.send("0e02")
    assert await again == b"\x02"


async def test_a_late_error_is_never_given_to_the_next_request(pair: Pair) -> None:
    daemon, client = pair
    asking = asyncio.create_task(client.request(Command.RESOLVE_HOSTNAME, b"x"))
    await daemon.expect("1178")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    again = asyncio.create_task(client.request(Command.HEALTH))
    daemon.send(b"\x0a\x00\x01late")
    await daemon.expect("21")
    daemon.send("2202")
    assert await again == b"\x02"


async def test_a_daemon_that_goes_away_ends_every_wait(pair: Pair) -> None:
    daemon, client = pair
    stream = await _dial(daemon, client)
    asking = asyncio.create_task(client.request(Command.INFO))
    calling = asyncio.create_task(client.call("x"))
    reading = asyncio.create_task(stream.read())
    await daemon.receive()
    await daemon.receive()
    daemon.writer.close()
    for task, kind in (
        (asking, ConnectionFailed),
        (calling, ConnectionFailed),
        (reading, ConnectionReset),
    ):
        with pytest.raises(kind):
            await task
    assert client.is_closed
    with pytest.raises(Closed):
        await client.request(Command.INFO)
    with pytest.raises(Closed):
        await stream.write(b"x")
    assert [push async for push in client.pushes()] == []
    assert [datagram async for datagram in client.datagrams()] == []


async def test_a_writer_that_never_pauses_learns_that_the_daemon_is_gone(
    pair: Pair,
) -> None:
    daemon, client = pair
    stream = await _dial(daemon, client)
    daemon.writer.transport.abort()
    with pytest.raises(Closed):
        await _write_on(stream)


async def _write_on(stream: ClientStream) -> None:
    while True:
        await stream.write(b"x")


async def test_a_command_without_a_reply_is_refused(pair: Pair) -> None:
    with pytest.raises(InvalidArgument):
        await pair[1].request(Command.SEND)


# Streams


async def _dial(
    daemon: ScriptedDaemon, client: DaemonClient, number: int = 9
) -> streams.ClientStream:
    dialling = asyncio.create_task(client.dial(NODE_2, 7))
    await daemon.expect("030000000000020007")
    daemon.send(b"\x04" + number.to_bytes(4))
    return await dialling


async def test_a_stream_reads_and_writes(pair: Pair) -> None:
    daemon, client = pair
    stream = await _dial(daemon, client)
    assert stream.remote == SocketAddress(NODE_2, 7)
    await stream.write(b"hello")
    await daemon.expect("060000000968656c6c6f")
    daemon.send("070000000968656c6c6f", "0700000009" + b"world".hex(), "0900000009")
    assert await stream.read(3) == b"hel"
    assert await stream.read() == b"lo"
    assert await stream.read_exactly(5) == b"world"
    assert await stream.read() == b""
    assert stream.at_eof
    with pytest.raises(ConnectionReset):
        await stream.read_exactly(1)


async def test_large_writes_are_cut_into_frames(pair: Pair) -> None:
    daemon, client = pair
    stream = await _dial(daemon, client)
    writing = asyncio.create_task(stream.write(bytes(3_000_000)))
    received = 0
    while received < 3_000_000:
        received += len(await daemon.receive()) - 5
    await writing
    assert received == 3_000_000


async def test_closing_sends_close_and_ignores_what_still_comes(pair: Pair) -> None:
    daemon, client = pair
    async with await _dial(daemon, client) as stream:
        pass
    await daemon.expect("0800000009")
    daemon.send(
        "070000000978", *[frame for _, frame in EXCHANGES["close-live-stream"]][1:]
    )
    with pytest.raises(Closed):
        await stream.read()
    with pytest.raises(Closed):
        await stream.write(b"x")
    asking = asyncio.create_task(client.request(Command.HEALTH))
    await daemon.expect("21")
    daemon.send("2201")
    await asking
    assert not client._early


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("connection refused", ConnectionRefused),
        ("dial timeout", TimedOut),
        ("resolve node 2: registry: node 2: node not found", DaemonError),
    ],
)
async def test_dial_failures(pair: Pair, text: str, kind: type[PilotError]) -> None:
    daemon, client = pair
    dialling = asyncio.create_task(client.dial(NODE_2, 7))
    await daemon.receive()
    daemon.send(b"\x0a\x00\x01" + text.encode())
    with pytest.raises(kind, match=rf"^{text}$"):
        await dialling


async def test_a_dial_given_up_is_cancelled_at_the_daemon(pair: Pair) -> None:
    daemon, client = pair
    with pytest.raises(TimedOut, match=r"^dial timeout$"):
        await client.dial(NODE_2, 7, timeout=0.01)
    await daemon.expect("030000000000020007")
    await daemon.expect("2b")
    daemon.send(EXCHANGES["dial-then-cancel"][2][1])
    assert (await _dial(daemon, client)).id == 9


async def test_a_dial_that_succeeds_too_late_is_closed(pair: Pair) -> None:
    daemon, client = pair
    with pytest.raises(TimedOut):
        await client.dial(NODE_2, 7, timeout=0.01)
    await daemon.expect("030000000000020007")
    await daemon.expect("2b")
    # A daemon before 1.18 knows no Cancel: it complains, and connects later.
    daemon.send(b"\x0a\x00\x01unknown command: 0x2B", "0400000008")
    await daemon.expect("0800000008")


async def test_what_overtakes_the_reply_is_kept(pair: Pair) -> None:
    daemon, client = pair
    dialling = asyncio.create_task(client.dial(NODE_2, 7))
    await daemon.receive()
    daemon.send("070000000961", "0900000009", "0400000009")
    stream = await dialling
    assert await stream.read() == b"a"
    assert await stream.read() == b""


async def test_accepts_may_overtake_the_bind(pair: Pair) -> None:
    daemon, client = pair
    binding = asyncio.create_task(client.bind(3001))
    await daemon.expect("010bb9")
    daemon.send(
        "050bba00000008000000000001c00f",
        "050bb900000009000000000001c00f",
        "070000000961",
        "0900000009",
        "020bb9",
    )
    listener = await binding
    stream = await listener.accept()
    assert (stream.id, stream.remote) == (9, SocketAddress(Address(0, 1), 49167))
    assert await stream.read() == b"a"
    assert await stream.read() == b""

    closing = asyncio.create_task(listener.close())
    await daemon.expect("370bb9")
    daemon.send("380bb9")
    await closing
    with pytest.raises(Closed):
        await listener.accept()
    assert [stream async for stream in listener] == []


async def test_waiting_accepts_are_bounded(pair: Pair) -> None:
    daemon, client = pair
    binding = asyncio.create_task(client.bind(3001))
    await daemon.receive()
    daemon.send("020bb9")
    await binding
    for number in range(65):
        daemon.send(
            bytes.fromhex("050bb9")
            + number.to_bytes(4)
            + bytes.fromhex("000000000001c00f")
        )
    assert await daemon.receive() == b"\x08" + (64).to_bytes(4)


async def test_early_frames_are_bounded(pair: Pair) -> None:
    daemon, client = pair
    for number in range(1000):
        daemon.send(b"\x07" + number.to_bytes(4) + bytes(20_000))
    asking = asyncio.create_task(client.request(Command.HEALTH))
    await daemon.expect("21")
    daemon.send("22")
    await asking
    assert client._early.size <= 4 << 20
    assert len(client._early) <= 256


async def test_a_full_stream_stops_the_daemon(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HIGH_WATER", 100_000)
    monkeypatch.setattr(streams, "LOW_WATER", 50_000)
    daemon, client = pair
    stream = await _dial(daemon, client)

    async def send_all() -> None:
        for _ in range(100):
            daemon.send(b"\x07" + stream.id.to_bytes(4) + bytes(50_000))
            await daemon.writer.drain()

    sending = asyncio.create_task(send_all())
    _, unfinished = await asyncio.wait([sending], timeout=0.3)
    assert unfinished
    assert stream._buffered_bytes < 1_000_000
    received = 0
    while received < 100 * 50_000:
        received += len(await stream.read())
    await sending


# Datagrams


async def test_datagrams(pair: Pair) -> None:
    daemon, client = pair
    await client.send_to(SocketAddress(NODE_2, 3000), b"dg2")
    await daemon.expect("0b0000000000020bb8646732")
    confirming = asyncio.create_task(
        client.send_to_confirm(SocketAddress(NODE_2, 3000), b"dg")
    )
    await daemon.expect("390000000000020bb86467")
    daemon.send("3a")
    await confirming
    daemon.send(DATAGRAM)
    datagram = await anext(client.datagrams())
    assert datagram.source == SocketAddress(Address(0, 1), 49161)
    assert (datagram.port, datagram.data) == (3000, b"dg2")


async def test_datagrams_that_nobody_fetches_are_dropped(pair: Pair) -> None:
    daemon, client = pair
    for _ in range(MAX_DATAGRAMS + 5):
        daemon.send(DATAGRAM)
    asking = asyncio.create_task(client.request(Command.HEALTH))
    await daemon.receive()
    daemon.send("22")
    await asking
    assert client.dropped_datagrams == 5


# Extension


async def test_calls_overlap_and_carry_their_ids(pair: Pair) -> None:
    daemon, client = pair
    first = asyncio.create_task(client.call("a", x=1))
    second = asyncio.create_task(client.call("b"))
    assert (await daemon.receive())[1:] == b'{"x":1,"id":1,"op":"a"}'
    assert (await daemon.receive())[1:] == b'{"id":2,"op":"b"}'
    daemon.send(b'\x81{"id":2,"result":{"n":2}}', b'\x81{"id":7,"result":{}}')
    daemon.send(b'\x81{"id":1,"error":{"code":"not_found","message":"no"}}')
    assert await second == {"n": 2}
    with pytest.raises(NotFound, match=r"^no$"):
        await first
    with pytest.raises(TimedOut):
        await client.call("slow", timeout=0.01)
    assert not client._calls


async def test_an_official_daemon_does_not_support_calls(pair: Pair) -> None:
    daemon, client = pair
    calling = asyncio.create_task(client.call("agents"))
    asking = asyncio.create_task(client.request(Command.HEALTH))
    await daemon.receive()
    await daemon.receive()
    daemon.send(b"\x0a\x00\x01unknown command: 0x80", "2201")
    with pytest.raises(NotSupported):
        await calling
    assert await asking == b"\x01"


async def test_pushes_wait_for_their_consumer(pair: Pair) -> None:
    daemon, client = pair
    for number in range(2000):
        daemon.send(b'\x82{"push":"x","n":%d}' % number)
    seen = []
    async for push in client.pushes():
        seen.append(push["n"])
        if len(seen) == 2000:
            break
    assert seen == list(range(2000))


# Bytes that no daemon sends


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=100), framed=st.booleans())
def test_garbage_ends_the_connection_or_means_nothing(
    tmp_path: Path, data: bytes, framed: bool
) -> None:
    async def run() -> None:
        async with scripted(tmp_path / "s") as (daemon, client):
            daemon.writer.write(len(data).to_bytes(4) * framed + data)
            daemon.writer.close()
            await client.wait_closed()

    asyncio.run(run())


# Against our own daemon


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_both_ends_together(tmp_path: Path, run: Callable[..., None]) -> None:
    run(_use_both_ends(tmp_path))


async def _use_both_ends(tmp_path: Path) -> None:
    host = TinyHost()
    async with (
        serving(host, tmp_path / "s"),
        await DaemonClient.connect(tmp_path / "s") as one,
        await DaemonClient.connect(tmp_path / "s") as two,
    ):
        await two.call("select-agent", name="two")
        async with await two.bind(3000) as listener:
            near = await one.dial(NODE_2, 3000)
            far = await listener.accept()
            assert far.remote.address == Address(0, 1)
            await _carry(near, far, 5_000_000)
            await _carry(far, near, 5_000_000)
            await near.close()
            assert await far.read() == b""
        with pytest.raises(ConnectionRefused):
            await one.dial(NODE_2, 3000)
        with pytest.raises(DaemonError, match="node not found"):
            await one.send_to_confirm(SocketAddress(Address(0, 99), 5), b"x")


async def _carry(source: Any, sink: Any, size: int) -> None:
    data = bytes(range(256)) * (size // 256)
    writing = asyncio.create_task(source.write(data))
    assert await sink.read_exactly(len(data)) == data
    await writing
