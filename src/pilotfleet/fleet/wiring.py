"""What the programs of a fleet must know of each other to be started."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import AuthRequired
from pilotfleet.fleet.home import link_agents
from pilotfleet.fleet.keeper import Command
from pilotfleet.fleet.network import write_secret
from pilotfleet.fleet.plan import HUB, MONITOR, Role
from pilotfleet.fleet.spec import EMBEDDED
from pilotfleet.fleet.worker.environment import FLEET_SECRETS
from pilotfleet.protocol.registry.endpoints import format_endpoint, parse_endpoint

if TYPE_CHECKING:
    from pathlib import Path

    from pilotfleet.fleet.network import FleetNetwork
    from pilotfleet.fleet.plan import Member
    from pilotfleet.fleet.spec import FleetSpec
    from pilotfleet.transport.tls import TlsConfig

__all__ = ["Wiring"]

LOOPBACK: Final = "127.0.0.1"
FREE_PORT: Final = f"{LOOPBACK}:0"


@dataclass(frozen=True, slots=True)
class _Addresses:
    """Of the rendezvous; port 0 until it has chosen."""

    registry: str = FREE_PORT
    beacon: str = FREE_PORT
    http: str = FREE_PORT


class Wiring:
    """Addresses, sockets and secrets, which become known while a fleet starts.

    What is known stays: a rendezvous or hub that is started again gets the ports that
    it had, where the others look for it.
    """

    def __init__(self, spec: FleetSpec, home: Path, *, tls: TlsConfig | None) -> None:
        self.home = home
        # The rendezvous that the launcher starts itself speaks plain TCP.
        self.tls = None if spec.fleet.rendezvous == EMBEDDED else tls
        self.sockets = home / "run"
        """Folder of the daemons' sockets."""
        self.network: FleetNetwork | None = None
        """Joined by all but the hub, which owns it."""
        self.hub_port = 0
        """UDP port of the hub; 0 for any."""
        self.monitor_url: str | None = None
        """Of the monitor's pages, once it is ready."""
        self._is_embedded = spec.fleet.rendezvous == EMBEDDED
        self._addresses = _first_addresses(spec)
        self._monitor_http = spec.monitor.http if spec.monitor is not None else ""

    @property
    def registry(self) -> str:
        """The registry's ``host:port``."""
        return self._addresses.registry

    def socket(self, daemon: str) -> Path:
        """Return the socket of the daemon of that name."""
        return self.sockets / f"{daemon}.sock"

    def note_ready(self, member: Member, ready: dict[str, Any]) -> None:
        """Take note of the ports that the rendezvous or monitor has chosen."""
        if member.role is Role.RENDEZVOUS:
            known = {key: ready[key] for key in ("registry", "beacon", "http")}
            self._addresses = replace(self._addresses, **known)
        if member.role is Role.MONITOR:
            self._monitor_http = ready["http"]
            self.monitor_url = f"http://{ready['http']}/"

    def command(self, member: Member) -> Command:
        """Return how to start a member now."""
        if member.role is Role.RENDEZVOUS:
            return Command(tuple(self._rendezvous_flags()), {})
        # A command of a task, or of an alert, can read the environment of the program
        # over it.
        hidden = dict.fromkeys(FLEET_SECRETS, "")
        if member.role is Role.MONITOR:
            return Command((*member.arguments, *self._monitor_flags()), hidden)
        if member.role in (Role.RUNNER, Role.SUBRUNNER):
            assert member.needs is not None
            flags = ("--socket", str(self.socket(member.needs)))
            return Command((*member.arguments, *flags), hidden)
        if member.role is Role.GROUP:
            link_agents(self.home, member.name)
        network = self.network if member.role is not Role.HUB else None
        join = ("--join", str(network.network_id)) if network else ()
        return Command(
            (*self._daemon_flags(member), *member.arguments, *join),
            {"PILOT_JOIN_TOKEN": network.token if network else ""},
        )

    def admin_token(self) -> str:
        """Return the rendezvous' admin token.

        Raises:
            AuthRequired: It is not ours, and we were not told.
        """
        if self._is_embedded:
            return (self.home / "admin.token").read_text()
        token = os.environ.get("PILOT_ADMIN_TOKEN", "")
        if not token:
            raise AuthRequired(
                "admin token required to create the fleet's network",
                hint="set PILOT_ADMIN_TOKEN to the rendezvous' admin token",
            )
        return token

    def _rendezvous_flags(self) -> list[str]:
        token_file = self.home / "admin.token"
        if not token_file.exists():
            write_secret(token_file, secrets.token_hex(16).encode())
        addresses = self._addresses
        return [
            *("--registry-addr", addresses.registry),
            *("--beacon-addr", addresses.beacon, "--http", addresses.http),
            *("--admin-token-file", str(token_file)),
            *("--store", f"sqlite:///{self.home / 'registry.db'}"),
        ]

    def _monitor_flags(self) -> list[str]:
        return [
            *("--socket", str(self.socket(HUB)), "--http", self._monitor_http),
            *("--home", str(self.home / MONITOR)),
        ]

    def _daemon_flags(self, member: Member) -> list[str]:
        # Loopback for a rendezvous on loopback, else every address.
        host, _ = parse_endpoint(self.registry)
        own = LOOPBACK if host in (LOOPBACK, "localhost") else ""
        port = self.hub_port if member.name == HUB else 0
        return [
            *("--registry", self.registry, "--beacon", self._addresses.beacon),
            *("--listen", f"{own}:{port}"),
            *("--socket", str(self.socket(member.name))),
            *("--home", str(self.home / member.name)),
            *self._tls_flags(),
        ]

    def _tls_flags(self) -> list[str]:
        # Said in any case: the user's variables are for his own registry.
        if self.tls is None:
            return ["--registry-tls=false"]
        if self.tls.fingerprint is None:
            return ["--registry-tls=true", "--registry-trust", "system"]
        pin = ["--registry-fingerprint", self.tls.fingerprint]
        return ["--registry-tls=true", "--registry-trust", "pinned", *pin]


def _first_addresses(spec: FleetSpec) -> _Addresses:
    """Return where the rendezvous is, or shall be."""
    fleet = spec.fleet
    if fleet.rendezvous != EMBEDDED:
        host, port = parse_endpoint(fleet.rendezvous)
        beacon = fleet.beacon or format_endpoint((host, port + 1))
        return _Addresses(fleet.rendezvous, beacon)
    if not fleet.listen:
        return _Addresses()
    host, port = fleet.listen, fleet.listen_port
    return _Addresses(format_endpoint((host, port)), format_endpoint((host, port + 1)))
