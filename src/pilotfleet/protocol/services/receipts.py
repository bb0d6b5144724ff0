"""Receipts: what a worker earned for a task, signed by both sides.

A score changes only by a receipt, so neither side can change one alone, and a
score can be traced back to the tasks that made it. Both sides sign the same
text with their node keys; the text names the task, both nodes, the result and
the reward, and the times that the reward follows from. Its effects are those of
tasks-and-polo.md section 6.2: the worker earns the reward, the submitter pays 1.
"""

from __future__ import annotations

import binascii
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.identity import SIGNATURE_SIZE, verify
from pilotfleet.protocol.services.polo import reward
from pilotfleet.protocol.services.tasks import is_task_id

if TYPE_CHECKING:
    from pilotfleet.protocol.identity import Identity

__all__ = [
    "MAX_BATCH",
    "MAX_TIME_MS",
    "RECEIPTS_EXTENSION",
    "Receipt",
    "SignedReceipt",
    "decode_receipt",
    "decode_receipt_json",
    "is_signature_text",
]

RECEIPTS_EXTENSION: Final = "receipts"
"""How a registry says in ``register_ok`` that it takes receipts."""
MAX_BATCH: Final = 100
"""Receipts in one registry message."""
MAX_TIME_MS: Final = 366 * 86_400_000
"""A task that waited or ran for longer than a year is an error of a clock."""

_MAX_NODE: Final = 0xFFFF_FFFF
_MAX_UNIX: Final = 1 << 40
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Receipt(msgspec.Struct, frozen=True):
    """What both sides of a finished task agree on."""

    task_id: str
    submitter: int
    """Node ID of who gave the task."""
    worker: int
    """Node ID of who did it."""
    digest: str
    """SHA-256 of the result as it was delivered (bytes of the text or file),
    in lower-case hexadecimal."""
    reward: int
    idle_ms: int
    staged_ms: int
    cpu_ms: int
    completed_at: int
    """Unix seconds, by the worker's clock."""

    @property
    def text(self) -> str:
        """What both sides sign."""
        return (
            f"receipt:v1:{self.task_id}:{self.submitter}:{self.worker}:{self.digest}"
            f":{self.reward}:{self.idle_ms}:{self.staged_ms}:{self.cpu_ms}"
            f":{self.completed_at}"
        )

    def check(self) -> None:
        """Check all that can be checked without the two keys and a clock.

        Raises:
            DecodeError: A field is malformed, both sides are one node, or the
                reward is not what the formula gives for the times.
        """
        if not is_task_id(self.task_id):
            raise DecodeError(
                "receipt: task id is not 1-64 characters of A-Z a-z 0-9 -"
            )
        if not (0 < self.submitter <= _MAX_NODE and 0 < self.worker <= _MAX_NODE):
            raise DecodeError("receipt: node id out of range")
        if self.submitter == self.worker:
            raise DecodeError("receipt: submitter and worker are one node")
        if _DIGEST.fullmatch(self.digest) is None:
            raise DecodeError("receipt: digest is not lower-case sha-256")
        if not all(0 <= time <= MAX_TIME_MS for time in self._times):
            raise DecodeError(f"receipt: time is not 0-{MAX_TIME_MS} ms")
        if not 0 < self.completed_at < _MAX_UNIX:
            raise DecodeError("receipt: completed_at out of range")
        idle_ms, staged_ms, cpu_ms = self._times
        earned = reward(
            time_cpu_ms=cpu_ms, time_idle_ms=idle_ms, time_staged_ms=staged_ms
        )
        if self.reward != earned:
            raise DecodeError(f"receipt: reward {self.reward} is not {earned}")

    @property
    def _times(self) -> tuple[int, int, int]:
        return self.idle_ms, self.staged_ms, self.cpu_ms

    def sign(self, identity: Identity) -> str:
        """Return one side's signature, base64."""
        return identity.sign_text(self.text)

    def is_signed_by(self, public_key: bytes, signature: str) -> bool:
        """Tell whether base64 ``signature`` is this key's; False if malformed."""
        raw = _raw(signature)
        return raw is not None and verify(public_key, raw, self.text.encode())

    def with_signatures(self, *, submitter: str, worker: str) -> SignedReceipt:
        """Return the receipt with both signatures."""
        return SignedReceipt(
            **msgspec.structs.asdict(self),
            submitter_signature=submitter,
            worker_signature=worker,
        )


class SignedReceipt(Receipt, frozen=True):
    """A receipt as it is stored and sent: flat, with both signatures (base64)."""

    submitter_signature: str
    worker_signature: str

    def is_signed_by_both(self, submitter_key: bytes, worker_key: bytes) -> bool:
        """Tell whether both signatures are good."""
        return self.is_signed_by(
            submitter_key, self.submitter_signature
        ) and self.is_signed_by(worker_key, self.worker_signature)


def is_signature_text(signature: str) -> bool:
    """Tell whether this is base64 of as many bytes as a signature has."""
    return _raw(signature) is not None


def _raw(signature: str) -> bytes | None:
    try:
        raw = binascii.a2b_base64(signature, strict_mode=True)
    # Text beyond ASCII is a ValueError, of which binascii.Error is one.
    except ValueError:
        return None
    return raw if len(raw) == SIGNATURE_SIZE else None


_JSON: Final = msgspec.json.Decoder(SignedReceipt)


def decode_receipt(row: Any) -> SignedReceipt:
    """Read a receipt from decoded JSON, and check it.

    Raises:
        DecodeError: It is no receipt, or ``check`` refuses it.
    """
    try:
        receipt = msgspec.convert(row, SignedReceipt)
    except msgspec.ValidationError as error:
        raise DecodeError(f"receipt: {error}") from None
    receipt.check()
    return receipt


def decode_receipt_json(data: bytes) -> SignedReceipt:
    """Read a receipt from JSON text, and check it.

    Raises:
        DecodeError: It is no receipt, or ``check`` refuses it.
    """
    try:
        receipt = _JSON.decode(data)
    # Deep nesting and keys that are not UTF-8 leave msgspec's own error tree.
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise DecodeError(f"receipt: {error}") from None
    receipt.check()
    return receipt
