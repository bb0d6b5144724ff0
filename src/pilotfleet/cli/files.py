"""send-file: a file to a node's received files (cli.md section 6.5)."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from pilotfleet.cli.connection import is_too_old
from pilotfleet.cli.filetransfer import Transfer
from pilotfleet.cli.gate import check_trust
from pilotfleet.cli.mailfolder import size_text
from pilotfleet.cli.terminal import printable
from pilotfleet.errors import DaemonError, InvalidArgument, NotFound, StorageError
from pilotfleet.protocol.ipc.commands import Command, pack_node

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context
    from pilotfleet.protocol.address import Address

DEFAULT_TIMEOUT_S: Final = 90.0


def send_file(context: Context, arguments: Arguments) -> None:
    """Send a file to a node."""
    context.require(arguments, 2)
    timeout = arguments.duration("timeout", DEFAULT_TIMEOUT_S, allow_negative=True)
    timeout = timeout if timeout > 0 else DEFAULT_TIMEOUT_S
    context.daemon()
    try:
        peer = context.resolve(arguments.positional(0))
    except NotFound as error:
        # The official program says so here, and not_found in all other commands.
        raise InvalidArgument(str(error)) from error
    check_trust(context, arguments, peer)
    path = arguments.positional(1)
    with _open_file(path) as file:
        if arguments.enabled("prefer-direct"):
            _prefer_direct(context, peer)
        transfer = Transfer(context, file, os.path.basename(path), peer, timeout)
        result = None
        if not arguments.enabled("no-stream"):
            result = transfer.send_streamed()
        if result is None:
            result = transfer.send_whole()
    context.output.result(result, _result_text(result))


def _open_file(path: str) -> BinaryIO:
    try:
        # Opening a pipe would wait for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise NotFound(f"file not found: {path}") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise InvalidArgument(f"{path} is a directory, not a file")
    raise InvalidArgument(f"{path} is not a regular file")


def _prefer_direct(context: Context, peer: Address) -> None:
    """Drop the tunnel to a peer, so that a direct path is tried again."""
    try:
        reply = context.daemon().request_json(
            Command.PREFER_DIRECT, pack_node(peer.node)
        )
    except DaemonError as error:
        reason = "the daemon is too old" if is_too_old(error) else str(error)
        context.output.note(f"--prefer-direct: {reason}")
        return
    words = " ".join(
        f"{name}={str(bool(reply.get(key))).lower()}"
        for name, key in (
            ("tunnel", "had_tunnel"),
            ("relay_was_active", "was_relay_active"),
            ("relay_was_pinned", "was_relay_pinned"),
        )
    )
    context.output.note(f"--prefer-direct: {words}")


def _result_text(result: dict[str, Any]) -> str:
    text = (
        f"sent {printable(result['filename'])} ({size_text(result['bytes'])}) to"
        f" {result['destination']} in {result['elapsed_ms']} ms"
        f" ({result['throughput_mbps']:.3g} Mbit/s)"
    )
    if result.get("bytes_resumed"):
        text += f", {size_text(result['bytes_resumed'])} of it were there already"
    if "sha256" in result:
        text += f"\nsha256 {result['sha256']}"
    return text
