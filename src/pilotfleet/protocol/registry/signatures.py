"""What registry requests sign, and a memory of good signatures.

Section 4 of registry.md. The texts hold neither nonce nor time, so a node's
heartbeat carries the same 64 bytes for as long as its key lives. Verifying
Ed25519 takes about 200 microseconds here, remembering a digest two:
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
    from collections.abc import Callable, Mapping

    from pilotfleet.protocol.identity import Identity

__all__ = [
    "SIGNED_TYPES",
    "VerificationCache",
    "decode_signature",
    "sign_request",
    "signed_text",
]


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


def _search(request: Request) -> str:
    return f"search:{node_number(request, 'requester_id')}"


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
    "search": _search,
    "ack_handshakes": _acknowledge,
    "list_receipts": _own("list_receipts"),
    "list_trust": _own("list_trust"),
}

SIGNED_TYPES: Final = frozenset(_TEXTS)
"""Message types that a node signs; the last four are extensions."""


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


class VerificationCache:
    """Remembers which signatures were found good; forgets the oldest.

    The public key is part of what is remembered, so a signature by a key that
    was replaced is never found again: nothing has to be dropped explicitly.
    Two generations stand in for an exact age order: a full young generation
    becomes the old one, and what is used again moves back to the young one.
    """

    __slots__ = ("_half", "_old", "_young")

    def __init__(self, limit: int = 1 << 18) -> None:
        self._half = max(1, limit // 2)
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def verify_text(self, public_key: bytes, message: str, signature: str) -> bool:
        """Tell whether base64 ``signature`` over ``message`` is by the key.

        Raises:
            DecodeError: The signature is not base64.
        """
        # A key has a fixed size and base64 no zero byte: nothing is ambiguous.
        digest = blake2b(
            b"%b%b\0%b" % (public_key, signature.encode(), message.encode()),
            digest_size=16,
        ).digest()
        if self._knows(digest):
            return True
        good = self._verify(public_key, message, decode_signature(signature))
        if good:
            self._remember(digest)
        return good

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
