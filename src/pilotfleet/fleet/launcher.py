"""Start every program that a fleet needs, and stop them in order.

A hub-and-spoke fleet on one machine is: a rendezvous (unless one runs already),
a daemon for the hub, a daemon that hosts all workers, and the worker program that
runs their tasks. Hub and workers have daemons of their own, so that tasks really
cross an encrypted tunnel between two processes.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.client.registry import RegistryClient
from pilotfleet.errors import (
    AlreadyExists,
    AuthRequired,
    ConnectionFailed,
    StorageError,
    Unavailable,
)
from pilotfleet.fleet.network import open_network, write_secret
from pilotfleet.fleet.processes import ChildProcess
from pilotfleet.fleet.spec import EMBEDDED
from pilotfleet.protocol.ipc.commands import Command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from pilotfleet.fleet.network import FleetNetwork
    from pilotfleet.fleet.spec import FleetSpec
    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.transport.tls import TlsConfig

__all__ = ["HUB", "Launcher"]

HUB: Final = "hub"
"""Hostname suffix of the agent that hands out tasks and brokers events."""

RENDEZVOUS_READY_S: Final = 30.0
RENDEZVOUS_ANSWER_S: Final = 10.0
DAEMON_READY_S: Final = 30.0
READY_PER_AGENT_S: Final = 0.05
"""Added to the limit for each hosted agent."""


@dataclass(frozen=True, slots=True)
class _Addresses:
    registry: str
    beacon: str


class Launcher:
    """The running programs of one fleet, as an asynchronous context manager.

    Entering starts everything and returns once every agent is registered; on any
    failure what was started is stopped again.
    """

    def __init__(
        self,
        spec: FleetSpec,
        home: Path,
        *,
        progress: Callable[[str], None],
        tls: TlsConfig | None = None,
    ) -> None:
        """Prepare a fleet whose files live in ``home``.

        Args:
            progress: Told in a few words what is being started.
            tls: How to check a registry that runs already; None for plain TCP.
        """
        self.spec = spec
        self.home = home
        self.hub_name = f"{spec.fleet.name}-{HUB}"
        self.hub_socket = home / "hub.sock"
        self.workers_socket = home / "workers.sock"
        self._progress = progress
        # The rendezvous that the launcher starts itself is on loopback.
        self._tls = None if spec.fleet.rendezvous == EMBEDDED else tls
        self._children: list[ChildProcess] = []
        self._lock: int | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    async def watch(self) -> None:
        """Wait for ever, unless a program of the fleet ends.

        Raises:
            NotRunning: A program ended; the message names it and its last words.
        """
        waits = [asyncio.ensure_future(child.wait()) for child in self._children]
        try:
            await asyncio.gather(*waits)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _start(self) -> None:
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock_home(self.home)
        except OSError as error:
            raise StorageError(
                f"cannot use {self.home} as the fleet's home: {error.strerror}"
            ) from None
        addresses = await self._start_rendezvous()
        self._progress(f"starting {self.hub_name}")
        await self._start_daemon(
            "hub", addresses, "--hostname", self.hub_name, socket=self.hub_socket
        )
        network = await self._open_network(addresses)
        await self._start_workers(addresses, network)

    async def _stop(self) -> None:
        """Stop in the reverse order of starting: users before what they use."""
        while self._children:
            await self._children.pop().stop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _start_rendezvous(self) -> _Addresses:
        fleet = self.spec.fleet
        if fleet.rendezvous != EMBEDDED:
            await _check_rendezvous(fleet.rendezvous, self._tls)
            beacon = fleet.beacon or _beacon_beside(fleet.rendezvous)
            return _Addresses(fleet.rendezvous, beacon)
        self._progress("starting the rendezvous")
        token_file = self.home / "admin.token"
        if not token_file.exists():
            write_secret(token_file, secrets.token_hex(16).encode())
        child = await self._start_child(
            "rendezvous",
            "pilot-rendezvous",
            *("--registry-addr", "127.0.0.1:0", "--beacon-addr", "127.0.0.1:0"),
            *("--http", "127.0.0.1:0", "--admin-token-file", str(token_file)),
            *("--store", f"sqlite:///{self.home / 'registry.db'}"),
        )
        ready = await child.wait_ready(RENDEZVOUS_READY_S)
        return _Addresses(ready["registry"], ready["beacon"])

    async def _start_daemon(
        self,
        name: str,
        addresses: _Addresses,
        *arguments: str,
        socket: Path,
        token: str = "",
        agents: int = 1,
    ) -> None:
        child = await self._start_child(
            name,
            "pilot-daemon",
            *("--registry", addresses.registry, "--beacon", addresses.beacon),
            *("--listen", _listen_address(addresses), "--socket", str(socket)),
            *("--home", str(self.home / name), "--broker", self.hub_name),
            *self._tls_flags(),
            *arguments,
            environment={"PILOT_JOIN_TOKEN": token},
        )
        await child.wait_ready(
            DAEMON_READY_S + READY_PER_AGENT_S * agents + self.spec.stagger_s
        )

    def _tls_flags(self) -> list[str]:
        # Said in any case: the user's variables are for his own registry.
        if self._tls is None:
            return ["--registry-tls=false"]
        if self._tls.fingerprint is None:
            return ["--registry-tls=true", "--registry-trust", "system"]
        pin = ["--registry-fingerprint", self._tls.fingerprint]
        return ["--registry-tls=true", "--registry-trust", "pinned", *pin]

    async def _start_workers(
        self, addresses: _Addresses, network: FleetNetwork
    ) -> None:
        workers = self.spec.workers
        self._progress(f"starting {workers.count} workers")
        await self._start_daemon(
            "workers",
            addresses,
            *("--agents", str(workers.count), "--agent-prefix", self.spec.prefix),
            *(flag for tag in workers.tags for flag in ("--tag", tag)),
            *("--join", str(network.network_id)),
            *("--stagger", self.spec.fleet.stagger),
            socket=self.workers_socket,
            token=network.token,
            agents=workers.count,
        )
        child = await self._start_child(
            "worker",
            "openclaw-worker",
            *("--ids", f"{self.spec.prefix}[1-{workers.count}]"),
            *("--exec", workers.exec, "--concurrency", str(workers.concurrency)),
            *("--timeout", workers.timeout, "--socket", str(self.workers_socket)),
            # A fleet is stopped when nobody waits for results any more.
            *("--drain", "0s"),
        )
        await child.wait_ready(DAEMON_READY_S)

    async def _start_child(
        self,
        name: str,
        *arguments: str,
        environment: dict[str, str] | None = None,
    ) -> ChildProcess:
        ready = ChildProcess.ready_file(self.home, name)
        child = await ChildProcess.start(
            name,
            [*arguments, "--ready-file", str(ready)],
            home=self.home,
            environment=environment,
        )
        self._children.append(child)
        return child

    async def _open_network(self, addresses: _Addresses) -> FleetNetwork:
        """Return the fleet's network, made by an earlier run or now by the hub."""
        async with await DaemonClient.connect(self.hub_socket) as hub:
            node_id = (await hub.request_json(Command.INFO))["node_id"]
        endpoint = _endpoint(addresses.registry)
        async with RegistryClient(endpoint, tls=self._tls) as registry:
            return await open_network(
                self.home / "network.json",
                self.spec.fleet.name,
                registry=registry,
                owner=node_id,
                admin_token=self._admin_token,
            )

    def _admin_token(self) -> str:
        if self.spec.fleet.rendezvous == EMBEDDED:
            return (self.home / "admin.token").read_text()
        token = os.environ.get("PILOT_ADMIN_TOKEN", "")
        if not token:
            raise AuthRequired(
                "admin token required to create the fleet's network",
                hint="set PILOT_ADMIN_TOKEN to the rendezvous' admin token",
            )
        return token


def _lock_home(home: Path) -> int:
    """Return a descriptor that keeps other launchers out until it is closed.

    Two fleets in one home would write the same files.
    """
    lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise AlreadyExists(
            f"a fleet runs in {home} already",
            hint="wait until it has ended, or choose another --home",
        ) from None
    return lock


async def _check_rendezvous(address: str, tls: TlsConfig | None) -> None:
    """Find out now what a daemon would only try again and again."""
    try:
        async with (
            asyncio.timeout(RENDEZVOUS_ANSWER_S),
            RegistryClient(_endpoint(address), tls=tls) as registry,
        ):
            await registry.list_networks()
    except (TimeoutError, Unavailable) as error:
        reason = str(error) or f"no answer in {RENDEZVOUS_ANSWER_S:g} s"
        raise ConnectionFailed(
            f"no rendezvous answers at {address}: {reason}",
            hint='check [fleet] rendezvous, or set it to "embedded"',
        ) from None


def _beacon_beside(registry: str) -> str:
    host, _, port = registry.rpartition(":")
    return f"{host}:{int(port) + 1}"


def _listen_address(addresses: _Addresses) -> str:
    """Listen on loopback for a rendezvous on loopback, else on every address."""
    host, _ = _endpoint(addresses.registry)
    return "127.0.0.1:0" if host in ("127.0.0.1", "localhost") else ":0"


def _endpoint(text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
