"""The programs of a fleet: real ones, killed, multiplied and replaced."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.errors import AuthRequired, ConfigError, NotRunning
from pilotfleet.fleet.launcher import Launcher, MemberStatus, Part
from pilotfleet.fleet.orchestrator import Orchestrator, OrchestratorConfig
from pilotfleet.fleet.spec import FleetSpec
from pilotfleet.fleet.taskfile import TaskLine
from tests.fleet.support import processes_with_argument
from tests.node.support import eventually
from tests.support.programs import World, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing of the user's reach the programs."""
    for name in [name for name in os.environ if name.startswith("PILOT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        yield made


def make_spec(count: int, **tables: dict[str, Any]) -> FleetSpec:
    workers = {"exec": "cat", "count": count, "per_process": 2}
    workers |= tables.pop("workers", {})
    return msgspec.convert({"workers": workers, **tables}, FleetSpec)


def launcher(spec: FleetSpec, home: Path, part: Part | None = None) -> Launcher:
    return Launcher(spec, home, part=part, progress=lambda _: None)


def status(fleet: Launcher, name: str) -> MemberStatus:
    return next(member for member in fleet.members() if member.name == name)


def names(fleet: Launcher) -> set[str]:
    return {member.name for member in fleet.members()}


async def agents_of(fleet: Launcher, tag: str = "worker") -> set[str]:
    """Return who the hub finds."""
    async with await DaemonClient.connect(fleet.hub_socket) as hub:
        reply = await hub.call("search", tags=[tag], limit=100)
    return {row["hostname"] for row in reply["agents"]}


async def run_tasks(
    fleet: Launcher, count: int, *, prefix: str = "t"
) -> dict[str, tuple[str, str]]:
    """Run tasks from the hub; return their results and who did them."""

    async def lines() -> AsyncIterator[TaskLine]:
        for number in range(count):
            yield TaskLine(f"{prefix}{number}", f"text {number}")

    found = {}
    async with await DaemonClient.connect(fleet.entries()[0].socket) as client:
        config = OrchestratorConfig(
            tags=("worker",), agent=fleet.entries()[0].agent, refresh_s=0.5
        )
        async with contextlib.aclosing(
            Orchestrator(client, config).run(lines())
        ) as results:
            async for result in results:
                assert result.status == "SUCCEEDED", result
                found[result.id] = (result.result, result.agent)
    return found


def assert_echoed(results: dict[str, tuple[str, str]], count: int) -> None:
    texts = {task_id: text for task_id, (text, _) in results.items()}
    assert texts == {f"t{number}": f"text {number}" for number in range(count)}


async def test_everything_that_is_killed_comes_back_and_works(tmp_path: Path) -> None:
    deaths: list[str] = []
    async with launcher(make_spec(3), tmp_path / "home") as fleet:
        fleet.deaths = lambda member: deaths.append(member.name)
        running = asyncio.create_task(fleet.run())
        assert_echoed(await run_tasks(fleet, 6), 6)
        before = {member.name: member for member in fleet.members()}
        assert set(before) == {
            *("rendezvous", "hub"),
            *("group-1", "runner-1", "group-2", "runner-2"),
        }
        for name in ("group-1", "runner-2", "rendezvous", "hub"):
            os.kill(before[name].pid, signal.SIGKILL)
            await eventually(
                lambda name=name: (
                    status(fleet, name).restarts == 1  # type: ignore[misc]
                    and status(fleet, name).state == "running"
                ),
                what=f"a new {name}",
            )
            assert deaths.count(name) == 1
            assert "SIGKILL" in status(fleet, name).last_exit
            assert_echoed(await run_tasks(fleet, 6), 6)
        # Nobody else had to be started again.
        assert sum(member.restarts for member in fleet.members()) == 4
        assert not running.done()
        running.cancel()
    assert processes_with_argument(str(tmp_path / "home")) == []


async def test_all_killed_at_once_come_back_as_who_they_were(tmp_path: Path) -> None:
    async with launcher(make_spec(3), tmp_path / "home") as fleet:
        found = await agents_of(fleet)
        for member in fleet.members():
            os.kill(member.pid, signal.SIGKILL)
        await eventually(
            lambda: all(
                (member.restarts, member.state) == (1, "running")
                for member in fleet.members()
            ),
            what="everything",
        )
        assert_echoed(await run_tasks(fleet, 6), 6)
        assert await agents_of(fleet) == found == {"worker-1", "worker-2", "worker-3"}


async def test_program_that_cannot_stay_up_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.fleet.keeper.FIRST_PAUSE_S", 0.01)
    command = tmp_path / "command"
    command.write_text("#!/bin/sh\nexec cat\n")
    command.chmod(0o755)
    spec = make_spec(1, workers={"exec": str(command)})
    async with launcher(spec, tmp_path / "home") as fleet:
        command.unlink()
        os.kill(status(fleet, "runner-1").pid, signal.SIGKILL)
        with pytest.raises(NotRunning) as caught:
            await fleet.run()
        assert "runner-1 does not stay up (5 quick ends in a row)" in str(caught.value)
        assert f"{command} is not a program" in str(caught.value)
        assert status(fleet, "runner-1").state == "failed"
        assert status(fleet, "hub").state == "running"


async def test_fleet_grows_and_shrinks(tmp_path: Path) -> None:
    home = tmp_path / "home"
    told: list[tuple[str, list[str]]] = []
    async with launcher(make_spec(3), home) as fleet:
        fleet.deaths = lambda member: told.append((member.name, member.hosts))
        keys = {path: path.read_bytes() for path in home.rglob("identity.json")}
        untouched = {name: status(fleet, name).pid for name in ("group-1", "runner-1")}
        await fleet.scale(6)
        assert {f"worker-{n}" for n in range(1, 7)} == await agents_of(fleet)
        assert fleet.spec.workers.count == 6
        assert {status(fleet, name).pid for name in untouched} == {*untouched.values()}
        results = await run_tasks(fleet, 24)
        assert_echoed(results, 24)
        assert len({agent for _, agent in results.values()}) == 6
        await fleet.scale(1)
        assert names(fleet) == {"rendezvous", "hub", "group-1", "runner-1"}
        assert await agents_of(fleet) == {"worker-1"}
        assert sorted(told) == [
            ("group-1", ["worker-2"]),
            ("group-2", ["worker-3", "worker-4"]),
            ("group-3", ["worker-5", "worker-6"]),
        ]
        assert_echoed(await run_tasks(fleet, 3), 3)
        await fleet.scale(3)
        assert {p: p.read_bytes() for p in keys} == keys
        with pytest.raises(ConfigError):
            await fleet.scale(0)
        assert len(await agents_of(fleet)) == 3


async def test_shrinking_lets_a_task_that_has_begun_end(tmp_path: Path) -> None:
    script = tmp_path / "slow.sh"
    script.write_text(f"touch {tmp_path}/begun; read -r x < {tmp_path}/go; exec cat\n")
    os.mkfifo(tmp_path / "go")
    spec = make_spec(1, workers={"exec": f"sh {script}"})
    async with launcher(spec, tmp_path / "home") as fleet:
        work = asyncio.create_task(run_tasks(fleet, 1))
        await eventually((tmp_path / "begun").exists, what="the task")
        change = asyncio.create_task(fleet.rollout())
        await eventually(
            lambda: (
                "waiting for 1 tasks"
                in (tmp_path / "home" / "logs" / "runner-1.log").read_text()
            ),
            what="the draining",
        )
        assert not change.done()
        go = os.open(tmp_path / "go", os.O_RDWR)
        os.write(go, b"\n")
        assert_echoed(await work, 1)
        os.close(go)
        await change


async def test_rollout_replaces_all_worker_programs_and_nothing_else(
    tmp_path: Path,
) -> None:
    async with launcher(make_spec(5), tmp_path / "home") as fleet:
        before = {member.name: member.pid for member in fleet.members()}
        new = make_spec(2, workers={"exec": "tr a-z A-Z"})
        await fleet.rollout(batch=2, spec=new)
        after = {member.name: member.pid for member in fleet.members()}
        changed = {name for name in before if before[name] != after[name]}
        assert changed == {"runner-1", "runner-2", "runner-3"}
        results = await run_tasks(fleet, 5)
        assert {text for text, _ in results.values()} == {f"TEXT {n}" for n in range(5)}
        assert fleet.spec.workers.exec == "tr a-z A-Z"
        # How many there are is not a matter of a rollout.
        assert fleet.spec.workers.count == 5
        os.kill(after["runner-1"], signal.SIGKILL)
        await eventually(
            lambda: (
                status(fleet, "runner-1").restarts == 1
                and status(fleet, "runner-1").state == "running"
            ),
            what="its return",
        )
        assert (await run_tasks(fleet, 1))["t0"][0] == "TEXT 0"


async def test_rollout_stops_at_the_first_failure(tmp_path: Path) -> None:
    async with launcher(make_spec(5), tmp_path / "home") as fleet:
        before = {member.name: member.pid for member in fleet.members()}
        bad = make_spec(5, workers={"exec": "no-such-program"})
        with pytest.raises(NotRunning, match="no-such-program is not a program"):
            await fleet.rollout(spec=bad)
        await eventually(
            lambda: all(member.state == "running" for member in fleet.members()),
            what="the old one",
        )
        after = {member.name: member.pid for member in fleet.members()}
        assert {name for name in before if before[name] != after[name]} == {"runner-1"}
        assert fleet.spec.workers.exec == "cat"
        results = await run_tasks(fleet, 20)
        assert_echoed(results, 20)
        assert len({agent for _, agent in results.values()}) == 5


@pytest.mark.parametrize(
    "other",
    [
        {"fleet": {"name": "other"}},
        {"workers": {"prefix": "other-"}},
        {"workers": {"tags": ["other"]}},
        {"workers": {"per_process": 3}},
        {"hierarchy": {"fanout": 3}},
    ],
)
async def test_rollout_to_another_fleet_is_refused(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    fleet = launcher(make_spec(2), tmp_path / "home")
    with pytest.raises(ConfigError, match="a rollout cannot change"):
        await fleet.rollout(spec=make_spec(2, **other))


async def test_mesh_hands_out_tasks_by_workers(tmp_path: Path) -> None:
    spec = make_spec(5, fleet={"pattern": "mesh"})
    async with launcher(spec, tmp_path / "home") as fleet:
        entries = [entry.agent for entry in fleet.entries()]
        assert entries == [f"worker-{number}" for number in (1, 3, 5, 2, 4)]
        assert_echoed(await run_tasks(fleet, 4), 4)


async def test_hierarchical_fleet_has_its_sub_orchestrators(tmp_path: Path) -> None:
    spec = make_spec(
        4, fleet={"pattern": "hierarchical"}, hierarchy={"cluster_size": 2}
    )
    async with launcher(spec, tmp_path / "home") as fleet:
        assert names(fleet) == {
            *("rendezvous", "hub", "sub-1", "subrunner-1", "sub-2", "subrunner-2"),
            *("group-1", "runner-1", "group-2", "runner-2"),
        }
        assert await agents_of(fleet, "fleet-sub") == {"fleet-sub-1", "fleet-sub-2"}
        assert await agents_of(fleet, "c2") == {"worker-3", "worker-4"}
        os.kill(status(fleet, "sub-1").pid, signal.SIGKILL)
        os.kill(status(fleet, "subrunner-1").pid, signal.SIGKILL)
        await eventually(
            lambda: all(
                (status(fleet, name).restarts, status(fleet, name).state)
                == (1, "running")
                for name in ("sub-1", "subrunner-1")
            ),
            what="its return",
        )
        await fleet.scale(2)
        assert await agents_of(fleet, "fleet-sub") == {"fleet-sub-1"}
        assert "sub-2" not in names(fleet)


async def test_home_may_be_deep(tmp_path: Path) -> None:
    home = tmp_path / ("d" * 100) / "home"
    async with launcher(make_spec(1), home) as fleet:
        assert len(str(fleet.hub_socket)) < 100
        assert_echoed(await run_tasks(fleet, 2), 2)
    assert not fleet.hub_socket.parent.exists()


async def test_parts_of_a_fleet_find_each_other(
    net: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    net.start_rendezvous()
    monkeypatch.setenv("PILOT_ADMIN_TOKEN", net.admin_token)
    monkeypatch.setenv("PILOT_JOIN_TOKEN", "the-token-of-all-parts")
    where = {"rendezvous": net.registry, "beacon": net.beacon}
    spec = make_spec(6, fleet=where, workers={"tags": ["worker"]})
    # The second one is started first, and waits.
    second = launcher(spec, net.home / "two", Part(2, 2))
    starting = asyncio.create_task(second.__aenter__())
    async with launcher(spec, net.home / "one", Part(1, 2)) as first:
        await starting
        try:
            assert names(first) == {"hub", "group-1", "runner-1", "group-3", "runner-3"}
            assert names(second) == {"group-2", "runner-2"}
            assert second.entries() == []
            results = await run_tasks(first, 24)
            assert_echoed(results, 24)
            assert len({agent for _, agent in results.values()}) == 6
            for fleet in (first, second):
                await fleet.scale(8)
            assert names(second) == {"group-2", "runner-2", "group-4", "runner-4"}
            found = await agents_of(first)
            assert found == {f"fleet-worker-{number}" for number in range(1, 9)}
        finally:
            await second.__aexit__(None, None, None)


async def test_embedded_rendezvous_of_the_first_part_serves_the_others(
    tmp_path: Path,
) -> None:
    fleet = {"listen": "127.0.0.1", "listen_port": 19_300}
    spec = make_spec(4, fleet=fleet)
    with pytest.raises(AuthRequired, match="a token is needed") as caught:
        await launcher(spec, tmp_path / "two", Part(2, 2)).__aenter__()
    assert "PILOT_JOIN_TOKEN" in str(caught.value.hint)
    async with launcher(spec, tmp_path / "one", Part(1, 2)) as first:
        copy = tmp_path / "two" / "network.json"
        copy.write_bytes((tmp_path / "one" / "network.json").read_bytes())
        assert json.loads(copy.read_bytes())["network_id"] > 0
        async with launcher(spec, tmp_path / "two", Part(2, 2)):
            results = await run_tasks(first, 8)
            assert_echoed(results, 8)
            assert len({agent for _, agent in results.values()}) == 4


async def test_part_without_a_group_is_refused(tmp_path: Path) -> None:
    spec = make_spec(2, fleet={"listen": "127.0.0.1"})
    with pytest.raises(ConfigError, match="part 2/2 of fleet fleet has nothing"):
        await launcher(spec, tmp_path / "home", Part(2, 2)).__aenter__()
