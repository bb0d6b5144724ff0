"""Certificates: which are trusted, and what is said of those that are not."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import ConfigError, ConnectionFailed, StorageError
from pilotfleet.protocol.registry.framing import JsonFrameDecoder
from pilotfleet.transport.certificates import ServerTls, self_signed_tls, server_tls
from pilotfleet.transport.framed import FramedConnection, connect_framed
from pilotfleet.transport.tls import TlsConfig, client_tls_context
from tests.support.certificates import make_authority, make_certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.protocol.address import Endpoint


def connection() -> FramedConnection:
    return FramedConnection(
        JsonFrameDecoder(), on_frames=lambda *_: None, on_closed=lambda *_: None
    )


@contextlib.asynccontextmanager
async def serving(context: ssl.SSLContext | None) -> AsyncIterator[Endpoint]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(connection, "127.0.0.1", 0, ssl=context)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield host, port


async def try_tls(
    endpoint: Endpoint, config: TlsConfig, host: str = "127.0.0.1"
) -> None:
    """Connect as ``config`` says and hang up."""
    opened = await connect_framed(
        (host, endpoint[1]),
        connection,
        tls=client_tls_context(config),
        fingerprint=config.fingerprint,
    )
    opened.close()


async def refusal(context: ssl.SSLContext | None, config: TlsConfig) -> tuple[str, str]:
    """Return the message and the hint of a connection that is refused."""
    async with serving(context) as endpoint:
        with pytest.raises(ConnectionFailed) as caught:
            await try_tls(endpoint, config)
        assert caught.value.hint
        return str(caught.value), caught.value.hint


async def test_pinned_certificate_is_all_that_counts(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    old = make_certificate(tmp_path, "old", authority, hosts=("other.test",), days=-1)
    tls = server_tls(old.cert_path, old.key_path)
    assert tls.fingerprint == old.fingerprint
    async with serving(tls.context) as endpoint:
        await try_tls(endpoint, TlsConfig(fingerprint=tls.fingerprint))


async def test_certificate_of_a_known_authority_is_trusted(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    made = make_certificate(tmp_path, "server", authority)
    tls = server_tls(made.cert_path, made.key_path)
    config = TlsConfig(authorities=authority.cert_path)
    async with serving(tls.context) as endpoint:
        await try_tls(endpoint, config)
        await try_tls(endpoint, config, host="localhost")


async def test_system_trust_takes_the_environments_authorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = make_authority(tmp_path)
    made = make_certificate(tmp_path, "server", authority)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert_path))
    tls = server_tls(made.cert_path, made.key_path)
    async with serving(tls.context) as endpoint:
        await try_tls(endpoint, TlsConfig())


async def test_own_certificate_may_be_its_own_authority(tmp_path: Path) -> None:
    tls = self_signed_tls(tmp_path)
    async with serving(tls.context) as endpoint:
        await try_tls(endpoint, TlsConfig(authorities=tls.certificate))


async def test_another_certificate_than_pinned_is_named(tmp_path: Path) -> None:
    tls = self_signed_tls(tmp_path)
    message, hint = await refusal(tls.context, TlsConfig(fingerprint="0" * 64))
    assert f"its fingerprint is {tls.fingerprint}, pinned is {'0' * 64}" in message
    assert "--tls-fingerprint" in hint


async def test_certificate_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    own = self_signed_tls(tmp_path)
    message, hint = await refusal(own.context, TlsConfig())
    assert "is signed by nobody the system trusts" in message
    assert "--registry-fingerprint" in hint
    assert "SSL_CERT_FILE" in hint
    made = make_certificate(tmp_path, "server", make_authority(tmp_path))
    tls = server_tls(made.cert_path, made.key_path)
    message, _ = await refusal(tls.context, TlsConfig())
    assert "is from an authority that the system does not know" in message


async def test_expired_certificate_is_refused(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    made = make_certificate(tmp_path, "server", authority, days=-1)
    tls = server_tls(made.cert_path, made.key_path)
    config = TlsConfig(authorities=authority.cert_path)
    message, hint = await refusal(tls.context, config)
    assert message.endswith("has expired")
    assert "renew" in hint


async def test_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    made = make_certificate(tmp_path, "server", authority, hosts=("other.test",))
    tls = server_tls(made.cert_path, made.key_path)
    config = TlsConfig(authorities=authority.cert_path)
    message, hint = await refusal(tls.context, config)
    assert "is for another name" in message
    assert "name that the certificate holds" in hint


async def test_server_without_tls_is_recognised() -> None:
    async with serving(None) as endpoint:
        # What a plain server makes of the handshake is a length far too long.
        with pytest.raises(ConnectionFailed, match="no TLS with") as caught:
            await try_tls(endpoint, TlsConfig(fingerprint="0" * 64))
        assert caught.value.hint is not None
        assert "without TLS" in caught.value.hint


async def test_older_than_1_3_is_refused(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(self_signed_tls(tmp_path).context) as endpoint:
        with pytest.raises(ConnectionFailed, match="no TLS with"):
            await connect_framed(endpoint, connection, tls=context)


def test_own_certificate_is_made_once_and_its_key_is_secret(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    first = self_signed_tls(folder, hosts=["registry.test", "192.0.2.7"])
    assert first.key.stat().st_mode & 0o777 == 0o600
    assert self_signed_tls(folder).fingerprint == first.fingerprint
    # Half of it is of no use: both are made again.
    first.certificate.unlink()
    assert self_signed_tls(folder).fingerprint != first.fingerprint
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["tls-cert.pem", "tls-key.pem"]


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write a TLS certificate") as caught:
        self_signed_tls(tmp_path / "file")
    assert caught.value.hint is not None
    assert "--tls-dir" in caught.value.hint


def test_certificate_and_key_are_only_of_use_together(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    one, two = (make_certificate(tmp_path, name, authority) for name in ("a", "b"))
    with pytest.raises(ConfigError, match="together"):
        server_tls(one.cert_path, None)
    with pytest.raises(ConfigError, match=r"a\.cert\.pem"):
        server_tls(one.cert_path, two.key_path)
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        server_tls(tmp_path / "missing.pem", one.key_path)
    one.cert_path.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"a\.cert\.pem"):
        server_tls(one.cert_path, one.key_path)


def test_authorities_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        client_tls_context(TlsConfig(authorities=tmp_path / "missing.pem"))


async def test_new_certificate_is_used_after_a_reload(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    old, new = (make_certificate(tmp_path, name, authority) for name in ("a", "b"))
    tls = ServerTls(old.cert_path, old.key_path)
    assert not tls.reload()
    async with serving(tls.context) as endpoint:
        old.cert_path.write_bytes(new.cert_path.read_bytes())
        # The key is not there yet: the old pair stays in use, both halves of it.
        with pytest.raises(ConfigError):
            tls.reload()
        await try_tls(endpoint, TlsConfig(fingerprint=old.fingerprint))
        old.key_path.write_bytes(new.key_path.read_bytes())
        assert tls.reload()
        await try_tls(endpoint, TlsConfig(fingerprint=new.fingerprint))
