"""Tests of the web pages in a real browser: Debian's Chromium, so they are asked for.

``make pages`` installs it and sets the variable; without that nothing here is
collected.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.pages.browser import Chromium

if TYPE_CHECKING:
    from collections.abc import Iterator

if os.environ.get("PILOTFLEET_PAGES") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    with Chromium() as started:
        yield started
