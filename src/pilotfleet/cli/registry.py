"""Requests that go to the registry directly, over one connection (registry.md 2)."""

from __future__ import annotations

import json
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.arguments import read_number
from pilotfleet.cli.settings import SYSTEM_TRUST
from pilotfleet.errors import (
    ConfigError,
    ConnectionFailed,
    DecodeError,
    RegistryError,
)

if TYPE_CHECKING:
    from pilotfleet.cli.invocation import Context
    from pilotfleet.cli.settings import Settings

__all__ = ["ask_registry", "without_endpoints"]

# From the specification.
MAX_REPLY: Final = 64 << 20
CONNECT_TIMEOUT_S: Final = 5.0
REPLY_TIMEOUT_S: Final = 30.0

_LENGTH: Final = struct.Struct("!I")
_ENDPOINT_KEYS: Final = frozenset(
    ["endpoint", "real_addr", "lan_addrs", "public_addr", "stun_addr", "observed_addr"]
)


def without_endpoints(value: Any) -> Any:
    """Return JSON data without the keys that tell where a node is."""
    if isinstance(value, dict):
        return {
            key: without_endpoints(item)
            for key, item in value.items()
            if key not in _ENDPOINT_KEYS
        }
    if isinstance(value, list):
        return [without_endpoints(item) for item in value]
    return value


def ask_registry(context: Context, **request: Any) -> dict[str, Any]:
    """Send one request and return the reply.

    Raises:
        ConnectionFailed: The registry cannot be reached.
        RegistryError: It refused; the text begins with the command's name.
    """
    address = context.settings.registry
    try:
        with _connect(context.settings, address) as connection:
            connection.settimeout(REPLY_TIMEOUT_S)
            reply = _exchange(connection, request)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise ConnectionFailed(
            f"registry: cannot reach registry at {address}: {reason.lower()}",
            hint=f"check that the registry is running at {address},"
            " or set PILOT_REGISTRY",
        ) from error
    if "error" in reply:
        raise RegistryError(f"{context.command}: registry: {reply['error']}")
    return reply


def _connect(settings: Settings, address: str) -> socket.socket:
    host, separator, digits = address.rpartition(":")
    port = read_number(digits, 0xFFFF)
    if not separator or port is None:
        raise ConfigError(f'registry address "{address}" is not host:port')
    host = host.strip("[]") or "127.0.0.1"
    trust = settings.registry_trust()
    connection = socket.create_connection((host, port), CONNECT_TIMEOUT_S)
    if trust is None:
        return connection
    try:
        return _with_tls(connection, host, address, trust)
    except BaseException:
        connection.close()
        raise


def _with_tls(
    connection: socket.socket, host: str, address: str, trust: str
) -> socket.socket:
    """Encrypt; trust the system's authorities or one known certificate."""
    # Late: ssl is a tenth of the time that a command takes.
    import ssl

    from pilotfleet.transport.tls import (
        TlsConfig,
        check_fingerprint,
        client_tls_context,
        explain_tls_error,
    )

    pin = None if trust == SYSTEM_TRUST else trust
    context = client_tls_context(TlsConfig(fingerprint=pin))
    try:
        encrypted = context.wrap_socket(connection, server_hostname=host)
    except (ssl.SSLError, ConnectionError) as error:
        raise explain_tls_error(error, address) from error
    if pin is not None:
        try:
            check_fingerprint(encrypted.getpeercert(binary_form=True), pin, address)
        except ConnectionFailed:
            encrypted.close()
            raise
    return encrypted


def _exchange(connection: socket.socket, request: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps(request, separators=(",", ":")).encode()
    connection.sendall(_LENGTH.pack(len(body)) + body)
    (size,) = _LENGTH.unpack(_read_exactly(connection, _LENGTH.size))
    if size > MAX_REPLY:
        raise DecodeError(f"registry reply of {size} bytes (max {MAX_REPLY})")
    try:
        reply = json.loads(_read_exactly(connection, size))
    except (ValueError, RecursionError) as error:
        raise DecodeError("registry reply is not JSON") from error
    if not isinstance(reply, dict):
        raise DecodeError("registry reply is not an object")
    return reply


def _read_exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = connection.recv(min(size - len(data), 1 << 20))
        if not chunk:
            raise ConnectionFailed("registry: the registry closed the connection")
        data += chunk
    return bytes(data)
