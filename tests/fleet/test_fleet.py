"""The public ``Fleet`` against real programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pilotfleet.errors import InvalidArgument, NotFound, NotRunning
from pilotfleet.fleet.fleet import Fleet
from pilotfleet.fleet.spec import FleetSpec, load_spec
from pilotfleet.fleet.taskfile import TaskLine
from tests.support.programs import world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.programs import World

SPEC = {
    "fleet": {"name": "small"},
    "workers": {"count": 2, "tags": ["text"], "exec": "wc -w"},
}


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Yield a folder that is the user's home."""
    with world() as made:
        monkeypatch.setenv("HOME", str(made.home))
        monkeypatch.delenv("PILOT_REGISTRY", raising=False)
        yield made


async def test_a_fleet_does_tasks_and_is_seen_by_others(net: World) -> None:
    home = net.home / "f"
    async with await Fleet.up(SPEC, home=home) as fleet:
        assert fleet.home == home
        results = {r.id: r.result.strip() async for r in fleet.map(source())}
        assert results == {"1": "1", "2": "2", "own": "3"}
        assert [r async for r in fleet.map([])] == []
        assert (await fleet.status())["batches"] == []

        batch = await fleet.submit(["a b"], batch="mine")
        async with await Fleet.attach(home) as other:
            found = [r.result.strip() async for r in other.results(batch)]
        async with await Fleet.up(SPEC, home=home) as same:
            assert (await same.status())["pid"] == (await fleet.status())["pid"]
        assert found == ["2"]
        with pytest.raises(NotFound):
            await anext(fleet.results("nobodys"))

        async with await fleet.agent("worker-2") as worker:
            assert worker.name == "worker-2"
        async with await fleet.agent() as hub:
            assert hub.name == "small-hub"
        with pytest.raises(NotFound, match="no agent worker-3"):
            await fleet.agent("worker-3")
    with pytest.raises(NotRunning):
        await fleet.status()


async def source() -> AsyncIterator[str | TaskLine]:
    yield "a"
    yield "a b"
    yield TaskLine(id="own", task="a b c")


async def test_a_wrong_specification_is_refused(tmp_path: Path) -> None:
    spec: dict[str, Any] = {"workers": {"count": 0, "exec": "wc"}}
    with pytest.raises(InvalidArgument, match=r"workers\.count"):
        await Fleet.up(spec, home=tmp_path)
    with pytest.raises(InvalidArgument, match="needs a home"):
        await Fleet.up(spec)
    with pytest.raises(InvalidArgument, match=r"no\.toml"):
        await Fleet.up(tmp_path / "no.toml")


async def test_where_no_fleet_runs_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(NotRunning):
        await Fleet.attach(tmp_path)


async def test_a_specification_is_written_as_it_is_read(net: World) -> None:
    spec = msgspec.convert(
        {
            "fleet": {"name": "x", "pattern": "mesh", "polo": False},
            "workers": {"count": 3, "exec": 'sh -c "printf \\"é\\t\x7f\\""'},
        },
        FleetSpec,
    )
    path = net.home / "y"
    with pytest.raises(InvalidArgument, match="part"):
        await Fleet.up(spec, home=path, part="three")
    assert load_spec(path / "spec.toml") == spec
