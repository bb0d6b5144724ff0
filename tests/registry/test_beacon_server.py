"""The beacon: its table with time passed in, and its socket on loopback."""

from __future__ import annotations

import asyncio
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import AlreadyExists
from pilotfleet.protocol.beacon import (
    Discover,
    PunchRequest,
    Reflection,
    Sync,
    decode_message,
)
from pilotfleet.registry.beacon import BeaconServer
from pilotfleet.registry.beacon_table import BeaconConfig, BeaconTable

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Endpoint

ALICE: Endpoint = ("127.0.0.1", 42678)
BOB: Endpoint = ("127.0.0.1", 41708)
CAROL: Endpoint = ("192.0.2.33", 7)
OTHER_BEACON: Endpoint = ("192.0.2.9", 9001)
TIMEOUT_S = 10.0
VECTORS = Path(__file__).parents[1] / "vectors" / "beacon.json"


def relay(sender: int, destination: int, packet: bytes = b"PILA") -> bytes:
    return struct.pack("!BII", 5, sender, destination) + packet


def new_table(**settings: object) -> BeaconTable:
    """Return a table that knows alice = 1 and bob = 2."""
    config = replace(BeaconConfig(), **settings)  # type: ignore[arg-type]
    table = BeaconTable(config, now=0.0)
    table.receive_datagram(Discover(1).encode(), ALICE, 0.0)
    table.receive_datagram(Discover(2).encode(), BOB, 0.0)
    table.datagrams_to_send()
    return table


def answers(
    table: BeaconTable, data: bytes, source: Endpoint, now: float = 1.0
) -> list[tuple[bytes, Endpoint]]:
    table.receive_datagram(data, source, now)
    return table.datagrams_to_send()


# Discover


def test_discover_is_answered_with_its_source() -> None:
    table = BeaconTable(now=0.0)
    # The bytes of beacon.md section 1.1.
    sent = answers(table, bytes.fromhex("0100000001"), ALICE)
    assert sent == [(bytes.fromhex("02047F000001A6B6"), ALICE)]
    assert table.endpoint_of(1) == ALICE
    assert len(table) == 1


def test_discover_of_node_zero_is_answered_and_not_kept() -> None:
    table = BeaconTable(now=0.0)
    assert answers(table, Discover(0).encode(), ALICE)
    assert len(table) == 0


def test_discover_moves_a_node() -> None:
    table = new_table()
    answers(table, Discover(1).encode(), CAROL)
    assert table.endpoint_of(1) == CAROL


def test_held_node_is_not_moved_but_answered() -> None:
    table = new_table(hold_s=30.0)
    sent = answers(table, Discover(1).encode(), CAROL, 29.0)
    assert sent == [(Reflection(CAROL).encode(), CAROL)]
    assert table.endpoint_of(1) == ALICE
    answers(table, Discover(1).encode(), CAROL, 31.0)
    assert table.endpoint_of(1) == CAROL
    # A punch request moves at once (beacon.md section 1.1).
    answers(table, PunchRequest(1, 2).encode(), ALICE, 31.5)
    assert table.endpoint_of(1) == ALICE


def test_full_table_answers_but_keeps_no_new_node() -> None:
    table = new_table(max_nodes=2)
    assert answers(table, Discover(3).encode(), CAROL)
    assert table.endpoint_of(3) is None
    assert table.counters.limited == 1
    answers(table, Discover(1).encode(), CAROL)
    assert table.endpoint_of(1) == CAROL


def test_invented_nodes_leave_half_of_the_table_to_registered_ones() -> None:
    config = BeaconConfig(max_nodes=4)
    table = BeaconTable(config, now=0.0, is_registered=lambda node: node < 100)
    for node in range(200, 210):
        assert answers(table, Discover(node).encode(), CAROL)
    assert len(table) == 2
    for node in (1, 2, 3):
        answers(table, Discover(node).encode(), ALICE)
    assert [table.endpoint_of(node) for node in (1, 2, 3)] == [ALICE, ALICE, None]


def test_nodes_expire_after_ten_minutes_of_silence() -> None:
    table = new_table()
    answers(table, Discover(1).encode(), ALICE, 300.0)
    table.handle_timer(601.0)
    assert table.endpoint_of(1) == ALICE
    assert table.endpoint_of(2) is None
    assert table.next_timer() == 661.0
    table.handle_timer(901.0)
    assert len(table) == 0


# Punch


def test_punch_tells_both() -> None:
    sent = answers(new_table(), bytes.fromhex("030000000100000002"), ALICE)
    # The bytes of beacon.md section 1.2.
    assert sent == [
        (bytes.fromhex("04047F000001A2EC"), ALICE),
        (bytes.fromhex("04047F000001A6B6"), BOB),
    ]


def test_punch_for_an_unknown_node_sends_nothing_but_refreshes() -> None:
    table = new_table()
    assert answers(table, PunchRequest(1, 99).encode(), CAROL) == []
    assert table.endpoint_of(1) == CAROL
    assert table.counters.unknown == 1


def test_punches_are_limited_by_address_and_in_all() -> None:
    table = new_table(punches_per_second=3.0, punches_per_second_per_ip=2.0)
    request = PunchRequest(1, 2).encode()
    assert [bool(answers(table, request, ALICE)) for _ in range(3)] == [True] * 2 + [
        False
    ]
    assert [bool(answers(table, request, CAROL)) for _ in range(2)] == [True, False]
    assert table.counters.limited == 2
    assert answers(table, request, ALICE, 3.0)


# Relay


def test_relay_delivers() -> None:
    packet = bytes.fromhex("50494C4100000001") + bytes(128)
    sent = answers(new_table(), relay(1, 2, packet), ALICE)
    assert sent == [(b"\x06\0\0\0\1" + packet, BOB)]


def test_relay_to_an_extended_node_names_the_destination() -> None:
    table = new_table()
    answers(table, Discover(2, extended=True).encode(), BOB)
    sent = answers(table, relay(1, 2, b"packet"), ALICE)
    assert sent == [(b"\x09\0\0\0\1\0\0\0\2packet", BOB)]


def test_relay_keeps_the_order() -> None:
    table = new_table()
    for number in range(100):
        table.receive_datagram(relay(1, 2, bytes([number])), ALICE, 1.0)
    packets = [data[5:] for data, _ in table.datagrams_to_send()]
    assert packets == [bytes([number]) for number in range(100)]


def test_relay_to_an_unknown_node_is_dropped() -> None:
    table = new_table()
    assert answers(table, relay(1, 99), ALICE) == []
    assert table.counters.unknown == 1


def test_relay_is_limited_by_source() -> None:
    table = new_table(relayed_per_second=10.0)
    sent = [bool(answers(table, relay(1, 2), ALICE)) for _ in range(12)]
    assert sent == [True] * 10 + [False] * 2
    assert answers(table, relay(2, 1), BOB)


# Notify


def test_notify_reaches_the_node() -> None:
    table = new_table()
    table.notify(2, 1.0)
    assert table.datagrams_to_send() == [(b"\x0a\x01", BOB)]
    table.notify(99, 1.0)
    assert table.datagrams_to_send() == []


def test_notifies_close_together_become_one_more() -> None:
    table = new_table()
    for _ in range(5):
        table.notify(2, 1.0)
    assert len(table.datagrams_to_send()) == 1
    assert table.next_timer() == 1.5
    table.handle_timer(1.5)
    assert table.datagrams_to_send() == [(b"\x0a\x01", BOB)]
    assert table.next_timer() == 60.0
    table.handle_timer(60.0)
    table.notify(2, 60.1)
    assert len(table.datagrams_to_send()) == 1


# Nodes that were not heard yet


def test_node_that_is_known_elsewhere_is_reached_until_it_is_heard() -> None:
    table = BeaconTable(now=0.0, find={2: BOB}.get)
    answers(table, Discover(1).encode(), ALICE)
    assert answers(table, relay(1, 2), ALICE) == [(b"\x06\0\0\0\1PILA", BOB)]
    assert len(answers(table, PunchRequest(1, 2).encode(), ALICE)) == 2
    table.notify(2, 1.0)
    assert table.datagrams_to_send() == [(b"\x0a\x01", BOB)]
    assert answers(table, relay(1, 3), ALICE) == []
    answers(table, Discover(2).encode(), CAROL)
    assert answers(table, relay(1, 2), ALICE)[0][1] == CAROL


# Gossip


def test_gossip_tells_peers_of_local_nodes() -> None:
    table = new_table(beacon_id=7, peers=(OTHER_BEACON,))
    assert table.next_timer() == 0.0
    table.handle_timer(0.0)
    assert table.datagrams_to_send() == [(Sync(7, (1, 2)).encode(), OTHER_BEACON)]
    assert table.next_timer() == 10.0


def test_relay_goes_on_to_the_beacon_that_has_the_node() -> None:
    table = new_table(peers=(OTHER_BEACON,))
    answers(table, Sync(8, (2, 50)).encode(), OTHER_BEACON)
    assert answers(table, relay(1, 50), ALICE) == [(relay(1, 50), OTHER_BEACON)]
    # A node that is here is not looked for elsewhere.
    assert answers(table, relay(1, 2), ALICE)[0][1] == BOB
    # What came from a beacon is never sent on to one.
    assert answers(table, relay(1, 50), OTHER_BEACON) == []
    # A new list replaces the old one, and an old list expires.
    answers(table, Sync(8, (51,)).encode(), OTHER_BEACON)
    assert answers(table, relay(1, 50), ALICE) == []
    table.handle_timer(100.0)
    table.datagrams_to_send()
    assert answers(table, relay(1, 51), ALICE, 100.0) == []


def test_gossip_of_strangers_is_ignored() -> None:
    table = new_table()
    answers(table, Sync(8, (50,)).encode(), OTHER_BEACON)
    assert answers(table, relay(1, 50), ALICE) == []
    assert table.counters.malformed == 1


# Anything


@pytest.mark.parametrize(
    "data",
    [b"", b"\x01", b"\x01\0\0", b"\x03\0\0\0\1", b"\x05\0\0\0\1", b"\x0b", b"\xff"],
)
def test_malformed_datagram_is_counted_and_dropped(data: bytes) -> None:
    table = new_table()
    assert answers(table, data, ALICE) == []
    assert table.counters.malformed == 1


@given(
    st.lists(st.tuples(st.binary(max_size=80), st.sampled_from([ALICE, BOB, CAROL])))
)
def test_any_datagrams_leave_the_table_within_its_bounds(
    datagrams: list[tuple[bytes, Endpoint]],
) -> None:
    table = new_table(max_nodes=4)
    for number, (data, source) in enumerate(datagrams):
        table.receive_datagram(data, source, number / 10)
    assert len(table) <= 4
    assert len(table.datagrams_to_send()) <= 2 * len(datagrams)


def test_recorded_conversation_with_official_daemons() -> None:
    """To what 1.18.0 sent, the table answers what the daemons then got."""
    table = new_table()
    sent: list[tuple[bytes, Endpoint]] = []
    for entry in json.loads(VECTORS.read_text())["captured"]:
        host, _, port = entry["addr"].rpartition(":")
        data, endpoint = bytes.fromhex(entry["hex"]), (host, int(port))
        if entry["direction"] == "daemon to beacon":
            sent += answers(table, data, endpoint)
        elif entry["kind"] == "notify":
            assert (data, endpoint) in ((b"\x0a\x01", ALICE), (b"\x0a\x01", BOB))
        else:
            assert sent.pop(0) == (data, endpoint)
    assert sent == []


# The socket


class Node(asyncio.DatagramProtocol):
    """A UDP socket of a node."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()
        self.transport: asyncio.DatagramTransport
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set()

    def datagram_received(self, data: bytes, addr: Endpoint) -> None:
        self.received.put_nowait(data)

    def send(self, data: bytes) -> None:
        self.transport.sendto(data)

    async def receive(self) -> bytes:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.received.get()


async def open_node(beacon: BeaconServer) -> Node:
    loop = asyncio.get_running_loop()
    _, node = await loop.create_datagram_endpoint(Node, remote_addr=beacon.address)
    return node


async def test_nodes_find_relay_and_are_notified() -> None:
    async with BeaconServer(("127.0.0.1", 0)) as beacon:
        alice, bob = await open_node(beacon), await open_node(beacon)
        for number, node in ((1, alice), (2, bob)):
            node.send(Discover(number).encode())
            own = node.transport.get_extra_info("sockname")
            assert decode_message(await node.receive()) == Reflection(own)
        alice.send(relay(1, 2, bytes(60_000)))
        assert await bob.receive() == b"\x06\0\0\0\1" + bytes(60_000)
        beacon.notify(2)
        beacon.notify(2)
        # The second one comes when the timer says so.
        assert [await bob.receive(), await bob.receive()] == [b"\x0a\x01"] * 2
        assert beacon.node_count == 2
        assert beacon.counters.relayed == 1
        for node in (alice, bob):
            node.transport.close()
            await node.closed.wait()
    # Nothing happens after the end.
    beacon.notify(2)


class SetClock:
    """A clock that the test sets."""

    time = 0.0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time


def test_timer_that_is_overdue_does_not_stop_the_answers() -> None:
    """With uvloop, a timer that is due at once is a handle without a time."""

    async def notify_twice() -> None:
        clock = SetClock()
        async with BeaconServer(("127.0.0.1", 0), clock=clock) as beacon:
            clock.time = 61.0
            beacon.notify(1)
            beacon.notify(1)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(notify_twice())


async def test_port_in_use_is_named() -> None:
    async with BeaconServer(("127.0.0.1", 0)) as beacon:
        with pytest.raises(AlreadyExists, match=str(beacon.address[1])) as caught:
            await BeaconServer(beacon.address).__aenter__()
    assert "--beacon-addr" in (caught.value.hint or "")
