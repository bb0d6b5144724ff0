"""Run real programs in tests: ours and the official ones, as a user would."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.support.official import WITH_TASKS, official_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

READY_S: Final = 60.0
BIN: Final = Path(sys.executable).parent


@dataclass
class Program:
    """A running program and where its output goes."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Return when ``is_ready``; fail if the program ends or takes too long."""
        for _ in range(int(READY_S / 0.02)):
            # Looked at first: it may end because of what is waited for.
            status = self.process.poll()
            if is_ready():
                return
            if status is not None:
                raise AssertionError(f"ended with {status}:\n{self.log.read_text()}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)
        raise AssertionError(f"not ready:\n{self.log.read_text()}")

    def kill(self) -> None:
        """SIGKILL it and everything it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM it; return its exit status."""
        self.process.terminate()
        return self.process.wait(READY_S)


@dataclass
class World:
    """A folder, a rendezvous and daemons; everything is stopped at the end."""

    home: Path
    programs: list[Program] = field(default_factory=list)
    registry: str = "127.0.0.1:0"
    beacon: str = "127.0.0.1:0"
    admin_token: str = "the-admin-token"

    def start(self, name: str, *argv: object, **env: str) -> Program:
        """Start a program in its own session with its log in the folder."""
        log = self.home / f"{name}.log"
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [str(argument) for argument in argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environment(**env),
                start_new_session=True,
            )
        program = Program(process, log)
        self.programs.append(program)
        return program

    def environment(self, **extra: str) -> dict[str, str]:
        """Return an environment that no configuration of the user leaks into."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PILOT_REGISTRY": self.registry,
            "PILOT_NO_SKILLINJECT": "1",
            **extra,
        }

    def start_rendezvous(self, store: str | None = None, *flags: object) -> Program:
        """Start ``pilot-rendezvous``; on a restart it takes its old ports."""
        token_file = self.home / "admin.token"
        token_file.write_text(self.admin_token)
        token_file.chmod(0o600)
        ready = self.home / "rendezvous.ready.json"
        ready.unlink(missing_ok=True)
        program = self.start(
            "rendezvous",
            BIN / "pilot-rendezvous",
            *("--registry-addr", self.registry, "--beacon-addr", self.beacon),
            *("--http", "", "--admin-token-file", token_file),
            *("--store", store or f"sqlite:///{self.home / 'registry.db'}"),
            *("--ready-file", ready, *flags),
        )
        program.wait_until(ready.exists)
        addresses = json.loads(ready.read_text())
        self.registry, self.beacon = addresses["registry"], addresses["beacon"]
        return program

    def start_daemon(self, name: str, *flags: str, **env: str) -> Program:
        """Start our daemon; its socket is ``socket(name)``."""
        ready = self.home / f"{name}.ready.json"
        ready.unlink(missing_ok=True)
        program = self.start(
            name,
            BIN / "pilot-daemon",
            *("--registry", self.registry, "--beacon", self.beacon),
            *("--listen", "127.0.0.1:0", "--socket", self.socket(name)),
            *("--home", self.home / name, "--ready-file", ready, *flags),
            **env,
        )
        program.wait_until(ready.exists)
        return program

    def start_official_daemon(self, name: str, *flags: str) -> Program:
        """Start an official 1.18.0 daemon with a home of its own."""
        home = self.home / name
        home.mkdir(exist_ok=True)
        program = self.start(
            name,
            official_program("pilot-daemon"),
            *("-registry", self.registry, "-beacon", self.beacon),
            *("-listen", "127.0.0.1:0", "-socket", self.socket(name)),
            *("-identity", home / "identity.json", "-email", f"{name}@example.test"),
            *("-motd-feed-url", "", "-telemetry-url", "", "-no-skillinject", *flags),
            HOME=str(home),
        )
        program.wait_until(lambda: self.official_ctl(name, "info").returncode == 0)
        return program

    def start_daemon_191(self, name: str, *flags: str) -> Program:
        """Start an official 1.9.1 daemon, which has tasks, with a home of its own."""
        home = self.home / name
        home.mkdir(exist_ok=True)
        program = self.start(
            name,
            official_program("pilot-daemon", WITH_TASKS),
            *("-registry", self.registry, "-beacon", self.beacon),
            *("-listen", "127.0.0.1:0", "-socket", self.socket(name)),
            *("-identity", home / "identity.json", "-email", f"{name}@example.test"),
            *flags,
            HOME=str(home),
            # It has no flags to keep its feeds off; nothing listens on this port.
            HTTPS_PROXY="http://127.0.0.1:9",
            HTTP_PROXY="http://127.0.0.1:9",
        )
        program.wait_until(lambda: self.ctl_191(name, "info").returncode == 0)
        return program

    def socket(self, name: str) -> Path:
        """Return the local socket of the daemon called ``name``."""
        return self.home / f"{name}.sock"

    def ctl(self, name: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run our ``pilotctl --json`` against the daemon called ``name``."""
        return self.run_ctl(BIN / "pilotctl", name, *argv)

    def official_ctl(self, name: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run the official ``pilotctl --json`` against the daemon ``name``."""
        return self.run_ctl(official_program("pilotctl"), name, *argv)

    def ctl_191(self, name: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run the 1.9.1 ``pilotctl --json`` in the home of the daemon ``name``.

        It keeps the task files itself, beside the daemon.
        """
        program = official_program("pilotctl", WITH_TASKS)
        return self.run_ctl(program, name, *argv, HOME=str(self.home / name))

    def run_ctl(
        self, program: Path, name: str, *argv: str, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run one command line client to its end."""
        return subprocess.run(
            [program, "--json", *argv],
            env=self.environment(PILOT_SOCKET=str(self.socket(name)), **env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=False,
        )

    def run_ctl_admin(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run our ``pilotctl`` with the rendezvous' admin token."""
        return subprocess.run(
            [BIN / "pilotctl", "--json", *argv],
            env=self.environment(PILOT_ADMIN_TOKEN=self.admin_token),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=False,
        )

    def directory_of(self, *nodes: str) -> list[dict[str, Any]]:
        """Return what the registry says of ``nodes``, without the times."""
        lookups = [data_of(self.run_ctl_admin("lookup", node)) for node in nodes]
        for lookup in lookups:
            lookup.pop("last_seen_unix")
        return lookups

    def stop(self) -> None:
        """Kill everything that still runs."""
        while self.programs:
            self.programs.pop().kill()


def data_of(result: subprocess.CompletedProcess[str]) -> Any:
    """Return the ``data`` of a command that must have succeeded."""
    assert result.returncode == 0, result.stderr + result.stdout
    answer = json.loads(result.stdout)
    assert answer["status"] == "ok"
    return answer["data"]


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Yield a world in a short path: socket paths have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="pf-") as folder:
        made = World(Path(folder))
        try:
            yield made
        finally:
            made.stop()
