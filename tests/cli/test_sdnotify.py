"""Messages to systemd, over the socket that it would offer."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pilotfleet.cli.sdnotify import notify_systemd
from pilotfleet.cli.serving import tell_ready


@pytest.mark.parametrize("name", ["/notify", "@pilotfleet-test-notify"])
def test_ready_reaches_the_socket(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = name if name[0] == "@" else f"{tmp_path}{name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0") if name[0] == "@" else name)
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        tell_ready(tmp_path / "ready", {"agents": 3})
        assert listener.recv(100) == b"READY=1"
    assert (tmp_path / "ready").read_text() == '{"agents": 3}\n'


@pytest.mark.parametrize("name", ["", "nonsense", "/no/such/socket"])
def test_nobody_to_tell_is_no_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    notify_systemd("READY=1")
    assert not Path(name or "nonsense").exists()
