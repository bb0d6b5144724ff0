"""Tokens of servers, in files."""

from __future__ import annotations

from pathlib import Path

from pilotfleet.errors import ConfigError

__all__ = ["read_token_file"]


def read_token_file(name: str | None, what: str) -> str:
    """Return what a file holds; nothing when there is no file.

    Args:
        name: Of the file.
        what: What the token is called in messages.

    Raises:
        ConfigError: It cannot be read, or holds no token.
    """
    if not name:
        return ""
    try:
        token = Path(name).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(
            f"cannot read the {what} file {name}: {error.strerror}",
            hint="make it, for example: openssl rand -hex 32 > FILE",
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"the {what} file {name} is not text") from None
    if not token:
        raise ConfigError(f"the {what} file {name} is empty")
    return token
