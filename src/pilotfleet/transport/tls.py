"""TLS from the client's side: which certificate is trusted, and what went wrong.

A client either trusts the authorities of the system, or pins one certificate by
its fingerprint: then names, dates and authorities say nothing (registry.md section
2.5). It is never a choice to go on without TLS.
"""

from __future__ import annotations

import functools
import hashlib
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import CertificateRefused, ConfigError, ConnectionFailed

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "MINIMUM_VERSION",
    "TlsConfig",
    "check_fingerprint",
    "client_tls_context",
    "explain_tls_error",
    "system_tls_context",
]

MINIMUM_VERSION: Final = ssl.TLSVersion.TLSv1_3
"""The version of the specification; both sides are new programs."""

# Of X509_verify_cert: see OpenSSL's X509_STORE_CTX_get_error.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_SELF_SIGNED: Final = frozenset({18, 19})
_UNKNOWN_ISSUER: Final = frozenset({2, 20, 21})
_WRONG_NAME: Final = frozenset({62, 64})

_PIN_HINT: Final = (
    "the operator's `pilot-rendezvous --tls-fingerprint` shows the right one for"
    " --registry-fingerprint"
)
_AUTHORITY_HINT: Final = (
    "pin it with --registry-trust pinned --registry-fingerprint HEX, or name the"
    " file of its authority in SSL_CERT_FILE"
)
_PLAIN_HINT: Final = (
    "if it is a registry without TLS, start it with --tls, or leave the TLS settings"
    " of this side out"
)


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """How a client checks the server (registry.md section 2.5)."""

    fingerprint: str | None = None
    """Lower-case hex SHA-256 of the server's certificate; nothing else is
    checked then. None: the usual check against trusted authorities."""
    authorities: Path | None = None
    """File of the authorities to trust instead of the system's."""


@functools.cache
def system_tls_context() -> ssl.SSLContext:
    """Return what trusts the system's authorities. Blocks for tens of milliseconds."""
    return ssl.create_default_context()


def client_tls_context(config: TlsConfig) -> ssl.SSLContext:
    """Return the context for a client.

    The system's authorities are those that OpenSSL knows; the environment's
    SSL_CERT_FILE and SSL_CERT_DIR take their place.

    Raises:
        ConfigError: The authorities cannot be read.
    """
    if config.fingerprint is not None:
        # Without the authorities: reading them takes longer than a handshake.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        try:
            context = ssl.create_default_context(cafile=config.authorities)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"cannot read {config.authorities}: {error}") from None
    context.minimum_version = MINIMUM_VERSION
    return context


def check_fingerprint(certificate: bytes | None, fingerprint: str, name: str) -> None:
    """Compare the server's certificate, in DER, with the pinned one.

    Raises:
        CertificateRefused: It is another one.
    """
    found = hashlib.sha256(certificate or b"").hexdigest()
    if found != fingerprint:
        raise CertificateRefused(
            f"the certificate of {name} is not the pinned one: its fingerprint is"
            f" {found}, pinned is {fingerprint}",
            hint=_PIN_HINT,
        )


def explain_tls_error(error: OSError, name: str) -> ConnectionFailed:
    """Return what a failed handshake with ``name`` means and what to do.

    Args:
        error: A TLS error, or that of a connection lost during the handshake.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        reason, hint = _judge_certificate(error)
        return CertificateRefused(f"the certificate of {name} {reason}", hint=hint)
    reason = getattr(error, "reason", None) or str(error)
    if isinstance(error, ConnectionError) or not reason:
        reason = "the other side closed the connection"
    words = reason.replace("_", " ").lower()
    return ConnectionFailed(f"no TLS with {name}: {words}", hint=_PLAIN_HINT)


def _judge_certificate(error: ssl.SSLCertVerificationError) -> tuple[str, str]:
    code = error.verify_code
    if code in _SELF_SIGNED:
        return "is signed by nobody the system trusts", _AUTHORITY_HINT
    if code in _UNKNOWN_ISSUER:
        return "is from an authority that the system does not know", _AUTHORITY_HINT
    if code in _WRONG_NAME:
        hint = "use a name that the certificate holds as the registry's address"
        return f"is for another name: {error.verify_message}", hint
    if code == _EXPIRED:
        return "has expired", "the operator must renew it"
    if code == _NOT_YET_VALID:
        return "is not valid yet", "check the clock of this machine"
    return f"is not accepted: {error.verify_message}", _AUTHORITY_HINT
