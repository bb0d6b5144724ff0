"""Big fleets on one machine. They take minutes and gigabytes, so they are asked for.

``make fleets`` sets the variable; without it nothing here is collected.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.fleet.upsupport import fleet_world
from tests.fleets.big import BigFleet

if TYPE_CHECKING:
    from collections.abc import Iterator

if os.environ.get("PILOTFLEET_FLEETS") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def big(capsys: pytest.CaptureFixture[str]) -> Iterator[BigFleet]:
    with fleet_world() as net:
        fleet = BigFleet(net)
        yield fleet
        with capsys.disabled():
            fleet.print_measured()
