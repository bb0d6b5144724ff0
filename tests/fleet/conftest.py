"""A rendezvous and task nodes for the tests of what uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.node.support import open_world
from tests.services.tasks.support import TaskWorld, open_task_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[TaskWorld]:
    """Yield a rendezvous; whoever loses sight of a node there tries again at once."""
    monkeypatch.setattr("pilotfleet.services.tasks.link.DIAL_LIMIT_S", 1.0)
    monkeypatch.setattr("pilotfleet.services.tasks.link.FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr("pilotfleet.services.tasks.link.LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr("pilotfleet.fleet.worker.reports.GATHER_S", 0.01)
    monkeypatch.setattr("pilotfleet.fleet.worker.runner.FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr("pilotfleet.fleet.worker.runner.LONGEST_PAUSE_S", 0.1)
    async with open_world(tmp_path) as world, open_task_world(world) as made:
        yield made
