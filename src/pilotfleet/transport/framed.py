"""Connections that carry frames: TCP, TLS and Unix sockets.

A connection knows no protocol. It feeds what arrives to a decoder and hands
whole frames on, in one call for all that came together. An idle connection
costs a transport and this object: no task, no timer, no buffer.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import ipaddress
import socket
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pilotfleet.errors import (
    Closed,
    ConfigError,
    ConnectionFailed,
    ConnectionRefused,
    ConnectionReset,
    DecodeError,
    PilotError,
    TimedOut,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.protocol.address import Endpoint

__all__ = [
    "FrameDecoder",
    "FramedConnection",
    "ServerTls",
    "TlsConfig",
    "client_tls_context",
    "connect_framed",
    "server_tls",
]

WRITE_HIGH_WATER: Final = 256 * 1024
"""Bytes in the write buffer above which ``drain`` waits."""
CERTIFICATE_DAYS: Final = 365


class FrameDecoder(Protocol):
    """Cuts a stream of bytes into frames."""

    def feed(self, data: bytes, /) -> list[bytes]:
        """Take bytes and return the frames that are complete now.

        Raises:
            DecodeError: The stream is broken for good.
        """


class FramedConnection(asyncio.Protocol):
    """One connection. Its owner gives the callbacks; all are synchronous."""

    __slots__ = (
        "_closed",
        "_decoder",
        "_error",
        "_on_closed",
        "_on_frames",
        "_on_opened",
        "_peer",
        "_transport",
        "_writable",
        "blocked_since",
        "received_at",
        "received_bytes",
    )

    def __init__(
        self,
        decoder: FrameDecoder,
        *,
        on_frames: Callable[[FramedConnection, list[bytes]], None],
        on_closed: Callable[[FramedConnection, PilotError], None],
        on_opened: Callable[[FramedConnection], None] | None = None,
    ) -> None:
        self._decoder = decoder
        self._on_frames = on_frames
        self._on_closed = on_closed
        self._on_opened = on_opened
        self._transport: asyncio.Transport | None = None
        self._peer: Endpoint = ("", 0)
        self._error: PilotError | None = None
        self._writable: asyncio.Future[None] | None = None
        self._closed = False
        self.received_at = 0.0
        """Loop time when bytes last arrived."""
        self.received_bytes = 0
        self.blocked_since: float | None = None
        """Loop time since which the other side does not take our bytes."""

    @property
    def peer(self) -> Endpoint:
        """Address of the other side; empty for a Unix socket."""
        return self._peer

    @property
    def is_closed(self) -> bool:
        """Whether the connection is over."""
        return self._closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start; called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            # The zone and flow of an IPv6 address are of no use to anybody.
            self._peer = (str(name[0]), int(name[1]))
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received_at = asyncio.get_running_loop().time()
        if self._on_opened is not None:
            self._on_opened(self)

    def data_received(self, data: bytes) -> None:
        """Cut ``data`` into frames and hand them on; called by the loop."""
        self.received_at = asyncio.get_running_loop().time()
        self.received_bytes += len(data)
        try:
            frames = self._decoder.feed(data)
        except DecodeError as error:
            self.abort(error)
            return
        if frames and not self._closed:
            self._on_frames(self, frames)

    def connection_lost(self, error: Exception | None) -> None:
        """End; called by the event loop."""
        self._closed = True
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        reason = self._error
        if reason is None:
            text = f": {error}" if error is not None else ""
            reason = ConnectionReset(f"the other side closed the connection{text}")
        self._on_closed(self, reason)

    def pause_writing(self) -> None:
        """Note that the buffer is full; called by the event loop."""
        self.blocked_since = asyncio.get_running_loop().time()

    def resume_writing(self) -> None:
        """Note that the buffer has room; called by the event loop."""
        self.blocked_since = None
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def send(self, data: bytes) -> None:
        """Send bytes that are already framed. Nothing if it is closed."""
        if self._transport is not None and not self._closed:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the other side has taken enough to send more."""
        while self.blocked_since is not None and not self._closed:
            if self._writable is None or self._writable.done():
                self._writable = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._writable)

    def pause(self) -> None:
        """Stop reading: the sender will be slowed down by TCP."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.pause_reading()

    def resume(self) -> None:
        """Go on reading."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.resume_reading()

    def close(self, error: PilotError | None = None) -> None:
        """Send what is buffered and close."""
        self._error = self._error or error or Closed("the connection was closed")
        if self._transport is not None:
            self._transport.close()

    def abort(self, error: PilotError) -> None:
        """Close at once; ``error`` is what the owner is told."""
        self._error = self._error or error
        if self._transport is not None:
            self._transport.abort()


async def connect_framed(
    endpoint: Endpoint,
    make: Callable[[], FramedConnection],
    *,
    tls: ssl.SSLContext | None = None,
    fingerprint: str | None = None,
) -> FramedConnection:
    """Open a TCP or TLS connection.

    Bound its time with ``asyncio.timeout`` around the call.

    Raises:
        ConnectionRefused: Nothing listens there.
        ConnectionFailed: Any other reason, wrong certificates included.
    """
    host, port = endpoint
    loop = asyncio.get_running_loop()
    name = f"{host}:{port}"
    try:
        transport, connection = await loop.create_connection(make, host, port, ssl=tls)
    except ConnectionRefusedError:
        raise ConnectionRefused(f"nothing listens at {name}") from None
    except TimeoutError:
        raise TimedOut(f"no answer from {name}") from None
    except (OSError, ssl.SSLError, UnicodeError) as error:
        raise ConnectionFailed(f"cannot connect to {name}: {error}") from error
    if fingerprint is not None:
        try:
            _check_fingerprint(transport, fingerprint, name)
        except ConnectionFailed:
            transport.abort()
            raise
    return connection


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """How a client checks the server (registry.md section 2.5)."""

    fingerprint: str | None = None
    """Lower-case hex SHA-256 of the server's certificate; nothing else is
    checked then. None: the usual check against trusted authorities."""
    authorities: Path | None = None
    """File of the authorities to trust instead of the system's."""


def client_tls_context(config: TlsConfig) -> ssl.SSLContext:
    """Return the context for a client.

    Raises:
        ConfigError: The authorities cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=config.authorities)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot read {config.authorities}: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if config.fingerprint is not None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How a server proves itself."""

    context: ssl.SSLContext
    fingerprint: str
    """What clients pin: lower-case hex SHA-256 of the certificate."""


def server_tls(certificate: Path | None = None, key: Path | None = None) -> ServerTls:
    """Return the context for a server, with a new certificate if none is given.

    Raises:
        ConfigError: The files cannot be read or do not belong together.
    """
    if (certificate is None) != (key is None):
        raise ConfigError("a TLS certificate and its key are only of use together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if certificate is None:
        return ServerTls(context, _load_self_signed(context))
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
        leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"cannot use the TLS certificate {certificate}: {error}",
            hint="give the certificate and its key as PEM files",
        ) from None
    return ServerTls(context, leaf.fingerprint(hashes.SHA256()).hex())


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal.
    raise ConfigError("the TLS key is encrypted")


def _load_self_signed(context: ssl.SSLContext) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    # The ssl module reads certificates from files only.
    with tempfile.TemporaryDirectory(prefix="pilot-tls-") as directory:
        path = Path(directory, "server.pem")
        path.touch(mode=0o600)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context.load_cert_chain(path)
    return certificate.fingerprint(hashes.SHA256()).hex()


def _check_fingerprint(
    transport: asyncio.Transport, fingerprint: str, name: str
) -> None:
    tls = cast("ssl.SSLObject", transport.get_extra_info("ssl_object"))
    certificate = tls.getpeercert(binary_form=True) or b""
    if hashlib.sha256(certificate).hexdigest() != fingerprint.lower():
        raise ConnectionFailed(f"the certificate of {name} is not the pinned one")
