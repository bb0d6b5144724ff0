"""Every kind of store, for the suites that run over all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pilotfleet.registry.store.memory import MemoryStore
from pilotfleet.registry.store.opening import open_store
from tests.support.nats import NatsServer, run_nats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from pilotfleet.registry.store.base import Store


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with run_nats(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture(
    params=["memory", "sqlite", pytest.param("nats", marks=pytest.mark.nats)]
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store of its own for each test."""
    match request.param:
        case "memory":
            return "memory:"
        case "sqlite":
            return f"sqlite://{tmp_path}/store/registry.db"
    server: NatsServer = request.getfixturevalue("nats_server")
    return f"{server.url}?bucket={tmp_path.name.replace('[', '-').strip(']')}"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with open_store(url) as store:
        yield store


@pytest.fixture
async def other(url: str, store: Store) -> AsyncIterator[Store]:
    """The same store as another replica has it open."""
    if isinstance(store, MemoryStore):
        yield store
        return
    async with open_store(url) as other:
        yield other
