"""Packets and connections between two processes."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from typing import TYPE_CHECKING

import pytest

from pilotfleet.node.processes.channel import MAX_WAITING, Channel, make_pair
from pilotfleet.node.processes.messages import MAX_PENDING, Message, Progress, Take

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(30)


class End:
    """One end, and what came out of it."""

    def __init__(self, end: socket.socket) -> None:
        self.taken: asyncio.Queue[tuple[Message, socket.socket | None]]
        self.taken = asyncio.Queue()
        self.ended = asyncio.Event()
        self.channel = Channel(
            end,
            on_message=lambda *taken: self.taken.put_nowait(taken),
            on_end=self.ended.set,
        )


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = make_pair()
    yield pair
    for end in pair:
        end.close()


async def test_messages_come_in_order(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    near, far = map(End, sockets)
    for number in range(500):
        assert near.channel.send(Progress(done=number, total=500))
        assert far.channel.send(Progress(done=-number, total=500))
    for number in range(500):
        assert await far.taken.get() == (Progress(done=number, total=500), None)
        assert await near.taken.get() == (Progress(done=-number, total=500), None)


async def test_a_connection_moves(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    near, far = map(End, sockets)
    here, there = socket.socketpair()
    before = len(os.listdir("/proc/self/fd"))
    take = Take(to=2, pending=b"x" * MAX_PENDING)
    assert near.channel.send(take, there)
    assert there.fileno() == -1, "it was given away"
    message, moved = await far.taken.get()
    assert message == take
    assert moved is not None
    assert not os.get_inheritable(moved.fileno())
    with here, moved:
        moved.send(b"hello")
        assert here.recv(10) == b"hello"
    assert len(os.listdir("/proc/self/fd")) == before - 2


async def test_the_end_of_the_other_process_is_noticed_after_its_last_words(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    near, far = map(End, sockets)
    near.channel.send(Progress(done=1, total=1))
    near.channel.close()
    await far.ended.wait()
    assert far.taken.get_nowait() == (Progress(done=1, total=1), None)
    here, there = socket.socketpair()
    assert not far.channel.send(Take(to=1), there)
    with here:
        assert here.recv(1) == b"", "a connection that cannot move is closed"


async def test_a_process_that_does_not_read_is_sent_so_much(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    near = End(sockets[0])
    message = Take(to=1, pending=b"x" * MAX_PENDING)
    sent = 0
    while near.channel.send(message):
        sent += 1
    assert MAX_WAITING <= sent < MAX_WAITING + 20
    far = End(sockets[1])
    for _ in range(sent):
        assert (await far.taken.get())[0] == message


async def test_a_packet_that_is_no_message_does_no_harm(
    sockets: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    raw, end = sockets
    far = End(end)
    here, there = socket.socketpair()
    socket.send_fds(raw, [b"\xc1"], [there.fileno()])
    there.close()
    raw.send(b"\x82\xa4type\xa8Progress\xa4done\x01")
    near = End(raw)
    near.channel.send(Progress(done=7, total=9))
    assert (await far.taken.get())[0] == Progress(done=7, total=9)
    with here:
        assert here.recv(1) == b""
    assert caplog.text.count("message between processes") == 2


def test_a_lack_of_files_is_not_taken_for_a_system_without_channels() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            make_pair()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
