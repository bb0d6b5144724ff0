"""Tests with the real OpenClaw. It is a big program, so they are asked for.

``make openclaw`` installs it and sets the variable; without that nothing here is
collected.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest

from tests.openclaw.stub import Stub
from tests.support.official import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

if os.environ.get("PILOTFLEET_OPENCLAW") != "1":
    collect_ignore_glob = ["test_*.py"]

# By install.sh; asked for before a test has another home.
INSTALLED: Final = cache_folder() / "openclaw" / "node_modules" / ".bin"


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture(autouse=True)
def _openclaw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have OpenClaw in the path, and a home of its own for every test."""
    monkeypatch.setenv("PATH", f"{INSTALLED}:{os.environ['PATH']}")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PILOT_HOME", str(home / ".pilot"))
    for name in [name for name in os.environ if name.startswith("OPENCLAW_")]:
        monkeypatch.delenv(name)
