"""Path tests: real NATs in network namespaces. They need root, so they are asked for.

``make paths`` sets the variable; without it nothing here is collected, because the
other tests are for any user.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.paths.nat import isolate
from tests.paths.world import Paths, paths
from tests.support.official import official_program

if TYPE_CHECKING:
    from collections.abc import Iterator

if os.environ.get("PILOTFLEET_PATHS") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def _own_world() -> None:
    """Fetch what is needed from outside, then leave the machine's network."""
    for name in ("pilot-daemon", "pilotctl"):
        official_program(name)
    isolate()


@pytest.fixture
def net() -> Iterator[Paths]:
    with paths() as made:
        yield made
