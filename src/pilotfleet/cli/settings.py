"""Files and variables that pilotctl reads (cli.md section 3).

Paths are plain text here: this module is on the way of every command, and the
time to start counts.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any, Final

from pilotfleet.client.socketpath import default_socket
from pilotfleet.errors import AuthRequired, InvalidArgument, StorageError

__all__ = [
    "DEFAULT_BEACON",
    "DEFAULT_REGISTRY",
    "SYSTEM_TRUST",
    "Settings",
    "choose_registry_trust",
    "find_program",
]

DEFAULT_REGISTRY: Final = "127.0.0.1:9000"
DEFAULT_BEACON: Final = "127.0.0.1:9001"
"""A rendezvous on this machine. Never somebody else's: joining a network that
other people run is a decision, not a default."""

SYSTEM_TRUST: Final = "system"
PINNED_TRUST: Final = "pinned"


def choose_registry_trust(
    *, tls: bool | None, trust: str, fingerprint: str
) -> str | None:
    """Return how to check the registry: a pin, SYSTEM_TRUST, or None without TLS.

    Whoever names a fingerprint or the system's trust wants TLS, so that one setting
    that is forgotten does not send everything in the clear.

    Args:
        tls: The ``registry_tls`` setting; none if it is not set.
        trust: ``registry_trust``, or nothing.
        fingerprint: ``registry_fingerprint``, or nothing. Colons and capital
            letters, as other tools show it, are taken.

    Raises:
        InvalidArgument: A value is not allowed, or there is nothing to pin.
    """
    if trust not in ("", PINNED_TRUST, SYSTEM_TRUST):
        raise InvalidArgument(
            f"invalid --registry-trust {trust!r}: must be 'pinned' or 'system'"
        )
    if tls is None:
        tls = bool(fingerprint) or trust == SYSTEM_TRUST
    if not tls:
        return None
    if trust == SYSTEM_TRUST:
        return SYSTEM_TRUST
    pin = fingerprint.replace(":", "").lower()
    if not re.fullmatch("[0-9a-f]{64}", pin):
        raise InvalidArgument(
            "--registry-fingerprint: 64 hex digits are needed to pin the registry",
            hint="`pilot-rendezvous --tls-fingerprint` shows them; or trust the"
            " system's authorities with --registry-trust system",
        )
    return pin


def find_program(name: str, variable: str) -> str | None:
    """Return the path of a program of ours: as told, beside this one, or in PATH.

    Args:
        name: The program.
        variable: The environment variable that may name its path.
    """
    import shutil

    named = os.environ.get(variable)
    if named:
        return named
    for directory in (os.path.dirname(sys.argv[0]), os.path.dirname(sys.executable)):
        path = os.path.join(directory, name)
        if directory and os.access(path, os.X_OK):
            return os.path.abspath(path)
    return shutil.which(name)


class Settings:
    """config.json and the environment, with their precedence."""

    __slots__ = ("config", "directory", "warning")

    def __init__(self) -> None:
        home = os.environ.get("PILOT_HOME") or os.path.expanduser("~")
        self.directory = os.path.join(home, ".pilot")
        self.warning: str | None = None
        self.config: dict[str, Any] = self._load()

    @property
    def config_path(self) -> str:
        """The configuration file, whether it exists or not."""
        return os.path.join(self.directory, "config.json")

    @property
    def pid_path(self) -> str:
        """Where the number of a started daemon is kept."""
        return os.path.join(self.directory, "pilot.pid")

    @property
    def log_path(self) -> str:
        """The link to the newest daemon log."""
        return os.path.join(self.directory, "pilot.log")

    @property
    def socket(self) -> str:
        """The daemon's socket."""
        return self._setting("PILOT_SOCKET", "socket", default_socket())

    @property
    def registry(self) -> str:
        """The registry that commands talk to directly."""
        return self._setting("PILOT_REGISTRY", "registry", DEFAULT_REGISTRY)

    def registry_trust(self) -> str | None:
        """Return how to check the registry; see :func:`choose_registry_trust`."""
        given = self.config.get("registry_tls")
        return choose_registry_trust(
            tls=None if given is None else str(given).lower() in ("true", "1", "t"),
            trust=self._setting("PILOT_REGISTRY_TRUST", "registry_trust", ""),
            fingerprint=self._setting(
                "PILOT_REGISTRY_FINGERPRINT", "registry_fingerprint", ""
            ),
        )

    def text(self, key: str) -> str:
        """Return a text of the configuration, or nothing."""
        value = self.config.get(key)
        return value if isinstance(value, str) else ""

    def admin_token(self) -> str:
        """Return the admin token.

        Raises:
            AuthRequired: There is none.
        """
        token = self._setting("PILOT_ADMIN_TOKEN", "admin_token", "")
        if not token:
            raise AuthRequired(
                "admin token required for this operation",
                hint="set PILOT_ADMIN_TOKEN env var or admin_token in"
                " ~/.pilot/config.json",
            )
        return token

    def update(self, **values: Any) -> None:
        """Change configuration values and save; none removes a value.

        Raises:
            StorageError: The file cannot be written.
        """
        from pathlib import Path

        from pilotfleet.transport.files import replace_file

        for key, value in values.items():
            if value is None:
                self.config.pop(key, None)
            else:
                self.config[key] = value
        text = json.dumps(self.config, indent=2, sort_keys=True, ensure_ascii=False)
        path = self.config_path
        # An argument may hold what is no text.
        data = f"{text}\n".encode(errors="replace")
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            replace_file(Path(path), data)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error

    def _setting(self, variable: str, key: str, default: str) -> str:
        return os.environ.get(variable) or self.text(key) or default

    def _load(self) -> dict[str, Any]:
        try:
            with open(self.config_path, encoding="utf-8") as file:
                config = json.load(file)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            self.warning = f"cannot read {self.config_path}: {error}"
            return {}
        if not isinstance(config, dict):
            self.warning = f"{self.config_path} does not hold an object"
            return {}
        return config
