"""send-file against a scripted receiver (cli.md section 6.5, services.md 4.6)."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.cli import filetransfer
from pilotfleet.protocol.services.dataexchange import (
    Frame,
    FrameType,
    decode_file,
)
from pilotfleet.protocol.services.filestream import (
    CHUNK_SIZE,
    MAX_HELD,
    Abort,
    Ack,
    Chunk,
    Complete,
    Done,
    FileStreamMessage,
    Init,
    InitAck,
    decode_file_stream,
    encode_file_stream,
    transfer_id_of,
)
from tests.cli.mailsupport import PEER, Peer, text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.cli.support import Shell

SIZE = MAX_HELD + 200_001


def stream(message: FileStreamMessage) -> list[Frame]:
    return [Frame(FrameType.FILESTREAM, encode_file_stream(message))]


class Receiver:
    """Takes file streams as a daemon does; has ``held`` bytes already."""

    def __init__(self, *, held: bytes = b"") -> None:
        self.data = bytearray(held)
        self.init: Init | None = None
        self.chunks = 0
        self.break_after = 0
        """Chunks after which the stream ends, once."""
        self.verdict = ""

    def __call__(self, peer: Peer, frame: Frame) -> Sequence[Frame] | None:
        assert frame.type == FrameType.FILESTREAM
        match decode_file_stream(frame.payload):
            case Init() as init:
                self.init = init
                return stream(InitAck(init.transfer_id, len(self.data)))
            case Chunk(transfer, offset, data):
                self.chunks += 1
                if self.chunks == self.break_after:
                    return None
                assert offset == len(self.data)
                self.data += data
                return stream(Ack(transfer, len(self.data)))
            case Done(transfer):
                is_ok = not self.verdict
                return stream(Complete(transfer, is_ok, self.verdict))
        raise AssertionError("a receiver's message")


@pytest.fixture
def path(shell: Shell) -> Path:
    path = shell.home / "big file.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


def send(shell: Shell, path: object, *flags: str) -> Any:
    return shell.run("--json", "send-file", "7", str(path), *flags)


def test_file_goes_in_pieces(shell: Shell, path: Path) -> None:
    receiver = Receiver()
    with Peer(shell.socket, receiver) as peer:
        data = send(shell, path).data
    digest = hashlib.sha256(path.read_bytes())
    assert data.pop("elapsed_ms") >= 0
    assert data.pop("throughput_mbps") > 0
    assert data == {
        "filename": "big file.bin",
        "bytes": SIZE,
        "bytes_sent": SIZE,
        "bytes_resumed": 0,
        "sha256": digest.hexdigest(),
        "destination": PEER,
        "transport": "filestream",
        "verified": True,
    }
    assert bytes(receiver.data) == path.read_bytes()
    assert receiver.init == Init(
        transfer_id_of(digest.digest()),
        *(SIZE, digest.digest(), 49_152, b"big file.bin"),
    )
    assert peer.closed == 1


def test_transfer_resumes_with_what_is_there(shell: Shell, path: Path) -> None:
    receiver = Receiver(held=path.read_bytes()[:100_000])
    with Peer(shell.socket, receiver):
        data = send(shell, path).data
    assert (data["bytes_resumed"], data["bytes_sent"]) == (100_000, SIZE - 100_000)
    assert bytes(receiver.data) == path.read_bytes()


def test_broken_stream_is_taken_up_again(
    shell: Shell, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filetransfer, "RETRY_PAUSE_S", 0.0)
    receiver = Receiver()
    receiver.break_after = 5
    with Peer(shell.socket, receiver) as peer:
        data = send(shell, path).data
    assert peer.dials == 2
    assert data["verified"] is True
    assert data["bytes_resumed"] == 4 * CHUNK_SIZE
    assert data["bytes_sent"] + data["bytes_resumed"] == SIZE
    assert bytes(receiver.data) == path.read_bytes()


def test_receiver_that_comes_back_gets_the_rest(
    shell: Shell, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filetransfer, "RETRY_PAUSE_S", 0.0)
    receiver = Receiver()

    def break_once(peer: Peer, frame: Frame) -> Sequence[Frame] | None:
        if receiver.chunks == 2 and peer.dials == 1:
            peer.refused_dials = 2
            return None
        return receiver(peer, frame)

    with Peer(shell.socket, break_once):
        assert send(shell, path).data["bytes_resumed"] == 2 * CHUNK_SIZE
    assert bytes(receiver.data) == path.read_bytes()


def test_receiver_that_is_not_there_is_not_waited_for(shell: Shell, path: Path) -> None:
    with Peer(shell.socket, Receiver()) as peer:
        peer.refused_dials = 1
        error = send(shell, path).error
    assert error["message"] == f"cannot connect to {PEER} (data exchange port 1001)"


def test_stream_that_always_breaks_is_given_up(
    shell: Shell, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filetransfer, "RETRY_PAUSE_S", 0.0)
    with Peer(shell.socket, lambda peer, frame: None) as peer:
        error = send(shell, path).error
    assert peer.dials == filetransfer.MAX_ATTEMPTS
    assert error["code"] == "connection_failed"
    assert error["message"] == (
        "streamed send-file failed: the peer closed the stream without an answer"
    )


def test_empty_file_has_no_chunks(shell: Shell) -> None:
    path = shell.home / "empty"
    path.touch()
    receiver = Receiver()
    with Peer(shell.socket, receiver):
        data = send(shell, path).data
    assert (data["bytes"], data["throughput_mbps"], receiver.chunks) == (0, 0, 0)


def test_receivers_verdict_is_reported(shell: Shell, path: Path) -> None:
    receiver = Receiver()
    receiver.verdict = "sha256 mismatch"
    with Peer(shell.socket, receiver):
        error = send(shell, path).error
    assert error["code"] == "connection_failed"
    assert error["message"] == "streamed send-file failed: receiver: sha256 mismatch"
    assert error["hint"].startswith(f"check reachability: pilotctl ping {PEER} · ")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (stream(Abort(bytes(16), "no room")), "receiver aborted: no room"),
        (stream(Complete(bytes(16), False, "quota")), "receiver: quota"),
        (stream(Ack(bytes(16), 1)), "the receiver's answer to INIT is not INIT-ACK"),
        ([Frame(FrameType.FILESTREAM, b"")], "the receiver's answer: malformed"),
    ],
)
def test_refused_transfer_is_not_tried_in_one_piece(
    shell: Shell, path: Path, answer: list[Frame], reason: str
) -> None:
    with Peer(shell.socket, lambda peer, frame: answer) as peer:
        error = send(shell, path).error
    assert error["message"].startswith(f"streamed send-file failed: {reason}")
    assert peer.dials == 1


def test_receiver_that_counts_too_much_is_refused(shell: Shell, path: Path) -> None:
    def answer(peer: Peer, frame: Frame) -> Sequence[Frame]:
        if isinstance(decode_file_stream(frame.payload), Init):
            return stream(InitAck(bytes(16), 0))
        return stream(Ack(bytes(16), 1 << 40))

    with Peer(shell.socket, answer):
        error = send(shell, path).error
    assert "were sent" in error["message"]


def test_silent_receiver_is_a_timeout(shell: Shell, path: Path) -> None:
    def answer(peer: Peer, frame: Frame) -> Sequence[Frame]:
        message = decode_file_stream(frame.payload)
        return stream(InitAck(bytes(16), 0)) if isinstance(message, Init) else []

    with Peer(shell.socket, answer):
        error = send(shell, path, "--timeout", "100ms").error
    assert error["code"] == "connection_failed"
    assert error["message"] == (
        "streamed send-file failed: timed out after 100ms waiting for receiver to"
        " verify and COMPLETE"
    )


# In one piece.


def whole(peer: Peer, frame: Frame) -> Sequence[Frame]:
    """Answer as 1.9.1 does."""
    if frame.type != FrameType.FILE:
        return text(f"ACK UNKNOWN({frame.type}) {len(frame.payload)} bytes")
    return text(f"ACK FILE {len(decode_file(frame.payload).data)} bytes")


def test_old_receiver_gets_one_frame(shell: Shell, path: Path) -> None:
    with Peer(shell.socket, whole) as peer:
        data = send(shell, path).data
    assert data.keys() == {
        *("filename", "bytes", "destination", "ack"),
        *("elapsed_ms", "throughput_mbps"),
    }
    assert data["ack"] == f"ACK FILE {SIZE} bytes"
    assert [frame.type for frame in peer.frames] == [7, 4]
    name, body = decode_file(peer.frames[1].payload)
    assert (name, bytes(body)) == ("big file.bin", path.read_bytes())
    assert peer.dials == 2


def test_receiver_that_ignores_streams_gets_one_frame(
    shell: Shell, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filetransfer, "INIT_ANSWER_S", 0.05)

    def answer(peer: Peer, frame: Frame) -> Sequence[Frame]:
        return whole(peer, frame) if frame.type == FrameType.FILE else []

    with Peer(shell.socket, answer):
        assert "ack" in send(shell, path).data


def test_one_frame_can_be_asked_for(shell: Shell, path: Path) -> None:
    with Peer(shell.socket, whole) as peer:
        send(shell, path, "--no-stream")
    assert [frame.type for frame in peer.frames] == [4]


def test_refusal_of_one_frame_is_an_error(shell: Shell, path: Path) -> None:
    refusal = "ERR FILE save failed: disk full"
    with Peer(shell.socket, lambda peer, frame: text(refusal)):
        error = send(shell, path, "--no-stream").error
    assert error["code"] == "internal"
    assert error["message"] == f"receiver rejected file: {refusal}"


def test_frame_without_answer_is_a_timeout(shell: Shell, path: Path) -> None:
    with Peer(shell.socket, lambda peer, frame: []):
        error = send(shell, path, "--no-stream", "--timeout", "50ms").error
    assert error["code"] == "timeout"
    assert error["message"] == (
        f"send-file timed out waiting for ACK from {PEER} after 50ms"
    )


def test_file_must_fit_the_frame(shell: Shell, path: Path) -> None:
    shell.setenv("PILOT_DATAEXCHANGE_MAX_FRAME", "65536")
    with Peer(shell.socket, whole):
        error = send(shell, path, "--no-stream").error
    assert error["code"] == "invalid_argument"


# Arguments.


def test_file_must_be_one(shell: Shell) -> None:
    os.mkfifo(shell.home / "pipe")
    with Peer(shell.socket, whole):
        missing = send(shell, "/nope").error
        folder = send(shell, shell.home).error
        pipe = send(shell, shell.home / "pipe").error
    assert (missing["code"], missing["message"]) == (
        "not_found",
        "file not found: /nope",
    )
    assert folder["message"] == f"{shell.home} is a directory, not a file"
    assert pipe["message"].endswith("is not a regular file")


def test_order_of_checks_is_the_official_one(shell: Shell) -> None:
    assert send(shell, "/nope").error["code"] == "not_running"
    error = send(shell, "/nope", "--timeout", "xx").error
    assert error["message"].startswith("invalid duration for --timeout: ")
    error = shell.run("--json", "send-file", "7").error
    assert error["message"].startswith("usage: pilotctl send-file <address|hostname> ")
    with Peer(shell.socket, whole):
        error = shell.run("--json", "send-file", "nobody", "/nope").error
    assert error["code"] == "invalid_argument"
    assert error["message"].startswith('cannot resolve "nobody"')


def test_direct_path_is_asked_for_first(shell: Shell, path: Path) -> None:
    with Peer(shell.socket, Receiver()):
        result = shell.run("send-file", "7", str(path), "--prefer-direct")
    assert result.code == 0
    assert (
        "--prefer-direct: tunnel=true relay_was_active=false relay_was_pinned=false"
        in result.stderr
    )
    assert result.stdout.startswith(f"sent big file.bin (963.3 KB) to {PEER} in ")
