"""Tests on a machine with a real systemd. They need root, so they are asked for.

``make systemd`` sets the variable; without it nothing here is collected.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.systemd.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

if os.environ.get("PILOTFLEET_SYSTEMD") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as booted:
        yield booted
