"""A killed daemon comes back in the middle of a transfer; the other one goes on."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import pytest

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.errors import PilotError
from pilotfleet.protocol.address import Address
from tests.support.programs import World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotfleet.client.streams import ClientListener, ClientStream

pytestmark = [pytest.mark.official, pytest.mark.timeout(180)]

USABLE_S: Final = 15.0
PORT: Final = 4000
ECHO_PORT: Final = 7
PIECE: Final = bytes(64 * 1024)


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        made.start_rendezvous()
        yield made


def start(net: World, name: str) -> None:
    if name == "theirs":
        net.start_official_daemon(name, "-public")
    else:
        net.start_daemon(name, "--public")


def node_of(net: World, name: str) -> Address:
    return Address(0, data_of(net.ctl(name, "info"))["node_id"])


async def send_for_ever(stream: ClientStream) -> None:
    with contextlib.suppress(PilotError):
        while True:
            await stream.write(PIECE)


async def receive_all(listener: ClientListener) -> None:
    with contextlib.suppress(PilotError):
        async with await listener.accept() as stream:
            while await stream.read():
                pass


async def echo(client: DaemonClient, node: Address) -> None:
    async with await client.dial(node, ECHO_PORT, timeout=USABLE_S) as stream:
        await stream.write(PIECE)
        assert await stream.read_exactly(len(PIECE)) == PIECE


async def wait_until_usable(client: DaemonClient, node: Address) -> None:
    async with asyncio.timeout(USABLE_S):
        while True:
            try:
                return await echo(client, node)
            except PilotError:
                await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("survivor", "victim"),
    [("ours", "theirs"), ("theirs", "ours"), ("ours", "ours-too")],
)
@pytest.mark.parametrize("is_sender_killed", [False, True])
async def test_peer_of_a_killed_daemon_stays_usable(
    net: World, survivor: str, victim: str, is_sender_killed: bool
) -> None:
    for name in (survivor, victim):
        start(net, name)
    killed = net.programs[-1]
    nodes = {name: node_of(net, name) for name in (survivor, victim)}
    sender, receiver = (victim, survivor) if is_sender_killed else (survivor, victim)
    async with (
        await DaemonClient.connect(net.socket(sender)) as sending,
        await DaemonClient.connect(net.socket(receiver)) as receiving,
    ):
        listener = await receiving.bind(PORT)
        stream = await sending.dial(nodes[receiver], PORT)
        transfer = asyncio.gather(send_for_ever(stream), receive_all(listener))
        await echo(sending, nodes[receiver])
        killed.kill()
        await asyncio.to_thread(start, net, victim)

        # The client of the survivor that was in the transfer, not only a new one.
        old = receiving if is_sender_killed else sending
        async with (
            await DaemonClient.connect(net.socket(survivor)) as fresh,
            await DaemonClient.connect(net.socket(victim)) as restarted,
        ):
            await asyncio.gather(
                wait_until_usable(old, nodes[victim]),
                wait_until_usable(fresh, nodes[victim]),
                wait_until_usable(restarted, nodes[survivor]),
            )
        transfer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await transfer
