"""What OpenClaw is told: the private configuration of a gateway that we start.

A gateway gets a folder of its own, for its user alone: configuration, state and the
token that its endpoint asks for. The user's own configuration is not copied; OpenClaw
includes it (``$include``), after our defaults and before what the fleet relies on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from pilotfleet.fleet.worker.environment import task_environment
from pilotfleet.transport.files import replace_file

__all__ = ["OpenClawConfig", "write_home"]

DEFAULT_TURNS: Final = 8

CONFIG_NAME: Final = "openclaw.json"
DEFAULTS_NAME: Final = "defaults.json"

DEFAULTS: Final[dict[str, Any]] = {
    # Nothing phones home, and nothing works on its own account beside the tasks.
    "update": {"checkOnStart": False},
    "telemetry": {"enabled": False},
    "models": {"catalogRefresh": {"enabled": False}},
    "discovery": {"mdns": {"mode": "off"}},
    "cron": {"enabled": False},
    "agents": {"defaults": {"heartbeat": {"every": "0m"}, "skipBootstrap": True}},
    "skills": {"load": {"watch": False}},
    "memory": {"search": {"enabled": False}},
    # The console is what we keep the end of, and at "info" it has every answer.
    "logging": {"level": "warn", "consoleLevel": "warn", "maxFileBytes": 10_000_000},
    # Sessions are of no use once their tasks have ended.
    "session": {
        "notifyOnCreate": False,
        "maintenance": {"mode": "enforce", "maxEntries": 500, "maxDiskBytes": "1gb"},
    },
}
"""Overridden by whatever the user's configuration says."""

_CLEARED: Final = ("HOME", "PROFILE", "WORKSPACE_DIR", "AGENT_DIR")
"""``OPENCLAW_…`` variables that would lead a gateway to somebody else's files."""


@dataclass(frozen=True, slots=True)
class OpenClawConfig:
    """How tasks are run by OpenClaw."""

    program: str = "openclaw"
    agent: str = "main"
    """Agent of the OpenClaw configuration that does the work."""
    model: str = ""
    """``provider/model``; empty is what the configuration says."""
    file: Path | None = None
    """The user's configuration (JSON5); none leaves OpenClaw's own defaults."""
    folder: Path | None = None
    """Working directory of the agent's tools; none is its workspace."""
    turns: int = DEFAULT_TURNS
    """Tasks that one gateway runs at a time."""
    timeout_s: float = 300.0
    """Longest run of one task."""


def write_home(
    home: Path, config: OpenClawConfig, *, port: int, token: str
) -> dict[str, str]:
    """Fill the folder of a gateway, which must be its user's alone. Blocks.

    Returns:
        The environment to start it in.

    Raises:
        OSError: The folder cannot be written.
    """
    state, workspace = home / "state", home / "workspace"
    for folder in (state, workspace):
        folder.mkdir(mode=0o700)
    _write(home / DEFAULTS_NAME, _defaults(home, workspace))
    _write(home / CONFIG_NAME, _forced(config, port=port, token=token))
    environment = {
        name: value
        for name, value in task_environment().items()
        if not name.startswith("OPENCLAW_GATEWAY_")
        and name not in {f"OPENCLAW_{word}" for word in _CLEARED}
    }
    environment |= {
        "OPENCLAW_CONFIG_PATH": str(home / CONFIG_NAME),
        "OPENCLAW_STATE_DIR": str(state),
        "OPENCLAW_CONFIG_READONLY": "1",
        "OPENCLAW_ALLOW_MULTI_GATEWAY": "1",
        "OPENCLAW_NO_AUTO_UPDATE": "1",
        # The user's chats belong to the user's own gateway.
        "OPENCLAW_SKIP_CHANNELS": "1",
    }
    if config.file is not None:
        environment["OPENCLAW_INCLUDE_ROOTS"] = str(config.file.parent)
    return environment


def _defaults(home: Path, workspace: Path) -> dict[str, Any]:
    settings: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(DEFAULTS))
    settings["agents"]["defaults"]["workspace"] = str(workspace)
    settings["logging"]["file"] = str(home / "openclaw.log")
    # Skills that all agents of this user have are in the state that we replace.
    settings["skills"]["load"]["extraDirs"] = [str(Path.home() / ".openclaw/skills")]
    return settings


def _forced(config: OpenClawConfig, *, port: int, token: str) -> dict[str, Any]:
    includes = [f"./{DEFAULTS_NAME}"]
    if config.file is not None:
        includes.append(str(config.file))
    defaults: dict[str, Any] = {"maxConcurrent": config.turns}
    if config.model:
        defaults["model"] = {"primary": config.model}
    if config.folder is not None:
        defaults["cwd"] = str(config.folder)
    return {
        "$include": includes,
        "gateway": {
            "mode": "local",
            "bind": "loopback",
            "port": port,
            "auth": {"mode": "token", "token": token},
            "http": {"endpoints": {"chatCompletions": {"enabled": True}}},
            "controlUi": {"enabled": False},
            "reload": {"mode": "off"},
        },
        "agents": {"defaults": defaults},
        # By default any session may read every other one, and an agent recalls what
        # was said in its other conversations: here those belong to other identities.
        "tools": {"sessions": {"visibility": "tree"}},
        "memory": {"search": {"rememberAcrossConversations": False}},
    }


def _write(path: Path, settings: dict[str, Any]) -> None:
    replace_file(path, msgspec.json.encode(settings), mode=0o600)
