"""``pilot-daemon --processes K``: the parent, and what it starts.

A process is this program with ``--process``, and reads what it hosts from its standard
input. So all of them do what one reading of flags, files and variables said, also when
one is started again after those have changed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli import programs
from pilotfleet.cli.daemonflags import PROCESS_FLAG
from pilotfleet.cli.logs import configure_logging, pass_on
from pilotfleet.cli.serving import (
    EXIT_INTERRUPTED,
    fast_loop,
    settle_memory,
    tell_ready,
)
from pilotfleet.cli.stopsignals import StopSignals
from pilotfleet.errors import InvalidArgument, PilotError
from pilotfleet.node.home import make_folder
from pilotfleet.node.processes.division import divide, process_of
from pilotfleet.node.processes.group import ProcessGroup
from pilotfleet.node.processes.home import hold_home
from pilotfleet.node.progress import StartLog
from pilotfleet.transport.files import write_all

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pilotfleet.cli.daemonflags import DaemonOptions
    from pilotfleet.node.config import HostConfig

__all__ = ["run_process", "run_processes"]

logger = logging.getLogger(__name__)

EXIT_FAILED: Final = 1


@dataclass(frozen=True, slots=True)
class _Orders:
    """What the parent tells a process before it starts."""

    number: int
    count: int
    others: tuple[int, ...]
    first: str
    home: Path
    """The daemon's; the process has one of its own in ``config``."""
    config: HostConfig
    log_level: str
    log_format: str


async def run_processes(options: DaemonOptions) -> None:
    """Run a daemon in several processes until a signal ends it.

    The first signal stops it in good order, a second one skips the draining.
    """
    config, count = options.host, options.processes
    parts = divide(config, count)
    orders = _orders(options, parts)
    group = ProcessGroup(
        parts,
        first=process_of(config.agents[0].name, count),
        socket_path=config.socket,
        spawn=lambda number, end: _spawn(orders[number], end),
        pass_on=pass_on,
        on_progress=StartLog(asyncio.get_running_loop().time),
    )
    signals = StopSignals()

    def on_ready() -> None:
        state = _describe(group, config)
        tell_ready(options.ready_file, state)
        signals.is_ready = True
        logger.info("ready: %d agents in %d processes", group.agents, len(parts))

    with programs.own_home(config.home, count):
        running = asyncio.create_task(group.run(on_ready), name="processes")
        stopping = asyncio.create_task(_stop_when_told(group, signals), name="stop")
        try:
            await running
        finally:
            stopping.cancel()
            running.cancel()
            await asyncio.wait([running, stopping])
    logger.info("stopped")


def run_process(argv: Sequence[str]) -> int:
    """Run one process of a daemon; return the exit status.

    Args:
        argv: Which one, and the file descriptor of the channel to the parent.

    Raises:
        InvalidArgument: It was not started by its parent.
    """
    try:
        (_, number) = argv
        end = socket.socket(fileno=int(number))
        if end.type != socket.SOCK_SEQPACKET:
            raise ValueError(number)
        end.set_inheritable(False)
        orders = _read_orders()
    except (ValueError, OverflowError, OSError, EOFError, pickle.UnpicklingError):
        raise InvalidArgument(
            f"{PROCESS_FLAG} is what pilot-daemon starts its own processes with",
            hint="use --processes K",
        ) from None
    # The parent owns the log file and bounds it.
    configure_logging(orders.log_level, orders.log_format, max_bytes=0)
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        return runner.run(_run_process(orders, end))


def _read_orders() -> _Orders:
    """Read what to do, and let go of the memory that says it, secrets included."""
    orders: _Orders = pickle.load(sys.stdin.buffer)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    return orders


async def _run_process(orders: _Orders, end: socket.socket) -> int:
    # Late: the parent has no use for all that this brings along.
    from pilotfleet.node.processes.siblings import Siblings

    signals = StopSignals()
    siblings = Siblings(
        orders.number,
        orders.count,
        others=orders.others,
        first=orders.first,
        end=end,
        on_orphaned=lambda: _orphaned(signals),
    )
    try:
        # Held here as well: a process may live on for a moment without its parent.
        with hold_home(orders.home):
            make_folder(orders.config.home)
            async with programs.open_host(orders.config, prepare=siblings.attach):
                settle_memory()
                siblings.tell_ready()
                signals.is_ready = True
                await signals.stop.wait()
    except PilotError as error:
        # The parent says it, once for all processes.
        siblings.tell_failed(error)
        return EXIT_FAILED
    except asyncio.CancelledError:
        return EXIT_INTERRUPTED
    finally:
        siblings.close()
    return 0


def _orphaned(signals: StopSignals) -> None:
    """End at once: the next daemon needs the identities, and nobody waits for us."""
    logger.error("the parent of this process is gone: stopping")
    signals.end()


def _orders(
    options: DaemonOptions, parts: Mapping[int, HostConfig]
) -> dict[int, _Orders]:
    return {
        number: _Orders(
            number=number,
            count=options.processes,
            others=tuple(other for other in parts if other != number),
            first=options.host.agents[0].name,
            home=options.host.home,
            config=part,
            log_level=options.log_level,
            log_format=options.log_format,
        )
        for number, part in parts.items()
    }


async def _stop_when_told(group: ProcessGroup, signals: StopSignals) -> None:
    await signals.stop.wait()
    logger.info("stopping")
    group.stop()


async def _spawn(orders: _Orders, end: socket.socket) -> asyncio.subprocess.Process:
    """Start a process in a session of its own: ^C at a terminal is for the parent."""
    # In memory: it may hold secrets, which no file and no list of processes shall.
    memory = os.memfd_create("orders", os.MFD_CLOEXEC)
    try:
        write_all(memory, pickle.dumps(orders))
        os.lseek(memory, 0, os.SEEK_SET)
        return await asyncio.create_subprocess_exec(
            *_program(),
            PROCESS_FLAG,
            f"{orders.number}/{orders.count}",
            str(end.fileno()),
            stdin=memory,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=[end.fileno()],
            start_new_session=True,
        )
    finally:
        os.close(memory)


def _program() -> list[str]:
    """Return how this program is started again."""
    script = Path(sys.argv[0])
    if script.name == "pilot-daemon" and script.is_file():
        return [sys.executable, str(script)]
    return [sys.executable, "-m", "pilotfleet.cli.daemon"]


def _describe(group: ProcessGroup, config: HostConfig) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "socket": str(config.socket),
        "agents": group.agents,
        "addresses": group.addresses,
        "processes": group.pids,
    }
