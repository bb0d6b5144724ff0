"""Real rendezvous and daemons on an internet of namespaces."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.paths.nat import PORT, Host, Internet, Nat, Router
from tests.support.programs import Program, World, data_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Paths", "paths"]

RENDEZVOUS_IP: Final = "203.0.113.1"
POLL_S: Final = 0.1
OURS, OFFICIAL = "ours", "official"


@dataclass
class Paths(World):
    """A rendezvous on the public segment; each daemon is named as its host."""

    internet: Internet = field(default_factory=Internet)
    hosts: dict[str, Host] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    """Whose daemon runs on a host."""
    nodes: dict[str, str] = field(default_factory=dict)

    # Places

    def add_rendezvous(self) -> None:
        """Put the rendezvous on the public segment, on IPv4 and IPv6."""
        host = self.internet.public_host("rendezvous", RENDEZVOUS_IP)
        self.hosts["rendezvous"] = host
        self.restart_rendezvous()

    def restart_rendezvous(self) -> None:
        """Start it again where it was."""
        self.registry, self.beacon = ":9000", ":9001"
        self.start_rendezvous()
        self.use_ipv4()

    def use_ipv4(self) -> None:
        """Have daemons that start from now on go there over IPv4."""
        self.registry = f"{RENDEZVOUS_IP}:9000"
        self.beacon = f"{RENDEZVOUS_IP}:9001"

    def use_ipv6(self) -> None:
        """Have daemons that start from now on go there over IPv6."""
        self.registry, self.beacon = "[2001:db8::1]:9000", "[2001:db8::1]:9001"

    def behind(self, name: str, kind: Nat) -> Router:
        """Put a host behind a router of its own."""
        router = self.internet.router(name, kind)
        self.hosts[name] = router.host(name)
        return router

    def beside(self, name: str, router: Router) -> Host:
        """Put another host behind a router that is there."""
        host = self.hosts[name] = router.host(name)
        return host

    def in_public(self, name: str, *, ipv4: bool = True) -> Host:
        """Put a host on the public segment."""
        host = self.hosts[name] = self.internet.public_host(name, ipv4=ipv4)
        return host

    # Programs

    def start(self, name: str, *argv: object, **env: str) -> Program:
        """Start a program on the host of that name."""
        return super().start(name, "ip", "netns", "exec", name, *argv, **env)

    def run_ctl(
        self, program: Path, name: str, *argv: str, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command line client on the host of that name."""
        # It asks the registry as well, so it needs the host's network.
        return subprocess.run(
            ["ip", "netns", "exec", name, program, "--json", *argv],
            env=self.environment(PILOT_SOCKET=str(self.socket(name)), **env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def run_daemon(
        self, name: str, kind: str, *flags: str, listen: str = f":{PORT}"
    ) -> None:
        """Start a public node, ours or an official one."""
        self.kinds[name] = kind
        if kind == OURS:
            self.start_daemon(name, "--public", "--listen", listen, *flags)
        else:
            self.start_official_daemon(name, "-public", "-listen", listen, *flags)
        self.nodes[name] = str(self.client(name, "info")["node_id"])

    def client(self, name: str, *argv: str) -> Any:
        """Run the client that belongs to the host's daemon."""
        ctl = self.ctl if self.kinds[name] == OURS else self.official_ctl
        return data_of(ctl(name, *argv))

    # What happens

    def dial(self, source: str, target: str) -> float:
        """Ping a node for the first time; return the seconds that it took."""
        began = time.monotonic()
        self.ping(source, target)
        return time.monotonic() - began

    def ping(self, source: str, target: str) -> float:
        """Ping a node once, which must succeed; return the round trip in ms."""
        answer = self.client(source, "ping", self.nodes[target], "--count", "1")
        (result,) = answer["results"]
        assert result.get("error") is None, result
        return float(result["rtt_ms"])

    def is_relayed(self, source: str, target: str) -> bool:
        """Tell how ``source`` sends to ``target``."""
        for peer in self.client(source, "peers")["peers"] or ():
            if str(peer["node_id"]) == self.nodes[target]:
                return bool(peer["relay"])
        # Nobody has met yet: certainly not directly.
        return True

    def is_direct(self, source: str, target: str) -> bool:
        """Tell whether both send to each other without the relay."""
        return not (self.is_relayed(source, target) or self.is_relayed(target, source))

    def wait(self, what: Callable[[], bool], limit: float) -> float:
        """Return how many seconds it took until ``what`` held."""
        began = time.monotonic()
        while time.monotonic() - began < limit:
            if what():
                return time.monotonic() - began
            time.sleep(POLL_S)
        logs = {name: self.log_tail(name) for name in self.kinds}
        raise AssertionError(f"not within {limit} s: {logs}")

    def note(self, text: str) -> None:
        """Write a measured time; ``pytest -rP`` shows it."""
        sys.stdout.write(f"measured: {text}\n")

    def log_tail(self, name: str) -> str:
        """Return the end of a daemon's log."""
        return (self.home / f"{name}.log").read_text()[-1500:]


@contextlib.contextmanager
def paths() -> Iterator[Paths]:
    """Yield an internet with a rendezvous; everything is taken away at the end."""
    with tempfile.TemporaryDirectory(prefix="pp-") as folder:
        made = Paths(Path(folder))
        try:
            made.add_rendezvous()
            yield made
        finally:
            made.stop()
            made.internet.close()
