"""``pilot-daemon``: host one agent, or many."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pilotfleet.cli import programs
from pilotfleet.cli.daemonflags import DaemonOptions, read_options
from pilotfleet.cli.logs import configure_logging
from pilotfleet.cli.serving import (
    fast_loop,
    run_program,
    settle_memory,
    tell_ready,
)
from pilotfleet.errors import AlreadyExists
from pilotfleet.node.home import make_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from pilotfleet.node.config import HostConfig
    from pilotfleet.node.host import Host


__all__ = ["HostOpener", "main", "run_daemon"]

logger = logging.getLogger(__name__)

HostOpener: TypeAlias = "Callable[[HostConfig], AbstractAsyncContextManager[Host]]"
"""Starts a host with services on it, and stops it when left."""

PROBE_S: Final = 0.5


def main(
    argv: Sequence[str] | None = None, *, open_host: HostOpener | None = None
) -> int:
    """Run the daemon until a signal ends it; return the exit status.

    Args:
        argv: The arguments without the program's name; None takes the process's.
        open_host: What to host with; None puts all built-in services on.
    """
    return run_program(lambda: _run(argv, open_host or programs.open_host))


def _run(argv: Sequence[str] | None, open_host: HostOpener) -> None:
    options = read_options(argv)
    configure_logging(
        options.log_level,
        options.log_format,
        max_bytes=options.log_max_bytes,
        backups=options.log_backups,
    )
    for name, why in options.ignored.items():
        logger.warning("flag -%s has no effect here: %s", name, why)
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(run_daemon(options, open_host))


async def run_daemon(options: DaemonOptions, open_host: HostOpener) -> None:
    """Start a host, tell that it is ready, and wait for a signal.

    The first signal stops it in good order, a second one skips the draining.
    """
    _check_socket(options.host.socket)
    # Services open their files in it before the host starts.
    make_folder(options.host.home)
    stop = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None
    is_ready = False

    def on_signal() -> None:
        if is_ready and not stop.is_set():
            stop.set()
        else:
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with open_host(options.host) as host:
        settle_memory()
        tell_ready(options.ready_file, _describe(host))
        is_ready = True
        logger.info("ready: %d agents", len(host.agents))
        await stop.wait()
        logger.info("stopping")
    logger.info("stopped")


def _check_socket(path: Path | None) -> None:
    """Refuse to take the socket of a daemon that runs.

    Raises:
        AlreadyExists: Something answers there.
    """
    if path is None or not path.exists():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except OSError:
            return
    raise AlreadyExists(
        f"daemon is already running (socket {path} is active)",
        hint="stop it with: pilotctl daemon stop, or choose another --socket",
    )


def _describe(host: Host) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "socket": str(host.config.socket),
        "agents": len(host.by_node),
        "addresses": {name: str(a.address) for name, a in host.agents.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
