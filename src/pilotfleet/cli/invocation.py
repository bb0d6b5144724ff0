"""What a command is given: output, settings, and the daemon when it asks for it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from pilotfleet.cli.arguments import read_number
from pilotfleet.cli.connection import Daemon, Deadline
from pilotfleet.cli.failures import UsageError
from pilotfleet.cli.settings import Settings
from pilotfleet.errors import (
    ConnectionFailed,
    DaemonError,
    DecodeError,
    InvalidArgument,
    NotFound,
    TimedOut,
)
from pilotfleet.protocol.address import BACKBONE, Address, SocketAddress
from pilotfleet.protocol.ipc.commands import Command

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments, Invocation
    from pilotfleet.cli.connection import Stream
    from pilotfleet.cli.output import Output

__all__ = ["Context", "parse_network", "parse_port", "read_target"]


def parse_port(text: str) -> int:
    """Read a port.

    Raises:
        InvalidArgument: Not a number from 0 to 65535.
    """
    port = read_number(text, 0xFFFF)
    if port is None:
        raise InvalidArgument(f'invalid port "{text[:40]}": not a number up to 65535')
    return port


def parse_network(text: str) -> int:
    """Read a network's number.

    Raises:
        InvalidArgument: Not a number from 0 to 65535.
    """
    network = read_number(text, 0xFFFF)
    if network is None:
        raise InvalidArgument(
            f'invalid network_id "{text[:40]}": not a number up to 65535'
        )
    return network


class Context:
    """One invocation of a command."""

    __slots__ = (
        "_daemon",
        "_verbose",
        "agent",
        "command",
        "output",
        "settings",
        "socket",
        "usage",
    )

    def __init__(
        self, invocation: Invocation, output: Output, *, command: str, usage: str
    ) -> None:
        self.command = command
        self.usage = usage
        self.output = output
        self.agent = invocation.agent or os.environ.get("PILOT_AGENT") or None
        self.settings = Settings()
        self.socket = self.settings.socket
        """The daemon's; a command may choose another before it asks for it."""
        self._daemon: Daemon | None = None
        if self.settings.warning:
            output.warn(self.settings.warning)
        self._verbose = invocation.verbose

    @property
    def json(self) -> bool:
        """Whether the result is for a program."""
        return self.output.json

    def close(self) -> None:
        """Disconnect from the daemon; the next use connects again."""
        if self._daemon is not None:
            self._daemon.close()
            self._daemon = None

    def require(self, arguments: Arguments, count: int) -> None:
        """Check that enough positionals were given.

        Raises:
            UsageError: There are fewer.
        """
        if len(arguments.positionals) < count:
            raise self.usage_error()

    def require_flags(self, arguments: Arguments, *flags: str) -> None:
        """Check that flags were given, each with a value.

        Raises:
            UsageError: One is missing.
        """
        if not all(arguments.text(flag) for flag in flags):
            raise self.usage_error()

    def usage_error(self) -> UsageError:
        """Return the error that shows how the command is used."""
        return UsageError(f"usage: pilotctl {self.command} {self.usage}".rstrip())

    # The daemon.

    def daemon(self) -> Daemon:
        """Return the connection to the daemon, as the selected agent.

        Raises:
            NotRunning: No daemon answers.
            NotFound: The daemon hosts no such agent.
        """
        if self._daemon is None:
            if self._verbose:
                sys.stderr.write(f"connecting to daemon socket {self.socket}\n")
            self._daemon = Daemon(self.socket)
            if self.agent is not None:
                self._daemon.call("select-agent", name=self.agent)
        return self._daemon

    def ask(self, command: Command, payload: bytes, operation: str) -> dict[str, Any]:
        """Send a simple request and return the reply's object.

        Args:
            command: The request.
            payload: What follows the command byte.
            operation: The operation's name in error texts (ipc.md section 11).

        Raises:
            DaemonError: ``<command>: <operation>: daemon: <the daemon's text>``.
        """
        daemon = self.daemon()
        try:
            return daemon.request_json(command, payload)
        except DaemonError as error:
            text = f"{self.command}: {operation}: daemon: {error}"
            raise DaemonError(text) from error

    def dial(self, address: Address, port: int, *, deadline: Deadline) -> Stream:
        """Open a stream to a peer, or say how to find out why not.

        Raises:
            ConnectionFailed: It could not be opened.
        """
        try:
            return self.daemon().dial(SocketAddress(address, port), deadline=deadline)
        except (DaemonError, TimedOut) as error:
            self.output.note(f"dial: daemon: {error}")
            raise ConnectionFailed(
                f"cannot connect to {address} port {port}",
                hint=f"check that {address} is reachable: pilotctl ping {address}",
            ) from error

    # Targets (cli.md section 1.3).

    def resolve(self, target: str) -> Address:
        """Return the address of an address text, a node number or a hostname.

        For commands that go to the peer; see also `resolve_node`.

        Raises:
            NotFound: The daemon cannot resolve the hostname.
        """
        return self._resolve(
            target,
            "is the hostname correct and is there mutual trust?"
            " (see: pilotctl handshake)",
        )

    def resolve_node(self, target: str) -> Address:
        """Resolve like `resolve`, for commands that only speak about the node.

        Raises:
            NotFound: The daemon cannot resolve the hostname.
        """
        return self._resolve(target, "check the hostname and that mutual trust exists")

    def _resolve(self, target: str, advice: str) -> Address:
        address = read_target(target)
        if address is not None:
            self.daemon()
            return address
        address = self.resolve_hostname(target)
        if address is None:
            raise NotFound(f'cannot resolve "{target}" — {advice}')
        self.output.note(f'resolved "{target}" → {address}')
        return address

    def resolve_hostname(self, name: str) -> Address | None:
        """Return the address of a hostname, or none when it does not resolve."""
        try:
            return self.resolve_name(name)
        except DaemonError:
            return None

    def resolve_name(self, name: str) -> Address:
        """Return the address of a hostname.

        Raises:
            DaemonError: It does not resolve.
        """
        return Address.parse(str(self._ask_hostname(name).get("address")))

    def find_hostname(self, name: str) -> dict[str, Any] | None:
        """Return what the registry says of a hostname, or none."""
        try:
            return self._ask_hostname(name)
        except DaemonError:
            return None

    def _ask_hostname(self, name: str) -> dict[str, Any]:
        payload = name.encode("utf-8", "replace")
        return self.daemon().request_json(Command.RESOLVE_HOSTNAME, payload)


def read_target(target: str) -> Address | None:
    """Return the address that a target states itself, none for a hostname."""
    try:
        return Address.parse(target)
    except DecodeError:
        node = read_number(target, 0xFFFF_FFFF)
        return None if node is None else Address(BACKBONE, node)
