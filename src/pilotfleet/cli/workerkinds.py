"""The ways in which ``openclaw-worker`` does a task, read from its flags."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from pilotfleet.cli.serving import at_least_one
from pilotfleet.errors import InvalidArgument, NotRunning
from pilotfleet.fleet.worker.command import CommandRunner
from pilotfleet.protocol.durations import parse_duration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from pilotfleet.fleet.worker.job import Job, Outcome
    from pilotfleet.fleet.worker.openclaw.config import OpenClawConfig

__all__ = ["FLAGS", "Kind", "Runner", "read_kind"]

PROCESSES_PER_CPU: Final = 8
"""Commands mostly wait, for a model or a disk."""

FLAGS: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    ("exec", "Command: the task on stdin, the result on stdout.", {"default": None}),
    ("call", "Python function module:function: the task in, the result out.", {}),
    ("openclaw", "Run tasks through OpenClaw.", {"is_flag": True}),
    ("openclaw-agent", "Agent of the OpenClaw configuration.", {"default": "main"}),
    ("openclaw-model", "provider/model that OpenClaw uses.", {"default": ""}),
    ("openclaw-config", "OpenClaw configuration to build on.", {"default": ""}),
    ("gateways", "OpenClaw gateways to start.", {"type": int}),
    ("gateway", "Address of a running OpenClaw gateway.", {"multiple": True}),
    ("gateway-token-file", "File with that gateway's token.", {"default": ""}),
    ("one-shot", "A process of OpenClaw for each task.", {"is_flag": True}),
    ("delegate", "Hand tasks down, as a sub-orchestrator.", {"is_flag": True}),
    ("cluster", "With --delegate: tag of those below.", {"default": ""}),
    ("tree", "With --delegate: name of the fleet's hub.", {"default": ""}),
    ("level", "With --delegate: 1 is right over workers.", {"default": 1}),
    ("each", "With --delegate: tasks that one below is given.", {"default": 2}),
    ("timeout", "Longest run of one task.", {"default": "300s"}),
    ("cwd", "Folder that tasks run in.", {"default": ""}),
)
"""Name, help and settings of each flag that says how tasks are done."""

_KINDS: Final = ("exec", "call", "openclaw", "delegate")
_TOKEN_REMEDY: Final = (
    "write the gateway's token (gateway.auth.token of its configuration) into that"
    " file, or leave the flag out and set OPENCLAW_GATEWAY_TOKEN"
)
_OF_OPENCLAW: Final = ("openclaw_model", "openclaw_config", "gateways", "gateway")


class Runner(Protocol):
    """Does tasks."""

    async def run(self, job: Job) -> Outcome:
        """Do one; may be cancelled."""


class Kind(NamedTuple):
    """One way to do tasks."""

    open: Callable[[], AbstractAsyncContextManager[Runner]]
    """Gives the runner, inside of the event loop."""
    places: int
    """Tasks of all agents at a time, unless the user says how many."""


def read_kind(flags: dict[str, Any]) -> Kind:
    """Read how tasks are to be done.

    Raises:
        InvalidArgument: Not exactly one way is named, or it could only fail.
    """
    chosen = [kind for kind in _KINDS if flags[kind] not in (None, False)]
    if len(chosen) != 1:
        raise InvalidArgument(
            "exactly one of --exec, --call and --openclaw says how tasks are done",
            hint="give --openclaw, or --exec with a command",
        )
    if chosen != ["openclaw"]:
        _refuse_openclaw_flags(flags)
    timeout_s = parse_duration(flags["timeout"], "--timeout")
    if not timeout_s:
        raise InvalidArgument("--timeout: a task needs some time")
    folder = _folder(flags["cwd"])
    match chosen:
        case ["exec"]:
            return _read_command(flags["exec"], timeout_s, folder)
        case ["call"]:
            return _read_call(flags["call"], timeout_s, folder, flags["max_processes"])
        case ["delegate"]:
            return _read_delegate(flags)
        case _:
            return _read_openclaw(flags, timeout_s, folder)


def _refuse_openclaw_flags(flags: dict[str, Any]) -> None:
    for name in (*_OF_OPENCLAW, "gateway_token_file", "one_shot"):
        if _is_given(flags[name]):
            flag = "--" + name.replace("_", "-")
            raise InvalidArgument(f"{flag} goes with --openclaw only")


def _is_given(value: object) -> bool:
    """Tell a flag's value from its default; the number 0 is a value."""
    return value is not False and value not in (None, "", ())


def _folder(text: str) -> Path | None:
    folder = Path(text).absolute() if text else None
    if folder is not None and not folder.is_dir():
        raise InvalidArgument(f"--cwd: {folder} is not a folder")
    return folder


def _default_places() -> int:
    return (os.cpu_count() or 1) * PROCESSES_PER_CPU


# Commands


def _read_command(text: str, timeout_s: float, folder: Path | None) -> Kind:
    try:
        command = shlex.split(text)
    except ValueError as error:
        raise InvalidArgument(f"--exec: {error}") from None
    if not command:
        raise InvalidArgument("--exec: the command is empty")
    _check_program(command[0], folder or Path())
    runner = CommandRunner(command, timeout_s=timeout_s, folder=folder)
    return Kind(lambda: nullcontext(runner), _default_places())


def _check_program(program: str, folder: Path) -> None:
    """Refuse what could only fail every task that comes."""
    place = folder / program if os.sep in program else program
    if shutil.which(place) is None:
        raise InvalidArgument(
            f"--exec: {program} is not a program that can be run",
            hint="name one that is in PATH, or the path of an executable file",
        )


# Functions


def _read_call(
    name: str, timeout_s: float, folder: Path | None, max_processes: int
) -> Kind:
    from pilotfleet.fleet.worker.call import CallRunner, load_function

    if folder is not None:
        os.chdir(folder)
    function = load_function(name, Path.cwd())
    places = max_processes or _default_places()

    def make() -> AbstractAsyncContextManager[Runner]:
        runner = CallRunner(function, timeout_s=timeout_s, threads=places, name=name)
        return nullcontext(runner)

    return Kind(make, places)


# Sub-orchestrators


def _read_delegate(flags: dict[str, Any]) -> Kind:
    from pilotfleet.fleet.worker.delegate import Delegate, DelegateConfig

    if len(flags["id"]) != 1 or flags["ids"]:
        raise InvalidArgument("--delegate is for one agent: name it with --id")
    if not flags["cluster"] or not flags["tree"]:
        raise InvalidArgument("--delegate needs --cluster and --tree")
    config = DelegateConfig(
        agent=flags["id"][0],
        socket=Path(os.environ["PILOT_SOCKET"]),
        cluster=flags["cluster"],
        tree=flags["tree"],
        level=at_least_one(flags["level"], "--level"),
        each=at_least_one(flags["each"], "--each"),
    )
    return Kind(lambda: Delegate(config), flags["concurrency"])


# OpenClaw


def _read_openclaw(
    flags: dict[str, Any], timeout_s: float, folder: Path | None
) -> Kind:
    from pilotfleet.fleet.worker.openclaw.config import DEFAULT_TURNS, OpenClawConfig

    count = flags["gateways"]
    if count is None:
        count = len(flags["gateway"]) or 1
    count = at_least_one(count, "--gateways")
    config = OpenClawConfig(
        agent=flags["openclaw_agent"],
        model=flags["openclaw_model"],
        file=_config_file(flags["openclaw_config"]),
        folder=folder,
        turns=-(-flags["max_processes"] // count) or DEFAULT_TURNS,
        timeout_s=timeout_s,
    )
    ways = [
        name for name in ("gateways", "gateway", "one_shot") if _is_given(flags[name])
    ]
    if len(ways) > 1:
        raise InvalidArgument(
            "--gateways, --gateway and --one-shot are different ways to run OpenClaw",
            hint="give one of them",
        )
    if flags["gateway"]:
        return _read_remote(flags, config)
    if flags["gateway_token_file"]:
        raise InvalidArgument("--gateway-token-file goes with --gateway only")
    _check_openclaw(config.program)
    if flags["one_shot"]:
        return _read_one_shot(config)
    return Kind(lambda: _own_gateways(config, count), count * config.turns)


def _read_remote(flags: dict[str, Any], config: OpenClawConfig) -> Kind:
    from pilotfleet.fleet.worker.openclaw.http import parse_url

    if config.file is not None or config.folder is not None:
        raise InvalidArgument(
            "a running gateway has its own configuration and working directory",
            hint="leave out --openclaw-config and --cwd, or --gateway",
        )
    token = _token(flags["gateway_token_file"])
    endpoints = [parse_url(url, token=token) for url in flags["gateway"]]

    @asynccontextmanager
    async def make() -> AsyncIterator[Runner]:
        from pilotfleet.fleet.worker.openclaw.gateway import RemoteGateway
        from pilotfleet.fleet.worker.openclaw.pool import GatewayPool

        gateways = [
            RemoteGateway(f"gateway {number}", endpoint, agent=config.agent)
            for number, endpoint in enumerate(endpoints, 1)
        ]
        async with GatewayPool(config, gateways) as pool:
            yield pool

    return Kind(make, len(endpoints) * config.turns)


def _read_one_shot(config: OpenClawConfig) -> Kind:
    from pilotfleet.fleet.worker.openclaw.oneshot import OneShotRunner

    if config.agent != "main":
        raise InvalidArgument("--one-shot knows no agents: leave out --openclaw-agent")
    # Each takes a processor while it starts, and most of a gigabyte.
    return Kind(lambda: nullcontext(OneShotRunner(config)), os.cpu_count() or 1)


@asynccontextmanager
async def _own_gateways(config: OpenClawConfig, count: int) -> AsyncIterator[Runner]:
    from pilotfleet.fleet.worker.openclaw.gateway import OwnGateway
    from pilotfleet.fleet.worker.openclaw.pool import GatewayPool

    starting = asyncio.Semaphore(os.cpu_count() or 1)
    gateways = [
        OwnGateway(f"openclaw gateway {number}", config, starting=starting)
        for number in range(1, count + 1)
    ]
    async with GatewayPool(config, gateways) as pool:
        yield pool


def _check_openclaw(program: str) -> None:
    if shutil.which(program) is None:
        raise NotRunning(
            f"program {program} is not installed",
            hint="install it with npm, with node of version 24.16 or later:"
            " npm install -g openclaw@latest",
        )


def _config_file(text: str) -> Path | None:
    file = Path(text).absolute() if text else None
    if file is not None and not file.is_file():
        raise InvalidArgument(f"--openclaw-config: {file} is not a file")
    return file


def _token(text: str) -> str:
    if not text:
        return os.environ.get("OPENCLAW_GATEWAY_TOKEN", "")
    try:
        token = Path(text).read_text(encoding="ascii").strip()
    except OSError as error:
        raise InvalidArgument(
            f"--gateway-token-file: cannot read {text}: {error.strerror}",
            hint=_TOKEN_REMEDY,
        ) from None
    except UnicodeDecodeError:
        token = ""
    if not token or not token.isprintable():
        raise InvalidArgument(
            f"--gateway-token-file: {text} holds no token", hint=_TOKEN_REMEDY
        )
    return token
