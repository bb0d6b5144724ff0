"""``pilotctl fleet up`` and ``down``: a fleet that stays up without a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.fleethome import (
    default_home,
    is_running,
    registry_tls,
    remember,
    select_home,
)
from pilotfleet.cli.fleetserve import (
    LOG_BACKUPS,
    LOG_BYTES,
    log_path,
    stop_on_signals,
)
from pilotfleet.cli.fleetstatus import describe
from pilotfleet.cli.logs import configure_logging
from pilotfleet.cli.serving import tell_ready
from pilotfleet.errors import (
    AlreadyExists,
    InvalidArgument,
    NotRunning,
    PilotError,
    StorageError,
    error_for_code,
)
from pilotfleet.fleet.control import FleetControl
from pilotfleet.fleet.controller import Controller
from pilotfleet.fleet.plan import Part
from pilotfleet.fleet.processes import find_program
from pilotfleet.fleet.spec import load_spec

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.output import Output
    from pilotfleet.fleet.spec import FleetSpec

__all__ = ["down", "up"]

EXIT_INTERRUPTED: Final = 130
STOP_S: Final = 60.0
LOG_TAIL_BYTES: Final = 2_000


def up(words: Arguments, output: Output) -> int:
    """Start a fleet in the background and return once all of it is up."""
    if not words.positionals:
        raise InvalidArgument("fleet up needs SPEC", hint="pilotctl fleet up --help")
    spec = load_spec(Path(words.positional(0)))
    part = Part.parse(words.text("part")) if words.has("part") else None
    home = Path(words.text("home") or default_home(spec.fleet.name)).absolute()
    if words.has("foreground"):
        return _serve(spec, home, part, words)
    if is_running(home):
        status = asyncio.run(FleetControl(home).status())
        _check_part(status, part, home)
        text = f"fleet {status['name']} is up already\n\n{describe(status)}"
        output.result({**status, "already": True}, text)
        return 0
    status = _start(words, home, output)
    text = f"fleet {spec.fleet.name} is up\n\n{describe(status)}"
    output.result({**status, "already": False}, text)
    return 0


def _check_part(status: dict[str, Any], part: Part | None, home: Path) -> None:
    wanted = str(part) if part is not None else None
    if status["part"] != wanted:
        running, asked = (
            f"part {text}" if text else "all" for text in (status["part"], wanted)
        )
        raise AlreadyExists(
            f"{running} of fleet {status['name']} runs in {home}, not {asked}",
            hint="stop it first, with: pilotctl fleet down; or give another --home",
        )


def down(words: Arguments, output: Output) -> int:
    """Stop a fleet and return once it has stopped."""
    home = select_home(words, words.positional(0))
    control = FleetControl(home)
    asyncio.run(control.down(now=words.has("now"), progress=output.note))
    output.result({"home": str(home)}, f"the fleet in {home} has stopped")
    return 0


# In the foreground


def _serve(spec: FleetSpec, home: Path, part: Part | None, words: Arguments) -> int:
    report = _Report(words.integer("report", -1))
    ready = Path(words.text("ready-file")) if words.has("ready-file") else None
    if ready is not None:
        ready.unlink(missing_ok=True)
    configure_logging(max_bytes=LOG_BYTES, backups=LOG_BACKUPS)
    try:
        asyncio.run(_run(spec, home, part, report, ready))
    except PilotError as error:
        report.failed(error)
        raise
    except asyncio.CancelledError:
        # Told to stop, and stopped: what a supervisor wants to see.
        return 0
    return 0


async def _run(
    spec: FleetSpec,
    home: Path,
    part: Part | None,
    report: _Report,
    ready: Path | None,
) -> None:
    stop_on_signals()
    controller = Controller(
        spec, home, part=part, progress=report.doing, tls=registry_tls()
    )
    async with controller:
        remember(home)
        await controller.start()
        status = controller.status()
        tell_ready(ready, status)
        report.up(status)
        await controller.run()


class _Report:
    """Tells whoever started this process, through a pipe, how the start goes."""

    def __init__(self, descriptor: int) -> None:
        try:
            self._pipe = os.fdopen(descriptor, "w") if descriptor >= 0 else None
        except OSError as error:
            raise InvalidArgument(f"--report: {descriptor}: {error.strerror}") from None

    def doing(self, text: str) -> None:
        """Tell what is being done."""
        self._write({"doing": text})

    def up(self, status: dict[str, Any]) -> None:
        """Tell that everything is up. The last word."""
        self._write({"up": status})
        self._close()

    def failed(self, error: PilotError) -> None:
        """Tell why it is not. The last word."""
        self._write({"error": [error.code, str(error), error.hint]})
        self._close()

    def _write(self, line: dict[str, Any]) -> None:
        if self._pipe is not None:
            # Nobody listens any more: the fleet is started all the same.
            with contextlib.suppress(OSError):
                self._pipe.write(json.dumps(line) + "\n")
                self._pipe.flush()

    def _close(self) -> None:
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                self._pipe.close()
            self._pipe = None


# In the background


def _start(words: Arguments, home: Path, output: Output) -> dict[str, Any]:
    """Start the controller in a session of its own; return the fleet's status."""
    log = log_path(home)
    start = log.stat().st_size
    process, reports = _spawn(words, home, log)
    try:
        with reports:
            for line in reports:
                report = json.loads(line)
                if "up" in report:
                    # It outlives us; Popen would complain about a child left alone.
                    process.returncode = 0
                    status: dict[str, Any] = report["up"]
                    return status
                if "error" in report:
                    process.wait(STOP_S)
                    code, message, hint = report["error"]
                    raise error_for_code(code, message, hint=hint)
                output.note(report["doing"])
    except KeyboardInterrupt:
        process.terminate()
        process.wait(STOP_S)
        raise
    process.wait(STOP_S)
    raise NotRunning(
        f"the fleet's controller ended (exit status {process.returncode}):"
        f" {_last_line(log, start)}",
        hint=f"its log is {log}",
    )


def _spawn(
    words: Arguments, home: Path, log: Path
) -> tuple[subprocess.Popen[bytes], Any]:
    part = ["--part", words.text("part")] if words.has("part") else []
    reader, writer = os.pipe()
    reports = os.fdopen(reader)
    try:
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [
                    *(find_program("pilotctl"), "fleet", "up", words.positional(0)),
                    *("--home", str(home), *part),
                    *("--foreground", "--report", str(writer)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[writer],
                start_new_session=True,
            )
    except OSError as error:
        reports.close()
        raise StorageError(
            f"cannot start the fleet's controller: {error.strerror}"
        ) from None
    finally:
        os.close(writer)
    return process, reports


def _last_line(log: Path, start: int) -> str:
    with open(log, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    said = [line for line in lines if line.strip() and not line.startswith("hint:")]
    return said[-1].strip() if said else "it said nothing"
