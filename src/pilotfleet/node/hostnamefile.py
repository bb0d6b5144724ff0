"""``hostname_cache.json``: which names were resolved lately (cli.md section 3.1).

Only the default agent has it. It is a cache: what cannot be read is as good as
missing, and what cannot be written is lost.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.transport.files import replace_file
from pilotfleet.transport.threads import run_blocking

if TYPE_CHECKING:
    from pathlib import Path

    from pilotfleet.node.host import Host

__all__ = ["HostnameFile"]

logger = logging.getLogger(__name__)

# From the specification.
LIFE_S: Final = 60.0
# Of our choosing.
MAX_NAMES: Final = 4096
MAX_FILE: Final = 4 * 1024 * 1024


class _Entry(msgspec.Struct):
    resp: dict[str, Any]
    cached_at: str


class _File(msgspec.Struct):
    hostnames: dict[str, _Entry] | None = None
    saved_at: str = ""


class HostnameFile:
    """Answers about hostnames that outlive the process, for a minute in all."""

    def __init__(self, host: Host, path: Path) -> None:
        self._host = host
        self._path = path
        self._entries: dict[str, tuple[dict[str, Any], float]] | None = None
        """Name to answer and Unix time; None until the file was read."""
        self._is_saving = False
        self._is_dirty = False

    async def recall(self, name: str) -> tuple[dict[str, Any], float] | None:
        """Return the answer for ``name`` that is on disk, and its age in seconds."""
        if self._entries is None:
            read = await run_blocking(_read, self._path)
            # Somebody else may have waited for the same, and noted something since.
            if self._entries is None:
                self._entries = read
        known = self._entries.get(name)
        if known is None:
            return None
        age = self._host.wall() - known[1]
        if 0 <= age < LIFE_S:
            return known[0], age
        del self._entries[name]
        return None

    def note(self, name: str, answer: dict[str, Any]) -> None:
        """Keep an answer that the registry has just given."""
        now = self._host.wall()
        entries = {
            known: (kept, at)
            for known, (kept, at) in (self._entries or {}).items()
            if now - at < LIFE_S and known != name
        }
        while len(entries) >= MAX_NAMES:
            del entries[next(iter(entries))]
        entries[name] = (answer, now)
        self._entries = entries
        self._is_dirty = True
        if not self._is_saving:
            self._is_saving = True
            self._host.spawn(self._save(), name="hostname cache")

    async def _save(self) -> None:
        try:
            # What comes while a write is under way joins the next one.
            while self._is_dirty:
                self._is_dirty = False
                await run_blocking(replace_file, self._path, self._encode())
        except OSError as error:
            logger.debug("cannot write %s: %s", self._path, error)
        finally:
            self._is_saving = False

    def _encode(self) -> bytes:
        entries = {
            name: _Entry(answer, _text(at))
            for name, (answer, at) in (self._entries or {}).items()
        }
        tree = {"saved_at": _text(self._host.wall()), "hostnames": entries}
        return msgspec.json.encode(tree)


def _read(path: Path) -> dict[str, tuple[dict[str, Any], float]]:
    try:
        with open(path, "rb") as stream:
            file = msgspec.json.decode(stream.read(MAX_FILE), type=_File)
        return {
            name: (entry.resp, datetime.fromisoformat(entry.cached_at).timestamp())
            for name, entry in list((file.hostnames or {}).items())[-MAX_NAMES:]
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        logger.info("%s is left out: %s", path, error)
        return {}


def _text(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
