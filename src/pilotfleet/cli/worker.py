"""``openclaw-worker``: do the tasks of one agent or of many."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import pilotfleet
from pilotfleet.cli.logs import configure_logging
from pilotfleet.cli.serving import (
    at_least_one,
    fast_loop,
    run_command,
    settle_memory,
    tell_ready,
)
from pilotfleet.cli.workerkinds import FLAGS, Kind, read_kind
from pilotfleet.client.daemon import DaemonClient
from pilotfleet.client.socketpath import default_socket
from pilotfleet.errors import InvalidArgument
from pilotfleet.fleet.worker.identities import expand_names
from pilotfleet.fleet.worker.runner import Worker, WorkerConfig
from pilotfleet.protocol.durations import parse_duration
from pilotfleet.protocol.ipc.commands import Command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

__all__ = ["main"]

logger = logging.getLogger(__name__)

PROGRAM: Final = "openclaw-worker"


def _option(name: str, text: str, **settings: Any) -> Callable[[Any], Any]:
    return click.option(f"--{name}", help=text, **settings)


def _kind_options(command: Callable[..., None]) -> Callable[..., None]:
    for name, text, settings in reversed(FLAGS):
        command = _option(name, text, **settings)(command)
    return command


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@_option("id", "Name of a hosted agent to serve. May be repeated.", multiple=True)
@_option("ids", "Many agents: worker-[1-500],scout", default="")
@_kind_options
@_option("tag", "Tag to set on every agent served. May be repeated.", multiple=True)
@_option("concurrency", "Tasks of one agent at a time.", default=1)
@_option("max-processes", "Tasks of all agents at a time.", default=0)
@_option("socket", "The daemon's socket.", default="", envvar="PILOT_SOCKET")
@_option("health-interval", "Between health events of an agent.", default="10s")
@_option("no-events", "Publish no events.", is_flag=True)
@_option("drain", "How long running tasks may take at the end.", default="30s")
@_option("ready-file", "Written, as JSON, when tasks may come.", default="")
@_option("log-level", "debug, info, warn or error.", default="info")
@_option("log-format", "text or json.", default="text")
@click.version_option(pilotfleet.__version__, message="pilotfleet %(version)s")
def _command(**flags: Any) -> None:
    """Serve the tasks of agents that a pilot-daemon hosts."""
    _run(flags)


def main() -> NoReturn:
    """Run ``openclaw-worker`` with the arguments of the process."""
    sys.exit(run_command(_command, PROGRAM))


def _run(flags: dict[str, Any]) -> None:
    configure_logging(flags["log_level"], flags["log_format"])
    ready = flags["ready_file"]
    ready_file = Path(ready).absolute() if ready else None
    socket = Path(flags["socket"] or default_socket()).absolute()
    # What does the tasks finds the daemon with it, as its pilotctl.
    os.environ["PILOT_SOCKET"] = str(socket)
    agents = _read_agents(flags)
    kind = read_kind(flags)
    config = _read_config(flags, agents, socket, kind.places)
    settle_memory()
    with asyncio.Runner(loop_factory=fast_loop()) as loop:
        loop.run(_serve(config, kind, flags["tag"], ready_file))


def _read_agents(flags: dict[str, Any]) -> list[str]:
    agents = [*flags["id"], *(expand_names(flags["ids"]) if flags["ids"] else ())]
    if not agents:
        raise InvalidArgument("no agent named", hint="name one with --id or --ids")
    if len(set(agents)) != len(agents):
        raise InvalidArgument("an agent is named twice")
    return agents


def _read_config(
    flags: dict[str, Any], agents: Sequence[str], socket: Path, places: int
) -> WorkerConfig:
    interval_s = parse_duration(flags["health_interval"], "--health-interval")
    # A sub-orchestrator publishes its own health, with that of those below.
    is_silent = flags["no_events"] or flags["delegate"]
    return WorkerConfig(
        agents=agents,
        socket=socket,
        concurrency=at_least_one(flags["concurrency"], "--concurrency"),
        max_processes=at_least_one(flags["max_processes"] or places, "--max-processes"),
        health_interval_s=0.0 if is_silent else interval_s,
        drain_s=parse_duration(flags["drain"], "--drain"),
    )


async def _serve(
    config: WorkerConfig,
    kind: Kind,
    tags: Sequence[str],
    ready_file: Path | None,
) -> None:
    """Serve until a signal; a second one ends what runs at once."""
    stop, is_open = asyncio.Event(), False
    task = asyncio.current_task()
    assert task is not None

    def on_signal() -> None:
        # Before anything was begun there is nothing to wait for.
        if stop.is_set() or not is_open:
            task.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    for agent in config.agents if tags else ():
        await _set_tags(config.socket, agent, tags)
    state = {"agents": len(config.agents)}
    async with kind.open() as runner:
        is_open = True
        worker = Worker(
            config, runner.run, on_serving=lambda: tell_ready(ready_file, state)
        )
        await worker.run(stop)


async def _set_tags(socket: Path, agent: str, tags: Sequence[str]) -> None:
    async with await DaemonClient.connect(socket) as client:
        await client.call("select-agent", name=agent)
        await client.request_json(Command.SET_TAGS, json.dumps(list(tags)).encode())
