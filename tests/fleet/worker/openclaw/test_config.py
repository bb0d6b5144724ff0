"""What a gateway of ours is told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pilotfleet.fleet.worker.openclaw.config import OpenClawConfig, write_home

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def written(
    home: Path, config: OpenClawConfig
) -> tuple[dict[str, Any], dict[str, str]]:
    environment = write_home(home, config, port=4711, token="a-token")
    return json.loads((home / "openclaw.json").read_text()), environment


def test_the_endpoint_is_ours_alone(tmp_path: Path) -> None:
    config, environment = written(tmp_path, OpenClawConfig())
    gateway = config["gateway"]
    assert (gateway["bind"], gateway["port"]) == ("loopback", 4711)
    assert gateway["auth"] == {"mode": "token", "token": "a-token"}
    assert gateway["http"]["endpoints"]["chatCompletions"]["enabled"]
    assert environment["OPENCLAW_STATE_DIR"] == str(tmp_path / "state")
    for name in ("openclaw.json", "defaults.json", "state", "workspace"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
    assert "a-token" not in "".join(environment.values())


def test_sessions_do_not_see_each_other(tmp_path: Path) -> None:
    config, _ = written(tmp_path, OpenClawConfig())
    assert config["tools"]["sessions"]["visibility"] == "tree"
    assert config["memory"]["search"]["rememberAcrossConversations"] is False


def test_the_users_configuration_lies_between_defaults_and_what_must_be(
    tmp_path: Path,
) -> None:
    file = tmp_path / "theirs" / "openclaw.json5"
    config, environment = written(tmp_path, OpenClawConfig(file=file))
    assert config["$include"] == ["./defaults.json", str(file)]
    assert environment["OPENCLAW_INCLUDE_ROOTS"] == str(file.parent)


def test_model_and_folder_are_passed_on(tmp_path: Path) -> None:
    settings = OpenClawConfig(model="a/b", folder=tmp_path / "work", turns=3)
    config, _ = written(tmp_path, settings)
    assert config["agents"]["defaults"] == {
        "model": {"primary": "a/b"},
        "cwd": str(tmp_path / "work"),
        "maxConcurrent": 3,
    }


def test_nothing_leads_to_the_users_own_openclaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENCLAW_GATEWAY_TOKEN", "theirs")
    monkeypatch.setenv("OPENCLAW_HOME", "/theirs")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    _, environment = written(tmp_path, OpenClawConfig())
    assert "theirs" not in "".join(environment.values())
    assert environment["OPENAI_API_KEY"] == "key"
    assert environment["OPENCLAW_SKIP_CHANNELS"] == "1"


def test_nothing_works_beside_the_tasks(tmp_path: Path) -> None:
    written(tmp_path, OpenClawConfig())
    defaults = json.loads((tmp_path / "defaults.json").read_text())
    assert defaults["update"]["checkOnStart"] is False
    assert defaults["telemetry"]["enabled"] is False
    assert defaults["agents"]["defaults"]["heartbeat"]["every"] == "0m"
