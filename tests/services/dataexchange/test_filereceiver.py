"""File streams onto the disk: order, resumption, verdicts, bounds."""

from __future__ import annotations

import os
import random
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pilotfleet.protocol.services.dataexchange import (
    FrameType,
    Tags,
    encode_frame,
    encode_tagged,
)
from pilotfleet.protocol.services.filestream import (
    CHUNK_SIZE,
    WINDOW_CHUNKS,
    ZERO_TRANSFER,
    Abort,
    Ack,
    Chunk,
    Complete,
    Done,
    Init,
    InitAck,
    encode_file_stream,
)
from pilotfleet.services.dataexchange import incomingfile
from pilotfleet.services.dataexchange.filereceiver import MAX_TRANSFERS
from pilotfleet.services.dataexchange.incomingfile import base_name
from pilotfleet.services.dataexchange.mailbox import MailboxConfig
from pilotfleet.services.dataexchange.service import DataExchangeConfig
from tests.node.support import eventually, open_world
from tests.services.dataexchange.support import (
    Exchange,
    Sender,
    init_of,
    open_exchange,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.node.support import World

DATA = random.Random(1).randbytes(300_000)
INIT = init_of(DATA)
ID = INIT.transfer_id
CHUNKS = [
    Chunk(ID, offset, DATA[offset : offset + CHUNK_SIZE])
    for offset in range(0, len(DATA), CHUNK_SIZE)
]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as made:
        yield made


@pytest.fixture
async def net(world: World) -> AsyncIterator[Exchange]:
    async with open_exchange(world) as made:
        yield made


async def acknowledged(sender: Sender, count: int) -> None:
    """Read ACKs until one says ``count``."""
    answer = await sender.next_message()
    while answer != Ack(ID, count):
        assert isinstance(answer, Ack)
        assert answer.count < count
        answer = await sender.next_message()


async def send_whole(sender: Sender, init: Init, data: bytes) -> Complete:
    """Send a file from where the receiver is; return the verdict."""
    start = await sender.exchange(init)
    assert isinstance(start, InitAck)
    transfer_id = init.transfer_id
    for offset in range(start.offset, len(data), CHUNK_SIZE):
        chunk = Chunk(transfer_id, offset, data[offset : offset + CHUNK_SIZE])
        await sender.send_message(chunk)
    answer = await sender.exchange(Done(transfer_id))
    while isinstance(answer, Ack):
        answer = await sender.next_message()
    assert isinstance(answer, Complete)
    return answer


async def test_file_arrives(net: Exchange) -> None:
    async with net.dial() as sender:
        assert await send_whole(sender, INIT, DATA) == Complete(ID, True)
    [path] = net.received
    assert path.read_bytes() == DATA
    assert path.name.startswith("file-")
    assert path.suffix == ".bin"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (path.parent, net.partial):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(net.partial.iterdir()) == []
    assert net.events == [
        (
            "file.received",
            {"filename": path.name, "size": len(DATA), "path": str(path)},
        )
    ]


async def test_same_file_again_is_stored_again(net: Exchange) -> None:
    async with net.dial() as sender:
        for _ in range(2):
            assert await send_whole(sender, INIT, DATA) == Complete(ID, True)
    assert [path.read_bytes() for path in net.received] == [DATA, DATA]


async def test_empty_file_is_stored(net: Exchange) -> None:
    init = init_of(b"", b"empty")
    async with net.dial() as sender:
        assert (await send_whole(sender, init, b"")).is_ok
    assert [path.stat().st_size for path in net.received] == [0]


async def test_lost_connection_resumes(net: Exchange) -> None:
    async with net.dial() as sender:
        await sender.exchange(INIT)
        await sender.send_message(*CHUNKS[:3])
        await acknowledged(sender, 3 * CHUNK_SIZE)
        sender.stream.abort()
    async with net.dial() as sender:
        assert await sender.exchange(INIT) == InitAck(ID, 3 * CHUNK_SIZE)
        await sender.send_message(*CHUNKS[3:])
        await acknowledged(sender, len(DATA))
        assert await sender.exchange(Done(ID)) == Complete(ID, True)
    assert net.received[0].read_bytes() == DATA


async def test_new_process_resumes(world: World) -> None:
    async with open_exchange(world) as net, net.dial() as sender:
        await sender.exchange(INIT)
        await sender.send_message(*CHUNKS[:2])
        await acknowledged(sender, 2 * CHUNK_SIZE)
    async with open_exchange(world) as net, net.dial() as sender:
        assert await sender.exchange(INIT) == InitAck(ID, 2 * CHUNK_SIZE)
        assert await send_whole(sender, INIT, DATA) == Complete(ID, True)
        assert net.received[0].read_bytes() == DATA


async def test_partial_that_is_too_long_begins_anew(net: Exchange) -> None:
    net.partial.mkdir(parents=True)
    (net.partial / ID.hex()).write_bytes(bytes(len(DATA) + 1))
    async with net.dial() as sender:
        assert await sender.exchange(INIT) == InitAck(ID, 0)


async def test_chunk_beyond_a_gap_waits(net: Exchange) -> None:
    async with net.dial() as sender:
        await sender.exchange(INIT)
        assert await sender.exchange(CHUNKS[1]) == Ack(ID, 0)
        assert await sender.exchange(CHUNKS[0]) == Ack(ID, 2 * CHUNK_SIZE)
        assert await sender.exchange(CHUNKS[0]) == Ack(ID, 2 * CHUNK_SIZE)


async def test_chunk_beyond_the_file_is_refused_and_the_file_goes_on(
    net: Exchange,
) -> None:
    async with net.dial() as sender:
        await sender.exchange(INIT)
        wrong = Chunk(ID, len(DATA) - 10, bytes(20))
        text = f"chunk at {len(DATA) - 10} of 20 bytes exceeds declared size 300000"
        assert await sender.exchange(wrong) == Complete(ID, False, text)
        assert await send_whole(sender, INIT, DATA) == Complete(ID, True)


async def test_done_too_early_leaves_the_transfer_open(net: Exchange) -> None:
    async with net.dial() as sender:
        await sender.exchange(INIT)
        await sender.exchange(CHUNKS[0])
        text = "incomplete: have 49152 of 300000 bytes"
        assert await sender.exchange(Done(ID)) == Complete(ID, False, text)
        await sender.send_message(*CHUNKS[1:])
        await acknowledged(sender, len(DATA))
        assert await sender.exchange(Done(ID)) == Complete(ID, True)
        text = "no active transfer"
        assert await sender.exchange(Done(ID)) == Complete(ID, False, text)


async def test_corrupt_file_is_refused_and_the_next_attempt_succeeds(
    net: Exchange,
) -> None:
    wrong = bytes(len(DATA))
    text = "sha256 mismatch — file corrupt, .partial retained"
    async with net.dial() as sender:
        assert await send_whole(sender, INIT, wrong) == Complete(ID, False, text)
        assert net.received == []
        assert await send_whole(sender, INIT, DATA) == Complete(ID, True)
    assert net.received[0].read_bytes() == DATA
    assert [path.name for path in net.partial.iterdir()] == [f"{ID.hex()}.corrupt"]


async def test_corrupt_beginning_on_the_disk_is_noticed(net: Exchange) -> None:
    net.partial.mkdir(parents=True)
    (net.partial / ID.hex()).write_bytes(b"?" * 1000)
    async with net.dial() as sender:
        verdict = await send_whole(sender, INIT, DATA)
    assert "sha256 mismatch" in verdict.message


async def test_two_connections_feed_one_transfer(net: Exchange) -> None:
    async with net.dial() as one, net.dial() as two:
        assert await one.exchange(INIT) == InitAck(ID, 0)
        await one.send_message(*CHUNKS[:2])
        await acknowledged(one, 2 * CHUNK_SIZE)
        assert await two.exchange(INIT) == InitAck(ID, 2 * CHUNK_SIZE)
        await two.send_message(*CHUNKS[2:])
        await acknowledged(two, len(DATA))
        assert await one.exchange(CHUNKS[2]) == Ack(ID, len(DATA))
        assert await two.exchange(Done(ID)) == Complete(ID, True)
        assert await one.exchange(Done(ID)) == Complete(ID, True)
    assert len(net.received) == 1


async def test_another_file_with_the_same_id_does_not_spoil_a_transfer(
    net: Exchange,
) -> None:
    async with net.dial() as one, net.dial() as two:
        await one.exchange(INIT)
        text = "transfer is active with another size or hash"
        for wrong in (replace(INIT, sha256=bytes(32)), replace(INIT, size=1)):
            assert await two.exchange(wrong) == Complete(ID, False, text)
        assert await send_whole(one, INIT, DATA) == Complete(ID, True)


async def test_abort_forgets_the_transfer_and_keeps_the_part(net: Exchange) -> None:
    async with net.dial() as sender:
        await sender.exchange(INIT)
        await sender.exchange(CHUNKS[0])
        text = "no active transfer (send INIT first)"
        answer = await sender.exchange(Abort(ID, "enough"), CHUNKS[1])
        assert answer == Abort(ID, text)
        assert await sender.exchange(INIT) == InitAck(ID, CHUNK_SIZE)


@pytest.mark.parametrize(
    ("payload", "answer"),
    [
        (b"\2" + ID[:3], Complete(ZERO_TRANSFER, False, "malformed stream frame")),
        (b"\1" + ID + b"abc", Complete(ID, False, "malformed INIT")),
        (b"\2" + ID + b"abc", Complete(ID, False, "malformed CHUNK")),
        (encode_file_stream(Done(ID)), Complete(ID, False, "no active transfer")),
        (b"\x09" + ID, None),
        (encode_file_stream(Abort(ID, "why not")), None),
        (encode_file_stream(Ack(ID, 5)), None),
        (encode_file_stream(Complete(ID, False, "echo?")), None),
    ],
)
async def test_message_out_of_place(
    net: Exchange, payload: bytes, answer: Complete | None
) -> None:
    async with net.dial() as sender:
        await sender.send(encode_frame(FrameType.FILESTREAM, payload))
        if answer is not None:
            assert await sender.next_message() == answer
        after = await sender.ask(encode_frame(FrameType.TEXT, b"after"))
        assert after.payload == b"ACK TEXT 5 bytes"


async def test_tags_of_a_file_stream_are_ignored(net: Exchange) -> None:
    inner = encode_file_stream(INIT)
    payload = encode_tagged(Tags("id-1"), FrameType.FILESTREAM, inner)
    async with net.dial() as sender:
        await sender.send(encode_frame(FrameType.TAGGED, payload))
        assert await sender.next_message() == InitAck(ID, 0)


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        (b"../../evil.txt", "evil.txt"),
        (b"a/", "a"),
        (b"/", "received.bin"),
        (b"", "received.bin"),
        (b".", "received.bin"),
        (b"./", "received.bin"),
        (b"..", ".."),
        (b"a\\b", "a\\b"),
        (b"\xff", os.fsdecode(b"\xff")),
    ],
)
def test_name_is_reduced_to_its_last_part(sent: bytes, name: str) -> None:
    assert base_name(sent) == name


@pytest.mark.parametrize("name", [b"..", b"\xff.bin", b"n" * 255, b"a\\b", b"/"])
async def test_strange_name_stays_in_the_folder(net: Exchange, name: bytes) -> None:
    async with net.dial() as sender:
        assert (await send_whole(sender, init_of(b"data", name), b"data")).is_ok
    [path] = net.received
    assert path.read_bytes() == b"data"


async def test_name_with_a_zero_byte_is_refused(net: Exchange) -> None:
    async with net.dial() as sender:
        verdict = await send_whole(sender, init_of(b"data", b"a\0b"), b"data")
    assert not verdict.is_ok


# Bounds


async def test_file_over_the_quota_is_refused(world: World) -> None:
    config = DataExchangeConfig(mailbox=MailboxConfig(max_received_bytes=300_000))
    async with open_exchange(world, config) as net, net.dial() as sender:
        large = Init(bytes(16), 1 << 40, bytes(32), CHUNK_SIZE, b"n")
        text = "receiver disk quota exceeded: need 1099511627776, 300000 of 300000"
        refusal = Complete(bytes(16), False, f"{text} available")
        assert await sender.exchange(large) == refusal
        assert [event for event, _ in net.events] == ["received.full"]
        assert await sender.exchange(INIT) == InitAck(ID, 0)
        # What is announced counts before it has arrived.
        other = init_of(b"x")
        refused = await sender.exchange(other)
        assert isinstance(refused, Complete)
        assert refused.message.endswith("need 1, 0 of 300000 available")
        assert await send_whole(sender, INIT, DATA) == Complete(ID, True)


async def test_room_is_free_again_when_the_connection_ends(world: World) -> None:
    config = DataExchangeConfig(mailbox=MailboxConfig(max_received_bytes=300_000))
    async with open_exchange(world, config) as net:
        async with net.dial() as sender:
            other = init_of(bytes(200_000))
            for _ in range(2):
                assert await sender.exchange(other) == InitAck(other.transfer_id, 0)
        streams = net.receiver.streams
        await eventually(
            lambda: all(c.at_eof for c in streams.connections()), what="it ended"
        )
        async with net.dial() as sender:
            assert await send_whole(sender, INIT, DATA) == Complete(ID, True)


async def test_room_is_free_again_when_the_part_cannot_be_opened(world: World) -> None:
    config = DataExchangeConfig(mailbox=MailboxConfig(max_received_bytes=300_000))
    async with open_exchange(world, config) as net, net.dial() as sender:
        in_the_way = net.partial / ID.hex()
        in_the_way.mkdir(parents=True)
        refused = Complete(ID, False, "open: is a directory")
        assert await sender.exchange(INIT) == refused
        in_the_way.rmdir()
        assert await send_whole(sender, INIT, DATA) == Complete(ID, True)


async def test_one_connection_has_a_bound_of_transfers(net: Exchange) -> None:
    async with net.dial() as sender:
        for number in range(MAX_TRANSFERS):
            init = init_of(bytes([number]))
            assert await sender.exchange(init) == InitAck(init.transfer_id, 0)
        refused = await sender.exchange(INIT)
        assert isinstance(refused, Complete)
        assert "transfers" in refused.message


async def test_partial_that_somebody_removed_ends_the_transfer(net: Exchange) -> None:
    async with net.dial() as sender:
        await sender.exchange(INIT)
        (net.partial / ID.hex()).unlink()
        text = "write: no such file or directory"
        assert await sender.exchange(CHUNKS[0]) == Complete(ID, False, text)
        assert await send_whole(sender, INIT, DATA) == Complete(ID, True)


async def test_partial_that_somebody_changed_ends_the_transfer(net: Exchange) -> None:
    async with net.dial() as sender:
        await sender.exchange(INIT)
        (net.partial / ID.hex()).write_bytes(b"?")
        text = "write: partial file was changed by others"
        assert await sender.exchange(CHUNKS[0]) == Complete(ID, False, text)


async def test_partial_that_is_resumed_is_not_stale(net: Exchange) -> None:
    net.partial.mkdir(parents=True)
    path = net.partial / ID.hex()
    path.write_bytes(DATA[:10])
    os.utime(path, (1, 1))
    async with net.dial() as sender:
        assert await sender.exchange(INIT) == InitAck(ID, 10)
    assert path.stat().st_mtime > 1


async def test_transfers_share_the_room_beyond_gaps(
    net: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incomingfile, "MAX_HELD_BY_ALL", 1)
    init = init_of(DATA[:-1])
    chunks = [replace(chunk, transfer_id=init.transfer_id) for chunk in CHUNKS]
    async with net.dial() as one, net.dial() as two:
        await one.exchange(INIT)
        assert await one.exchange(CHUNKS[1]) == Ack(ID, 0)
        await two.exchange(init)
        await two.exchange(chunks[1])
        # The one before fills the gap, but what was beyond it is not there.
        assert await two.exchange(chunks[0]) == Ack(init.transfer_id, CHUNK_SIZE)
        # An aborted transfer gives its room back.
        await one.exchange(Abort(ID, "enough"), Done(ID))
        await two.exchange(chunks[2])
        assert await two.exchange(chunks[1]) == Ack(init.transfer_id, 3 * CHUNK_SIZE)


async def test_window_of_the_sender_is_taken_at_once(net: Exchange) -> None:
    data = os.urandom(CHUNK_SIZE * WINDOW_CHUNKS)
    async with net.dial() as sender:
        assert (await send_whole(sender, init_of(data), data)).is_ok
    assert net.received[0].read_bytes() == data
