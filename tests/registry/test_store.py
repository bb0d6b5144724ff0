"""One suite over all stores, and what only one of them can show."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import Conflict, InvalidArgument, StorageError
from pilotfleet.registry.store.base import MAX_VALUE, Change, Entry, Store
from pilotfleet.registry.store.memory import MemoryStore
from pilotfleet.registry.store.nats import NatsStore
from pilotfleet.registry.store.opening import open_store
from pilotfleet.registry.store.sqlite import SqliteStore
from tests.support.nats import NatsServer, run_nats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

TIMEOUT_S = 30.0


def put(key: str, value: bytes = b"v", expected: int | None = None) -> Change:
    return Change(key, value, expected)


def delete(key: str, expected: int | None = None) -> Change:
    return Change(key, None, expected)


async def take(entries: AsyncIterator[Entry], until: str) -> list[Entry]:
    """Read a watch up to the key ``until``."""
    taken = []
    async with asyncio.timeout(TIMEOUT_S):
        async for entry in entries:
            taken.append(entry)
            if entry.key == until:
                break
    return taken


# What every store does


async def test_new_store_is_empty(store: Store) -> None:
    assert await store.load() == []


async def test_loads_what_was_written_in_order(store: Store) -> None:
    first = await store.write([put("node.1", b"one"), put("host.alice", b"1")])
    second = await store.write([put("node.2", b"\x00\xff binary")])
    assert await store.load() == [
        Entry("node.1", b"one", first[0]),
        Entry("host.alice", b"1", first[1]),
        Entry("node.2", b"\x00\xff binary", second[0]),
    ]


async def test_revisions_grow(store: Store) -> None:
    revisions = await store.write([put("a"), put("b"), put("c")])
    revisions += await store.write([put("a"), put("b")])
    assert revisions == sorted(set(revisions))
    assert revisions[0] > 0


async def test_changed_key_is_loaded_once_at_its_last_place(store: Store) -> None:
    await store.write([put("a", b"old"), put("b")])
    (revision,) = await store.write([put("a", b"new")])
    entries = await store.load()
    assert [entry.key for entry in entries] == ["b", "a"]
    assert entries[1] == Entry("a", b"new", revision)


async def test_empty_value_is_not_a_deletion(store: Store) -> None:
    (revision,) = await store.write([put("a", b"")])
    assert await store.load() == [Entry("a", b"", revision)]


async def test_largest_value_and_one_above_it(store: Store) -> None:
    largest = bytes(MAX_VALUE)
    (revision,) = await store.write([put("a", largest)])
    with pytest.raises(StorageError, match=r"^value of c is too large: 524289 bytes"):
        await store.write([put("b"), put("c", largest + b"x")])
    assert await store.load() == [Entry("a", largest, revision)]


async def test_write_of_nothing_changes_nothing(store: Store) -> None:
    assert await store.write([]) == []
    assert await store.load() == []


async def test_deleted_key_is_gone(store: Store) -> None:
    await store.write([put("a"), put("b")])
    await store.write([delete("a")])
    assert [entry.key for entry in await store.load()] == ["b"]


async def test_create_refuses_a_key_that_exists(store: Store) -> None:
    await store.write([put("a", b"first", 0)])
    with pytest.raises(Conflict) as caught:
        await store.write([put("a", b"second", 0)])
    assert caught.value.key == "a"
    assert (await store.load())[0].value == b"first"


async def test_create_takes_a_key_that_was_deleted(store: Store) -> None:
    (revision,) = await store.write([put("a", b"first", 0)])
    await store.write([delete("a", revision)])
    await store.write([put("a", b"second", 0)])
    assert (await store.load())[0].value == b"second"


async def test_create_takes_a_key_that_somebody_else_deleted(
    store: Store, other: Store
) -> None:
    await store.write([put("a", b"1", 0), put("b", b"1", 0)])
    await store.write([delete("a"), delete("b")])
    await other.write([put("a", b"2", 0), put("b", b"2", 0)])
    assert [entry.value for entry in await store.load()] == [b"2", b"2"]


@pytest.mark.parametrize("change", [put("a", b"x", 999_999), delete("a", 999_999)])
async def test_wrong_revision_is_refused(store: Store, change: Change) -> None:
    (revision,) = await store.write([put("a", b"old")])
    with pytest.raises(Conflict):
        await store.write([change])
    assert await store.load() == [Entry("a", b"old", revision)]


async def test_right_revision_is_taken(store: Store) -> None:
    (first,) = await store.write([put("a", b"1")])
    (second,) = await store.write([put("a", b"2", first)])
    await store.write([delete("a", second)])
    assert await store.load() == []


async def test_conflict_undoes_the_whole_write(store: Store) -> None:
    await store.write([put("taken")])
    with pytest.raises(Conflict) as caught:
        await store.write([put("free", b"v", 0), put("taken", b"v", 0)])
    assert caught.value.key == "taken"
    assert [entry.key for entry in await store.load()] == ["taken"]


async def test_conflict_is_only_its_own_writers(store: Store) -> None:
    await store.write([put("taken")])
    results = await asyncio.gather(
        *(store.write([put(f"key.{n}", b"v", 0)]) for n in range(20)),
        store.write([put("taken", b"v", 0)]),
        *(store.write([put(f"more.{n}", b"v", 0)]) for n in range(20)),
        return_exceptions=True,
    )
    assert [type(result) for result in results].count(Conflict) == 1
    assert len(await store.load()) == 41


async def test_same_key_twice_in_one_write(store: Store) -> None:
    revisions = await store.write([put("a", b"1"), put("a", b"2")])
    assert await store.load() == [Entry("a", b"2", revisions[1])]


async def test_two_writers_race_and_one_wins(store: Store, other: Store) -> None:
    async def create(writer: Store, name: bytes, key: str) -> bool:
        try:
            await writer.write([put(key, name, 0), put(f"by.{key}", name)])
        except Conflict:
            return False
        return True

    for number in range(20):
        key = f"host.{number}"
        won = await asyncio.gather(
            create(store, b"store", key), create(other, b"other", key)
        )
        assert sorted(won) == [False, True]
        winner = b"store" if won[0] else b"other"
        values = {entry.key: entry.value for entry in await store.load()}
        assert values[key] == values[f"by.{key}"] == winner


async def test_increments_of_two_writers_are_not_lost(
    store: Store, other: Store
) -> None:
    await store.write([put("count", b"0")])

    async def increment(writer: Store) -> None:
        while True:
            entry = next(e for e in await writer.load() if e.key == "count")
            value = int(entry.value or b"0") + 1
            try:
                await writer.write([put("count", b"%d" % value, entry.revision)])
            except Conflict:
                continue
            return

    await asyncio.gather(*(increment(w) for w in (store, other) for _ in range(10)))
    assert (await store.load())[0].value == b"20"


async def test_watch_sees_changes_of_others_in_order(
    store: Store, other: Store
) -> None:
    (start,) = await store.write([put("before")])
    async with aclosing(store.watch(start)) as watch:
        reader = asyncio.create_task(take(watch, "end"))
        for number in range(50):
            await other.write([put(f"key.{number}", b"%d" % number)])
        await other.write([delete("key.7")])
        await other.write([put("end")])
        seen = await reader
    assert [e.revision for e in seen] == sorted(e.revision for e in seen)
    keys = [entry.key for entry in seen if entry.key != "key.7"]
    assert keys == [*(f"key.{n}" for n in range(50) if n != 7), "end"]
    assert [e.value for e in seen if e.key == "key.7"][-1] is None


async def test_watch_begins_after_the_given_revision(store: Store) -> None:
    revisions = [(await store.write([put(f"key.{n}")]))[0] for n in range(5)]
    async with aclosing(store.watch(revisions[2])) as watch:
        seen = await take(watch, "key.4")
    assert [entry.key for entry in seen] == ["key.3", "key.4"]


async def test_watch_ends_when_the_store_closes(url: str) -> None:
    store = open_store(url)
    await store.write([put("a")])
    reader = asyncio.create_task(take(store.watch(0), "never"))
    async with aclosing(store.watch(0)) as watch:
        await take(watch, "a")
    await store.aclose()
    assert [entry.key for entry in await reader] in ([], ["a"])


async def test_large_value_is_kept(store: Store) -> None:
    value = os.urandom(512 * 1024)
    await store.write([put("large", value)])
    assert (await store.load())[0].value == value


async def test_many_writes_at_once(store: Store) -> None:
    await asyncio.gather(
        *(store.write([put(f"a.{n}", b"v", 0), put(f"b.{n}")]) for n in range(2_000))
    )
    assert len(await store.load()) == 4_000


async def test_one_write_of_many_changes(store: Store) -> None:
    revisions = await store.write([put(f"key.{n}", b"v", 0) for n in range(1_500)])
    assert [entry.revision for entry in await store.load()] == revisions


async def test_cancelled_writer_disturbs_nobody(store: Store) -> None:
    await store.load()
    writes = [asyncio.create_task(store.write([put(f"k.{n}")])) for n in range(10)]
    await asyncio.sleep(0)
    writes[3].cancel()
    results = await asyncio.gather(*writes, return_exceptions=True)
    others = [result for number, result in enumerate(results) if number != 3]
    assert all(isinstance(result, list) for result in others)


async def test_closed_store_refuses(url: str) -> None:
    store = open_store(url)
    await store.write([put("a")])
    await store.aclose()
    with pytest.raises(StorageError):
        await store.write([put("b")])


async def test_reopened_store_has_everything(url: str) -> None:
    if url == "memory:":
        return
    async with open_store(url) as store:
        await store.write([put("a", b"1"), put("b", b"2")])
        (last,) = await store.write([delete("a")])
    async with open_store(url) as store:
        assert [(e.key, e.value) for e in await store.load()] == [("b", b"2")]
        assert (await store.write([put("c")]))[0] > last


# SQLite


async def test_sqlite_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "registry.db"
    async with SqliteStore(path) as store:
        await store.write([put("a")])
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_sqlite_goes_on_after_a_defect_in_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with SqliteStore(tmp_path / "r.db") as store, asyncio.timeout(TIMEOUT_S):
        await store.write([put("a")])
        with monkeypatch.context() as patched:
            patched.setattr(store, "_decide", broken)
            with pytest.raises(StorageError):
                await store.write([put("b")])
        await store.write([put("c")])
        assert [entry.key for entry in await store.load()] == ["a", "c"]
    assert "failed" in caplog.text


async def test_sqlite_names_the_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"this is not a database, and long enough to be sure" * 100)
    store = SqliteStore(path)
    with pytest.raises(StorageError, match=str(path)):
        await store.load()
    await store.aclose()


async def test_sqlite_names_the_path_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = SqliteStore(tmp_path / "file" / "registry.db")
    with pytest.raises(StorageError, match="file"):
        await store.write([put("a")])
    await store.aclose()


async def test_sqlite_waits_for_another_process_and_then_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.transport.database.BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "registry.db"
    async with SqliteStore(path) as store:
        await store.write([put("a")])
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"registry\.db: database is locked"):
            await store.write([put("b")])
        blocker.execute("COMMIT")
        blocker.close()
        await store.write([put("c")])
        assert [entry.key for entry in await store.load()] == ["a", "c"]


async def test_sqlite_on_a_full_disk_keeps_what_it_acknowledged(
    tmp_path: Path,
) -> None:
    async with SqliteStore(tmp_path / "registry.db") as store:
        await store.write([put("kept")])
        # A limit on file sizes: writing beyond it fails as a full disk does.
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, old[1]))
        try:
            with pytest.raises(StorageError, match=r"cannot write .*registry\.db"):
                await store.write([put(f"big.{n}", bytes(100_000)) for n in range(10)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        await store.write([put("after")])
        keys = [entry.key for entry in await store.load()]
    assert keys[0] == "kept"
    assert keys[-1] == "after"


_WRITER = """
import asyncio, sys
from pilotfleet.registry.store.base import Change
from pilotfleet.registry.store.sqlite import SqliteStore

async def main():
    store = SqliteStore(sys.argv[1])
    async def write(worker):
        for number in range(1_000_000):
            key = f"{worker}.{number}"
            await store.write([Change(key, b"a", 0), Change("by." + key, b"b", 0)])
            sys.stdout.write(key + "\\n")
            sys.stdout.flush()
    await asyncio.gather(*(write(worker) for worker in range(8)))

asyncio.run(main())
"""


async def test_sqlite_loses_no_acknowledged_write_to_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITER, str(path), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    acknowledged = [await process.stdout.readline() for _ in range(500)]
    process.send_signal(signal.SIGKILL)
    acknowledged += (await process.stdout.read()).splitlines(keepends=True)
    await process.wait()
    # The last line may be cut; it counts only with its end.
    keys = {line.decode().strip() for line in acknowledged if line.endswith(b"\n")}
    assert len(keys) >= 500
    async with SqliteStore(path) as store:
        stored = {entry.key for entry in await store.load()}
    assert keys <= stored
    # Writes are whole: each key has its partner.
    singles = {key for key in stored if not key.startswith("by.")}
    assert stored == singles | {f"by.{key}" for key in singles}


async def test_sqlite_forgets_old_deletions_but_not_its_counter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.registry.store.sqlite.MAX_DELETED", 2)
    path = tmp_path / "registry.db"
    async with SqliteStore(path) as store:
        for number in range(10):
            await store.write([put(f"key.{number}")])
        for number in range(10):
            (last,) = await store.write([delete(f"key.{number}")])
    async with SqliteStore(path) as store:
        assert (await store.write([put("new")]))[0] == last + 1
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM entries").fetchone()[0] <= 4
    database.close()


async def test_memory_forgets_old_deletions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotfleet.registry.store.memory.MAX_DELETED", 4)
    async with MemoryStore() as store:
        for number in range(20):
            await store.write([put(f"key.{number}", b"v", 0)])
            await store.write([delete(f"key.{number}")])
        await store.write([put("end")])
        async with aclosing(store.watch(0)) as watch:
            assert len(await take(watch, "end")) <= 5


# NATS


@pytest.mark.nats
async def test_nats_that_is_away_is_named(
    unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.registry.store.nats.CONNECT_TIMEOUT_S", 0.2)
    url = f"nats://user:geheim@127.0.0.1:{unused_tcp_port}"
    store = open_store(url)
    with pytest.raises(StorageError) as caught:
        await store.load()
    assert f"127.0.0.1:{unused_tcp_port}" in str(caught.value)
    assert "geheim" not in str(caught.value)
    await store.aclose()


@pytest.mark.nats
async def test_nats_store_survives_the_loss_of_its_server(tmp_path: Path) -> None:
    with run_nats(tmp_path) as server:
        async with open_store(server.url) as store:
            (first,) = await store.write([put("a", b"1")])
            async with aclosing(store.watch(first)) as watch:
                reader = asyncio.create_task(take(watch, "end"))
                server.kill()
                with pytest.raises(StorageError):
                    await store.write([put("lost")])
                server.start()
                await _eventually(lambda: store.write([put("b", b"2")]))
                await store.write([put("end")])
                seen = [entry.key for entry in await reader]
            assert seen[-2:] == ["b", "end"]
            keys = [entry.key for entry in await store.load()]
    assert [key for key in keys if key != "lost"] == ["a", "b", "end"]


@pytest.mark.nats
async def test_nats_server_without_atomic_batches_gets_changes_in_order(
    nats_server: NatsServer,
) -> None:
    import nats
    from nats.js.api import StreamConfig

    client = await nats.connect(nats_server.url)
    await client.jetstream().add_stream(
        StreamConfig(
            name="KV_plain",
            subjects=["$KV.plain.>"],
            max_msgs_per_subject=1,
            allow_msg_ttl=True,
            allow_direct=True,
        )
    )
    await client.close()
    async with open_store(f"{nats_server.url}?bucket=plain") as store:
        assert isinstance(store, NatsStore)
        await asyncio.gather(
            *(store.write([put(f"a.{n}", b"v", 0), put(f"b.{n}")]) for n in range(20))
        )
        with pytest.raises(Conflict):
            await store.write([put("a.3", b"x", 0), put("never")])
        keys = {entry.key for entry in await store.load()}
        assert len(keys) == 40
        assert "never" not in keys


async def _eventually(action: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                await action()  # type: ignore[misc]
            except StorageError:
                continue
            return


# Opening


@pytest.mark.parametrize(
    "url",
    [
        "",
        "registry.db",
        "postgres://host/db",
        "sqlite:",
        "sqlite://host/path.db",
        "sqlite:///directory/",
        "memory://host",
        "nats://",
        "nats://127.0.0.1:4222?replicas=three",
        "nats://127.0.0.1:4222?colour=red",
        "nats://127.0.0.1:4222?bucket=a.b",
        "nats://127.0.0.1:4222/path",
    ],
)
def test_url_of_no_store_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument):
        open_store(url)
