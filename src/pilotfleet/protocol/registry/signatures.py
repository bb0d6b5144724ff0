"""What registry requests sign, and a memory of good signatures.

Section 4 of registry.md. The texts hold neither nonce nor time, so a node's
heartbeat carries the same 64 bytes for as long as its key lives. Verifying
Ed25519 takes about 65 microseconds here, remembering a digest two:
``VerificationCache`` is what makes repeated heartbeats cheap.
"""

from __future__ import annotations

import base64
import binascii
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.protocol.identity import SIGNATURE_SIZE, verify
from pilotfleet.protocol.registry.messages import (
    Request,
    network_number,
    node_number,
    text,
    texts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import TypeAlias

    from pilotfleet.protocol.identity import Identity

    SignedText: TypeAlias = tuple[bytes, str, str]
    """A public key, a text, and what is said to be the signature, in base64."""

__all__ = [
    "SIGNED_TYPES",
    "SignedText",
    "VerificationCache",
    "decode_signature",
    "sign_request",
    "signed_text",
    "signer",
    "verify_all",
]

SIGNATURE_TEXT_SIZE: Final = 88
"""Characters of a signature in base64."""
MAX_BAD: Final = 4_096
"""Signatures remembered as bad: those of a few batches."""


def _register(request: Request) -> str:
    return f"register:{text(request, 'listen_addr')}:{text(request, 'public_key')}"


def _own(prefix: str) -> Callable[[Request], str]:
    return lambda request: f"{prefix}:{node_number(request)}"


def _pair(prefix: str, first: str, second: str) -> Callable[[Request], str]:
    def build(request: Request) -> str:
        return f"{prefix}:{node_number(request, first)}:{node_number(request, second)}"

    return build


def _network(prefix: str) -> Callable[[Request], str]:
    def build(request: Request) -> str:
        return f"{prefix}:{node_number(request)}:{network_number(request)}"

    return build


def _rotate(request: Request) -> str:
    return f"rotate:{node_number(request)}:{text(request, 'new_public_key')}"


def _invite(request: Request) -> str:
    inviter = node_number(request, "inviter_id")
    target = node_number(request, "target_node_id")
    return f"invite:{inviter}:{network_number(request)}:{target}"


def _acknowledge(request: Request) -> str:
    ids = ",".join(texts(request, "ids"))
    return f"ack_handshakes:{node_number(request)}:{ids}"


def _authorize(request: Request) -> str:
    names = ("caller_node_id", "submitter_node_id", "receiver_node_id")
    caller, submitter, receiver = (node_number(request, name) for name in names)
    return f"authorize_task_submit:{caller}:{submitter}:{receiver}"


def _asker(prefix: str) -> Callable[[Request], str]:
    return lambda request: f"{prefix}:{node_number(request, 'requester_id')}"


_TEXTS: Final[Mapping[str, Callable[[Request], str]]] = {
    "register": _register,
    "heartbeat": _own("heartbeat"),
    "deregister": _own("deregister"),
    "resolve": _pair("resolve", "requester_id", "node_id"),
    "set_hostname": _own("set_hostname"),
    "set_tags": _own("set_tags"),
    "set_visibility": _own("set_visibility"),
    "set_task_exec": _own("set_task_exec"),
    "set_key_expiry": _own("set_key_expiry"),
    "report_trust": _pair("report_trust", "node_id", "peer_id"),
    "revoke_trust": _pair("revoke_trust", "node_id", "peer_id"),
    "request_handshake": _pair("handshake", "from_node_id", "to_node_id"),
    "poll_handshakes": _own("poll_handshakes"),
    "respond_handshake": _pair("respond", "node_id", "peer_id"),
    "punch": _pair("punch", "node_a", "node_b"),
    "rotate_key": _rotate,
    "join_network": _network("join_network"),
    "leave_network": _network("leave_network"),
    "invite_to_network": _invite,
    "poll_invites": _own("poll_invites"),
    "respond_invite": _network("respond_invite"),
    "authorize_task_submit": _authorize,
    "search": _asker("search"),
    "watch": _asker("watch"),
    "ack_handshakes": _acknowledge,
    "list_receipts": _own("list_receipts"),
    "list_trust": _own("list_trust"),
}

SIGNED_TYPES: Final = frozenset(_TEXTS)
"""Message types that a node signs; the last five are extensions."""

_SIGNERS: Final[Mapping[str, str]] = {
    "authorize_task_submit": "caller_node_id",
    "invite_to_network": "inviter_id",
    "punch": "requester_id",
    "request_handshake": "from_node_id",
    "resolve": "requester_id",
    "search": "requester_id",
    "watch": "requester_id",
}
"""The field that names who signs, where it is not ``node_id``."""


def signer(request: Request) -> int:
    """Return the node that a request says to be signed by; 0: a key, or nobody."""
    kind = text(request, "type")
    if kind not in _TEXTS or kind == "register":
        return 0
    return node_number(request, _SIGNERS.get(kind, "node_id"))


def signed_text(request: Request) -> str:
    """Return the text that the signature of ``request`` covers.

    Raises:
        InvalidArgument: Requests of this type are not signed.
    """
    kind = text(request, "type")
    build = _TEXTS.get(kind)
    if build is None:
        raise InvalidArgument(f"requests of type {kind!r} are not signed")
    return build(request)


def sign_request(identity: Identity, request: Request) -> dict[str, Any]:
    """Return ``request`` with its ``signature`` by ``identity``."""
    return {**request, "signature": identity.sign_text(signed_text(request))}


def decode_signature(signature: str) -> bytes:
    """Read a base64 signature of any length.

    Raises:
        DecodeError: Not base64.
    """
    try:
        return base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DecodeError(str(error)) from None


def verify_all(claims: Iterable[SignedText]) -> list[bool]:
    """Tell of each signature whether it is good; what is no base64 is not.

    For a thread: the work is done without the interpreter's lock.
    """
    return [_is_good(*claim) for claim in claims]


def _is_good(public_key: bytes, message: str, signature: str) -> bool:
    try:
        raw = decode_signature(signature)
    except DecodeError:
        return False
    return len(raw) == SIGNATURE_SIZE and verify(public_key, raw, message.encode())


class VerificationCache:
    """Remembers which signatures were found good; forgets the oldest.

    The public key is part of what is remembered, so a signature by a key that
    was replaced is never found again: nothing has to be dropped explicitly.
    Two generations stand in for an exact age order: a full young generation
    becomes the old one, and what is used again moves back to the young one.

    The last ones that were found bad are remembered too, so that those that were
    verified ahead are not verified again when their requests are judged.
    """

    __slots__ = ("_bad", "_half", "_old", "_young")

    def __init__(self, limit: int = 1 << 18) -> None:
        self._half = max(1, limit // 2)
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()
        self._bad: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def grow_to(self, limit: int) -> None:
        """Remember so many from now on, if that is more than before."""
        self._half = max(self._half, limit // 2)

    def verify_text(self, public_key: bytes, message: str, signature: str) -> bool:
        """Tell whether base64 ``signature`` over ``message`` is by the key.

        Raises:
            DecodeError: The signature is not base64.
        """
        digest = _digest(public_key, message, signature)
        if self._knows(digest):
            return True
        # Before the bad ones: whether it was verified ahead must not change the error.
        raw = decode_signature(signature)
        if digest in self._bad:
            return False
        good = self._verify(public_key, message, raw)
        if good:
            self._remember(digest)
        return good

    def knows(self, public_key: bytes, message: str, signature: str) -> bool:
        """Tell whether a base64 signature is remembered as good."""
        return self._knows(_digest(public_key, message, signature))

    def unknown(self, claims: Iterable[SignedText]) -> list[SignedText]:
        """Return those worth a verification, each once: nothing is known of them."""
        found: dict[bytes, SignedText] = {}
        for claim in claims:
            # Any other is bad for its length, which costs nothing to find out.
            if len(claim[2]) != SIGNATURE_TEXT_SIZE:
                continue
            digest = _digest(*claim)
            if not self._knows(digest) and digest not in self._bad:
                found[digest] = claim
        return list(found.values())

    def learn(self, claims: Sequence[SignedText], verdicts: Sequence[bool]) -> None:
        """Remember what ``verify_all`` has found."""
        for claim, good in zip(claims, verdicts, strict=True):
            digest = _digest(*claim)
            if good:
                self._remember(digest)
                continue
            if len(self._bad) >= MAX_BAD:
                self._bad.clear()
            self._bad.add(digest)

    def verify_raw(self, public_key: bytes, message: str, signature: bytes) -> bool:
        """Tell whether ``signature`` over ``message`` is by the key."""
        digest = blake2b(
            b"%b%b%b" % (public_key, signature, message.encode()),
            digest_size=16,
            person=b"raw",
        ).digest()
        if self._knows(digest):
            return True
        good = self._verify(public_key, message, signature)
        if good:
            self._remember(digest)
        return good

    def _verify(self, public_key: bytes, message: str, signature: bytes) -> bool:
        if len(signature) != SIGNATURE_SIZE:
            return False
        return verify(public_key, signature, message.encode())

    def _knows(self, digest: bytes) -> bool:
        if digest in self._young:
            return True
        if digest not in self._old:
            return False
        self._old.discard(digest)
        self._remember(digest)
        return True

    def _remember(self, digest: bytes) -> None:
        if len(self._young) >= self._half:
            self._old = self._young
            self._young = set()
        self._young.add(digest)


def _digest(public_key: bytes, message: str, signature: str) -> bytes:
    # A key has a fixed size and base64 no zero byte, and only what is base64 of the
    # right length is ever remembered: nothing is ambiguous.
    return blake2b(
        b"%b%b\0%b" % (public_key, signature.encode(), message.encode()),
        digest_size=16,
    ).digest()
