"""A small machine with a real systemd: namespaces on this one. Needs root."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.support.programs import BIN

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).parents[2]
BOOT = Path(__file__).with_name("boot.sh")
NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")
COMMAND_S = 100


class Machine:
    """Boots when entered; everything in it ends with it."""

    def __init__(self) -> None:
        self._unshare: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        # What runs as another user must be able to read our programs.
        folders = {str(ROOT), str(Path(sys.executable).resolve().parents[1])}
        self._unshare = subprocess.Popen(
            ["unshare", "--fork", "--mount-proc", *NAMESPACES, BOOT, *sorted(folders)],
            stdin=subprocess.DEVNULL,
        )
        try:
            self._wait_until_booted(self._unshare)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def path(self, path: str | Path) -> Path:
        """Return where a file of the machine is seen from here."""
        return Path(f"/proc/{self._init}/root{path}")

    def run(self, *command: str | Path, check: bool = True) -> str:
        """Run a command on the machine and return what it writes."""
        done = subprocess.run(
            [
                *("nsenter", "--target", str(self._init), *NAMESPACES, "--"),
                *("env", f"--chdir={ROOT}", *command),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout.strip()

    def pilotctl(self, *words: str | Path) -> str:
        """Run ``pilotctl`` with the socket of the machine's daemon."""
        socket = "PILOT_SOCKET=/run/pilot/pilot.sock"
        return self.run("env", socket, BIN / "pilotctl", *words)

    def state(self, unit: str, key: str = "ActiveState") -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", key, unit)

    def wait_for(self, unit: str, state: str, *, other_than: str) -> None:
        """Return once a unit is in a state, with another main process."""
        deadline = time.monotonic() + COMMAND_S
        while time.monotonic() < deadline:
            pid = self.state(unit, "MainPID")
            if pid not in ("0", other_than) and self.state(unit) == state:
                return
        raise AssertionError(f"{unit} is {self.state(unit)}:\n{self.journal(unit)}")

    def journal(self, unit: str) -> str:
        """Return what a unit has written."""
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", unit)

    def _wait_until_booted(self, unshare: subprocess.Popen[bytes]) -> None:
        children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
        for _ in range(COMMAND_S * 10):
            with contextlib.suppress(subprocess.TimeoutExpired):
                unshare.wait(0.1)
                raise AssertionError("the machine does not boot")
            found = children.read_text().split()
            if found:
                self._init = int(found[0])
                state = self.run("systemctl", "is-system-running", check=False)
                if state in ("running", "degraded"):
                    return
        raise AssertionError("systemd was not up in time")

    def _end(self) -> None:
        # The end of a process namespace's first process ends all others in it.
        if self._init:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)
        if self._unshare is not None:
            if not self._init:
                self._unshare.kill()
            self._unshare.wait()
