"""What one node keeps about trust: the sets of trust.md section 3.

:class:`TrustStore` is plain memory with the rules of those sets. Time is passed
in as Unix seconds, because the entries outlive the process. Entries run out when
somebody looks; no timer exists for them. The file form is in
:mod:`pilotfleet.node.trustfile`.

:class:`TrustService` is what the rest of the node may ask of the handshake
service, which lives in a layer above.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from pilotfleet.errors import Busy
from pilotfleet.node.trustfile import (
    OutgoingRow,
    PendingRow,
    RevokedRow,
    TrustedRow,
    TrustFile,
    encode_trust_file,
    read_trust_file,
)
from pilotfleet.protocol.identity import encode_key_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pilotfleet.node.agent import Agent

__all__ = [
    "Pending",
    "TrustService",
    "TrustStore",
    "Trusted",
    "clean_justification",
]

# From the specification (trust.md section 3).
MAX_PENDING: Final = 256
MAX_PENDING_PER_SOURCE: Final = 16
MAX_OUTGOING: Final = 4096
MAX_JUSTIFICATION: Final = 1024
EXPIRY_S: Final = 30 * 24 * 3600
"""How long a pending or an outgoing request is kept."""
REVOKED_S: Final = 300
"""How long after a local revocation an accept of that peer is ignored."""

# Of our choosing.
MAX_TRUSTED: Final = 65_536


@dataclass(frozen=True, slots=True)
class Trusted:
    """A peer that this node trusts."""

    public_key: str
    """Base64, or empty while the key is not known."""
    approved_at: int
    mutual: bool
    network: int = 0


@dataclass(frozen=True, slots=True)
class Pending:
    """A request that waits for a person's decision."""

    public_key: str
    justification: str
    received_at: int
    source: int
    """The node at the other end of the connection it came by."""


class TrustService(Protocol):
    """What a node asks of the handshake service (``Host.trust_service``)."""

    async def request(self, agent: Agent, node: int, justification: str) -> str:
        """Ask ``node`` for trust; return the status word for the client."""

    async def approve(self, agent: Agent, node: int) -> None:
        """Trust a pending node; without a pending entry do nothing."""

    async def reject(self, agent: Agent, node: int, reason: str) -> None:
        """Drop a pending node and tell it."""

    async def revoke(self, agent: Agent, node: int) -> None:
        """End trust with ``node``; NotFound when there was none."""

    async def pending(self, agent: Agent) -> list[dict[str, Any]]:
        """Return the rows of ipc.md section 6, sub-command 4."""

    async def trusted(self, agent: Agent) -> list[dict[str, Any]]:
        """Return the rows of ipc.md section 6, sub-command 5."""

    async def wait(self, agent: Agent, node: int, *, timeout: float) -> bool:
        """Wait until ``node`` is trusted; tell whether it is."""

    def handshake_waiting(self, agent: Agent) -> None:
        """React to the beacon's poke: something waits at the registry."""

    def keepalive(self, agent: Agent) -> None:
        """Poll with the keepalive; the host calls this at each heartbeat."""


class TrustStore:
    """The trust sets of one node. Tiny while they are empty."""

    __slots__ = (
        "__weakref__",
        "_revoked",
        "on_change",
        "outgoing",
        "path",
        "pending",
        "saved_version",
        "trusted",
        "version",
    )

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        """Where it is kept; None keeps it in memory only."""
        self.trusted: dict[int, Trusted] = {}
        self.pending: dict[int, Pending] = {}
        self.outgoing: dict[int, int] = {}
        """Node to the Unix time of our unanswered request."""
        self._revoked: dict[int, int] = {}
        self.version = 0
        self.saved_version = 0
        self.on_change: Callable[[TrustStore], None] | None = None

    @classmethod
    def load(cls, path: Path, *, wall: float) -> TrustStore:
        """Read ``path``; a missing file is an empty store.

        Raises:
            ConfigError: The file is not a trust file. It is left as it is: who
                trusts whom is not ours to guess.
            StorageError: The file cannot be read.
        """
        store = cls(path)
        file = read_trust_file(path)
        if file is not None:
            store._fill(file, wall)
        return store

    def is_trusted(self, node: int, public_key: bytes | None = None) -> bool:
        """Tell whether ``node`` (showing this key, if one is given) is trusted."""
        entry = self.trusted.get(node)
        if entry is None:
            return False
        if public_key is None or not entry.public_key:
            return True
        return entry.public_key == encode_key_text(public_key)

    def contradicts(self, node: int, public_key: bytes) -> bool:
        """Tell whether ``node`` is trusted with another key than this."""
        return node in self.trusted and not self.is_trusted(node, public_key)

    def is_revoked(self, node: int, wall: float) -> bool:
        """Tell whether ``node`` was revoked here in the last five minutes."""
        return self._revoked.get(node, 0) > wall

    def is_asked(self, node: int, wall: float) -> bool:
        """Tell whether our request to ``node`` is unanswered and not too old."""
        sent = self.outgoing.get(node)
        return sent is not None and sent + EXPIRY_S > wall

    def live_pending(self, wall: float) -> dict[int, Pending]:
        """Return the pending entries after dropping those that ran out."""
        old = [n for n, e in self.pending.items() if e.received_at + EXPIRY_S <= wall]
        for node in old:
            del self.pending[node]
        if old:
            self._changed()
        return self.pending

    def trust(
        self,
        node: int,
        *,
        wall: float,
        public_key: str = "",
        mutual: bool,
        network: int = 0,
    ) -> None:
        """Trust ``node`` and forget the requests between it and us.

        Raises:
            Busy: The list is full.
        """
        if node not in self.trusted and len(self.trusted) >= MAX_TRUSTED:
            raise Busy(f"trust list is full ({MAX_TRUSTED} nodes)")
        self.trusted[node] = Trusted(public_key, int(wall), mutual, network)
        self.pending.pop(node, None)
        self.outgoing.pop(node, None)
        self._changed()

    def bind_key(self, node: int, public_key: str, *, rotated: bool = False) -> bool:
        """Note the key that a trusted node shows; tell whether it stays trusted.

        An entry without a key takes the first one seen. Another key than the
        bound one ends the trust (trust.md section 3), unless the registry says
        that the node has ``rotated`` its key: for that it has asked the old one.
        """
        entry = self.trusted.get(node)
        if entry is None:
            return False
        if entry.public_key == public_key:
            return True
        if entry.public_key and not rotated:
            del self.trusted[node]
        else:
            self.trusted[node] = replace(entry, public_key=public_key)
        self._changed()
        return node in self.trusted

    def accepted(self, node: int, public_key: str) -> None:
        """Note that ``node``, which is trusted, says that it trusts us, too."""
        entry = self.trusted[node]
        key = public_key or entry.public_key
        self.outgoing.pop(node, None)
        self.trusted[node] = replace(entry, public_key=key, mutual=True)
        self._changed()

    def add_pending(
        self,
        node: int,
        *,
        public_key: str,
        justification: str,
        source: int,
        wall: float,
    ) -> bool:
        """Keep a request for a person to decide; tell whether there was room."""
        pending = self.live_pending(wall)
        if node not in pending and (
            len(pending) >= MAX_PENDING
            or sum(e.source == source for e in pending.values())
            >= MAX_PENDING_PER_SOURCE
        ):
            return False
        text = clean_justification(justification)
        pending[node] = Pending(public_key, text, int(wall), source)
        self._changed()
        return True

    def ask(self, node: int, wall: float) -> None:
        """Note that we asked ``node``; an own revocation of it ends."""
        self._revoked.pop(node, None)
        self.outgoing.pop(node, None)  # A repeated request moves to the end.
        while len(self.outgoing) >= MAX_OUTGOING:
            del self.outgoing[next(iter(self.outgoing))]
        self.outgoing[node] = int(wall)
        self._changed()

    def drop_pending(self, node: int) -> Pending | None:
        """Remove and return the pending entry of ``node``."""
        entry = self.pending.pop(node, None)
        if entry is not None:
            self._changed()
        return entry

    def drop_outgoing(self, node: int) -> None:
        """Forget that we asked ``node``."""
        if self.outgoing.pop(node, None) is not None:
            self._changed()

    def forget(self, node: int) -> bool:
        """Remove every trace of ``node``; tell whether it was trusted."""
        was_trusted = self.trusted.pop(node, None) is not None
        was_asked = self.outgoing.pop(node, None) is not None
        was_pending = self.pending.pop(node, None) is not None
        if was_trusted or was_asked or was_pending:
            self._changed()
        return was_trusted

    def revoke(self, node: int, wall: float) -> bool:
        """Forget ``node`` and ignore its accepts for a while."""
        was_trusted = self.forget(node)
        if was_trusted:
            self._drop_old_revocations(wall)
            self._revoked[node] = int(wall) + REVOKED_S
            self._changed()
        return was_trusted

    def encode(self, *, wall: float) -> bytes:
        """Return the file form (trust.md section 6)."""
        self._drop_old_revocations(wall)
        return encode_trust_file(
            TrustFile(
                [
                    TrustedRow(n, e.public_key, e.approved_at, e.mutual, e.network)
                    for n, e in self.trusted.items()
                ],
                [
                    PendingRow(
                        n, e.public_key, e.justification, e.received_at, e.source
                    )
                    for n, e in self.pending.items()
                ],
                [RevokedRow(n, until) for n, until in self._revoked.items()],
                [OutgoingRow(n, sent) for n, sent in self.outgoing.items()],
            )
        )

    def _fill(self, file: TrustFile, wall: float) -> None:
        for row in file.trusted[:MAX_TRUSTED]:
            self.trusted[row.node_id] = Trusted(
                row.public_key, row.approved_at, row.mutual, row.network
            )
        for waiting in file.pending[:MAX_PENDING]:
            self.pending[waiting.node_id] = Pending(
                waiting.public_key,
                waiting.justification,
                waiting.received_at,
                # v1.2 wrote no source; count those as their own.
                waiting.source or waiting.node_id,
            )
        for revoked in file.revoked:
            if revoked.until > wall:
                self._revoked[revoked.node_id] = revoked.until
        for asked in file.outgoing[-MAX_OUTGOING:]:
            if asked.sent_at + EXPIRY_S > wall:
                self.outgoing[asked.node_id] = asked.sent_at

    def _drop_old_revocations(self, wall: float) -> None:
        for node in [n for n, until in self._revoked.items() if until <= wall]:
            del self._revoked[node]

    def _changed(self) -> None:
        self.version += 1
        if self.on_change is not None:
            self.on_change(self)


def clean_justification(text: str) -> str:
    """Return ``text`` without unprintable characters, cut to 1024 bytes."""
    printable = "".join(c for c in text if c.isprintable())
    return printable.encode()[:MAX_JUSTIFICATION].decode("utf-8", "ignore")
