"""Commands that move data: streams and datagrams (cli.md section 6.4)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pilotfleet.cli.arguments import read_number
from pilotfleet.cli.connection import Deadline
from pilotfleet.cli.failures import BroadcastFailed, BroadcastUsage
from pilotfleet.cli.gate import check_trust
from pilotfleet.cli.invocation import parse_port
from pilotfleet.errors import (
    ConnectionFailed,
    ConnectionReset,
    DaemonError,
    DecodeError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PilotError,
    TimedOut,
)
from pilotfleet.protocol.address import SocketAddress
from pilotfleet.protocol.durations import format_duration
from pilotfleet.protocol.ipc.commands import Command

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.connection import Stream
    from pilotfleet.cli.invocation import Context
    from pilotfleet.cli.secure import SecureStream
    from pilotfleet.protocol.address import Address

DEFAULT_PORT = 1000
SECURE_PORT = 443
"""Where ``--secure`` goes; the channel's own module is imported when it is used."""
DEFAULT_TIMEOUT_S = 30.0
MAX_DATAGRAM = 65535


def connect(context: Context, arguments: Arguments) -> None:
    """Send a message, or standard input, and print the first answer."""
    context.require(arguments, 1)
    timeout = arguments.duration("timeout", DEFAULT_TIMEOUT_S)
    is_secure = secure_wanted(arguments)
    peer = _reachable(context, arguments)
    default = SECURE_PORT if is_secure else DEFAULT_PORT
    port = parse_port(arguments.positional(1, str(default)))
    message = arguments.text("message")
    if not arguments.has("message"):
        if sys.stdin.isatty():
            raise InvalidArgument(
                "--message is required (interactive mode not supported)"
            )
        given = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
        message = "\n".join(given.splitlines())
    _exchange(context, peer, port, message, timeout, is_secure=is_secure)


def send(context: Context, arguments: Arguments) -> None:
    """Send data to a port and print the first answer."""
    is_secure = secure_wanted(arguments)
    context.require(arguments, 1 if is_secure else 2)
    timeout = arguments.duration("timeout", DEFAULT_TIMEOUT_S)
    peer = _reachable(context, arguments)
    port = parse_port(arguments.positional(1, str(SECURE_PORT)))
    data = required_data(arguments)
    _exchange(context, peer, port, data, timeout, is_secure=is_secure)


def recv(context: Context, arguments: Arguments) -> None:
    """Take streams on a port and print what each one carried."""
    is_secure = secure_wanted(arguments)
    context.require(arguments, 0 if is_secure else 1)
    port = parse_port(arguments.positional(0, str(SECURE_PORT)))
    count = max(1, arguments.integer("count", 1))
    deadline = Deadline(arguments.duration("timeout", DEFAULT_TIMEOUT_S))
    daemon = context.daemon()
    try:
        daemon.bind(port)
    except DaemonError as error:
        raise DaemonError(f"listen: bind: daemon: {error}") from error
    messages: list[dict[str, Any]] = []
    is_late = False
    while len(messages) < count and not is_late:
        try:
            with daemon.accept(port, deadline=deadline) as stream:
                read = _read_all_secure if is_secure else _read_all
                data = read(stream, deadline)
        except TimedOut:
            is_late = deadline.has_passed
            continue
        except (DecodeError, ConnectionReset) as error:
            if not is_secure:
                raise
            # Somebody who speaks no channel must not end the wait for who does.
            context.output.note(f"no secure channel from {stream.remote}: {error}")
            continue
        text = data.decode("utf-8", "replace")
        seq = len(messages)
        messages.append({"seq": seq, "port": port, "data": text, "bytes": len(data)})
        if not context.json:
            context.output.text(text)
    if context.json:
        context.output.result({"messages": messages, "timeout": is_late})


def dgram(context: Context, arguments: Arguments) -> None:
    """Send one datagram."""
    context.require(arguments, 2)
    port = parse_port(arguments.positional(1))
    data = encode(required_data(arguments))
    peer = _reachable(context, arguments)
    if len(data) > MAX_DATAGRAM:
        raise InvalidArgument(
            f"datagram is {len(data)} bytes; the daemon refuses more than"
            f" {MAX_DATAGRAM}, and less fits after headers"
            " (use send-message for larger payloads)"
        )
    try:
        confirmed = context.daemon().send_to(SocketAddress(peer, port), data)
    except DaemonError as error:
        raise _datagram_error(str(error)) from error
    result = {
        "target": str(peer),
        "port": port,
        "bytes": len(data),
        "confirmed": confirmed,
    }
    context.output.result(result, f"sent {len(data)} bytes to {peer} port {port}")


def listen(context: Context, arguments: Arguments) -> None:
    """Print the datagrams that arrive for a port."""
    context.require(arguments, 1)
    port = parse_port(arguments.positional(0))
    count = arguments.integer("count", 0)
    deadline = open_deadline(arguments)
    daemon = context.daemon()
    daemon.keep_datagrams(port)
    messages: list[dict[str, Any]] = []
    is_late = False
    while not is_late and (count <= 0 or len(messages) < count):
        try:
            datagram = daemon.receive_datagram(deadline=deadline)
        except TimedOut:
            is_late = True
            continue
        message = {
            "src_addr": str(datagram.source.address),
            "src_port": datagram.source.port,
            "data": datagram.data.decode("utf-8", "replace"),
            "bytes": len(datagram.data),
        }
        if not context.json:
            context.output.text(f"{datagram.source} {message['data']}")
        elif count <= 0:
            context.output.line(message)
        else:
            messages.append(message)
            continue
        if count > 0:
            messages.append(message)
    if context.json and count > 0:
        context.output.result({"messages": messages, "timeout": is_late})


def broadcast(context: Context, arguments: Arguments) -> None:
    """Send a datagram to all members of a network."""
    import struct

    if len(arguments.positionals) < 2:
        raise BroadcastUsage(f"usage: pilotctl {context.command} {context.usage}")
    text, message = arguments.positionals[:2]
    network = read_number(text, 0xFFFF)
    if network is None:
        raise BroadcastUsage(f'invalid network_id: "{text[:40]}" is not up to 65535')
    named = arguments.text("port", str(DEFAULT_PORT))
    port = read_number(named, 0xFFFF)
    if port is None:
        raise BroadcastUsage(f'invalid --port: "{named[:40]}" is not up to 65535')
    token = context.settings.admin_token().encode()
    data = encode(message)
    header = struct.pack("!HHH", network, port, len(token))
    try:
        context.daemon().request(Command.BROADCAST, header + token + data)
    except DaemonError as error:
        raise BroadcastFailed(f"daemon: {error}") from error
    result = {"network_id": int(text), "port": port, "bytes": len(data)}
    context.output.result(result, f"broadcast {len(data)} bytes to network {text}")


def encode(text: str) -> bytes:
    """Return an argument's bytes as they were given, text or not."""
    return text.encode("utf-8", "surrogateescape")


def secure_wanted(arguments: Arguments) -> bool:
    """Tell whether ``--secure`` was given.

    Raises:
        InvalidArgument: It has a value. By the rules of flags it takes the word after
            it, and then the user must not be left with a stream that is not secure.
    """
    if not arguments.has("secure"):
        return False
    value = arguments.text("secure")
    if value not in ("true", "false", "1", "0", ""):
        raise InvalidArgument(
            f"--secure takes no value, but {value[:40]!r} follows it",
            hint="put --secure at the end of the line",
        )
    return arguments.enabled("secure")


def required_data(arguments: Arguments) -> str:
    """Return ``--data``.

    Raises:
        InvalidArgument: It is missing.
    """
    if not arguments.has("data"):
        raise InvalidArgument("--data is required")
    return arguments.text("data")


def open_deadline(arguments: Arguments) -> Deadline:
    """Return the deadline of ``--timeout``; zero and less mean none."""
    seconds = arguments.duration("timeout", 0.0, allow_negative=True)
    return Deadline(seconds if seconds > 0 else None)


def _reachable(context: Context, arguments: Arguments) -> Address:
    peer = context.resolve(arguments.positional(0))
    check_trust(context, arguments, peer)
    return peer


def _exchange(
    context: Context,
    peer: Address,
    port: int,
    message: str,
    timeout: float,
    *,
    is_secure: bool = False,
) -> None:
    deadline = Deadline(timeout)
    with context.dial(peer, port, deadline=deadline) as dialled:
        stream = _secured(dialled, deadline) if is_secure else dialled
        try:
            stream.write(encode(message), deadline=deadline)
            answer = stream.read(deadline=deadline)
        except TimedOut as error:
            limit = format_duration(timeout)
            hint = f"increase with --timeout, or check peer: pilotctl ping {peer}"
            raise TimedOut(f"no response within {limit}", hint=hint) from error
    response = answer.decode("utf-8", "replace")
    result = {
        "target": str(peer),
        "port": port,
        "sent": message,
        "response": response,
    }
    context.output.result(result, response)


def _secured(dialled: Stream, deadline: Deadline) -> SecureStream:
    from pilotfleet.cli.secure import connect_secure

    return connect_secure(dialled, deadline)


def _read_all_secure(accepted: Stream, deadline: Deadline) -> bytes:
    from pilotfleet.cli.secure import accept_secure

    return _read_all(accept_secure(accepted, deadline), deadline)


def _read_all(stream: Stream | SecureStream, deadline: Deadline) -> bytes:
    """Read a stream to its end; at the deadline, what there is."""
    data = bytearray()
    try:
        while chunk := stream.read(deadline=deadline):
            data += chunk
    except TimedOut:
        if not data:
            raise
    return bytes(data)


def _datagram_error(text: str) -> PilotError:
    """Choose the error's code by the daemon's words (cli.md section 6.4)."""
    message = f"daemon: {text}"
    if "not allowed by network" in text:
        return PermissionDenied(message)
    if "too large" in text or "message too long" in text:
        return InvalidArgument(message)
    if "node not found" in text:
        return NotFound(message)
    return ConnectionFailed(message)
