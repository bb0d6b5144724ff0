"""A daemon that plays recorded frames, and a registry that knows some nodes."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

from pilotfleet.cli.main import main

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

    import pytest

TIMEOUT_S = 20.0


class ReplayDaemon:
    """Serves one client: expects the recorded requests and sends the replies.

    Beside the sides ``c2s`` and ``s2c`` of the recordings there are ``hangup`` and
    ``interrupt``, which sends SIGINT to :attr:`process`.

    A thread, not a coroutine: the program under test blocks.
    """

    def __init__(self, path: Path, frames: list[list[str]]) -> None:
        self._frames = [(side, bytes.fromhex(text)) for side, text in frames]
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(TIMEOUT_S)
        self._thread = threading.Thread(target=self._serve)
        self.problems: list[str] = []
        self.unexpected: list[bytes] = []
        self.is_finished = False
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(TIMEOUT_S)
        self._listener.close()

    def _serve(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            self.problems.append(f"nobody connected: {error}")
            return
        with connection:
            connection.settimeout(TIMEOUT_S)
            try:
                self._play(connection)
                self.is_finished = True
                if self._frames[-1:] == [("hangup", b"")]:
                    return
                while (frame := read_frame(connection)) is not None:
                    self.unexpected.append(frame)
            except ConnectionResetError:
                # It went away without reading the answer to its last Close.
                return
            except OSError as error:
                self.problems.append(f"client went away: {error}")

    def _play(self, connection: socket.socket) -> None:
        for index, (side, frame) in enumerate(self._frames):
            if side == "hangup":
                return
            if side == "interrupt":
                assert self.process is not None
                self.process.send_signal(signal.SIGINT)
                continue
            if side == "s2c":
                try:
                    connection.sendall(struct.pack("!I", len(frame)) + frame)
                except BrokenPipeError:
                    # The client does not wait for the answer to its last Close.
                    assert index == len(self._frames) - 1
                continue
            received = read_frame(connection)
            if received != frame:
                got = received.hex() if received is not None else "end"
                self.problems.append(f"expected {frame.hex()}, got {got}")
                return


def read_frame(connection: socket.socket) -> bytes | None:
    """Return the next frame's command and payload, none at the end."""
    head = _read(connection, 4)
    if head is None:
        return None
    return _read(connection, struct.unpack("!I", head)[0])


def _read(connection: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            return None
        data += chunk
    return data


class ToyRegistry:
    """Answers every request with what a function makes of it."""

    def __init__(self, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._is_closing = False
        self.requests: list[dict[str, Any]] = []
        host, port = self._listener.getsockname()
        self.address = f"{host}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closing = True
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join(TIMEOUT_S)
        self._listener.close()

    def _serve(self) -> None:
        while not self._is_closing:
            connection, _ = self._listener.accept()
            with connection:
                body = read_frame(connection)
                if body is None:
                    continue
                request = json.loads(body)
                self.requests.append(request)
                reply = json.dumps(self._answer(request)).encode()
                connection.sendall(struct.pack("!I", len(reply)) + reply)


class Result:
    """Exit code and output of one command line."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code = code
        self.stdout = stdout
        self.stderr = stderr

    @property
    def data(self) -> Any:
        """What a success says."""
        envelope = json.loads(self.stdout)
        assert envelope["status"] == "ok"
        return envelope["data"]

    @property
    def error(self) -> dict[str, str]:
        """What a failure says."""
        envelope: dict[str, str] = json.loads(self.stderr)
        assert envelope["status"] == "error"
        assert envelope["message"] == envelope["error"]
        assert self.stdout == ""
        return envelope


class Shell:
    """Runs command lines in a home of their own, in this process."""

    def __init__(
        self,
        home: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.home = home
        self.socket = home / "s"
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        for name in os.environ:
            if name.startswith("PILOT_"):
                monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("PILOT_SOCKET", str(self.socket))
        monkeypatch.setenv("PILOT_REGISTRY", "127.0.0.1:1")

    def setenv(self, name: str, value: str) -> None:
        """Set a variable for the following command lines."""
        self._monkeypatch.setenv(name, value)

    def run(self, *tokens: str) -> Result:
        """Run one command line."""
        self._capsys.readouterr()
        code = main(list(tokens))
        captured = self._capsys.readouterr()
        return Result(code, captured.out, captured.err)

    def play(self, frames: list[list[str]], *tokens: str) -> Result:
        """Run one command line against a daemon that plays frames."""
        with ReplayDaemon(self.socket, frames) as daemon:
            result = self.run(*tokens)
        self.socket.unlink()
        assert daemon.problems == [], result.stderr
        assert daemon.unexpected == []
        assert daemon.is_finished
        return result


def frame(command: int, payload: bytes | dict[str, Any] = b"") -> str:
    """Return a frame for :class:`ReplayDaemon`, in hex."""
    if isinstance(payload, dict):
        payload = json.dumps(payload).encode()
    return (bytes([command]) + payload).hex()
