"""Where fleets live, and which one a command means."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pilotfleet.cli.settings import SYSTEM_TRUST, Settings
from pilotfleet.errors import InvalidArgument, NotRunning
from pilotfleet.fleet.control import CONTROL_SOCKET
from pilotfleet.fleet.controller import DESCRIPTION
from pilotfleet.fleet.home import short_path
from pilotfleet.fleet.plan import HUB
from pilotfleet.fleet.spec import load_spec
from pilotfleet.transport.tls import TlsConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotfleet.cli.arguments import Arguments

__all__ = [
    "default_home",
    "fleets_folder",
    "is_running",
    "known_homes",
    "name_of",
    "pattern_of",
    "registry_tls",
    "remember",
    "running_homes",
    "select_home",
    "socket_of",
]

ELSEWHERE: Final = ".elsewhere"
"""Below the folder of fleets: links to homes that are not in it."""
MAX_ELSEWHERE: Final = 1_000


def fleets_folder() -> Path:
    """Return the folder that holds the homes of this user's fleets."""
    return Path(Settings().directory).absolute() / "fleets"


def default_home(name: str) -> Path:
    """Return the home of a fleet that was not told to live elsewhere."""
    return fleets_folder() / name


def remember(home: Path) -> None:
    """Have commands find a home that is not among the others."""
    folder = fleets_folder()
    if home.parent == folder:
        return
    links = folder / ELSEWHERE
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    # Without the link, the fleet is only to be named by --home.
    with contextlib.suppress(OSError):
        links.mkdir(mode=0o700, parents=True, exist_ok=True)
        for link in links.iterdir():
            if not link.exists():
                link.unlink()
        if len(list(links.iterdir())) < MAX_ELSEWHERE:
            (links / digest).symlink_to(home)


def known_homes() -> list[Path]:
    """Return the homes of this user's fleets, running or not."""
    folder = fleets_folder()
    homes: list[Path] = []
    with contextlib.suppress(OSError):
        homes += [path for path in folder.iterdir() if path.name != ELSEWHERE]
    with contextlib.suppress(OSError):
        homes += [path.readlink() for path in (folder / ELSEWHERE).iterdir()]
    return sorted(home for home in homes if (home / DESCRIPTION).is_file())


def name_of(home: Path) -> str:
    """Return the name of the fleet that lives, or lived last, in a home."""
    return _description(home).get("name", home.name)


def pattern_of(home: Path) -> str:
    """Return its pattern."""
    return _description(home).get("pattern", "")


def is_running(home: Path) -> bool:
    """Tell whether a controller answers in a home."""
    # Not the path's own method: that raises where a folder may not be looked into.
    if not os.path.exists(home / CONTROL_SOCKET):
        return False
    with short_path(home) as short, socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(short / CONTROL_SOCKET))
        except OSError:
            return False
        return True


def running_homes() -> list[Path]:
    """Return the homes of this user's fleets that run."""
    return [home for home in known_homes() if is_running(home)]


def select_home(words: Arguments, spec: str = "") -> Path:
    """Return the home of the fleet that a command means.

    Args:
        words: Of which ``--home`` and ``--name`` count.
        spec: Path of a specification, which names the fleet; may be empty.

    Raises:
        ConfigError: The specification cannot be read.
        InvalidArgument: Several fleets run, and none was named.
        NotRunning: None runs, and none was named.
    """
    if words.has("home"):
        return Path(words.text("home")).absolute()
    name = words.text("name") or (load_spec(Path(spec)).fleet.name if spec else "")
    running = running_homes()
    if name:
        homes = [home for home in running if name_of(home) == name]
        if default_home(name) in homes or not homes:
            return default_home(name)
    else:
        homes = running
    if not homes:
        raise NotRunning(
            "no fleet of yours is running",
            hint="start one with: pilotctl fleet up SPEC",
        )
    if len(homes) > 1:
        listed = ", ".join(f"{name_of(home)} ({home})" for home in homes)
        raise InvalidArgument(
            f"several fleets run: {listed}", hint="choose one with --home or --name"
        )
    return homes[0]


@contextlib.contextmanager
def socket_of(home: Path) -> Iterator[Path]:
    """Yield the socket of the hub of a fleet that runs.

    On a machine without the hub it is that of another of the fleet's daemons.

    Raises:
        NotRunning: There is none.
    """
    with short_path(home / "run") as folder:
        sockets = [folder / f"{HUB}.sock", *sorted(folder.glob("group-*.sock"))]
        found = next((path for path in sockets if os.path.exists(path)), None)
        if found is None:
            raise NotRunning(
                f"no daemon of a fleet runs in {home}",
                hint="start the fleet with: pilotctl fleet up SPEC",
            )
        yield found


def registry_tls() -> TlsConfig | None:
    """Return how the user's other programs check a registry that runs already."""
    trust = Settings().registry_trust()
    if trust is None:
        return None
    return TlsConfig(fingerprint=None if trust == SYSTEM_TRUST else trust)


def _description(home: Path) -> dict[str, str]:
    try:
        table = json.loads((home / DESCRIPTION).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}
