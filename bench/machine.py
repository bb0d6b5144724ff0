"""What figures depend on: the machine, the versions and the commit."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cryptography.hazmat.backends.openssl import backend

from tests.support.official import CURRENT

ROOT = Path(__file__).parent.parent
LIBRARIES = (
    *("pilotfleet", "cryptography", "pynacl", "msgspec"),
    *("uvloop", "starlette", "uvicorn"),
)
MEASURED = ("src", "bench", "tests", "pyproject.toml", ":!bench/results")
"""What a figure depends on; the files of results themselves are not of it."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where something was measured, and with what."""

    processor: str
    cores: int
    memory_gib: float
    is_virtual: bool | None
    """None where the processor does not say."""
    kernel: str
    python: str
    versions: dict[str, str]
    """Of the libraries and of the official programs."""

    def __str__(self) -> str:
        kind = {True: "virtual machine, ", False: "", None: ""}[self.is_virtual]
        versions = ", ".join(
            f"{name} {version}" for name, version in self.versions.items()
        )
        return (
            f"{kind}{self.cores} cores of {self.processor},"
            f" {self.memory_gib:.1f} GiB, Linux {self.kernel}, Python {self.python};"
            f" {versions}; everything on loopback"
        )


@dataclass(frozen=True, slots=True)
class Source:
    """The code that was measured."""

    commit: str | None
    """None outside a Git repository."""
    is_clean: bool
    """Whether it was that commit's code and nothing else."""

    def __str__(self) -> str:
        if self.commit is None:
            return "at no commit"
        changed = "" if self.is_clean else " with changes"
        return f"at commit {self.commit[:12]}{changed}"


def this_machine() -> Machine:
    """Return what is known of this machine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        processor=_of_processor("model name") or platform.processor(),
        cores=os.cpu_count() or 1,
        memory_gib=round(memory / 1024**3, 1),
        is_virtual=_is_virtual(),
        kernel=platform.release(),
        python=platform.python_version(),
        versions={
            **{name: metadata.version(name) for name in LIBRARIES},
            "OpenSSL": backend.openssl_version_text().split()[1],
            "SQLite": sqlite3.sqlite_version,
            "official programs": CURRENT,
        },
    )


def this_source() -> Source:
    """Return the commit of the working tree, and whether it was changed since."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return Source(None, is_clean=False)
    return Source(commit, is_clean=_git("status", "--porcelain", "--", *MEASURED) == "")


def _git(*argv: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", *argv], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def _of_processor(name: str) -> str | None:
    """Return a field of the first processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return None


def _is_virtual() -> bool | None:
    flags = _of_processor("flags")
    return None if flags is None else "hypervisor" in flags.split()
