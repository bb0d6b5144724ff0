"""Which daemon a ``pilot-monitor`` uses that was told none."""

from __future__ import annotations

import json
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pilotfleet.cli.fleethome import fleets_folder
from pilotfleet.cli.monitorsocket import monitor_socket
from pilotfleet.errors import InvalidArgument, NotRunning
from pilotfleet.fleet.control import CONTROL_SOCKET
from pilotfleet.fleet.controller import DESCRIPTION

if TYPE_CHECKING:
    from collections.abc import Iterator


class Machine:
    """Where fleets run: their folders, and who answers on their control sockets."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def listen(self, path: Path) -> None:
        server = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(path))
        server.listen()

    def start_fleet(self, name: str, folder: str = "") -> Path:
        home = fleets_folder() / (folder or name)
        (home / "run").mkdir(parents=True)
        (home / DESCRIPTION).write_text(json.dumps({"name": name}))
        (home / "run" / "hub.sock").touch()
        self.listen(home / CONTROL_SOCKET)
        return home / "run" / "hub.sock"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Return a folder that the paths of sockets fit into."""
    with tempfile.TemporaryDirectory(prefix="pf") as folder:
        yield Path(folder)


@pytest.fixture
def machine(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.delenv("PILOT_SOCKET", raising=False)
    monkeypatch.setenv("PILOT_HOME", str(short_folder))
    monkeypatch.setenv("HOME", str(short_folder))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    with ExitStack() as stack:
        yield Machine(stack)


def chosen(*brokers: str) -> str:
    with monitor_socket(brokers) as path:
        return path


def test_nothing_runs(machine: Machine) -> None:
    with pytest.raises(NotRunning, match="no fleet of yours") as caught:
        chosen("batch-hub")
    assert "pilotctl fleet up" in (caught.value.hint or "")
    assert "--socket" in (caught.value.hint or "")


def test_the_only_fleet_is_used_whatever_its_name(machine: Machine) -> None:
    hub = machine.start_fleet("batch")
    assert chosen() == chosen("batch-hub") == chosen("far-hub") == str(hub)


def test_the_broker_chooses_among_several(machine: Machine) -> None:
    machine.start_fleet("batch")
    night = machine.start_fleet("night")
    assert chosen("night-hub", "batch-hub") == str(night)
    for brokers in ((), ("far-hub",)):
        with pytest.raises(InvalidArgument, match=r"batch \(.*night \(") as caught:
            chosen(*brokers)
        assert "--socket" in (caught.value.hint or "")


def test_fleets_of_the_same_name(machine: Machine) -> None:
    machine.start_fleet("batch")
    machine.start_fleet("batch", "other")
    with pytest.raises(InvalidArgument, match="have the broker batch-hub"):
        chosen("batch-hub")


def test_a_daemon_at_the_usual_socket_comes_first(
    machine: Machine, short_folder: Path
) -> None:
    machine.start_fleet("batch")
    machine.listen(short_folder / "pilot.sock")
    assert chosen("batch-hub") == str(short_folder / "pilot.sock")
