"""The shared store: a NATS JetStream key-value bucket.

For several rendezvous on one directory. Keys are the subjects of the bucket's
stream, revisions are its sequence numbers, and compare-and-set is JetStream's
own (``Nats-Expected-Last-Subject-Sequence``), so any NATS tool can read the
bucket.

Writes that wait are sent as one atomic batch (nats-server 2.12 and later). A
batch costs the server about 3 ms whatever its size, so grouping is what makes
it fast. If a batch is refused, its writes are tried one by one, which finds
the one to blame. A server without atomic batches gets the changes of a write
in order; there a crash between two of them leaves the first ones.

Deleted keys leave a marker that expires after ``DELETED_TTL``; a watcher must
not be cut off for longer than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

from pilotfleet.errors import Conflict, InvalidArgument, NotSupported, StorageError
from pilotfleet.registry.store.base import Change, Entry, Store
from pilotfleet.registry.store.groupwriter import GroupWriter

try:
    import nats
    import nats.errors
    import nats.js.errors
    from nats.js import api
except ImportError as missing:
    raise NotSupported(
        "the store nats: needs the package nats-py",
        hint="pip install 'pilotfleet[ha]'",
    ) from missing

# After the check: it needs the package, too.
from pilotfleet.registry.store.natsreader import REQUEST_TIMEOUT_S, BucketReader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from pilotfleet.registry.store.groupwriter import Write

__all__ = ["NatsStore", "open_nats_store"]

logger = logging.getLogger(__name__)

# From NATS (ADR-8 key-value, ADR-50 atomic batch, ADR-43 message TTL).
WRONG_LAST_SEQUENCE: Final = 10071
MAX_BATCH_MESSAGES: Final = 1_000
OPERATION: Final = "KV-Operation"
EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"

# Ours.
CONNECT_TIMEOUT_S: Final = 5.0
DELETED_TTL: Final = "24h"
MAX_SINGLE: Final = 64
"""Writes that are on their way one by one."""
MAX_REMEMBERED: Final = 10_000
"""Markers of deleted keys whose sequence is remembered, to save a question."""
RETRY_WAIT_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class BucketConfig:
    """Where the bucket is and how it is made."""

    servers: tuple[str, ...]
    bucket: str = "pilotfleet"
    replicas: int = 1
    """Copies in a NATS cluster; 3 survives the loss of a server."""


def open_nats_store(url: str) -> NatsStore:
    """Return the store for ``nats://HOST:PORT[,…][?replicas=N&bucket=NAME]``.

    Raises:
        InvalidArgument: Not such a URL.
    """
    # The text of the URL stays out of errors: it may hold a password.
    try:
        parts = urlsplit(url)
        hosts = [host for host in parts.netloc.split(",") if host]
        query = parse_qs(parts.query, strict_parsing=bool(parts.query))
        replicas = int(query.pop("replicas", ["1"])[0])
        bucket = query.pop("bucket", ["pilotfleet"])[0]
    except ValueError as error:
        raise InvalidArgument(f"store nats: {error}") from None
    if not hosts or parts.path.strip("/") or query:
        raise InvalidArgument(
            "store nats: the URL has other parts than hosts, replicas and bucket",
            hint="for example nats://127.0.0.1:4222",
        )
    if not bucket.replace("-", "").replace("_", "").isalnum():
        raise InvalidArgument(f"store nats: bucket {bucket!r} has an invalid name")
    servers = tuple(f"{parts.scheme}://{host}" for host in hosts)
    return NatsStore(BucketConfig(servers, bucket, replicas))


class NatsStore(Store):
    """Keys in a JetStream key-value bucket, which is made if it is missing."""

    is_shared = True

    def __init__(self, config: BucketConfig) -> None:
        self._config = config
        self._stream = f"KV_{config.bucket}"
        self._prefix = f"$KV.{config.bucket}."
        hosts = (server.partition("//")[2] for server in config.servers)
        self._where = "nats://" + ",".join(h.rpartition("@")[2] for h in hosts)
        self._client: Client | None = None
        self._opening = asyncio.Lock()
        self._atomic = False
        self._singles = asyncio.Semaphore(MAX_SINGLE)
        self._writer = GroupWriter(
            self._where, count=_count_together, commit=self._send_group
        )
        self._deleted: OrderedDict[str, int] = OrderedDict()
        self._readers: set[BucketReader] = set()
        self._closed = False

    async def load(self) -> list[Entry]:
        """Return all existing keys in the order of their revisions."""
        client = await self._open()
        entries: dict[str, Entry] = {}
        with self._translated("read"):
            js = client.jetstream(timeout=REQUEST_TIMEOUT_S)
            state = (await js.stream_info(self._stream)).state
            if not state.messages:
                return []
            reader = await BucketReader.start(client, self._stream, after=0)
            try:
                async for message in reader.stored(state.last_seq):
                    entry = self._entry(message)
                    entries.pop(entry.key, None)
                    if entry.value is not None:
                        entries[entry.key] = entry
            finally:
                await reader.stop()
        return list(entries.values())

    async def _write(self, changes: Sequence[Change]) -> list[int]:
        await self._open()
        return await self._writer.write(changes)

    async def watch(self, after: int) -> AsyncGenerator[Entry, None]:
        """Yield every change with a revision above ``after``.

        Goes on by itself after the loss of the server.
        """
        while not self._closed:
            try:
                async for entry in self._follow(after):
                    after = entry.revision
                    yield entry
            except (OSError, TimeoutError, nats.errors.Error, StorageError) as error:
                if not self._closed:
                    logger.warning("watch of %s: %s", self._where, error)
                    await asyncio.sleep(RETRY_WAIT_S)

    async def aclose(self) -> None:
        """Finish the writes that wait and leave the server."""
        self._closed = True
        for reader in self._readers:
            reader.end()
        await self._writer.aclose()
        if self._client is not None:
            with contextlib.suppress(OSError, nats.errors.Error):
                await self._client.close()

    # Connecting

    async def _open(self) -> Client:
        if self._closed:
            raise StorageError(f"store {self._where} is closed")
        async with self._opening:
            if self._client is None:
                self._client = await self._connect()
        return self._client

    async def _connect(self) -> Client:
        async def log(error: Exception) -> None:
            logger.debug("nats: %r", error)

        with self._translated("open"):
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    client = await nats.connect(
                        list(self._config.servers),
                        name="pilot-rendezvous",
                        error_cb=log,
                        max_reconnect_attempts=-1,
                        reconnect_time_wait=RETRY_WAIT_S,
                        # Nothing is queued for a server that is away: the
                        # writer is told at once and nothing is sent late.
                        pending_size=0,
                    )
            except nats.errors.NoServersError:
                raise ConnectionError("no server answers") from None
            try:
                await self._make_bucket(client)
            except BaseException:
                await client.close()
                raise
        return client

    async def _make_bucket(self, client: Client) -> None:
        js = client.jetstream(timeout=REQUEST_TIMEOUT_S)
        try:
            info = await js.stream_info(self._stream)
        except nats.js.errors.NotFoundError:
            config = api.StreamConfig(
                name=self._stream,
                subjects=[f"{self._prefix}>"],
                max_msgs_per_subject=1,
                num_replicas=self._config.replicas,
                discard=api.DiscardPolicy.NEW,
                deny_delete=True,
                allow_rollup_hdrs=True,
                allow_direct=True,
                allow_msg_ttl=True,
                allow_atomic=True,
            )
            info = await js.add_stream(config)
        self._atomic = bool(info.config.allow_atomic)

    # Writing

    async def _send_group(self, group: Sequence[Write]) -> None:
        """Send together; if that is refused, in halves, and halves of those."""
        if len(group) == 1 or not self._atomic:
            await asyncio.gather(*(self._write_one(write) for write in group))
        elif not await self._try_together(group):
            middle = len(group) // 2
            await self._send_group(group[:middle])
            await self._send_group(group[middle:])

    async def _try_together(self, group: Sequence[Write]) -> bool:
        try:
            revisions = await self._send_batch(
                [change for write in group for change in write.changes]
            )
        except Conflict:
            return False
        except StorageError as error:
            for write in group:
                write.settle(error)
            return True
        for write in group:
            write.settle(revisions[: len(write.changes)])
            del revisions[: len(write.changes)]
        return True

    async def _write_one(self, write: Write) -> None:
        try:
            async with self._singles:
                write.settle(await self._send(write.changes))
        except StorageError as error:
            write.settle(error)

    async def _send(self, changes: Sequence[Change]) -> list[int]:
        repeats = len({change.key for change in changes}) < len(changes)
        one_by_one = repeats or not self._atomic or len(changes) > MAX_BATCH_MESSAGES
        if len(changes) == 1 or one_by_one:
            return [await self._send_single(change) for change in changes]
        try:
            return await self._send_batch(changes)
        except Conflict:
            # A key that was deleted has a marker whose sequence must be named.
            await self._find_conflict(changes)
            return await self._send_batch(changes)

    async def _send_single(self, change: Change) -> int:
        try:
            return (await self._request(change, self._headers(change)))[0]
        except Conflict:
            await self._find_conflict([change])
            return (await self._request(change, self._headers(change)))[0]

    async def _send_batch(self, changes: Sequence[Change]) -> list[int]:
        client = await self._open()
        batch = uuid.uuid4().hex
        for number, change in enumerate(changes, 1):
            headers = self._headers(change)
            headers["Nats-Batch-Id"] = batch
            headers["Nats-Batch-Sequence"] = str(number)
            if number == len(changes):
                headers["Nats-Batch-Commit"] = "1"
                last, count = await self._request(change, headers)
                if count != len(changes):
                    raise StorageError(f"cannot write {self._where}: batch of {count}")
            else:
                with self._translated("write"):
                    await client.publish(
                        self._prefix + change.key, change.value or b"", headers=headers
                    )
        revisions = list(range(last - len(changes) + 1, last + 1))
        for change, revision in zip(changes, revisions, strict=True):
            self._remember(change, revision)
        return revisions

    async def _request(
        self, change: Change, headers: dict[str, str]
    ) -> tuple[int, int]:
        """Send one change; return its revision and the size of its batch."""
        client = await self._open()
        with self._translated("write"):
            reply = await client.request(
                self._prefix + change.key,
                change.value or b"",
                timeout=REQUEST_TIMEOUT_S,
                headers=headers,
            )
        answer: dict[str, Any] = json.loads(reply.data)
        if error := answer.get("error"):
            if error.get("err_code") == WRONG_LAST_SEQUENCE:
                raise Conflict(change.key)
            reason = error.get("description", "error")
            raise StorageError(f"cannot write {self._where}: {reason}")
        self._remember(change, int(answer["seq"]))
        return int(answer["seq"]), int(answer.get("count", 1))

    def _headers(self, change: Change) -> dict[str, str]:
        headers: dict[str, str] = {}
        if change.value is None:
            headers = {OPERATION: "DEL", "Nats-TTL": DELETED_TTL}
        if change.expected is not None:
            expected = change.expected or self._deleted.get(change.key, 0)
            headers[EXPECTED] = str(expected)
        return headers

    def _remember(self, change: Change, revision: int) -> None:
        if change.value is None:
            self._deleted[change.key] = revision
            if len(self._deleted) > MAX_REMEMBERED:
                self._deleted.popitem(last=False)
        else:
            self._deleted.pop(change.key, None)

    async def _find_conflict(self, changes: Sequence[Change]) -> None:
        """Raise the conflict that the keys show, or learn of deleted keys.

        If all are as expected, somebody else was there a moment ago, and the
        caller tries again.
        """
        for change in changes:
            if change.expected is None:
                continue
            entry = await self._get(change.key)
            alive = entry is not None and entry.value is not None
            current = entry.revision if entry is not None and alive else 0
            if current != change.expected:
                raise Conflict(change.key)
            self._deleted.pop(change.key, None)
            if entry is not None and not alive:
                deletion = Change(change.key, None, None)
                self._remember(deletion, entry.revision)

    async def _get(self, key: str) -> Entry | None:
        """Read one key from the leader (a direct get could be stale)."""
        js = (await self._open()).jetstream(timeout=REQUEST_TIMEOUT_S)
        with self._translated("read"):
            try:
                message = await js.get_last_msg(self._stream, self._prefix + key)
            except nats.js.errors.NotFoundError:
                return None
        assert message.seq is not None
        deleted = OPERATION in (message.headers or {})
        return Entry(key, None if deleted else message.data or b"", message.seq)

    # Reading

    async def _follow(self, after: int) -> AsyncGenerator[Entry, None]:
        reader = await BucketReader.start(await self._open(), self._stream, after=after)
        self._readers.add(reader)
        try:
            async for message in reader.coming():
                yield self._entry(message)
        finally:
            self._readers.discard(reader)
            await reader.stop()

    def _entry(self, message: Msg) -> Entry:
        key = message.subject.removeprefix(self._prefix)
        deleted = OPERATION in (message.headers or {})
        value = None if deleted else message.data
        return Entry(key, value, message.metadata.sequence.stream)

    @contextlib.contextmanager
    def _translated(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (OSError, TimeoutError, nats.errors.Error) as error:
            reason = str(error) or type(error).__name__
            raise StorageError(
                f"cannot {verb} {self._where}: {reason}",
                hint="check that nats-server runs there, with JetStream",
            ) from error


def _count_together(waiting: Sequence[Write]) -> int:
    """Count the writes that may share a batch: no key twice, not too many."""
    keys: set[str] = set()
    for count, write in enumerate(waiting):
        new = {change.key for change in write.changes}
        if count and (keys & new or len(keys | new) > MAX_BATCH_MESSAGES):
            return count
        keys |= new
    return len(waiting)
