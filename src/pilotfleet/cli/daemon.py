"""``pilot-daemon``: host one agent, or many."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pilotfleet.cli import programs
from pilotfleet.cli.daemonflags import PROCESS_FLAG, DaemonOptions, read_options
from pilotfleet.cli.logs import configure_logging
from pilotfleet.cli.serving import (
    fast_loop,
    run_program,
    settle_memory,
    tell_ready,
)
from pilotfleet.cli.stopsignals import StopSignals
from pilotfleet.errors import AlreadyExists

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
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == [PROCESS_FLAG]:
        return _run_process(argv[1:])
    return run_program(lambda: _run(argv, open_host or programs.open_host))


def _run(argv: Sequence[str], open_host: HostOpener) -> None:
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


def _run_process(argv: Sequence[str]) -> int:
    from pilotfleet.cli.daemonprocesses import run_process

    status = 0

    def run() -> None:
        nonlocal status
        status = run_process(argv)

    return run_program(run) or status


async def run_daemon(options: DaemonOptions, open_host: HostOpener) -> None:
    """Start a host, tell that it is ready, and wait for a signal.

    The first signal stops it in good order, a second one skips the draining.
    """
    _check_socket(options.host.socket)
    if options.processes > 1:
        # Late: hardly any daemon has several.
        from pilotfleet.cli.daemonprocesses import run_processes

        await run_processes(options)
        return
    signals = StopSignals()
    # Services open their files in the home before the host starts.
    with programs.own_home(options.host.home, 1):
        async with open_host(options.host) as host:
            settle_memory()
            tell_ready(options.ready_file, _describe(host))
            signals.is_ready = True
            logger.info("ready: %d agents", len(host.agents))
            await signals.stop.wait()
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
