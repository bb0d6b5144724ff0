"""Certificates as an operator would have them, made for one test."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Certificate:
    """A certificate and its key, also as PEM files."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    cert_path: Path
    key_path: Path

    @property
    def fingerprint(self) -> str:
        """What clients pin."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()


def make_authority(folder: Path, name: str = "authority") -> Certificate:
    """Make an authority that signs the certificates of servers."""
    return _make(folder, name, issuer=None, hosts=(), days=30)


def make_certificate(
    folder: Path,
    name: str,
    authority: Certificate,
    *,
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
    days: int = 30,
) -> Certificate:
    """Make a server's certificate; one with days below zero has expired."""
    return _make(folder, name, issuer=authority, hosts=hosts, days=days)


def _make(
    folder: Path,
    name: str,
    *,
    issuer: Certificate | None,
    hosts: tuple[str, ...],
    days: int,
) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=60))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(
            x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True
        )
        .add_extension(_usage(is_authority=issuer is None), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
    )
    if hosts:
        names = [_general_name(host) for host in hosts]
        builder = builder.add_extension(
            x509.SubjectAlternativeName(names), critical=False
        )
    made = Certificate(
        builder.sign(signer, hashes.SHA256()),
        key,
        folder / f"{name}.cert.pem",
        folder / f"{name}.key.pem",
    )
    made.cert_path.write_bytes(
        made.certificate.public_bytes(serialization.Encoding.PEM)
    )
    made.key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    made.key_path.chmod(0o600)
    return made


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
