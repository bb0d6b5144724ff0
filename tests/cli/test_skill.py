"""The skill for OpenClaw agents, and the commands that install it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.cli.catalogue import COMMANDS
from pilotfleet.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def ctl(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, Any]]:
    """Give pilotctl, with a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("OPENCLAW_STATE_DIR", "OPENCLAW_HOME"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str) -> tuple[int, Any]:
        status = main(["--json", *words])
        captured = capsys.readouterr()
        return status, json.loads(captured.out or captured.err)

    return run


def test_the_skill_is_installed_where_openclaw_looks(
    ctl: Callable[..., tuple[int, Any]], tmp_path: Path
) -> None:
    target = tmp_path / ".openclaw" / "skills" / "pilotctl" / "SKILL.md"
    _, before = ctl("skill", "path")
    assert before["data"]["installed"] is False
    status, answer = ctl("skill", "install")
    assert status == 0
    assert answer["data"] == {
        "name": "pilotctl",
        "path": str(target),
        "replaced": False,
    }
    _, shown = ctl("skill", "show")
    assert target.read_text() == shown["data"]["text"]
    _, after = ctl("skill", "path")
    assert (after["data"]["installed"], after["data"]["current"]) == (True, True)


def test_a_folder_can_be_named(
    ctl: Callable[..., tuple[int, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, answer = ctl("skill", "install", "--dir", str(tmp_path / "mine"))
    assert answer["data"]["path"] == str(tmp_path / "mine" / "pilotctl" / "SKILL.md")
    monkeypatch.setenv("OPENCLAW_STATE_DIR", str(tmp_path / "state"))
    _, answer = ctl("skill", "path")
    assert answer["data"]["path"].startswith(str(tmp_path / "state" / "skills"))


def test_what_somebody_changed_is_kept_unless_forced(
    ctl: Callable[..., tuple[int, Any]],
) -> None:
    _, answer = ctl("skill", "install")
    target = Path(answer["data"]["path"])
    assert ctl("skill", "install")[0] == 0, "the same again changes nothing"
    target.write_text("mine")
    status, answer = ctl("skill", "install")
    assert (status, answer["code"]) == (1, "already_exists")
    assert "--force" in answer["hint"]
    assert target.read_text() == "mine"
    assert ctl("skill", "install", "--force")[0] == 0
    assert target.read_text() != "mine"


def test_the_skill_is_removed_and_nothing_else(
    ctl: Callable[..., tuple[int, Any]],
) -> None:
    _, answer = ctl("skill", "install")
    target = Path(answer["data"]["path"])
    (target.parent / "notes.txt").write_text("mine")
    assert ctl("skill", "uninstall")[0] == 0
    assert not target.exists()
    assert (target.parent / "notes.txt").exists()
    status, answer = ctl("skill", "uninstall")
    assert (status, answer["code"]) == (1, "not_found")


def test_what_somebody_changed_is_removed_only_when_forced(
    ctl: Callable[..., tuple[int, Any]],
) -> None:
    _, answer = ctl("skill", "install")
    target = Path(answer["data"]["path"])
    target.write_text("mine")
    status, answer = ctl("skill", "uninstall")
    assert (status, answer["code"]) == (1, "already_exists")
    assert str(target) in answer["message"]
    assert "--force" in answer["hint"]
    assert target.read_text() == "mine"
    assert ctl("skill", "uninstall", "--force")[0] == 0
    assert not target.exists()


@pytest.mark.parametrize("command", ["install", "uninstall", "path"])
def test_a_folder_without_a_name_is_refused(
    ctl: Callable[..., tuple[int, Any]], tmp_path: Path, command: str
) -> None:
    for words in (("--dir", ""), ("--dir=",)):
        status, answer = ctl("skill", command, *words)
        assert (status, answer["code"]) == (1, "invalid_argument")
        assert "--dir" in answer["message"]
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_told(
    ctl: Callable[..., tuple[int, Any]], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    status, answer = ctl("skill", "install", "--dir", str(tmp_path / "file"))
    assert status == 1
    assert str(tmp_path / "file") in answer["message"]


def test_every_command_that_the_skill_teaches_exists(
    ctl: Callable[..., tuple[int, Any]],
) -> None:
    text = ctl("skill", "show")[1]["data"]["text"]
    taught = re.findall(r"^pilotctl (?:--json )?([a-z-]+)(?: ([a-z-]+))?", text, re.M)
    assert len(taught) > 20
    for first, second in taught:
        assert first in COMMANDS or f"{first} {second}" in COMMANDS, (first, second)
