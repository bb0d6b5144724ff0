"""The node's own tunnel key, and what must not be forgotten while it lives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.protocol.tunnel.frames import encode_authenticated, encode_key_request
from pilotfleet.protocol.tunnel.keys import KeyPair
from pilotfleet.protocol.tunnel.session import PREFIX_SIZE, Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.protocol.identity import Identity
    from pilotfleet.protocol.tunnel.replay import ReplayFilter

__all__ = ["KeyRing"]

_MAX_RETIRED: Final = 4096


class KeyRing:
    """Makes sessions from the own X25519 key, which is created when first needed.

    Sessions that end leave their counter and replay windows here, by the peer's
    X25519 key, so that the same two keys never see a counter or accept a frame
    twice (wire.md 5.4). When that table is full, or a session's windows are, the
    own key is replaced: a new key makes all of it void. Peers move to it one by
    one, at their next key exchange.
    """

    __slots__ = (
        "_announcement",
        "_key_pair",
        "_met",
        "_random_bytes",
        "_request",
        "_retired",
        "_signer",
        "node_id",
    )

    def __init__(
        self,
        node_id: int,
        signer: Identity,
        random_bytes: Callable[[int], bytes],
        key_pair: KeyPair | None,
    ) -> None:
        self.node_id = node_id
        self._signer = signer
        self._random_bytes = random_bytes
        self._key_pair = key_pair
        self._retired: dict[bytes, tuple[int, ReplayFilter]] = {}
        self._met: set[int] = set()
        self.forget_frames()

    @property
    def public(self) -> bytes:
        """The own X25519 public key."""
        return self._keys().public

    def forget_frames(self) -> None:
        """Build the key exchange frames anew: they name node id and key."""
        self._announcement: bytes | None = None
        self._request: bytes | None = None

    def sign_as(self, signer: Identity) -> None:
        """Sign what is announced from now on with another identity."""
        self._signer = signer
        self.forget_frames()

    def announcement(self) -> bytes:
        """Return the own PILA."""
        if self._announcement is None:
            self._announcement = encode_authenticated(
                self.node_id, self.public, self._signer
            )
        return self._announcement

    def request(self) -> bytes:
        """Return the own PILK."""
        if self._request is None:
            self._request = encode_key_request(self.node_id, self.public)
        return self._request

    def derive(self, peer_public: bytes, now: float) -> Session:
        """Make the session with the owner of ``peer_public``.

        Raises:
            DecodeError: The peer's key is not usable.
        """
        key = self._keys().session_key(peer_public)
        counter, replay = self._retired.pop(peer_public, (0, None))
        session = Session(
            key,
            self.node_id,
            own_public=self.public,
            peer_public=peer_public,
            counter=counter,
            replay=replay,
        )
        self.renew(session, now)
        return session

    def renew(self, session: Session, now: float) -> None:
        """Install a session again, under a fresh nonce prefix."""
        session.renew(self._random_bytes(PREFIX_SIZE), now)

    def has_met(self, node: int) -> bool:
        """Tell whether a session with the node ended under the present own key.

        Such a peer may hold it still, and is then silent on our PILA (6.4).
        """
        return node in self._met

    def retire(self, session: Session, node: int) -> None:
        """Keep what a session with ``node`` that ends leaves behind."""
        if session.own_public != self.public:
            return
        is_full = max(len(self._retired), len(self._met)) >= _MAX_RETIRED
        if session.replay.is_exhausted or is_full:
            self.rotate()
            return
        self._retired[session.peer_public] = (session.counter, session.replay)
        self._met.add(node)

    def rotate(self) -> None:
        """Take a new own key."""
        self._key_pair = None
        self._retired.clear()
        self._met.clear()
        self.forget_frames()

    def _keys(self) -> KeyPair:
        if self._key_pair is None:
            self._key_pair = KeyPair.generate(self._random_bytes)
        return self._key_pair
