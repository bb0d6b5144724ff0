"""The folder of a fleet."""

from __future__ import annotations

import socket
import stat
from typing import TYPE_CHECKING

import pytest

from pilotfleet.cli.fleetserve import log_path
from pilotfleet.errors import AlreadyExists, StorageError
from pilotfleet.fleet.home import link_agents, open_home

if TYPE_CHECKING:
    from pathlib import Path


def test_one_launcher_at_a_time_has_a_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with open_home(home) as sockets:
        assert sockets.samefile(home / "run")
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        with pytest.raises(AlreadyExists, match="a fleet runs in"), open_home(home):
            pass
    with open_home(home):
        pass


def test_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Not a directory"):
        open_home(tmp_path / "file" / "home").__enter__()


@pytest.mark.parametrize("length", [1, 200])
def test_sockets_can_be_made_wherever_the_home_is(tmp_path: Path, length: int) -> None:
    home = tmp_path / ("h" * length)
    with open_home(home) as sockets:
        path = sockets / "group-20000.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
        assert (home / "run" / path.name).is_socket()
    assert home.is_dir()
    assert sockets.exists() == (length == 1)


def test_a_home_is_for_its_user_alone(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    log_path(home)
    (home / "group-1").mkdir(mode=0o700)
    link_agents(home, "group-1")
    folders = [home, *(path for path in home.rglob("*") if path.is_dir())]
    assert len(folders) >= 5
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


def test_agents_of_all_groups_are_in_one_folder(tmp_path: Path) -> None:
    for group in ("group-1", "group-2", "group-1"):
        link_agents(tmp_path, group)
    (tmp_path / "group-1" / "agents" / "worker-1").mkdir()
    assert (tmp_path / "group-2" / "agents" / "worker-1").is_dir()
    assert (tmp_path / "workers" / "agents" / "worker-1").is_dir()
