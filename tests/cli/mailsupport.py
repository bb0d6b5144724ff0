"""A daemon with one peer, whose data exchange port a test plays."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

from pilotfleet.protocol.ipc.commands import Command
from pilotfleet.protocol.services.dataexchange import (
    Frame,
    FrameDecoder,
    FrameType,
    encode_frame,
)
from tests.cli.support import TIMEOUT_S, read_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Self

    Answer = Callable[["Peer", Frame], Sequence[Frame] | None]

PEER = "0:0000.0000.0007"


class Peer:
    """A thread that is both the daemon and node 7 behind it.

    Args:
        path: The daemon's socket.
        answer: What the peer answers to a data exchange frame; none ends the stream.
        is_known: Whether the daemon has a session with the peer.
    """

    def __init__(self, path: Path, answer: Answer, *, is_known: bool = True) -> None:
        self._answer = answer
        self._is_known = is_known
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(TIMEOUT_S)
        self._path = path
        self._thread = threading.Thread(target=self._serve)
        self._decoders: dict[int, FrameDecoder] = {}
        self._is_closing = False
        self.dials = 0
        self.closed = 0
        self.frames: list[Frame] = []
        self.commands: list[int] = []
        self.problem: Exception | None = None
        self.refused_dials = 0
        """How many of the next dials are refused."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closing = True
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waker,
            contextlib.suppress(OSError),
        ):
            waker.connect(str(self._path))
        self._thread.join(TIMEOUT_S)
        self._listener.close()
        self._path.unlink()
        if self.problem is not None:
            raise self.problem

    def _serve(self) -> None:
        try:
            while not self._is_closing:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(ConnectionError):
                    connection.settimeout(TIMEOUT_S)
                    while (frame := read_frame(connection)) is not None:
                        self._take(connection, frame[0], frame[1:])
        except Exception as error:  # Whatever it is, the test shall see it.
            self.problem = error

    def _take(self, connection: socket.socket, command: int, body: bytes) -> None:
        self.commands.append(command)
        match command:
            case Command.HANDSHAKE:
                send(connection, Command.HANDSHAKE_OK, {"node_id": 7, "trusted": True})
            case Command.INFO:
                row = {"node_id": 7, "encrypted": True}
                peers = [row] if self._is_known else []
                send(connection, Command.INFO_OK, {"peer_list": peers})
            case Command.PREFER_DIRECT:
                send(connection, Command.PREFER_DIRECT_OK, {"had_tunnel": True})
            case Command.DIAL if self.refused_dials:
                self.refused_dials -= 1
                send(connection, Command.ERROR, b"\0\1connection refused")
            case Command.DIAL:
                self.dials += 1
                self._decoders[self.dials] = FrameDecoder()
                send(connection, Command.DIAL_OK, struct.pack("!I", self.dials))
            case Command.SEND:
                (stream,) = struct.unpack_from("!I", body)
                decoder = self._decoders.get(stream, FrameDecoder())
                for frame in decoder.feed(body[4:]):
                    self._take_frame(connection, stream, frame)
            case Command.CLOSE:
                self.closed += 1
                send(connection, Command.CLOSE_OK, body)
            case _:
                send(connection, Command.ERROR, b"\0\1unknown command")

    def _take_frame(self, connection: socket.socket, stream: int, frame: Frame) -> None:
        if stream not in self._decoders:
            return
        self.frames.append(frame)
        head = struct.pack("!I", stream)
        answers = self._answer(self, frame)
        if answers is None:
            # What still comes on this stream goes nowhere.
            self._decoders.pop(stream, None)
            send(connection, Command.CLOSE_OK, head)
            return
        for answer in answers:
            send(connection, Command.RECV, head + encode_frame(*answer))


def send(connection: socket.socket, command: int, body: bytes | dict[str, Any]) -> None:
    """Send one IPC frame."""
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    payload = bytes([command]) + body
    connection.sendall(struct.pack("!I", len(payload)) + payload)


def text(answer: str) -> list[Frame]:
    """Return a TEXT frame."""
    return [Frame(FrameType.TEXT, answer.encode())]
