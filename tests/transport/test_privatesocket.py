"""Unix sockets that nobody else may use."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from pilotfleet.transport.privatesocket import listen_privately

if TYPE_CHECKING:
    from pathlib import Path


def test_socket_is_for_its_user_alone_and_replaces_what_is_there(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.sock"
    path.write_text("left behind")
    with (
        listen_privately(path, backlog=1),
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(str(path))
        assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_used_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        listen_privately(tmp_path / "missing" / "s.sock", backlog=1)
    assert not list(tmp_path.iterdir())
