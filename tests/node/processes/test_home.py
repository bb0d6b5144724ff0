"""A home that is divided among processes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import AlreadyExists, ConfigError, StorageError
from pilotfleet.node.processes import home
from pilotfleet.node.processes.home import hold_home, own_home

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


class Files:
    """Notes what is to be divided and removed."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int, int]] = []
        self.is_broken = False

    def redivide(self, old: Mapping[int, Path], new: Mapping[int, Path]) -> None:
        if self.is_broken:
            raise StorageError("the disk is full")
        self.log.append(("divide", len(old), len(new)))

    def clear(self, old: Mapping[int, Path]) -> None:
        self.log.append(("clear", len(old), 0))

    @contextmanager
    def own(self, home: Path, count: int) -> Iterator[None]:
        with own_home(home, count, redivide=self.redivide, clear=self.clear):
            yield


def test_a_home_is_divided_anew_when_the_number_changes(tmp_path: Path) -> None:
    files = Files()
    for count in (1, 1, 4, 4, 2, 1):
        with files.own(tmp_path, count):
            pass
    changes = [(1, 4), (4, 2), (2, 1)]
    assert [entry for entry in files.log if entry[0] == "divide"] == [
        ("divide", *change) for change in changes
    ]
    assert [entry for entry in files.log if entry[0] == "clear"] == [
        ("clear", old, 0) for old, _ in changes
    ]


def test_the_old_division_counts_until_the_new_one_is_made(tmp_path: Path) -> None:
    files = Files()
    with files.own(tmp_path, 4):
        pass
    files.is_broken, files.log = True, []
    with pytest.raises(StorageError), files.own(tmp_path, 2):
        pass
    assert files.log == []
    with files.own(tmp_path, 4):
        pass
    assert files.log == []


def test_nobody_divides_what_others_use(tmp_path: Path) -> None:
    files = Files()
    with files.own(tmp_path, 4):
        with files.own(tmp_path, 4):
            pass
        with (
            pytest.raises(AlreadyExists, match="divided among 4") as caught,
            files.own(tmp_path, 2),
        ):
            pass
        assert "--processes 4" in str(caught.value.hint)
    # Also not what a process of a daemon uses that is gone itself.
    with hold_home(tmp_path), pytest.raises(AlreadyExists), files.own(tmp_path, 2):
        pass
    with files.own(tmp_path, 2):
        pass


def test_what_another_daemon_has_just_divided_is_not_divided_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_alone, files = home._lock_alone, Files()

    def lock_late(lock: int, folder: Path, count: int) -> None:
        home._write_count(folder, 2)
        lock_alone(lock, folder, count)

    monkeypatch.setattr(home, "_lock_alone", lock_late)
    with files.own(tmp_path, 2):
        assert files.log == []


@pytest.mark.parametrize("text", ["", "0", "four", "-1", "99999999999999999999"])
def test_a_damaged_number_is_not_guessed(tmp_path: Path, text: str) -> None:
    (tmp_path / "processes").mkdir()
    (tmp_path / "processes" / "count").write_text(text)
    with pytest.raises(ConfigError, match="damaged"), Files().own(tmp_path, 2):
        pass
