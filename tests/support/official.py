"""The official programs: fetched once, run on loopback only.

Where the system allows it they run in a network namespace of their own, so that
nothing they do can leave the machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

CURRENT: Final = "1.18.0"
WITH_TASKS: Final = "1.9.1"
"""The last release that has tasks and a polo score."""

RELEASES: Final = (CURRENT, WITH_TASKS)


def cache_folder() -> Path:
    """Return the folder, outside the tree, that keeps what checks download."""
    default = Path.home() / ".cache" / "pilotfleet"
    return Path(os.environ.get("PILOTFLEET_CACHE", default))


def official_program(name: str, release: str = CURRENT) -> Path:
    """Return the path of ``pilot-daemon`` or ``pilotctl`` of a release."""
    program = _folder(release) / "pilotprotocol" / "bin" / name
    if not program.exists():
        _fetch(release)
    return program


def sdk_environment() -> dict[str, str]:
    """Return the environment in which a process can import ``pilotprotocol``.

    The package finds its native library by the variable, so that it copies nothing
    into the home folder.
    """
    folder = _folder(CURRENT)
    package = folder / "pilotprotocol"
    library = package / "bin" / "libpilot.so"
    if not (library.exists() and (package / "client.py").exists()):
        _fetch(CURRENT)
    return {"PYTHONPATH": str(folder), "PILOT_LIB_PATH": str(library)}


def _folder(release: str) -> Path:
    return cache_folder() / f"official-{release}"


def _fetch(release: str) -> None:
    folder = _folder(release)
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            # The wheel of 1.9.1 says that it is for this Python; its programs are not.
            *("--python-version", "3.11", "--only-binary", ":all:"),
            *("--disable-pip-version-check", "--dest", str(folder)),
            f"pilotprotocol=={release}",
        ],
        check=True,
    )
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        for member in wheel.namelist():
            if _is_wanted(member):
                # Renamed into place: another test process may be fetching as well.
                target = folder / member
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f"{target.name}.{os.getpid()}")
                partial.write_bytes(wheel.read(member))
                partial.chmod(0o755)
                partial.replace(target)


def _is_wanted(member: str) -> bool:
    """Choose the programs, the native library and the Python package around it."""
    if not member.startswith("pilotprotocol/") or member.endswith("/"):
        return False
    if member.endswith("pilot-updater"):
        return False
    return "/bin/" in member or member.endswith(".py")
