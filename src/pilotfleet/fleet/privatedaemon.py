"""The daemon that an agent of a Python program has for itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.fleet.processes import ChildProcess
from pilotfleet.protocol.registry.endpoints import parse_endpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AsyncExitStack

__all__ = ["SOCKET", "made_home", "rendezvous_flags", "start_daemon"]

DAEMON_READY_S: Final = 30.0
SOCKET: Final = "agent.sock"
"""In the home of an agent's private daemon."""
LOCAL_HOSTS: Final = ("127.0.0.1", "localhost")


async def start_daemon(
    stack: AsyncExitStack, home: Path, *, flags: Sequence[str], token: str
) -> None:
    """Start a daemon and have the stack stop it."""
    child = await ChildProcess.start(
        "daemon",
        [
            *("pilot-daemon", "--home", str(home), "--socket", str(home / SOCKET)),
            *("--ready-file", str(ChildProcess.ready_file(home, "daemon")), *flags),
        ],
        home=home,
        environment={"PILOT_JOIN_TOKEN": token},
    )
    stack.push_async_callback(child.stop)
    await child.wait_ready(DAEMON_READY_S)


def rendezvous_flags(rendezvous: str | None, beacon: str | None) -> list[str]:
    """Return where the daemon finds the others, and which way it listens for them."""
    known = rendezvous or os.environ.get("PILOT_REGISTRY") or "127.0.0.1:9000"
    try:
        host, port = parse_endpoint(known)
    except DecodeError:
        raise InvalidArgument(f"rendezvous: {known!r} is not host:port") from None
    flags = ["--listen", "127.0.0.1:0" if host in LOCAL_HOSTS else ":0"]
    if rendezvous:
        flags += ["--registry", rendezvous]
        flags += ["--beacon", beacon or f"{known.rpartition(':')[0]}:{port + 1}"]
    return flags


def made_home(home: str | Path | None, name: str) -> Path:
    """Return the folder of an agent, which is made if it is not there."""
    place = Path(home or Path.home() / ".pilot" / "agents" / name).absolute()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place
