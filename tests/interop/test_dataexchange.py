"""Messages and files: official senders cannot tell our daemon from theirs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.errors import PilotError
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.services.dataexchange import (
    DATA_EXCHANGE_PORT,
    Frame,
    FrameDecoder,
    FrameType,
    encode_frame,
)
from pilotfleet.protocol.services.events import EVENT_PORT
from tests.support.official import official_program
from tests.support.programs import BIN, World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.official, pytest.mark.timeout(180)]

VECTORS = Path(__file__).parents[1] / "vectors" / "services.json"
RECORDED: dict[str, Any] = json.loads(VECTORS.read_text())["data_exchange"]
BIG = 60_000_000
LIMIT_S = 60.0
STAMP = re.compile(r"-\d{8}-\d{6}\.\d{3}-\d{6}")


@pytest.fixture
def net() -> Iterator[World]:
    """Yield an official sender, and a public receiver of each kind."""
    with world() as made:
        made.start_rendezvous()
        made.start_official_daemon("sender")
        made.start_official_daemon("theirs", "-public")
        made.start_daemon("ours", "--public")
        yield made


def address_of(net: World, name: str) -> str:
    return str(data_of(net.official_ctl(name, "info"))["address"])


def folder_of(net: World, name: str) -> Path:
    return net.home / name / (".pilot" if name == "theirs" else "")


def messages_of(net: World, name: str) -> list[dict[str, Any]]:
    """Return what is in an inbox, without what differs from one to the next."""
    paths = (folder_of(net, name) / "inbox").glob("*.json")
    messages = []
    for path in sorted(paths, key=lambda path: path.stem[-6:]):
        message = json.loads(path.read_text())
        assert path.name.startswith(f"{message['type']}-")
        assert message.pop("received_at")
        message["message_id"] = len(message.get("message_id", ""))
        messages.append(message)
    return messages


def files_of(net: World, name: str) -> list[tuple[str, bytes]]:
    """Return names without their stamps, and contents, of received files."""
    paths = [p for p in (folder_of(net, name) / "received").iterdir() if p.is_file()]
    return sorted((STAMP.sub("-STAMP", p.name), p.read_bytes()) for p in paths)


async def test_every_recorded_frame_is_answered_alike(net: World) -> None:
    requests = [case["request_hex"] for case in RECORDED["acks_v1_18"]]
    requests += [
        case["hex"] for case in RECORDED["v1_18_closes_connection_without_reply"]
    ]
    async with await DaemonClient.connect(net.socket("sender")) as client:
        for raw in map(bytes.fromhex, requests):
            answers = [
                await ask(client, address_of(net, name), raw)
                for name in ("theirs", "ours")
            ]
            assert answers[0] == answers[1], raw.hex()
    assert messages_of(net, "ours") == messages_of(net, "theirs")
    assert files_of(net, "ours") == files_of(net, "theirs")


async def ask(client: DaemonClient, address: str, raw: bytes) -> Frame | None:
    """Return the answer to a frame, None when the connection ends without one."""
    remote = Address.parse(address)
    stream = await client.dial(remote, DATA_EXCHANGE_PORT, timeout=LIMIT_S)
    decoder = FrameDecoder()
    try:
        await stream.write(raw)
        async with asyncio.timeout(LIMIT_S):
            while data := await stream.read():
                for frame in decoder.feed(data):
                    return frame
        return None
    finally:
        await stream.close()


def test_transfer_resumes_after_our_daemon_was_killed(net: World) -> None:
    path = net.home / "big.bin"
    path.write_bytes(os.urandom(BIG))
    target = address_of(net, "ours")
    sending = start_sending(net, target, path)
    partial = net.home / "ours" / "received" / ".partial"
    daemon = net.programs[-1]
    daemon.wait_until(lambda: size_of(partial) > BIG // 10)
    daemon.kill()
    sending.kill()
    sending.wait()
    left = size_of(partial)
    assert BIG // 10 < left < BIG

    net.start_daemon("ours", "--public")
    sent = data_of(net.official_ctl("sender", "send-file", target, str(path)))
    assert sent["verified"]
    assert sent["bytes_resumed"] == left
    assert sent["bytes_sent"] == BIG - left
    assert files_of(net, "ours") == [("big-STAMP.bin", path.read_bytes())]


def start_sending(net: World, target: str, path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [official_program("pilotctl"), "send-file", target, path],
        env=net.environment(PILOT_SOCKET=str(net.socket("sender"))),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def size_of(folder: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0


@pytest.mark.parametrize("with_identity", [False, True])
def test_official_client_finds_the_mail_of_a_daemon_started_the_official_way(
    net: World, with_identity: bool
) -> None:
    pilot = net.home / ".pilot"
    pilot.mkdir(mode=0o700)
    flags = ("-identity", str(pilot / "identity.json")) if with_identity else ()
    daemon = net.start(
        "drop-in",
        BIN / "pilot-daemon",
        *("-registry", net.registry, "-beacon", net.beacon, "-public"),
        *("-listen", "127.0.0.1:0", "-socket", net.socket("drop-in"), *flags),
    )
    daemon.wait_until(lambda: net.official_ctl("drop-in", "info").returncode == 0)
    target = address_of(net, "drop-in")
    path = net.home / "report.txt"
    path.write_text("some file\n")
    data_of(net.official_ctl("sender", "send-message", target, "--data", "hello"))
    data_of(net.official_ctl("sender", "send-file", target, str(path)))

    inbox = data_of(net.official_ctl("drop-in", "inbox", "--full"))
    assert [message["data"] for message in inbox["messages"]] == ["hello"]
    assert inbox["dir"] == str(pilot / "inbox")
    received = data_of(net.official_ctl("drop-in", "received"))
    assert [file["bytes"] for file in received["files"]] == [10]
    assert received["dir"] == str(pilot / "received")
    assert data_of(net.official_ctl("drop-in", "inbox", "--clear"))["cleared"] == 1


async def test_public_service_may_dial_back_to_a_private_node(net: World) -> None:
    net.start_daemon("private")
    ours, theirs = address_of(net, "private"), address_of(net, "theirs")
    data_of(net.official_ctl("private", "send-message", theirs, "--data", "question"))
    # The official client refuses to write to a private node that does not trust
    # it; services dial through their daemon's socket.
    async with await DaemonClient.connect(net.socket("theirs")) as service:
        frame = encode_frame(FrameType.TEXT, b"answer")
        assert await ask(service, ours, frame) == Frame(
            FrameType.TEXT, b"ACK TEXT 6 bytes"
        )
        with pytest.raises(PilotError):
            await service.dial(Address.parse(ours), EVENT_PORT, timeout=3)
    [message] = messages_of(net, "private")
    assert message["data"] == "answer"


def test_options_and_environment_of_the_official_daemon(net: World) -> None:
    net.start_daemon(
        "small",
        *("--public", "-dataexchange-b64"),
        PILOT_DATAEXCHANGE_MAX_FRAME="65536",
    )
    target = address_of(net, "small")
    data_of(net.official_ctl("sender", "send-message", target, "--data", "plain"))
    [message] = messages_of(net, "small")
    assert message["data_b64"] == "cGxhaW4="
    text = "x" * 65537
    too_long = net.official_ctl("sender", "send-message", target, "--data", text)
    assert too_long.returncode != 0
    net.start_daemon("without", "--public", "-no-dataexchange")
    refused = net.official_ctl(
        "sender", "send-message", address_of(net, "without"), "--data", "hello"
    )
    assert refused.returncode != 0
    assert json.loads(refused.stderr)["code"] == "connection_failed"
