"""One session: cipher, counter and replay state shared with a peer (wire.md 5.3)."""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.tunnel.frames import (
    MAGIC_SIZE,
    NODE_END,
    NONCE_END,
    PREFIX_END,
    SEALED,
    SEALED_MIN,
)
from pilotfleet.protocol.tunnel.replay import ReplayFilter, Verdict

__all__ = ["PREFIX_SIZE", "Forged", "Replayed", "Session"]

PREFIX_SIZE: Final = 4


class Forged(DecodeError):
    """The frame does not open under the session key."""


class Replayed(DecodeError):
    """The frame opens, but its counter was seen or is too old."""

    def __init__(self, counter: int, verdict: Verdict) -> None:
        super().__init__(f"sealed frame with counter {counter}: {verdict.value}")
        self.counter = counter


class Session:
    """An AES-256-GCM key both sides hold, and what must never repeat under it.

    The counter and the replay windows belong to the pair of X25519 keys, not to one
    installation: they survive `renew`, and the key ring keeps them when the session
    is dropped. A 1.18.0 receiver looks at the counter alone, so restarting it would
    make every frame a replay (wire.md 5.4).
    """

    __slots__ = (
        "_cipher",
        "_head",
        "_prefix",
        "counter",
        "failures",
        "greeted_at",
        "has_opened",
        "installed_at",
        "own_public",
        "peer_public",
        "proof",
        "replay",
    )

    def __init__(
        self,
        key: bytes,
        sender: int,
        *,
        own_public: bytes,
        peer_public: bytes,
        counter: int = 0,
        replay: ReplayFilter | None = None,
    ) -> None:
        # Both directions share one key, and the random prefix alone keeps their nonces
        # apart. That is the protocol's choice (5.1, 5.3).
        self._cipher = AESGCM(key)
        self._head = SEALED + sender.to_bytes(4)
        self._prefix = b""
        self.own_public = own_public
        self.peer_public = peer_public
        self.counter = counter
        """Of the last frame sealed."""
        self.replay = replay or ReplayFilter()
        # An equal signature means an equal frame, so a repeated PILA is recognised
        # without the price of verifying it.
        self.proof = b""
        """Signature of the PILA that installed it, known to be good."""
        self.installed_at = 0.0
        self.greeted_at = 0.0
        """When the peer last sent a PILA."""
        self.has_opened = False
        """A frame was opened since the installation."""
        self.failures = 0
        """Frames in a row that were forged or replayed."""

    def renew(self, prefix: bytes, now: float) -> None:
        """Begin an installation: a fresh prefix, the counter goes on."""
        # A fresh prefix tells receivers with a window per prefix that this is another
        # installation (7.2); the counter goes on for those that look at it alone.
        self._prefix = prefix
        self.installed_at = self.greeted_at = now
        self.has_opened = False
        self.failures = 0

    def connects(self, own_public: bytes, peer_public: bytes) -> bool:
        """Tell whether it was derived from these two X25519 keys."""
        return self.peer_public == peer_public and self.own_public == own_public

    def seal(self, packet: bytes) -> bytes:
        """Return a PILS frame with the next counter."""
        # Before the encryption, so that no failure can make two frames share a nonce.
        counter = self.counter = self.counter + 1
        head = self._head
        nonce = self._prefix + counter.to_bytes(8)
        sealed = self._cipher.encrypt(nonce, packet, head[MAGIC_SIZE:])
        return b"".join((head, nonce, sealed))

    def open(self, frame: bytes) -> bytes:
        """Return the packet inside a PILS frame.

        The counter is looked at only after authentication, so that forged frames
        cannot move the window.

        Raises:
            Forged: Too short, or not sealed under this key by this sender.
            Replayed: Seen before, or outside the window.
        """
        if len(frame) < SEALED_MIN:
            raise Forged(f"sealed frame of {len(frame)} bytes, need {SEALED_MIN}")
        nonce = frame[NODE_END:NONCE_END]
        try:
            # The sender id is authenticated as well: a frame of one peer cannot be
            # passed off as another's by changing its head.
            packet = self._cipher.decrypt(
                nonce, frame[NONCE_END:], frame[MAGIC_SIZE:NODE_END]
            )
        except InvalidTag:
            raise Forged("sealed frame does not authenticate") from None
        prefix = frame[NODE_END:PREFIX_END]
        counter = int.from_bytes(frame[PREFIX_END:NONCE_END])
        verdict = self.replay.accept(prefix, counter)
        if verdict is not Verdict.ACCEPT:
            raise Replayed(counter, verdict)
        self.has_opened = True
        self.failures = 0
        return packet
