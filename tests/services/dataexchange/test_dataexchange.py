"""Port 1001 between two hosts: answers, folders, duplicates, bounds, events."""

from __future__ import annotations

import asyncio
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.errors import ConnectionReset
from pilotfleet.protocol.services.dataexchange import (
    DATA_EXCHANGE_PORT,
    Frame,
    FrameDecoder,
    FrameType,
    Tags,
    Trace,
    decode_trace_answer,
    encode_file,
    encode_frame,
    encode_tagged,
    encode_trace,
)
from pilotfleet.services.dataexchange.mailbox import MailboxConfig
from pilotfleet.services.dataexchange.service import DataExchange, DataExchangeConfig
from pilotfleet.transport import threads
from tests.node.support import eventually, open_world
from tests.services.dataexchange.support import Exchange, open_exchange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.node.support import World

VECTORS = Path(__file__).parents[2] / "vectors" / "services.json"
RECORDED: dict[str, Any] = json.loads(VECTORS.read_text())["data_exchange"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as made:
        yield made


@pytest.fixture
async def net(world: World) -> AsyncIterator[Exchange]:
    async with open_exchange(world) as made:
        yield made


def text(payload: bytes) -> bytes:
    return encode_frame(FrameType.TEXT, payload)


def tagged(message_id: str, payload: bytes, reply_to: str | None = None) -> bytes:
    tags = Tags(message_id, reply_to)
    return encode_frame(FrameType.TAGGED, encode_tagged(tags, FrameType.TEXT, payload))


async def test_recorded_requests_get_the_recorded_answers(net: Exchange) -> None:
    async with net.dial() as sender:
        for case in RECORDED["acks_v1_18"]:
            answer = await sender.ask(bytes.fromhex(case["request_hex"]))
            assert answer.payload.decode() == case["reply_utf8"]


@pytest.mark.parametrize(
    "case", RECORDED["v1_18_closes_connection_without_reply"], ids=lambda c: c["why"]
)
async def test_recorded_requests_that_end_the_connection(
    net: Exchange, case: dict[str, Any]
) -> None:
    async with net.dial() as sender:
        await sender.send(bytes.fromhex(case["hex"]))
        assert await sender.is_ended()
    assert await net.say(text(b"next")) == "ACK TEXT 4 bytes"


async def test_message_is_stored_when_it_is_acknowledged(net: Exchange) -> None:
    assert await net.say(tagged("m2", b'{"a":1}', "abc-1")) == "ACK TEXT 7 bytes"
    [path] = net.inbox
    content = json.loads(path.read_bytes())
    assert path.name.startswith("TEXT-")
    assert content.pop("received_at")
    assert content == {
        "type": "TEXT",
        "from": str(net.sender.address),
        "bytes": 7,
        "data": '{"a":1}',
        "data_encoding": "utf8",
        "message_id": "m2",
        "reply_to": "abc-1",
    }
    assert net.events == [
        (
            "message.received",
            {
                "type": "TEXT",
                "from": str(net.sender.address),
                "size": 7,
                "message_id": "m2",
                "reply_to": "abc-1",
            },
        )
    ]


async def test_file_is_stored_when_it_is_acknowledged(net: Exchange) -> None:
    data = bytes(range(256)) * 8192
    answer = await net.say(encode_frame(FrameType.FILE, encode_file("a.bin", data)))
    assert answer == f"ACK FILE {len(data)} bytes"
    [path] = net.received
    assert path.read_bytes() == data
    assert net.events == [
        ("file.received", {"filename": "a.bin", "size": len(data), "path": str(path)})
    ]


async def test_many_frames_are_answered_in_order(net: Exchange) -> None:
    async with net.dial() as sender:
        await sender.send(b"".join(text(bytes(size)) for size in range(50)))
        answers = [(await sender.answer()).payload.decode() for _ in range(50)]
    assert answers == [f"ACK TEXT {size} bytes" for size in range(50)]
    sizes = [json.loads(path.read_bytes())["bytes"] for path in net.inbox]
    assert sizes == list(range(50))


async def test_frames_before_a_bad_one_are_answered(net: Exchange) -> None:
    bad = bytes.fromhex(RECORDED["v1_18_closes_connection_without_reply"][1]["hex"])
    async with net.dial() as sender:
        assert (await sender.ask(text(b"good") + bad)).payload == b"ACK TEXT 4 bytes"
        assert await sender.is_ended()


# Duplicates


async def test_second_delivery_is_not_stored(net: Exchange) -> None:
    assert await net.say(tagged("id-1", b"once")) == "ACK TEXT 4 bytes"
    assert await net.say(tagged("id-1", b"once")) == "ACK TEXT 4 bytes (duplicate)"
    assert await net.say(tagged("id-1", b"else")) == "ACK TEXT 4 bytes"
    assert await net.say(tagged("id-1", b"once", "r")) == "ACK TEXT 4 bytes"
    assert await net.say(text(b"once")) == "ACK TEXT 4 bytes"
    assert await net.say(text(b"once")) == "ACK TEXT 4 bytes"
    assert len(net.inbox) == 5


async def test_copies_that_arrive_together_are_stored_once(net: Exchange) -> None:
    copies = (net.say(tagged("id-1", b"x" * 100_000)) for _ in range(4))
    answers = sorted(await asyncio.gather(*copies))
    assert (
        answers == ["ACK TEXT 100000 bytes"] + ["ACK TEXT 100000 bytes (duplicate)"] * 3
    )
    assert len(net.inbox) == 1


async def test_message_that_was_not_stored_is_no_duplicate(net: Exchange) -> None:
    inbox = net.receiver.home / "inbox"
    inbox.write_bytes(b"")
    refused = "ERR TEXT save failed: open folder: file exists"
    assert await net.say(tagged("id-1", b"once")) == refused
    inbox.unlink()
    assert await net.say(tagged("id-1", b"once")) == "ACK TEXT 4 bytes"
    assert [event for event, _ in net.events] == ["message.received"]


# Trace


async def test_trace_tells_when_each_step_happened(net: Exchange) -> None:
    payload = encode_trace(Trace(FrameType.TEXT, 123456789, b"traced"))
    frame_type, answer = await net.ask(encode_frame(FrameType.TRACE, payload))
    assert frame_type == FrameType.JSON
    times = decode_trace_answer(answer)
    assert times.sent_at_ns == 123456789
    assert times.inner_ack == "ACK TEXT 6 bytes"
    assert times.received_at_ns < times.inbox_written_at_ns <= times.ack_sent_at_ns
    assert json.loads(net.inbox[0].read_bytes())["data"] == "traced"


async def test_trace_stores_whatever_is_inside_in_the_inbox(net: Exchange) -> None:
    # As seen from 1.18.0: also a file, with its name in front.
    for inner, name in ((99, "UNKNOWN(99)"), (FrameType.FILE, "FILE")):
        payload = encode_trace(Trace(inner, 5, b"\0\1abc"))
        _, answer = await net.ask(encode_frame(FrameType.TRACE, payload))
        assert decode_trace_answer(answer).inner_ack == f"ACK {name} 5 bytes"
        assert net.inbox[-1].name.startswith(f"{name}-")


# Bounds


async def test_full_inbox_is_told_to_the_sender(world: World) -> None:
    config = DataExchangeConfig(mailbox=MailboxConfig(max_inbox_bytes=500))
    async with open_exchange(world, config) as net:
        answer = await net.say(text(bytes(500)))
        assert answer.startswith("ERR TEXT save failed: inbox byte budget exceeded: ")
        [(event, data)] = net.events
        assert event == "inbox.full"
        assert data == {
            "from": str(net.sender.address),
            "type": "TEXT",
            "frame_bytes": 500,
            "max_bytes": 500,
        }


async def test_full_folder_of_files_is_told_to_the_sender(world: World) -> None:
    config = DataExchangeConfig(mailbox=MailboxConfig(max_received_bytes=100))
    async with open_exchange(world, config) as net:
        payload = encode_file("a", bytes(101))
        answer = await net.say(encode_frame(FrameType.FILE, payload))
        assert answer == (
            "ERR FILE save failed: received-files quota exceeded: 0 + 101 > 100"
        )
        assert net.events == [
            (
                "received.full",
                {"type": "FILE", "frame_bytes": len(payload), "max_bytes": 100},
            )
        ]


async def test_frame_over_the_limit_ends_the_connection(world: World) -> None:
    async with open_exchange(world, DataExchangeConfig(max_frame=70_000)) as net:
        assert await net.say(text(bytes(70_000))) == "ACK TEXT 70000 bytes"
        async with net.dial() as sender:
            too_long = text(bytes(70_001))[:8]
            answer = await sender.ask(text(b"good") + too_long)
            assert answer.payload == b"ACK TEXT 4 bytes"
            assert await sender.is_ended()


async def test_connection_without_a_complete_frame_is_closed(world: World) -> None:
    async with open_exchange(world, DataExchangeConfig(idle_s=0.3)) as net:
        async with net.dial() as sender:
            await sender.ask(text(b"first"))
            await sender.send(text(b"second")[:-1])
            assert await sender.is_ended()
        assert len(net.inbox) == 1


async def test_large_frames_share_the_memory_and_all_arrive(world: World) -> None:
    config = DataExchangeConfig(memory_bytes=1 << 20)
    async with open_exchange(world, config) as net:
        files = [bytes([number]) * (2 << 20) for number in range(4)]
        frames = [
            encode_frame(FrameType.FILE, encode_file("f", data)) for data in files
        ]
        answers = await asyncio.gather(*map(net.say, frames))
        assert answers == [f"ACK FILE {2 << 20} bytes"] * 4
        assert sorted(path.read_bytes()[:1] for path in net.received) == [
            data[:1] for data in files
        ]
        await eventually(lambda: not net.service.budget.total, what="memory is free")


async def test_unfinished_frame_counts_until_its_connection_ends(net: Exchange) -> None:
    budget = net.service.budget
    async with net.dial() as sender:
        await sender.send(text(bytes(1 << 20))[:-1])
        await eventually(lambda: budget.total > 1 << 19, what="it is counted")
        sender.stream.abort()
        await eventually(lambda: not budget.total, what="memory is free")


async def test_answer_that_cannot_be_sent_is_reported(
    net: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_saving, may_save = asyncio.Event(), asyncio.Event()
    real = threads.run_blocking

    async def slow(*args: Any, **kw: Any) -> Any:
        is_saving.set()
        await may_save.wait()
        return await real(*args, **kw)

    monkeypatch.setattr("pilotfleet.services.dataexchange.service.run_blocking", slow)
    async with net.dial() as sender:
        await sender.send(text(b"hi"))
        await is_saving.wait()
        sender.stream.abort()
        streams = net.receiver.streams
        await eventually(lambda: not list(streams.connections()), what="reset arrived")
        may_save.set()
        await eventually(lambda: len(net.events) == 2, what="the failure is reported")
    [(stored, _), (failed, data)] = net.events
    assert (stored, failed) == ("message.received", "dataexchange.ack_failed")
    assert data["frame_type"] == "TEXT"
    assert data["remote"].startswith(str(net.sender.address))


# Options, and where things are


async def test_a_sender_has_a_bounded_number_of_connections(world: World) -> None:
    config = DataExchangeConfig(connections_per_sender=2)
    async with open_exchange(world, config) as net:
        async with net.dial() as first, net.dial() as second:
            for sender in (first, second):
                assert (await sender.ask(text(b"one"))).payload == b"ACK TEXT 3 bytes"
            async with net.dial() as third:
                with pytest.raises(ConnectionReset):
                    await third.is_ended()
            assert (await first.ask(text(b"two"))).payload == b"ACK TEXT 3 bytes"
        connections = net.service._desk(net.receiver).connections
        await eventually(lambda: not connections, what="no connection is counted")
        assert await net.say(text(b"next")) == "ACK TEXT 4 bytes"


async def test_option_stores_everything_as_base64(world: World) -> None:
    config = DataExchangeConfig(mailbox=MailboxConfig(always_base64=True))
    async with open_exchange(world, config) as net:
        await net.say(text(b"plain"))
        assert json.loads(net.inbox[0].read_bytes())["data_b64"] == "cGxhaW4="


async def test_local_programs_learn_where_the_folders_are(
    world: World, tmp_path: Path
) -> None:
    service = DataExchange()
    socket = tmp_path / "s"
    host = world.host("many", "one", "two", socket=socket)
    host.services[DATA_EXCHANGE_PORT] = service.handle
    host.extensions.update(service.extensions())
    async with host, await DaemonClient.connect(socket) as client:
        for name in ("one", "two"):
            home = host.agents[name].home
            assert await client.call("mailbox", agent=name) == {
                "inbox": str(home / "inbox"),
                "received": str(home / "received"),
            }


async def test_agents_of_a_host_have_their_own_folders(world: World) -> None:
    service = DataExchange()
    host = world.host("many", "one", "two", "three")
    host.services[DATA_EXCHANGE_PORT] = service.handle
    async with host:
        one, two, three = host.agents.values()
        net = Exchange(one, two, service)
        # The same message, but to another, or from another.
        back, other = replace(net, sender=two, receiver=one), replace(net, sender=three)
        for pair in (net, back, other):
            assert await pair.say(tagged("id-1", b"hello")) == "ACK TEXT 5 bytes"
        assert len(net.inbox) == 2
        assert len(back.inbox) == 1


@pytest.mark.parametrize("cut", [1, 7])
async def test_frames_arrive_in_any_pieces(net: Exchange, cut: int) -> None:
    raw = text(b"in pieces") + struct.pack("!II", 2, 0)
    async with net.dial() as sender:
        for start in range(0, len(raw), cut):
            await sender.send(raw[start : start + cut])
        assert [await sender.answer(), await sender.answer()] == [
            Frame(FrameType.TEXT, b"ACK TEXT 9 bytes"),
            Frame(FrameType.TEXT, b"ACK BINARY 0 bytes"),
        ]
    assert FrameDecoder().feed(raw)[0].payload == b"in pieces"
