"""The file ``trust.json`` and its background writer (trust.md section 6)."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from pilotfleet.errors import ConfigError, StorageError
from pilotfleet.transport.files import replace_file
from pilotfleet.transport.threads import run_blocking

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pilotfleet.node.trust import TrustStore

__all__ = [
    "OutgoingRow",
    "PendingRow",
    "RevokedRow",
    "TrustFile",
    "TrustWriter",
    "TrustedRow",
    "encode_trust_file",
    "read_trust_file",
]

logger = logging.getLogger(__name__)

SAVE_DELAY_S: Final = 0.2
"""How long the background writer waits for more changes to join."""
RETRY_DELAY_S: Final = 5.0
"""How long it waits after a disk refused."""


class TrustedRow(NamedTuple):
    """One trusted peer; times are Unix seconds in all rows."""

    node_id: int
    public_key: str
    approved_at: int
    mutual: bool
    network: int


class PendingRow(NamedTuple):
    """One request that waits for a decision."""

    node_id: int
    public_key: str
    justification: str
    received_at: int
    source: int


class RevokedRow(NamedTuple):
    """One peer whose accepts are ignored for a while."""

    node_id: int
    until: int


class OutgoingRow(NamedTuple):
    """One request of ours without an answer."""

    node_id: int
    sent_at: int


class TrustFile(NamedTuple):
    """The whole file."""

    trusted: list[TrustedRow]
    pending: list[PendingRow]
    revoked: list[RevokedRow]
    outgoing: list[OutgoingRow]


class _Trusted(msgspec.Struct):
    node_id: int
    approved_at: str
    public_key: str = ""
    mutual: bool = False
    network: int = 0


class _Pending(msgspec.Struct):
    node_id: int
    received_at: str
    public_key: str = ""
    justification: str = ""
    source: int = 0


class _Revoked(msgspec.Struct):
    node_id: int
    until: str


class _Outgoing(msgspec.Struct):
    node_id: int
    sent_at: str


class _File(msgspec.Struct):
    trusted: list[_Trusted] | None = None
    pending: list[_Pending] | None = None
    revoked: list[_Revoked] | None = None
    outgoing: list[_Outgoing] | None = None


def read_trust_file(path: Path) -> TrustFile | None:
    """Read ``path``; None when there is no such file.

    Entries whose time cannot be read are skipped, as in the reference.

    Raises:
        ConfigError: The file is not a trust file.
        StorageError: The file cannot be read.
    """
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not a trust file: {error}",
            hint=f"repair {path}, or move it away to start without any trust",
        ) from None
    return TrustFile(
        _present(
            TrustedRow(r.node_id, r.public_key, t, r.mutual, r.network)
            if (t := _seconds(r.approved_at)) is not None
            else None
            for r in file.trusted or ()
        ),
        _present(
            PendingRow(r.node_id, r.public_key, r.justification, t, r.source)
            if (t := _seconds(r.received_at)) is not None
            else None
            for r in file.pending or ()
        ),
        _present(
            RevokedRow(r.node_id, t) if (t := _seconds(r.until)) is not None else None
            for r in file.revoked or ()
        ),
        _present(
            OutgoingRow(r.node_id, t)
            if (t := _seconds(r.sent_at)) is not None
            else None
            for r in file.outgoing or ()
        ),
    )


def encode_trust_file(file: TrustFile) -> bytes:
    """Return the JSON text: ``trusted`` always, the others when not empty."""
    tree: dict[str, Any] = {"trusted": [_trusted_json(r) for r in file.trusted] or None}
    if file.pending:
        tree["pending"] = [_pending_json(r) for r in file.pending]
    if file.revoked:
        tree["revoked"] = [
            {"node_id": r.node_id, "until": _text(r.until)} for r in file.revoked
        ]
    if file.outgoing:
        tree["outgoing"] = [
            {"node_id": r.node_id, "sent_at": _text(r.sent_at)} for r in file.outgoing
        ]
    return msgspec.json.format(msgspec.json.encode(tree), indent=2) + b"\n"


class TrustWriter:
    """Save changed stores in the background, joining changes.

    One task exists while something waits to be saved, none otherwise.
    """

    def __init__(self) -> None:
        self._dirty: dict[TrustStore, None] = {}
        self._saves: dict[TrustStore, asyncio.Task[None]] = {}
        self._drain: asyncio.Task[None] | None = None

    def changed(self, store: TrustStore) -> None:
        """Save ``store`` soon (``TrustStore.on_change``)."""
        if store.path is None:
            return
        self._dirty[store] = None
        if self._drain is None:
            self._drain = asyncio.create_task(self._run(), name="trust writer")

    async def flush(self, store: TrustStore) -> None:
        """Return when everything in ``store`` now is on disk.

        May be cancelled; the write goes on.

        Raises:
            StorageError: The disk refused.
        """
        wanted = store.version
        while store.path is not None and store.saved_version < wanted:
            save = self._saves.get(store)
            if save is None:
                save = asyncio.create_task(self._save(store), name="trust save")
                self._saves[store] = save
            await asyncio.shield(save)

    async def aclose(self) -> None:
        """Save what waits, then stop."""
        if self._drain is not None:
            self._drain.cancel()
            await asyncio.wait([self._drain])
        for store in list(self._dirty):
            try:
                await self.flush(store)
            except StorageError as error:
                logger.error("trust lost: %s", error)

    async def _run(self) -> None:
        try:
            while self._dirty:
                await asyncio.sleep(SAVE_DELAY_S)
                await self._save_dirty()
        finally:
            self._drain = None

    async def _save_dirty(self) -> None:
        for store in list(self._dirty):
            try:
                await self.flush(store)
            except StorageError as error:
                logger.warning("%s; trying again", error)
                await asyncio.sleep(RETRY_DELAY_S)

    async def _save(self, store: TrustStore) -> None:
        try:
            version = store.version
            data = store.encode(wall=time.time())
            assert store.path is not None  # flush() asks before.
            await run_blocking(_write, store.path, data)
            store.saved_version = version
            if store.version == version:
                self._dirty.pop(store, None)
        finally:
            del self._saves[store]


def _write(path: Path, data: bytes) -> None:
    try:
        replace_file(path, data)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _trusted_json(row: TrustedRow) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "node_id": row.node_id,
        "public_key": row.public_key,
        "approved_at": _text(row.approved_at),
        "mutual": row.mutual,
    }
    if row.network:
        tree["network"] = row.network
    return tree


def _pending_json(row: PendingRow) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "node_id": row.node_id,
        "public_key": row.public_key,
        "justification": row.justification,
        "received_at": _text(row.received_at),
        "source": row.source,
    }
    return {key: value for key, value in tree.items() if value or key == "node_id"}


def _text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
        return int(moment.timestamp()) if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


_Row = TypeVar("_Row")


def _present(rows: Iterable[_Row | None]) -> list[_Row]:
    return [row for row in rows if row is not None]
