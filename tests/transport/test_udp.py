"""UDP in batches, on real loopback sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import pytest
import uvloop

from pilotfleet.errors import AlreadyExists, Unavailable
from pilotfleet.transport import udp
from pilotfleet.transport.crowd import WINDOW
from pilotfleet.transport.udp import UdpSocket

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Endpoint

pytestmark = pytest.mark.timeout(20)


class Inbox:
    """Collects datagrams and lets a test wait for a number of them."""

    def __init__(self) -> None:
        self.datagrams: list[tuple[bytes, Endpoint]] = []
        self.batches = 0
        self._changed = asyncio.Event()

    def __call__(self, datagrams: list[tuple[bytes, Endpoint]]) -> None:
        self.datagrams += datagrams
        self.batches += 1
        self._changed.set()

    async def wait_for(self, count: int) -> list[bytes]:
        while len(self.datagrams) < count:
            self._changed.clear()
            await self._changed.wait()
        return [data for data, _ in self.datagrams]


OpenSocket = Callable[..., tuple[UdpSocket, Inbox]]


@pytest.fixture
async def open_socket() -> AsyncIterator[OpenSocket]:
    made: list[UdpSocket] = []

    def open_one(
        host: str = "127.0.0.1", *, gathers: bool = False
    ) -> tuple[UdpSocket, Inbox]:
        inbox, loop = Inbox(), asyncio.get_running_loop()
        made.append(UdpSocket(loop, (host, 0), inbox, gathers=gathers))
        return made[-1], inbox

    yield open_one
    for sock in made:
        sock.close()


async def test_what_is_there_can_be_read_before_the_next_turn(
    open_socket: OpenSocket,
) -> None:
    sender, _ = open_socket()
    receiver, inbox = open_socket()
    sender.send([(b"first", receiver.address), (b"second!", receiver.address)])
    receiver.read_now()
    assert [data for data, _ in inbox.datagrams] == [b"first", b"second!"]
    receiver.read_now()
    receiver.close()
    receiver.read_now()
    assert len(inbox.datagrams) == 2


async def test_a_datagram_arrives_with_its_source(open_socket: OpenSocket) -> None:
    sender, _ = open_socket()
    receiver, inbox = open_socket()
    sender.send([(b"hello", receiver.address)])
    await inbox.wait_for(1)
    assert inbox.datagrams == [(b"hello", sender.address)]
    assert (sender.datagrams_sent, sender.bytes_sent) == (1, 5)
    assert (receiver.datagrams_received, receiver.bytes_received) == (1, 5)


async def test_a_run_keeps_the_boundaries_and_the_order(
    open_socket: OpenSocket,
) -> None:
    sender, _ = open_socket()
    receiver, inbox = open_socket()
    sizes = [1222] * 60 + [500] + [1222] * 3 + [1, 2, 3] + [9000] * 5 + [60_000]
    sent = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    sender.send([(data, receiver.address) for data in sent])
    assert await inbox.wait_for(len(sent)) == sent


async def test_runs_to_several_destinations_stay_apart(
    open_socket: OpenSocket,
) -> None:
    sender, _ = open_socket()
    ends = [open_socket() for _ in range(3)]
    batch = [
        (bytes([n, e]) * 300, ends[e][0].address) for n in range(10) for e in (0, 0, 1)
    ]
    batch.append((b"last", ends[2][0].address))
    sender.send(batch)
    for receiver, inbox in ends:
        expected = [data for data, to in batch if to == receiver.address]
        assert await inbox.wait_for(len(expected)) == expected


async def test_without_segmentation_datagrams_go_one_by_one(
    open_socket: OpenSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, _ = open_socket()
    receiver, inbox = open_socket()
    # A size the kernel cannot encode stands for every reason to refuse.
    monkeypatch.setattr(udp, "_UDP_SEGMENT", 999)
    monkeypatch.setattr(udp, "_SOL_UDP", 1)
    sent = [bytes([n]) * 100 for n in range(20)]
    sender.send([(data, receiver.address) for data in sent])
    assert await inbox.wait_for(20) == sent


async def test_a_dual_stack_socket_speaks_plain_ipv4(open_socket: OpenSocket) -> None:
    everywhere, inbox = open_socket("")
    if everywhere.address[0] != "::":
        pytest.skip("no IPv6 here")
    other, other_inbox = open_socket()
    other.send([(b"in", ("127.0.0.1", everywhere.address[1]))])
    await inbox.wait_for(1)
    data, source = inbox.datagrams[0]
    assert (data, source) == (b"in", other.address)
    everywhere.send([(b"out", source)] * 3)
    assert await other_inbox.wait_for(3) == [b"out"] * 3


async def test_ipv6_loopback(open_socket: OpenSocket) -> None:
    try:
        sender, _ = open_socket("::1")
    except Unavailable:
        pytest.skip("no IPv6 here")
    receiver, inbox = open_socket("::1")
    sender.send([(b"six", receiver.address)])
    await inbox.wait_for(1)
    assert inbox.datagrams == [(b"six", sender.address)]


async def test_a_port_in_use_is_named(open_socket: OpenSocket) -> None:
    first, inbox = open_socket()
    with pytest.raises(AlreadyExists, match=f"udp port {first.address[1]} is in use"):
        UdpSocket(asyncio.get_running_loop(), first.address, inbox)


async def test_a_foreign_address_is_refused() -> None:
    with pytest.raises(Unavailable, match=r"cannot bind udp 192\.0\.2\.77:0"):
        UdpSocket(asyncio.get_running_loop(), ("192.0.2.77", 0), Inbox())


async def test_impossible_datagrams_are_counted_and_the_rest_is_sent(
    open_socket: OpenSocket,
) -> None:
    sender, _ = open_socket()
    receiver, inbox = open_socket()
    sender.send(
        [
            (bytes(70_000), receiver.address),
            (b"to nowhere", ("2001:db8::1", 9)),
            (b"good", receiver.address),
        ]
    )
    assert await inbox.wait_for(1) == [b"good"]
    assert sender.send_errors == 2


async def test_a_full_kernel_queue_is_waited_for(
    open_socket: OpenSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, _ = open_socket()
    receiver, inbox = open_socket()
    real, refusals = sender._send_one, iter([True])

    def send_one(data: bytes, destination: Endpoint) -> None:
        if next(refusals, False):
            raise BlockingIOError
        real(data, destination)

    monkeypatch.setattr(UdpSocket, "_send_one", lambda _, *args: send_one(*args))
    sender.send([(b"a", receiver.address), (b"bb", receiver.address)])
    sender.send([(b"ccc", receiver.address)])
    assert sender.datagrams_sent == 0
    assert await inbox.wait_for(3) == [b"a", b"bb", b"ccc"]
    assert sender.send_drops == 0


async def test_the_queue_is_bounded(
    open_socket: OpenSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, _ = open_socket()
    receiver, _ = open_socket()

    def always_full(_: UdpSocket, data: bytes, destination: Endpoint) -> None:
        raise BlockingIOError

    monkeypatch.setattr(UdpSocket, "_send_one", always_full)
    sizes = (n % 2 for n in range(udp.MAX_QUEUED + 10))
    sender.send([(bytes(size + 1), receiver.address) for size in sizes])
    assert sender.send_drops >= 10


async def test_a_closed_socket_is_silent(open_socket: OpenSocket) -> None:
    sender, _ = open_socket()
    receiver, _ = open_socket()
    sender.close()
    sender.close()
    sender.send([(b"late", receiver.address)])
    assert sender.is_closed
    assert sender.datagrams_sent == 0


async def _crowd_speaks(
    senders: list[UdpSocket], receiver: UdpSocket, inbox: Inbox
) -> None:
    """Have all senders heard, one at a time, until they are taken for a crowd."""
    assert receiver._crowd is not None
    while not receiver._crowd.is_there:
        for sender in senders:
            sender.send([(b"hello", receiver.address)])
            await inbox.wait_for(len(inbox.datagrams) + 1)


async def test_a_crowd_is_read_together(open_socket: OpenSocket) -> None:
    senders = [open_socket()[0] for _ in range(WINDOW)]
    receiver, inbox = open_socket(gathers=True)
    await _crowd_speaks(senders, receiver, inbox)
    batches, before = inbox.batches, len(inbox.datagrams)
    loop = asyncio.get_running_loop()
    for number, sender in enumerate(senders):
        loop.call_later(number / 1e4, sender.send, [(b"again", receiver.address)])
    await inbox.wait_for(before + len(senders))
    assert inbox.batches - batches < len(senders) / 2


async def test_a_single_peer_is_never_kept_waiting(open_socket: OpenSocket) -> None:
    sender, _ = open_socket()
    receiver, inbox = open_socket(gathers=True)
    for number in range(4 * WINDOW):
        sender.send([(b"hello", receiver.address)])
        await inbox.wait_for(number + 1)
    assert receiver._gathering is None


async def test_after_a_crowd_single_datagrams_arrive(open_socket: OpenSocket) -> None:
    senders = [open_socket()[0] for _ in range(WINDOW)]
    receiver, inbox = open_socket(gathers=True)
    await _crowd_speaks(senders, receiver, inbox)
    async with asyncio.timeout(5):
        # Nobody is told when the socket goes back to waking up for each.
        while receiver._gathering is not None:  # noqa: ASYNC110
            await asyncio.sleep(0)
    senders[0].send([(b"late", receiver.address)])
    assert (await inbox.wait_for(len(inbox.datagrams) + 1))[-1] == b"late"


async def test_what_waits_can_be_read_now(open_socket: OpenSocket) -> None:
    senders = [open_socket()[0] for _ in range(WINDOW)]
    receiver, inbox = open_socket(gathers=True)
    await _crowd_speaks(senders, receiver, inbox)
    senders[0].send([(b"now", receiver.address)])
    receiver.read_now()
    assert inbox.datagrams[-1][0] == b"now"


async def test_a_gathering_socket_can_be_closed(open_socket: OpenSocket) -> None:
    senders = [open_socket()[0] for _ in range(WINDOW)]
    receiver, inbox = open_socket(gathers=True)
    await _crowd_speaks(senders, receiver, inbox)
    senders[0].send([(b"last", receiver.address)])
    receiver.close()
    assert receiver._gathering is not None
    assert receiver._gathering.cancelled()


async def test_a_gathering_socket_hears_on_after_an_exception(
    open_socket: OpenSocket,
) -> None:
    senders = [open_socket()[0] for _ in range(WINDOW)]
    receiver, inbox = open_socket(gathers=True)
    await _crowd_speaks(senders, receiver, inbox)
    loop = asyncio.get_running_loop()
    told: asyncio.Future[object] = loop.create_future()
    loop.set_exception_handler(lambda _, why: told.set_result(why["exception"]))

    def fail_once(_: object) -> None:
        receiver._on_datagrams = inbox
        raise MemoryError

    receiver._on_datagrams = fail_once
    senders[0].send([(b"lost", receiver.address)])
    assert isinstance(await told, MemoryError)
    senders[0].send([(b"heard", receiver.address)])
    async with asyncio.timeout(5):
        assert (await inbox.wait_for(len(inbox.datagrams) + 1))[-1] == b"heard"


async def test_many_merged_datagrams_are_read_in_several_turns(
    open_socket: OpenSocket,
) -> None:
    sender, _ = open_socket()
    receiver, inbox = open_socket()
    count = udp.DATAGRAMS_PER_WAKEUP + 4 * udp.MAX_RUN_SEGMENTS
    sender.send([(b"%06d" % n, receiver.address) for n in range(count)])
    receiver.read_now()
    most = udp.DATAGRAMS_PER_WAKEUP + udp.MAX_RUN_SEGMENTS
    assert 0 < len(inbox.datagrams) < most
    assert await inbox.wait_for(count) == [b"%06d" % n for n in range(count)]


async def test_fragmentation_is_off(open_socket: OpenSocket) -> None:
    sender, _ = open_socket()
    value = sender._socket.getsockopt(socket.IPPROTO_IP, udp._IP_MTU_DISCOVER)
    assert value == udp._PMTUDISC_PROBE


def test_it_works_on_uvloop() -> None:
    async def run() -> list[bytes]:
        loop = asyncio.get_running_loop()
        inbox = Inbox()
        receiver = UdpSocket(loop, ("127.0.0.1", 0), inbox)
        sender = UdpSocket(loop, ("127.0.0.1", 0), Inbox())
        sender.send([(b"u" * 50, receiver.address)] * 100)
        try:
            return await inbox.wait_for(100)
        finally:
            receiver.close()
            sender.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(run()) == [b"u" * 50] * 100
