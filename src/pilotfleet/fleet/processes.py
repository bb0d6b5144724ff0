"""Child processes of a fleet: start, wait until ready, stop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.errors import NotRunning, TimedOut
from pilotfleet.fleet.exitstatus import describe_exit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ChildProcess", "find_program"]

PR_SET_PDEATHSIG: Final = 1
"""From ``linux/prctl.h``."""
READY_POLL_S: Final = 0.02
STOP_GRACE_S: Final = 10.0
LOG_TAIL_BYTES: Final = 2_000


def find_program(name: str) -> str:
    """Return the path of one of our programs.

    The one beside the running interpreter comes before ``PATH``, so that all
    programs of a fleet are of one version.

    Raises:
        NotRunning: It is installed nowhere.
    """
    for folder in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if (folder / name).is_file():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        raise NotRunning(
            f"program {name} is not installed",
            hint="install it with: pip install pilotfleet",
        )
    return found


class ChildProcess:
    """One program of the fleet, its log file and its ready file."""

    def __init__(
        self,
        name: str,
        program: str,
        process: asyncio.subprocess.Process,
        *,
        home: Path,
        log_start: int,
    ) -> None:
        self.title = program if name in program else f"{program} ({name})"
        """What the process is called in messages."""
        self.log = _log_path(home, name)
        self._log_start = log_start
        self._ready = _ready_path(home, name)
        self._process = process

    @classmethod
    async def start(
        cls,
        name: str,
        arguments: Sequence[str],
        *,
        home: Path,
        environment: Mapping[str, str] | None = None,
    ) -> ChildProcess:
        """Start ``arguments[0]``, one of our programs, with its log in ``home``.

        ``name`` tells it from the other processes of the fleet, in file names too.

        It gets its own session: an interrupt typed at the terminal must reach the
        launcher alone, which then stops the programs in the right order.
        """
        _log_path(home, name).parent.mkdir(parents=True, exist_ok=True)
        _ready_path(home, name).unlink(missing_ok=True)
        log = os.open(
            _log_path(home, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
        )
        try:
            log_start = os.fstat(log).st_size
            process = await _spawn(arguments, log, environment)
        finally:
            os.close(log)
        return cls(name, arguments[0], process, home=home, log_start=log_start)

    @staticmethod
    def ready_file(home: Path, name: str) -> Path:
        """Where the program called ``name`` says that it is ready."""
        return _ready_path(home, name)

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.returncode is None

    async def wait_ready(self, timeout_s: float) -> dict[str, Any]:
        """Wait for the ready file and return its contents.

        Raises:
            NotRunning: The program ended instead; the message has its last words.
            TimedOut: It took too long.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self._ready.exists():
                    if not self.is_running:
                        raise self._ended()
                    await asyncio.sleep(READY_POLL_S)
        except TimeoutError:
            raise TimedOut(
                f"{self.title} was not ready after {timeout_s:g} s: "
                f"{self._last_line()}",
                hint=f"its log is {self.log}",
            ) from None
        content: dict[str, Any] = msgspec.json.decode(self._ready.read_bytes())
        return content

    async def wait(self) -> None:
        """Wait until the process ends by itself.

        Raises:
            NotRunning: Always, when it has: no program of a fleet should.
        """
        await self._process.wait()
        raise self._ended()

    async def stop(self) -> None:
        """Ask the process to end; after a grace time, make it."""
        if not self.is_running:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(STOP_GRACE_S):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            await self._process.wait()

    def _ended(self) -> NotRunning:
        status = self._process.returncode
        assert status is not None
        how = (
            describe_exit(status) if status >= 0 else f"it was {describe_exit(status)}"
        )
        return NotRunning(
            f"{self.title} ended ({how}): {self._last_line()}",
            hint=f"its log is {self.log}",
        )

    def _last_line(self) -> str:
        """Return what this process said last; advice for a person does not count."""
        with open(self.log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, size - LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        said = [line for line in lines if not line.startswith("hint:")]
        return said[-1].strip() if said else "it said nothing"


async def _spawn(
    arguments: Sequence[str], log: int, environment: Mapping[str, str] | None
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        find_program(arguments[0]),
        *arguments[1:],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
        # Not for the commands of tasks: it makes starting a process dear.
        preexec_fn=_end_with_parent,
    )


def _end_with_parent() -> None:
    """Have the kernel end this process when the launcher is gone, even by SIGKILL.

    Called in the child. What nobody supervises any more must not work on.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _log_path(home: Path, name: str) -> Path:
    return home / "logs" / f"{name}.log"


def _ready_path(home: Path, name: str) -> Path:
    return home / f"{name}.ready.json"
