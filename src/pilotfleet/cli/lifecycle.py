"""``pilotctl daemon start``, ``stop`` and ``status`` (cli.md section 4)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from pilotfleet.cli.connection import Daemon, Deadline
from pilotfleet.cli.settings import DEFAULT_BEACON, DEFAULT_REGISTRY, find_program
from pilotfleet.errors import (
    AlreadyExists,
    NotFound,
    NotRunning,
    PilotError,
    StorageError,
    TimedOut,
)
from pilotfleet.protocol.durations import format_duration
from pilotfleet.protocol.ipc.commands import Command

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context
    from pilotfleet.cli.settings import Settings

# From the specification.
PROGRAM_NAMES: Final = frozenset(["pilot-daemon", "daemon"])
STOP_LIMIT_S: Final = 10.0
DEFAULT_WAIT_S: Final = 15.0

# Of our choosing.
POLL_S: Final = 0.05
PROBE_S: Final = 2.0
"""How long a daemon may take to answer before it counts as not responsive."""

_PASSED_ON: Final = (
    "email",
    "hostname",
    "config",
    "webhook",
    "networks",
    "transport",
    "endpoint",
    "compat-beacon",
    "registry-trust",
    "registry-fingerprint",
    "tls-trust",
    "motd-feed-url",
    "motd-interval",
    "agents",
    "agent-prefix",
    "fleet",
    "processes",
    "agent-sockets",
)
"""Flags handed to the daemon as they are, when given."""
_CONFIGURED: Final = frozenset(["email", "hostname", "webhook", "networks"])
"""Of those, the ones that also come from config.json."""


class PidFile(NamedTuple):
    """What pilot.pid says."""

    pid: int
    is_daemon: bool


def start(context: Context, arguments: Arguments) -> None:
    """Start the daemon in the background and wait until it answers."""
    wait = arguments.duration("wait", DEFAULT_WAIT_S)
    settings = context.settings
    socket = arguments.text("socket", settings.socket)
    command, environment = _command_line(settings, arguments, socket)
    _claim_pid_file(settings)
    try:
        if _is_alive(socket):
            raise AlreadyExists(
                f"daemon is already running (socket {socket} is active)",
                hint="stop it first with: pilotctl daemon stop",
            )
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket)
        if arguments.enabled("foreground"):
            _become_daemon(settings, command, environment)
        process, log = _spawn(settings, command, environment)
    except BaseException:
        # The reference leaves the claim behind and then refuses to start again.
        _remove(settings.pid_path)
        raise
    context.output.note(f"starting daemon (pid {process.pid}, socket {socket})...")
    info = _wait_ready(settings, process, socket, log, wait)
    data = {
        "pid": process.pid,
        "node_id": info.get("node_id"),
        "address": info.get("address"),
        "hostname": info.get("hostname", ""),
        "socket": socket,
        "log_file": log,
    }
    if info.get("transport"):
        data["transport"] = info["transport"]
    text = (
        f"Daemon running (pid {process.pid})\n  Address:   {data['address']}\n"
        f"  Hostname:  {data['hostname'] or '-'}\n  Socket:    {socket}\n"
        f"  Logs:      {log}"
    )
    context.output.result(data, text)


def stop(context: Context, arguments: Arguments) -> None:
    """Stop the daemon that the pid file names."""
    settings = context.settings
    found = _read_pid_file(settings)
    if found is None or found.pid == 0:
        hint = None
        if _is_alive(settings.socket):
            hint = f"a daemon answers on {settings.socket} but its process is not known"
        raise NotRunning("daemon is not running", hint=hint)
    if not found.is_daemon:
        _remove(settings.pid_path)
        raise NotRunning("daemon is not running (cleaned up stale state)")
    forced = _terminate(found.pid)
    _remove(settings.pid_path)
    data: dict[str, Any] = {"pid": found.pid}
    if forced:
        data["forced"] = True
    word = "force-stopped" if forced else "stopped"
    context.output.result(data, f"daemon {word} (pid {found.pid})")


def status(context: Context, arguments: Arguments) -> int:
    """Tell whether the daemon runs and answers."""
    settings = context.settings
    info = _ask_info(settings.socket)
    if arguments.enabled("check"):
        return 0 if info is not None else 1
    found = _read_pid_file(settings)
    if found is not None and not found.is_daemon and info is None:
        _remove(settings.pid_path)
    data: dict[str, Any] = {
        "running": info is not None or (found is not None and found.is_daemon),
        "pid": found.pid if found is not None else 0,
        "pid_file": settings.pid_path,
        "socket": settings.socket,
        "responsive": info is not None,
    }
    keys = ("node_id", "address", "hostname", "uptime_secs", "peers", "connections")
    data.update({key: info.get(key) for key in keys} if info is not None else {})
    context.output.result(data, _status_text(data))
    return 0


def _command_line(
    settings: Settings, arguments: Arguments, socket: str
) -> tuple[list[str], dict[str, str]]:
    """Return the daemon's command and environment."""
    config, environment = settings.text, dict(os.environ)
    registry = os.environ.get("PILOT_REGISTRY") or DEFAULT_REGISTRY
    beacon = os.environ.get("PILOT_BEACON") or DEFAULT_BEACON
    identity = os.path.join(settings.directory, "identity.json")
    named = arguments.text("identity") or config("identity")
    values = {
        # For these two the configuration comes before the environment.
        "registry": arguments.text("registry") or config("registry") or registry,
        "beacon": arguments.text("beacon") or config("beacon") or beacon,
        "listen": arguments.text("listen") or config("listen") or ":0",
        "socket": socket,
        "identity": named or identity,
        "log-level": arguments.text("log-level") or config("log_level") or "info",
        "log-format": arguments.text("log-format") or config("log_format") or "text",
    }
    if arguments.has("agents") and not named:
        # Numbered agents have identities of their own; naming one adds an agent.
        del values["identity"]
    command = [_find_program()]
    for flag, value in values.items():
        command += [f"--{flag}", value]
    if arguments.enabled("no-encrypt"):
        command.append("--encrypt=false")
    for flag in _PASSED_ON:
        value = arguments.text(flag)
        if not value and flag in _CONFIGURED:
            value = config(flag)
        if not value and flag == "email":
            value = arguments.text("owner")
        if value:
            command += [f"--{flag}", value]
    command += [item for tag in arguments.texts("tag") for item in ("--tag", tag)]
    for flag in ("public", "trust-auto-approve"):
        if arguments.enabled(flag):
            command.append(f"--{flag}")
    if arguments.has("registry-tls"):
        # The official one has no such flag here; it is the daemon's own.
        value = "true" if arguments.enabled("registry-tls") else "false"
        command.append(f"--registry-tls={value}")
    token = arguments.text("admin-token") or config("admin_token")
    if token:
        # Never on the command line, where every user of the machine sees it.
        environment["PILOT_ADMIN_TOKEN"] = token
    return command, environment


def _find_program() -> str:
    found = find_program("pilot-daemon", "PILOT_DAEMON_BIN")
    if found is None:
        raise StorageError(
            "pilot-daemon was not found beside pilotctl or in PATH",
            hint="set PILOT_DAEMON_BIN to the program's path",
        )
    return found


def _claim_pid_file(settings: Settings) -> None:
    found = _read_pid_file(settings)
    if found is not None and found.is_daemon:
        raise AlreadyExists(
            f"daemon is already running (pid {found.pid})",
            hint="stop it first with: pilotctl daemon stop",
        )
    if found is not None and found.pid:
        _remove(settings.pid_path)
    try:
        os.makedirs(settings.directory, mode=0o700, exist_ok=True)
        descriptor = os.open(
            settings.pid_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600
        )
    except FileExistsError as error:
        raise AlreadyExists(
            "another daemon start is in progress (PID file locked)",
            hint=f"if none is, remove {settings.pid_path}",
        ) from error
    except OSError as error:
        raise _unwritable(settings.pid_path, error) from error
    with os.fdopen(descriptor, "w") as file:
        file.write("0")


def _become_daemon(
    settings: Settings, command: list[str], environment: dict[str, str]
) -> NoReturn:
    _write_pid(settings, f"{os.getpid()}\n")
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        raise _not_started(command[0], error) from error


def _spawn(
    settings: Settings, command: list[str], environment: dict[str, str]
) -> tuple[subprocess.Popen[bytes], str]:
    """Start the daemon in its own session; return it and its log file."""
    starting = os.path.join(settings.directory, "pilot-starting.log")
    try:
        descriptor = os.open(
            starting, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600
        )
    except OSError as error:
        raise _unwritable(starting, error) from error
    with os.fdopen(descriptor, "wb") as log:
        try:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise _not_started(command[0], error) from error
    path = os.path.join(settings.directory, f"pilot-{process.pid}.log")
    try:
        _write_pid(settings, str(process.pid))
        os.replace(starting, path)
    except BaseException as error:
        # Without its pid file nobody could find the daemon to stop it.
        _end_child(process)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise
    _remove(settings.log_path)
    with contextlib.suppress(OSError):
        os.symlink(os.path.basename(path), settings.log_path)
    return process, path


def _end_child(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_ready(
    settings: Settings,
    process: subprocess.Popen[bytes],
    socket: str,
    log: str,
    wait: float,
) -> dict[str, Any]:
    deadline = Deadline(wait)
    while True:
        info = _ask_info(socket)
        if info is not None:
            # It outlives us; Popen would complain about a child left alone.
            process.returncode = 0
            return info
        code = process.poll()
        if code is not None:
            _remove(settings.pid_path)
            raise StorageError(
                f"daemon (pid {process.pid}) exited during startup"
                f" (exit code {code}): {_last_line(log)}",
                hint=f"see the log: {log}",
            )
        if deadline.has_passed:
            process.returncode = 0
            raise TimedOut(
                f"daemon started (pid {process.pid}) but did not become ready within"
                f" {format_duration(wait)}",
                hint=f"check logs: tail -f {log}",
            )
        time.sleep(POLL_S)


def _terminate(pid: int) -> bool:
    """Stop a process; tell whether it had to be killed."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = Deadline(STOP_LIMIT_S)
    while _is_daemon(pid):
        if deadline.has_passed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return True
        time.sleep(POLL_S)
    return False


def _read_pid_file(settings: Settings) -> PidFile | None:
    try:
        with open(settings.pid_path, encoding="ascii", errors="replace") as file:
            text = file.read(32).strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(
            f"cannot read {settings.pid_path}: {error.strerror}"
        ) from error
    pid = int(text) if text.isascii() and text.isdigit() else 0
    return PidFile(pid, pid > 0 and _is_daemon(pid))


def _is_daemon(pid: int) -> bool:
    """Tell whether a process lives and is a daemon, ours or an official one."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).split(b"\0")
        if not any(words):
            return False
    except FileNotFoundError:
        if os.path.exists("/proc/self"):
            return False
        words = _process_words(pid)
    except OSError:
        return False
    # A Python program's first words are the interpreter and the script.
    return any(
        os.path.basename(os.fsdecode(word)) in PROGRAM_NAMES for word in words[:3]
    )


def _process_words(pid: int) -> list[bytes]:
    """Return a process's command line where there is no /proc."""
    answer = subprocess.run(
        ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, check=False
    )
    return answer.stdout.split()


def _ask_info(socket: str) -> dict[str, Any] | None:
    try:
        with Daemon(socket) as daemon:
            return daemon.request_json(Command.INFO, deadline=Deadline(PROBE_S))
    except PilotError:
        return None


def _is_alive(socket: str) -> bool:
    try:
        with Daemon(socket):
            return True
    except NotRunning:
        return False


def _write_pid(settings: Settings, text: str) -> None:
    try:
        with open(settings.pid_path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise _unwritable(settings.pid_path, error) from error


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _last_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(65536).split("\n")
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line.strip()), "no output")


def _unwritable(path: str, error: OSError) -> StorageError:
    return StorageError(f"cannot write {path}: {error.strerror}")


def _not_started(program: str, error: OSError) -> PilotError:
    kind = NotFound if isinstance(error, FileNotFoundError) else StorageError
    return kind(f"cannot start {program}: {error.strerror}")


def _status_text(data: dict[str, Any]) -> str:
    if not data["running"]:
        return f"○ pilot-daemon stopped\n  Socket:    {data['socket']}"
    lines = ["● pilot-daemon running", f"  Pid:       {data['pid'] or '-'}"]
    lines.append(f"  Socket:    {data['socket']}")
    if not data["responsive"]:
        return "\n".join([*lines, "  The daemon does not answer."])
    uptime = format_duration(float(data.get("uptime_secs") or 0))
    lines += [
        f"  Address:   {data['address']}",
        f"  Hostname:  {data['hostname'] or '-'}",
        f"  Up:        {uptime}",
        f"  Peers:     {data['peers']}",
    ]
    return "\n".join(lines)
