"""The blocking client of the daemon's socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pilotfleet.cli.connection import Daemon
from pilotfleet.errors import DaemonError, NotFound, PilotError, TimedOut
from tests.cli.support import ReplayDaemon, frame

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("not_found", NotFound),
        ("timeout", TimedOut),
        ("internal", PilotError),
        ("new", DaemonError),
    ],
)
def test_a_refused_call_raises_the_class_of_its_code(
    tmp_path: Path, code: str, kind: type[PilotError]
) -> None:
    error = {"code": code, "message": "no such agent", "hint": "look again"}
    frames = [
        ["c2s", frame(0x80, {"id": 1, "op": "x"})],
        ["s2c", frame(0x81, {"id": 1, "error": error})],
    ]
    path = tmp_path / "s"
    with ReplayDaemon(path, frames), Daemon(str(path)) as daemon:
        with pytest.raises(PilotError, match=r"^no such agent$") as caught:
            daemon.call("x")
        assert type(caught.value) is kind
        assert caught.value.hint == "look again"
