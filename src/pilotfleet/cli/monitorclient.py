"""Ask a ``pilot-monitor`` over HTTP."""

from __future__ import annotations

import http.client
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from pilotfleet.errors import (
    AuthRequired,
    Busy,
    CertificateRefused,
    ConnectionFailed,
    InvalidArgument,
    NotFound,
    ProtocolError,
)
from pilotfleet.fleet.monitor.figures import Figures
from pilotfleet.transport.tls import system_tls_context

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MonitorClient", "read_token"]

TIMEOUT_S: Final = 10.0
MAX_ANSWER: Final = 4 << 20
MAX_TOKEN: Final = 4_096

_Kind = TypeVar("_Kind")


class _Fleets(msgspec.Struct):
    fleets: list[str]


class MonitorClient:
    """Reads the figures of one fleet. Blocks; a server that is silent ends that."""

    def __init__(self, url: str, *, token: str = "", fleet: str = "") -> None:
        """Prepare to ask; ``fleet`` is needed where the monitor watches several.

        Raises:
            InvalidArgument: The URL is none.
        """
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
            # What names a host on the wire, and what http.client can send.
            self._host.encode("idna")
            parts.path.encode("ascii")
        except ValueError:
            parts, self._host = urlsplit(""), ""
        if parts.scheme not in ("http", "https") or not self._host:
            raise InvalidArgument(
                f"--monitor: {url[:200]!r} is not an http or https URL",
                hint="for example: --monitor http://127.0.0.1:8787",
            )
        if "@" in parts.netloc:
            # Not shown: it may hold a password.
            raise InvalidArgument(
                "--monitor: the URL holds a name or password, which is not used",
                hint="give the monitor's token with --token-file",
            )
        self._is_tls = parts.scheme == "https"
        self._path = parts.path.rstrip("/")
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._fleet = fleet

    def figures(self) -> Figures:
        """Return the figures of now.

        Raises:
            AuthRequired: The monitor wants another token.
            NotFound: It watches no such fleet.
            ConnectionFailed: It cannot be reached.
            ProtocolError: It is no monitor.
        """
        if not self._fleet:
            self._fleet = _only(self._ask("/api/fleets", _Fleets).fleets)
        fleet = quote(self._fleet, safe="")
        return self._ask(f"/api/fleets/{fleet}/figures", Figures)

    def _ask(self, path: str, kind: type[_Kind]) -> _Kind:
        try:
            status, body = self._get(self._path + path)
        except ssl.SSLCertVerificationError as error:
            raise CertificateRefused(
                f"certificate of {self._url}: {error.verify_message}"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionFailed(
                f"cannot reach the monitor at {self._url}: {error}",
                hint="is pilot-monitor running, and is this its --http address?",
            ) from None
        if status in (401, 403):
            raise AuthRequired(
                f"the monitor at {self._url} wants another token",
                hint="give the file of its --http-token-file with --token-file",
            )
        if status == 429:
            raise Busy(
                f"the monitor at {self._url} was sent too many wrong tokens",
                hint="wait a little, then try again",
            )
        if status == 404 and self._fleet:
            raise NotFound(f"the monitor at {self._url} watches no {self._fleet!r}")
        try:
            if status == 200:
                return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
        raise ProtocolError(f"{self._url} does not answer as a monitor does")

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = self._connection()
        try:
            connection.request("GET", path, headers=self._headers)
            answer = connection.getresponse()
            return answer.status, _read(answer)
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if not self._is_tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=TIMEOUT_S, context=system_tls_context()
        )


def _read(answer: http.client.HTTPResponse) -> bytes:
    """Return the body, up to the longest answer.

    Raises:
        TimeoutError: It comes too slowly: a socket's limit is one for each read.
    """
    until, body = time.monotonic() + TIMEOUT_S, bytearray()
    while len(body) < MAX_ANSWER and (part := answer.read1(MAX_ANSWER - len(body))):
        body += part
        if time.monotonic() > until:
            raise TimeoutError("the answer comes too slowly")
    return bytes(body)


def read_token(path: str) -> str:
    """Return the token in a file.

    Raises:
        InvalidArgument: It cannot be read, or holds none.
    """
    try:
        with Path(path).open("rb") as file:
            token = file.read(MAX_TOKEN + 1).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"--token-file: cannot read {path}: {error}") from None
    if not token or len(token) > MAX_TOKEN or not token.isprintable():
        raise InvalidArgument(f"--token-file: {path} holds no token")
    return token


def _only(fleets: Sequence[str]) -> str:
    if len(fleets) == 1:
        return fleets[0]
    raise InvalidArgument(
        f"the monitor watches {len(fleets)} fleets: {', '.join(fleets[:20])}",
        hint="choose one with --name",
    )
