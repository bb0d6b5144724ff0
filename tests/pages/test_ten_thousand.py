"""The monitor's pages with 10,000 agents: that they work, and what they take."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.pages.browser import artefact
from tests.pages.measuring import measure

if TYPE_CHECKING:
    from tests.pages.browser import Chromium

pytestmark = [pytest.mark.pages, pytest.mark.timeout(300)]

AGENTS = 10_000


def test_a_big_fleet_is_shown_row_by_row(chromium: Chromium) -> None:
    """Times are written down and not judged: the machine may be busy."""
    measured = measure(chromium, AGENTS, watch_s=3, scroll_s=2)
    artefact("monitor-10000.json").write_text(json.dumps(measured, indent=2) + "\n")
    # Only what is in sight is there, however far one has scrolled.
    assert measured["table"]["rows_in_page"] < 60
    # A page that is at work all the time would not scroll.
    assert measured["table"]["busy_ms_per_s"] < 500
    assert measured["overview"]["busy_ms_per_s"] < 500
