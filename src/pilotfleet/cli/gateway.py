"""``pilotctl gateway``: start, stop and change the local gateway.

The gateway is a process of its own, ``pilot-gateway``; a control socket beside the
daemon's leads to it. The pid file is for a gateway that answers no more.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.connection import Deadline
from pilotfleet.cli.gatewaysocket import ask_gateway
from pilotfleet.cli.settings import find_program
from pilotfleet.errors import (
    AlreadyExists,
    NotFound,
    NotRunning,
    StorageError,
    TimedOut,
)
from pilotfleet.protocol.gateway import control_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

START_S: Final = 15.0
STOP_S: Final = 10.0
POLL_S: Final = 0.05
PID_FILE: Final = "gateway.pid"
LOG_FILE: Final = "gateway.log"
_PASSED_ON: Final = ("subnet", "ports", "max-connections", "log-level", "log-format")
_PROGRAM: Final = "pilot-gateway"


def start(context: Context, arguments: Arguments) -> None:
    """Start the gateway in the background and wait until it answers."""
    control = _control(context)
    with contextlib.suppress(NotRunning):
        pid = ask_gateway(control, op="list").get("pid")
        raise AlreadyExists(
            f"gateway is already running (pid {pid})",
            hint="stop it first with: pilotctl gateway stop",
        )
    command = [_find_program(), "--socket", context.settings.socket]
    for flag in _PASSED_ON:
        if arguments.has(flag):
            command += [f"--{flag}", arguments.text(flag)]
    if context.agent is not None:
        command += ["--agent", context.agent]
    command += ["run", *arguments.positionals]
    if arguments.enabled("foreground"):
        try:
            os.execvp(command[0], command)
        except OSError as error:
            raise StorageError(f"cannot start {command[0]}: {error.strerror}") from None
    process, log = _spawn(context, command)
    state = _wait_ready(process, control, log)
    data = {
        "pid": process.pid,
        "subnet": state.get("subnet"),
        "mappings": state.get("mappings", []),
    }
    lines = [f"Gateway running (pid {process.pid}, subnet {data['subnet']})"]
    context.output.result(data, "\n".join(lines + _rows(data["mappings"])))


def stop(context: Context, arguments: Arguments) -> None:
    """Stop the gateway and release its addresses."""
    pid_path = os.path.join(context.settings.directory, PID_FILE)
    try:
        pid = int(ask_gateway(_control(context), op="stop").get("pid") or 0)
    except NotRunning:
        pid = _read_pid(pid_path)
        if not pid:
            raise
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    if not _wait_until(lambda: not _is_gateway(pid), STOP_S):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.unlink(pid_path)
    context.output.result({"pid": pid}, f"gateway stopped (pid {pid})")


def map_address(context: Context, arguments: Arguments) -> None:
    """Give a Pilot address a local one."""
    context.require(arguments, 1)
    data = ask_gateway(
        _control(context),
        op="map",
        target=arguments.positional(0),
        ip=arguments.positional(1),
    )
    text = f"mapped {data.get('local_ip')} → {data.get('pilot_addr')}"
    context.output.result(data, text)


def unmap(context: Context, arguments: Arguments) -> None:
    """Release a local address."""
    context.require(arguments, 1)
    target = arguments.positional(0)
    data = ask_gateway(_control(context), op="unmap", target=target)
    context.output.result(data, f"unmapped {data.get('unmapped')}")


def list_mappings(context: Context, arguments: Arguments) -> None:
    """List what is mapped; nothing when no gateway runs."""
    try:
        state = ask_gateway(_control(context), op="list")
    except NotRunning:
        state = {}
    mappings = state.get("mappings", [])
    data: dict[str, Any] = {"mappings": mappings, "total": len(mappings)}
    text = "\n".join(_rows(mappings)) or "no mappings"
    if not state:
        data["note"] = "no gateway is running; start one with: pilotctl gateway start"
        text = str(data["note"])
    context.output.result(data, text)


def _control(context: Context) -> str:
    return control_path(context.settings.socket)


def _rows(mappings: list[dict[str, Any]]) -> list[str]:
    return [f"  {row['local_ip']:<15}  {row['pilot_addr']}" for row in mappings]


def _find_program() -> str:
    found = find_program(_PROGRAM, "PILOT_GATEWAY_BIN")
    if found is None:
        raise NotFound(
            f"{_PROGRAM} was not found beside pilotctl or in PATH",
            hint="set PILOT_GATEWAY_BIN to the program's path",
        )
    return found


def _spawn(context: Context, command: list[str]) -> tuple[subprocess.Popen[bytes], str]:
    folder = context.settings.directory
    log = os.path.join(folder, LOG_FILE)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with os.fdopen(os.open(log, flags, 0o600), "wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        path = os.path.join(folder, PID_FILE)
        with os.fdopen(os.open(path, flags & ~os.O_APPEND, 0o600), "w") as file:
            file.write(str(process.pid))
    except OSError as error:
        raise StorageError(f"cannot start the gateway: {error.strerror}") from error
    return process, log


def _wait_ready(
    process: subprocess.Popen[bytes], control: str, log: str
) -> dict[str, Any]:
    deadline = Deadline(START_S)
    while True:
        with contextlib.suppress(NotRunning):
            state = ask_gateway(control, op="list")
            if state.get("pid") == process.pid and state.get("ready"):
                # It outlives us; Popen would complain about a child left alone.
                process.returncode = 0
                return state
        if process.poll() is not None:
            raise StorageError(
                f"gateway exited during startup: {_last_error(log)}",
                hint=f"see the log: {log}",
            )
        if deadline.has_passed:
            process.returncode = 0
            raise TimedOut(
                "gateway started but did not become ready in time",
                hint=f"check the log: {log}",
            )
        time.sleep(POLL_S)


def _last_error(log: str) -> str:
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file.read(65536).splitlines()]
    except OSError:
        return ""
    errors = [line[7:] for line in lines if line.startswith("error: ")]
    return (errors or [line for line in lines if line] or ["no output"])[-1]


def _read_pid(path: str) -> int:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            text = file.read(16).strip()
    except OSError:
        return 0
    pid = int(text) if text.isascii() and text.isdigit() else 0
    return pid if pid and _is_gateway(pid) else 0


def _is_gateway(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).split(b"\0")
    except OSError:
        return False
    return any(os.path.basename(os.fsdecode(word)) == _PROGRAM for word in words[:3])


def _wait_until(is_done: Callable[[], bool], seconds: float) -> bool:
    deadline = Deadline(seconds)
    while not is_done():
        if deadline.has_passed:
            return False
        time.sleep(POLL_S)
    return True
