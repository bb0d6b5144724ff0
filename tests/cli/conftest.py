"""A shell for command lines."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.support import Shell

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Shell]:
    """Return a shell in a fresh home; short, for the socket's path in it."""
    with tempfile.TemporaryDirectory(prefix="pf") as home:
        yield Shell(Path(home), monkeypatch, capsys)
