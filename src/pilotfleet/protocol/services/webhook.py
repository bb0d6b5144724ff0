"""Webhooks: what is posted, where to, and when again (services.md section 11).

`DeliveryQueue` is the policy without I/O and without a clock. Its owner calls
`offer` for each event, and while `begin` gives a body it posts that body and tells
`finish` the answer, which says whether to post the same body again::

    offer ──► queue (1024) ──► begin ──► post ──► finish ──► done
                │ full: dropped           ▲          │ no answer, or 500 and up
                │ circuit open: skipped   └─ pause ──┘ (3 tries, after 1 s and 2 s)

Five events in a row that failed every try open the circuit: for 30 s everything is
thrown away unsent. After that one event is tried; it closes the circuit or opens it
for another 30 s.

An event takes its number when it is offered, so that a receiver sees by the gaps
what was thrown away.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import re
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from pilotfleet.errors import InvalidArgument, PermissionDenied

if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

__all__ = [
    "DRAIN_S",
    "REQUEST_S",
    "SIGNATURE_HEADER",
    "Counters",
    "DeliveryQueue",
    "Target",
    "check_address",
    "encode_event",
    "parse_url",
    "sign_body",
]

# From the specification.
SIGNATURE_HEADER: Final = "X-Pilot-Signature-256"
QUEUE_LIMIT: Final = 1024
PAUSES_S: Final = (1.0, 2.0)
"""Before the second and the third try."""
FAILURES_TO_OPEN: Final = 5
OPEN_S: Final = 30.0
REQUEST_S: Final = 5.0
DRAIN_S: Final = 5.0
SCHEMES: Final = {"http": 80, "https": 443}

# Of our choosing.
MAX_URL: Final = 8192
METADATA_HOSTS: Final = frozenset(
    ["metadata.google.internal", "metadata.azure.com", "metadata.goog"]
)
"""The official program refuses the first two."""
METADATA_ADDRESSES: Final = frozenset(
    # Amazon's for IPv6, and Alibaba's: these two are not link-local.
    [ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")]
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_URL_SAFE: Final = "%/:=&?~#+!$,;'@()*[]|"
_NAME: Final = re.compile("[0-9A-Za-z._-]+")
_BILLION: Final = 1_000_000_000
_REFUSED: Final = 400
_FAILED: Final = 500


@dataclass(frozen=True, slots=True)
class Target:
    """A webhook's URL, taken apart for an HTTP client."""

    host: str
    """Name or IP address, without brackets."""
    port: int
    is_tls: bool
    path: str = field(repr=False)
    """With the query; may hold a token."""
    authorization: str = field(repr=False)
    """Value of the header of this name, for a URL with a user; or empty."""

    @property
    def authority(self) -> str:
        """What the ``Host`` header says, and the only part fit for a log."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = SCHEMES["https" if self.is_tls else "http"]
        return host if self.port == default else f"{host}:{self.port}"


def parse_url(url: str) -> Target:
    """Take a webhook's URL apart.

    Raises:
        InvalidArgument: Not a URL that events can be posted to; the words are those
            of the official program.
        PermissionDenied: It points at a link-local address, or at a cloud's
            metadata service, which would hand out the machine's credentials.
    """
    if len(url) > MAX_URL:
        raise InvalidArgument(f"URL is too long: {len(url)} characters (max {MAX_URL})")
    # Lone surrogates, which JSON and arguments can hold, are not printable either.
    if " " in url or not url.isprintable():
        raise InvalidArgument("invalid URL: it has a space or a control character")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = _plain_host(parts)
    except ValueError as error:
        raise InvalidArgument(f"invalid URL: {error}") from None
    if parts.scheme not in SCHEMES:
        raise InvalidArgument(
            f'URL must use http or https scheme, got "{parts.scheme}"'
        )
    if not host:
        raise InvalidArgument("URL must have a host")
    _check_host(host)
    path = quote(parts.path or "/", safe=_URL_SAFE)
    if parts.query:
        path += "?" + quote(parts.query, safe=_URL_SAFE)
    return Target(
        host,
        SCHEMES[parts.scheme] if port is None else port,
        parts.scheme == "https",
        path,
        _authorization(parts),
    )


def check_address(address: str) -> None:
    """Refuse an IP address that no event may be posted to.

    A name is checked by `parse_url`, and what it resolves to by this.

    Raises:
        PermissionDenied: Link-local, or a cloud's metadata service.
    """
    ip = ipaddress.ip_address(address)
    plain = ip
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            plain = ip.ipv4_mapped
        elif ip in _NAT64:
            plain = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    if plain.is_link_local:
        raise PermissionDenied(f"URL cannot target link-local address {address}")
    if plain in METADATA_ADDRESSES:
        raise PermissionDenied(f"URL cannot target cloud metadata endpoint {address}")


def encode_event(
    event_id: int, event: str, node_id: int, timestamp_ns: int, data: Mapping[str, Any]
) -> bytes:
    """Return the body of a delivery.

    Args:
        event_id: Counts from 1 for each URL.
        event: Its name, such as ``conn.fin``.
        node_id: Whose event it is.
        timestamp_ns: Unix time in nanoseconds.
        data: Left out when empty. What JSON does not know is written as its text.
    """
    body: dict[str, Any] = {
        "event_id": event_id,
        "event": event,
        "node_id": node_id,
        "timestamp": _format_time(timestamp_ns),
    }
    if data:
        body["data"] = data
    return json.dumps(body, separators=(",", ":"), default=str).encode()


def sign_body(secret: str, body: bytes) -> str:
    """Return the value of `SIGNATURE_HEADER`: lower-case hex, without a prefix."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


@dataclass(slots=True)
class Counters:
    """What became of the events; they outlive a change of the URL."""

    delivered: int = 0
    refused: int = 0
    """Answered with 400 to 499."""
    failed: int = 0
    """Given up after three tries."""
    dropped: int = 0
    """Offered to a full queue."""
    skipped: int = 0
    """Thrown away because the circuit was open."""


class _Waiting(NamedTuple):
    """An event before it is encoded: most queues are emptied at once."""

    event_id: int
    event: str
    node_id: int
    timestamp_ns: int
    data: Mapping[str, Any]


@dataclass(slots=True)
class DeliveryQueue:
    """The events of one node for one URL, and what is to be done with them."""

    counters: Counters = field(default_factory=Counters)
    _waiting: deque[_Waiting] = field(default_factory=deque)
    _last_id: int = 0
    _tries: int = 0
    """Of the event that is being delivered."""
    _failures: int = 0
    """Events in a row that failed. Opening the circuit does not set it back, so
    that the one event that is tried afterwards opens it again."""
    _open_until: float | None = None
    """When the circuit lets an event through again, if it is open."""

    def __len__(self) -> int:
        """Return how many events wait; the one under way is not counted."""
        return len(self._waiting)

    @property
    def is_open(self) -> bool:
        """Whether events are thrown away unsent, unless the time is over."""
        return self._open_until is not None

    def offer(
        self,
        event: str,
        data: Mapping[str, Any],
        *,
        node_id: int,
        timestamp_ns: int,
        now: float,
    ) -> bool:
        """Queue an event; False if it was thrown away."""
        self._last_id += 1
        if self._open_until is not None:
            if now < self._open_until:
                self.counters.skipped += 1
                return False
            self._open_until = None
        if len(self._waiting) >= QUEUE_LIMIT:
            self.counters.dropped += 1
            return False
        self._waiting.append(
            _Waiting(self._last_id, event, node_id, timestamp_ns, data)
        )
        return True

    def begin(self) -> bytes | None:
        """Take the next event and return the body to post; None if none waits."""
        if not self._waiting:
            return None
        self._tries = 0
        return encode_event(*self._waiting.popleft())

    def finish(self, status: int | None, now: float) -> float | None:
        """Take the answer to a post.

        Args:
            status: The HTTP status; None when there was no answer.
            now: The time.

        Returns:
            Seconds until the same body is to be posted again, or None: it is done.
        """
        if status is not None and status < _FAILED:
            self._answered(is_refused=status >= _REFUSED)
            return None
        self._tries += 1
        if self._tries <= len(PAUSES_S):
            return PAUSES_S[self._tries - 1]
        self.counters.failed += 1
        self._failures += 1
        if self._failures >= FAILURES_TO_OPEN:
            self._open(now)
        return None

    def _answered(self, *, is_refused: bool) -> None:
        # Also a refusal is a sign of life; only silence and errors open the circuit.
        if is_refused:
            self.counters.refused += 1
        else:
            self.counters.delivered += 1
        self._failures = 0

    def _open(self, now: float) -> None:
        self._open_until = now + OPEN_S
        self.counters.skipped += len(self._waiting)
        self._waiting.clear()


def _plain_host(parts: SplitResult) -> str:
    host = (parts.hostname or "").rstrip(".")
    # The name system and HTTP know only ASCII.
    return host if host.isascii() else host.encode("idna").decode()


def _check_host(host: str) -> None:
    if host in METADATA_HOSTS:
        raise PermissionDenied(f"URL cannot target cloud metadata endpoint {host}")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not _NAME.fullmatch(host):
            raise InvalidArgument(f"invalid URL: host name {host!r}") from None
    else:
        check_address(host)


def _authorization(parts: SplitResult) -> str:
    if parts.username is None:
        return ""
    user, password = unquote(parts.username), unquote(parts.password or "")
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _format_time(timestamp_ns: int) -> str:
    seconds, fraction = divmod(timestamp_ns, _BILLION)
    # Not through a float, which does not hold nanoseconds.
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"
