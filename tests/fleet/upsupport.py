"""Fleets that stay up, as a user handles them: real programs, one command each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.fleet.support import children_of, processes_with_argument
from tests.support.programs import BIN, World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = [
    "appending_command",
    "fleet",
    "fleet_data",
    "fleet_world",
    "kill_all",
    "lines_of",
    "start_fleet_command",
    "wait_until",
]

COMMAND_S = 100


@contextlib.contextmanager
def fleet_world() -> Iterator[World]:
    """Yield a world whose fleets are gone at the end."""
    with world() as net:
        try:
            yield net
        finally:
            for pid in processes_with_argument(str(net.home)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def start_fleet_command(net: World, *argv: object, **env: str) -> subprocess.Popen[str]:
    """Start ``pilotctl fleet …``."""
    return subprocess.Popen(
        [str(word) for word in (BIN / "pilotctl", "fleet", *argv)],
        env=net.environment(**env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fleet(net: World, *argv: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``pilotctl fleet …`` to its end."""
    command = start_fleet_command(net, *argv, **env)
    stdout, stderr = command.communicate(timeout=COMMAND_S)
    assert "Traceback" not in stderr
    words = [str(word) for word in argv]
    return subprocess.CompletedProcess(words, command.returncode, stdout, stderr)


def fleet_data(net: World, *argv: object) -> Any:
    """Return the data of a command that must succeed."""
    return data_of(fleet(net, *argv, "--json"))


def wait_until(net: World, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the fleet's status as soon as it is so."""
    for _ in range(300):
        status: dict[str, Any] = fleet_data(net, "status")
        if is_so(status):
            return status
    raise AssertionError(f"it never was so: {status}")


def kill_all(pid: int) -> None:
    """SIGKILL a process and everything below it, at once."""
    doomed = [pid, *children_of(pid)]
    for number in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def appending_command(net: World, pause_s: float) -> tuple[str, Path]:
    """Return a command that appends its text to a file, and that file.

    One that is left behind before it was given its text appends nothing.
    """
    script, done = net.home / "append.sh", net.home / "done.txt"
    lines = (
        'read -r text; test "$text" || exit',
        f"sleep {pause_s}",
        f"echo $text >> {done}",
        "echo ok",
    )
    script.write_text("\n".join(lines))
    done.touch()
    return f"sh {script}", done


def lines_of(path: Path) -> Counter[str]:
    """Return how often each line stands in a file."""
    return Counter(path.read_text().splitlines())


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a task file."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path
