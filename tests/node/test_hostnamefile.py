"""Names that were resolved before a restart."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import PilotError
from tests.node.support import World, eventually, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


async def test_names_outlive_a_restart(world: World) -> None:
    path = world.folder / "b" / "bob" / "hostname_cache.json"
    async with world.host("a", "alice") as a:
        node = a.default_agent.node_id
        async with world.host("b", "bob") as b:
            await b.default_agent.resolve_hostname("alice")
            await b.default_agent.resolve_hostname("bob")
            await eventually(path.exists, what="the file is written")
        tree = json.loads(path.read_text())
        assert list(tree["hostnames"]) == ["alice"]
        assert tree["hostnames"]["alice"]["resp"]["node_id"] == node
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await a.default_agent.registry("set_hostname", node_id=node, hostname="")
        async with world.host("b", "bob") as b:
            answer = await b.default_agent.resolve_hostname("alice")
            assert answer["node_id"] == node


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"hostnames": null}',
        '{"hostnames": {"alice": {"resp": {}, "cached_at": "soon"}}}',
        '{"hostnames": {"alice": {"resp": {}, "cached_at": "2020-01-01T00:00:00Z"}}}',
        '{"hostnames": {"alice": {"resp": {}, "cached_at": "2999-01-01T00:00:00Z"}}}',
    ],
)
async def test_what_is_old_or_broken_is_left_out(world: World, text: str) -> None:
    path = world.folder / "b" / "bob" / "hostname_cache.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    async with world.host("b", "bob") as b:
        with pytest.raises(PilotError, match='hostname "alice" not found'):
            await b.default_agent.resolve_hostname("alice")


async def test_a_file_of_the_official_daemon_is_read(world: World) -> None:
    path = world.folder / "b" / "bob" / "hostname_cache.json"
    path.parent.mkdir(parents=True)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.123456789Z")
    entry = {"resp": {"node_id": 7, "hostname": "alice"}, "cached_at": now}
    path.write_text(json.dumps({"saved_at": now, "hostnames": {"alice": entry}}))
    async with world.host("b", "bob") as b:
        assert (await b.default_agent.resolve_hostname("alice"))["node_id"] == 7
