"""The world of the task tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.node.support import open_world
from tests.services.tasks.support import TaskWorld, open_task_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def net(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[TaskWorld]:
    """Yield a rendezvous; its task nodes look at their limits all the time."""
    monkeypatch.setattr("pilotfleet.services.tasks.service.CHECK_S", 0.05)
    monkeypatch.setattr("pilotfleet.services.tasks.service.DEADLINE_CHECK_S", 0.05)
    monkeypatch.setattr("pilotfleet.services.tasks.link.FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr("pilotfleet.services.tasks.link.LONGEST_PAUSE_S", 0.2)
    async with open_world(tmp_path) as world, open_task_world(world) as made:
        yield made
