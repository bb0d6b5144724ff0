"""``openclaw-worker``: run a command for the tasks of one agent or many."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import pilotfleet
from pilotfleet.cli.logs import configure_logging
from pilotfleet.cli.serving import (
    fast_loop,
    run_program,
    settle_memory,
    write_ready_file,
)
from pilotfleet.cli.settings import default_socket
from pilotfleet.client.daemon import DaemonClient
from pilotfleet.errors import InvalidArgument
from pilotfleet.fleet.worker.command import CommandRunner
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
PROCESSES_PER_CPU: Final = 8
"""Commands mostly wait, for a model or a disk."""


def _option(name: str, text: str, **settings: Any) -> Callable[[Any], Any]:
    return click.option(f"--{name}", help=text, **settings)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@_option("id", "Name of a hosted agent to serve. May be repeated.", multiple=True)
@_option("ids", "Many agents: worker-[1-500],scout", default="")
@_option("exec", "Command: the task on stdin, the result on stdout.", required=True)
@_option("tag", "Tag to set on every agent served. May be repeated.", multiple=True)
@_option("concurrency", "Tasks of one agent at a time.", default=1)
@_option("max-processes", "Commands of all agents at a time.", default=0)
@_option("timeout", "Longest run of one command.", default="300s")
@_option("cwd", "Folder that commands run in.", default="")
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
    sys.exit(run_program(_read_and_run))


def _read_and_run() -> None:
    try:
        _command.main(prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        # One line, as for every other mistake, not click's three.
        message = error.format_message().rstrip(".")
        raise InvalidArgument(message, hint=f"see: {PROGRAM} --help") from None


def _run(flags: dict[str, Any]) -> None:
    configure_logging(flags["log_level"], flags["log_format"])
    config = _read_config(flags)
    runner = _read_command(flags)
    ready_file = Path(flags["ready_file"]) if flags["ready_file"] else None
    settle_memory()
    with asyncio.Runner(loop_factory=fast_loop()) as loop:
        loop.run(_serve(config, runner, flags["tag"], ready_file))


def _read_config(flags: dict[str, Any]) -> WorkerConfig:
    agents = [*flags["id"], *(expand_names(flags["ids"]) if flags["ids"] else ())]
    if not agents:
        raise InvalidArgument("no agent named", hint="name one with --id or --ids")
    if len(set(agents)) != len(agents):
        raise InvalidArgument("an agent is named twice")
    interval_s = parse_duration(flags["health_interval"], "--health-interval")
    return WorkerConfig(
        agents=agents,
        socket=Path(flags["socket"] or default_socket()),
        concurrency=_at_least_one(flags["concurrency"], "--concurrency"),
        max_processes=_at_least_one(
            flags["max_processes"] or (os.cpu_count() or 1) * PROCESSES_PER_CPU,
            "--max-processes",
        ),
        health_interval_s=0.0 if flags["no_events"] else interval_s,
        drain_s=parse_duration(flags["drain"], "--drain"),
    )


def _read_command(flags: dict[str, Any]) -> CommandRunner:
    try:
        command = shlex.split(flags["exec"])
    except ValueError as error:
        raise InvalidArgument(f"--exec: {error}") from None
    if not command:
        raise InvalidArgument("--exec: the command is empty")
    folder = Path(flags["cwd"]) if flags["cwd"] else None
    if folder is not None and not folder.is_dir():
        raise InvalidArgument(f"--cwd: {folder} is not a folder")
    _check_program(command[0], folder or Path())
    timeout_s = parse_duration(flags["timeout"], "--timeout")
    if not timeout_s:
        raise InvalidArgument("--timeout: a command needs some time")
    return CommandRunner(command, timeout_s=timeout_s, folder=folder)


def _check_program(program: str, folder: Path) -> None:
    """Refuse what could only fail every task that comes."""
    place = folder / program if os.sep in program else program
    if shutil.which(place) is None:
        raise InvalidArgument(
            f"--exec: {program} is not a program that can be run",
            hint="name one that is in PATH, or the path of an executable file",
        )


async def _serve(
    config: WorkerConfig,
    runner: CommandRunner,
    tags: Sequence[str],
    ready_file: Path | None,
) -> None:
    """Serve until a signal; a second one ends the running commands at once."""
    stop = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None

    def on_signal() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    for agent in config.agents if tags else ():
        await _set_tags(config.socket, agent, tags)
    state = {"agents": len(config.agents)}
    worker = Worker(
        config, runner.run, on_serving=lambda: write_ready_file(ready_file, state)
    )
    await worker.run(stop)


async def _set_tags(socket: Path, agent: str, tags: Sequence[str]) -> None:
    async with await DaemonClient.connect(socket) as client:
        await client.call("select-agent", name=agent)
        await client.request_json(Command.SET_TAGS, json.dumps(list(tags)).encode())


def _at_least_one(number: int, flag: str) -> int:
    if number < 1:
        raise InvalidArgument(f"{flag} is at least 1")
    return number
