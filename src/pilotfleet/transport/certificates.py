"""TLS from the server's side: its certificate, given or made once.

A certificate that is made here is kept in two files, so that its fingerprint, which
clients pin, is the same after a restart.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pilotfleet.errors import ConfigError, StorageError
from pilotfleet.transport.files import replace_file
from pilotfleet.transport.tls import MINIMUM_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["ServerTls", "self_signed_tls", "server_tls"]

CERTIFICATE_FILE: Final = "tls-cert.pem"
KEY_FILE: Final = "tls-key.pem"
CERTIFICATE_DAYS: Final = 3650
"""Longer than the year of the reference, which makes a new one at every start: a
pin says nothing about dates, and a renewal would have to reach every agent."""

_KEY_USAGE: Final = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


class ServerTls:
    """How a server proves itself, from two PEM files."""

    __slots__ = ("certificate", "context", "fingerprint", "key")

    def __init__(self, certificate: Path, key: Path) -> None:
        """Read the files.

        Raises:
            ConfigError: They cannot be read or do not belong together.
        """
        self.certificate = certificate
        self.key = key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = MINIMUM_VERSION
        self.fingerprint = self._load(self.context)
        """What clients pin: lower-case hex SHA-256 of the certificate in DER."""

    def reload(self) -> bool:
        """Read the files again, for connections from now on; tell if it changed.

        Raises:
            ConfigError: They are not usable; the old certificate stays.
        """
        # First into a context of its own: loading a certificate without its key
        # would leave the one in use with half of each.
        self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        old, self.fingerprint = self.fingerprint, self._load(self.context)
        return self.fingerprint != old

    def _load(self, context: ssl.SSLContext) -> str:
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
            leaf = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ConfigError(
                f"cannot use the TLS certificate {self.certificate}"
                f" with the key {self.key}: {error}",
                hint="give the certificate (and its chain) and its key as PEM files",
            ) from None
        return leaf.fingerprint(hashes.SHA256()).hex()


def server_tls(certificate: Path | None, key: Path | None) -> ServerTls:
    """Return the context for a server with the operator's certificate.

    Raises:
        ConfigError: One is missing, or the files are not usable.
    """
    if certificate is None or key is None:
        raise ConfigError("a TLS certificate and its key are only of use together")
    return ServerTls(certificate, key)


def self_signed_tls(folder: Path, *, hosts: Iterable[str] = ()) -> ServerTls:
    """Return the context for a server with the folder's own certificate.

    It is made if there is none yet, for ``localhost``, the loopback addresses and
    ``hosts``. Only the key's owner can read its file.

    Raises:
        StorageError: The files cannot be written.
        ConfigError: There are such files, but they are not usable.
    """
    certificate, key = folder / CERTIFICATE_FILE, folder / KEY_FILE
    if not (certificate.exists() and key.exists()):
        try:
            _make_files(certificate, key, hosts)
        except OSError as error:
            raise StorageError(
                f"cannot write a TLS certificate to {folder}: {error.strerror}",
                hint="choose another folder with --tls-dir",
            ) from error
    return ServerTls(certificate, key)


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal.
    raise ConfigError("the TLS key is encrypted", hint="give it without a password")


def _make_files(certificate: Path, key: Path, hosts: Iterable[str]) -> None:
    certificate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret = ec.generate_private_key(ec.SECP256R1())
    pem = secret.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    made = _sign(secret, ["localhost", "127.0.0.1", "::1", *hosts])
    # The certificate last: both are there, or they are made again.
    certificate.unlink(missing_ok=True)
    replace_file(key, pem)
    replace_file(certificate, made.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _sign(key: ec.EllipticCurvePrivateKey, hosts: Iterable[str]) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pilot-rendezvous")])
    names = [_general_name(host) for host in dict.fromkeys(hosts)]
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        # So that a client may also trust the certificate itself, as an authority.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_KEY_USAGE, critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        .sign(key, hashes.SHA256())
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host.encode("idna").decode())
