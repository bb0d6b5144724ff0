"""Child processes of a fleet: start, wait until ready, stop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import shutil
import signal
import sys
import sysconfig
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.errors import NotRunning, TimedOut
from pilotfleet.fleet.exitstatus import describe_exit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ChildProcess", "find_program"]

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG: Final = 1
"""From ``linux/prctl.h``."""
# Found now: between fork and exec, what another thread had locked stays locked.
_prctl: Final = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
READY_POLL_S: Final = 0.02
STOP_GRACE_S: Final = 10.0
LOG_TAIL_BYTES: Final = 2_000
HINT: Final = "hint:"
"""With this begins a program's advice for a person."""
MAX_LOG_BYTES: Final = 16 * 1024 * 1024
"""A log that is larger becomes the old one; there are two files at most."""


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
        for path in (_log_path(home, name), _ready_path(home, name)):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _ready_path(home, name).unlink(missing_ok=True)
        _rotate(_log_path(home, name))
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

    @staticmethod
    def log_file(home: Path, name: str) -> Path:
        """Where what the program called ``name`` says is kept."""
        return _log_path(home, name)

    @property
    def has_large_log(self) -> bool:
        """Whether it is time to bound the log."""
        try:
            return os.stat(self.log).st_size > MAX_LOG_BYTES
        except OSError:  # Somebody removed it.
            return False

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.returncode is None

    @property
    def exit_text(self) -> str:
        """How the process ended, in words; empty while it runs."""
        status = self._process.returncode
        if status is None:
            return ""
        text = describe_exit(status)
        return text if status >= 0 else f"it was {text}"

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

    async def wait(self) -> NotRunning:
        """Wait until the process ends by itself; return how it did."""
        await self._process.wait()
        return self._ended()

    async def stop(
        self,
        signals: Sequence[signal.Signals] = (signal.SIGTERM,),
        *,
        grace_s: float | None = None,
    ) -> None:
        """Ask the process to end; after a grace time, make it."""
        if not self.is_running:
            return
        for number in signals:
            self._process.send_signal(number)
        try:
            async with asyncio.timeout(STOP_GRACE_S if grace_s is None else grace_s):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            await self._process.wait()

    def bound_log(self) -> None:
        """Keep the end of a log that has grown too large as the old one. Blocks.

        The program appends to the file that it has; so that is emptied, and what is
        written between copy and cut is lost.
        """
        try:
            with open(self.log, "r+b") as log, open(_old(self.log), "wb") as old:
                os.fchmod(old.fileno(), 0o600)
                log.seek(max(0, log.seek(0, os.SEEK_END) - MAX_LOG_BYTES))
                shutil.copyfileobj(log, old)
                log.truncate(0)
        except OSError as error:
            logger.warning("cannot bound log %s: %s", self.log, error.strerror)
        else:
            self._log_start = 0

    def _ended(self) -> NotRunning:
        said, advice = self._last_words()
        return NotRunning(
            f"{self.title} ended ({self.exit_text}): {said}",
            hint="; ".join([*advice, f"its log is {self.log}"]),
        )

    def _last_line(self) -> str:
        return self._last_words()[0]

    def _last_words(self) -> tuple[str, list[str]]:
        """Return what this process said last, and the advice that it gave with it."""
        with open(self.log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(min(self._log_start, size), size - LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        said = [line for line in lines if not line.startswith(HINT)]
        advice = [line for line in lines[-1:] if line.startswith(HINT)]
        return (
            said[-1].strip() if said else "it said nothing",
            [line.removeprefix(HINT).strip() for line in advice],
        )


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
        preexec_fn=partial(_end_with_parent, os.getpid()),
    )


def _end_with_parent(parent: int) -> None:
    """Have the kernel end this process when the launcher is gone, even by SIGKILL.

    Called in the child. What nobody supervises any more must not work on.
    """
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # A launcher that was gone before it asked is not told of any more.
    if os.getppid() != parent:
        os._exit(1)


def _rotate(log: Path) -> None:
    """Begin a new log if there is a large one."""
    with contextlib.suppress(FileNotFoundError):
        if os.stat(log).st_size > MAX_LOG_BYTES:
            os.replace(log, _old(log))


def _old(log: Path) -> Path:
    return log.with_name(f"{log.name}.1")


def _log_path(home: Path, name: str) -> Path:
    return home / "logs" / f"{name}.log"


def _ready_path(home: Path, name: str) -> Path:
    return home / "run" / f"{name}.json"
