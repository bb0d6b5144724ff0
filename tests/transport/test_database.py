"""Opening SQLite files: modes, races, damaged files."""

from __future__ import annotations

import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import StorageError
from pilotfleet.transport.database import open_database

if TYPE_CHECKING:
    from pathlib import Path


def test_new_file_is_private_and_in_wal_mode(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.db"
    database = open_database(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def test_many_open_the_same_new_file_at_once(tmp_path: Path) -> None:
    def make(_: int) -> None:
        database = open_database(tmp_path / "x.db")
        database.execute("CREATE TABLE IF NOT EXISTS t (x)")
        database.execute("INSERT INTO t VALUES (1)")
        database.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(40)))
    database = sqlite3.connect(tmp_path / "x.db")
    assert database.execute("SELECT count(*) FROM t").fetchone() == (40,)
    database.close()


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 20)
    with pytest.raises(StorageError, match=r"cannot open .*x\.db: file is not a"):
        open_database(path)


def test_folder_in_the_way_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Is a directory"):
        open_database(tmp_path)
