"""What the store keeps, and under which key.

Values are MessagePack maps with default values left out, so a field can be
added without touching what is stored. MessagePack and not JSON, because a
justification of control characters would grow sixfold in JSON and pass the
store's limit on values.

======================  =========================================================
key                     holds
======================  =========================================================
node.<id>               NodeRecord; stays when the node dies (the ID is its own)
key.<sha256>            Claim: the node with this public key
owner.<sha256>          Claim: the node bound to this owner
host.<name>             Claim: the node with this hostname; the name's only record
net.<id>                NetworkRecord; stays as a tombstone when deleted
netname.<name>          Claim: the network with this name
member.<net>.<node>     MemberRecord
invite.<node>.<net>     InviteRecord
grant.<node>.<peer>     Grant: what the node grants the peer
trust.<low>.<high>      a pair as older releases wrote it: both granted all
mail.<node>             MailRecord
polo.<node>             PoloRecord
receipt.<s>.<w>.<task>  ReceiptRecord, from submitter s to worker w
receipts.closed         ClosedRecord
seen.<block>            256 times of unix seconds, 32 bits each, little-endian
======================  =========================================================
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from pilotfleet.errors import StorageError

if TYPE_CHECKING:
    from pilotfleet.registry.store.base import Entry

__all__ = [
    "CLOSED_KEY",
    "Claim",
    "ClosedRecord",
    "InviteRecord",
    "MailRecord",
    "MailRequest",
    "MailResponse",
    "MemberRecord",
    "NetworkRecord",
    "NodeRecord",
    "PoloRecord",
    "ReceiptRecord",
    "decode_record",
    "encode_record",
    "grant_key",
    "host_key",
    "invite_key",
    "key_key",
    "mail_key",
    "member_key",
    "netname_key",
    "network_key",
    "node_key",
    "owner_key",
    "polo_key",
    "receipt_key",
    "seen_key",
    "trust_key",
]

RecordT = TypeVar("RecordT", bound=msgspec.Struct)


class NodeRecord(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A node, except for what is soft or has a record of its own."""

    id: int
    key: bytes
    """Ed25519 public key."""
    created: int
    """When the key came to be used, unix seconds."""
    live: bool = True
    """False: reaped or deregistered; the record keeps the ID for the key."""
    owner: str = ""
    endpoint: str = ""
    lan: tuple[str, ...] = ()
    version: str = ""
    relay_only: bool = False
    public: bool = False
    verified: bool = False
    """Some registration of this key was signed."""
    task_exec: bool = False
    tags: tuple[str, ...] = ()
    rotated: int = 0
    """When the key was last replaced, unix seconds; 0: never."""
    rotations: int = 0
    expires: int = 0
    """When the key expires, unix seconds; 0: never."""
    external: str = ""
    """What directories outside know its owner as; said by the administrator."""


class Claim(msgspec.Struct, frozen=True, gc=False):
    """Says which node or network a unique name belongs to."""

    id: int


class NetworkRecord(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A network without its members."""

    id: int
    name: str = ""
    rule: str = "open"
    created: int = 0
    token: str = ""
    """What a joining node must present when the rule is ``token``."""
    admin_token: str = ""
    enterprise: bool = False
    deleted: bool = False
    """A tombstone: IDs are never given out twice."""
    max_members: int = 0
    ports: tuple[int, ...] = ()
    description: str = ""
    policy: str = ""
    """Expression policy, stored unread."""
    roles: tuple[tuple[str, str], ...] = ()
    """Roles for nodes that will join, by external ID in lower case."""


class MemberRecord(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One node's part in one network."""

    role: str = "member"
    tags: tuple[str, ...] = ()


class InviteRecord(msgspec.Struct, frozen=True, gc=False):
    """An invitation that was not answered yet."""

    inviter: int
    at: int


class MailRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A handshake request that waits for its target."""

    sender: int
    justification: str
    at: int


class MailResponse(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An answer that waits for the node that asked."""

    sender: int
    accept: bool
    at: int


class MailRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The handshake box of one node."""

    requests: tuple[MailRequest, ...] = ()
    responses: tuple[MailResponse, ...] = ()
    asked: tuple[int, ...] = ()
    """Who asked and was not accepted yet, oldest first; outlives the poll."""


class PoloRecord(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The part of a node's reputation that no kept receipt shows."""

    score: int = 0
    """What the administrator has set or added."""
    folded_count: int = 0
    """Receipts that are kept no more."""
    folded_sum: int = 0
    """What they have brought."""
    folded_to: int = 0
    """All receipts that were completed before this hour since 1970."""


class ReceiptRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A receipt without what its key says, and the keys that verified it."""

    completed_at: int
    reward: int
    idle_ms: int
    staged_ms: int
    cpu_ms: int
    digest: bytes
    submitter_signature: bytes
    worker_signature: bytes
    submitter_key: bytes
    """Stored with it, so that an audit can verify it after the key was replaced."""
    worker_key: bytes


class ClosedRecord(msgspec.Struct, frozen=True, gc=False):
    """Which receipts are no longer taken."""

    hour: int = 0
    """Those that were completed before this hour since 1970."""
    at: int = 0
    """When that was decided, unix seconds."""


CLOSED_KEY: Final = "receipts.closed"

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODERS: Final[dict[type[Any], msgspec.msgpack.Decoder[Any]]] = {}


def encode_record(record: msgspec.Struct) -> bytes:
    """Return the stored form of a record."""
    return _ENCODER.encode(record)


def decode_record(entry: Entry, kind: type[RecordT]) -> RecordT:
    """Read the value of a stored entry, which must not be a deletion.

    Raises:
        StorageError: The store holds something else under this key.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.msgpack.Decoder(kind)
    try:
        record: RecordT = decoder.decode(entry.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StorageError(f"entry {entry.key} cannot be read: {error}") from error
    return record


def node_key(node: int) -> str:
    """Return the key of a node's record."""
    return f"node.{node}"


# A registration asks for it several times, while it is decided and when it is stored.
@lru_cache(maxsize=1_024)
def key_key(public_key: bytes) -> str:
    """Return the key of the claim on a public key."""
    return f"key.{sha256(public_key).hexdigest()}"


def owner_key(owner: str) -> str:
    """Return the key of the claim of an owner."""
    return f"owner.{sha256(owner.encode()).hexdigest()}"


def host_key(name: str) -> str:
    """Return the key of the claim on a hostname."""
    return f"host.{name}"


def network_key(network: int) -> str:
    """Return the key of a network's record."""
    return f"net.{network}"


def netname_key(name: str) -> str:
    """Return the key of the claim on a network's name."""
    return f"netname.{name}"


def member_key(network: int, node: int) -> str:
    """Return the key of a membership."""
    return f"member.{network}.{node}"


def invite_key(node: int, network: int) -> str:
    """Return the key of an invitation of ``node``."""
    return f"invite.{node}.{network}"


def grant_key(node: int, peer: int) -> str:
    """Return the key of what ``node`` grants ``peer``."""
    return f"grant.{node}.{peer}"


def trust_key(one: int, other: int) -> str:
    """Return the key of an older release's pair; the order does not matter."""
    return f"trust.{min(one, other)}.{max(one, other)}"


def mail_key(node: int) -> str:
    """Return the key of a node's handshake box."""
    return f"mail.{node}"


def polo_key(node: int) -> str:
    """Return the key of a node's reputation."""
    return f"polo.{node}"


def receipt_key(submitter: int, worker: int, task_id: str) -> str:
    """Return the key of a receipt; there is one for each task of two nodes."""
    return f"receipt.{submitter}.{worker}.{task_id}"


def seen_key(block: int) -> str:
    """Return the key of a block of last-seen times."""
    return f"seen.{block}"
