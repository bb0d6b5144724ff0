"""The question before anything is opened to a peer: may it be reached?

cli.md section 5. A peer that trusts us may, a public one may, and so may a member
of a network that we share: the members of a fleet need no pairwise trust. The
built-in list of well-known agents of the official program has no counterpart here.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.connection import is_too_old
from pilotfleet.cli.registry import ask_registry
from pilotfleet.errors import (
    ConnectionFailed,
    DaemonError,
    RegistryError,
    TrustRequired,
)
from pilotfleet.protocol.ipc.commands import Command, HandshakeSub, pack_node

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context
    from pilotfleet.protocol.address import Address

__all__ = ["check_trust"]

OLD_DAEMON_WAIT_MS: Final = 21_000
"""How long a daemon without ``reply_window`` gets to make trust."""
_WAIT: Final = struct.Struct("!BII")


def check_trust(context: Context, arguments: Arguments, peer: Address) -> None:
    """Return when the peer may be reached.

    Raises:
        TrustRequired: It is private and does not trust us, or cannot be judged.
    """
    if arguments.enabled("no-auto-handshake") or _is_trusted(context, peer, 0):
        return
    node = _look_up(context, peer)
    info = context.daemon().request_json(Command.INFO)
    if not node.get("public") and not _shares_network(info, node):
        raise TrustRequired(
            f"refusing tunnel to private node {peer} without trust",
            hint=f"run: pilotctl handshake {peer}",
        )
    if "reply_window" not in (info.get("features") or ()):
        _make_trust(context, peer)


def _is_trusted(context: Context, peer: Address, timeout_ms: int) -> bool:
    payload = _WAIT.pack(HandshakeSub.WAIT, peer.node, timeout_ms)
    try:
        reply = context.daemon().request_json(Command.HANDSHAKE, payload)
    except DaemonError as error:
        if is_too_old(error):
            return False
        raise
    return reply.get("trusted") is True


def _look_up(context: Context, peer: Address) -> dict[str, Any]:
    try:
        return ask_registry(context, type="lookup", node_id=peer.node)
    except ConnectionFailed as error:
        raise TrustRequired(
            f"cannot verify peer visibility (registry unreachable: {error});"
            " refusing tunnel to untrusted node"
        ) from error
    except RegistryError as error:
        reason = str(error).removeprefix(f"{context.command}: ")
        raise TrustRequired(
            f"cannot look up peer {peer} ({reason}); refusing tunnel to untrusted node",
            hint=f"run: pilotctl handshake {peer}",
        ) from error


def _shares_network(info: dict[str, Any], node: dict[str, Any]) -> bool:
    ours = {
        row.get("network_id")
        for row in info.get("networks") or ()
        if isinstance(row, dict)
    }
    return bool(ours.intersection(node.get("networks") or ()) - {0})


def _make_trust(context: Context, peer: Address) -> None:
    """Give an older daemon the chance to make trust; go on in any case."""
    request = bytes([HandshakeSub.SEND]) + pack_node(peer.node)
    try:
        context.daemon().request(
            Command.HANDSHAKE, request + b"auto-handshake: public peer"
        )
        _is_trusted(context, peer, OLD_DAEMON_WAIT_MS)
    except DaemonError as error:
        context.output.note(f"auto-handshake: {error}")
