"""Which gateway does a task, whose turn it is, and what a dead gateway costs."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import NotRunning, PermissionDenied, PilotError
from pilotfleet.fleet.worker.openclaw import gateway as gateways
from pilotfleet.fleet.worker.openclaw import pool as pools
from pilotfleet.fleet.worker.openclaw.gateway import OwnGateway
from tests.fleet.worker.openclaw.gatewayserver import GatewayServer
from tests.fleet.worker.openclaw.support import job, own_pool, remote_pool
from tests.node.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotfleet.fleet.worker.openclaw.pool import GatewayPool


@pytest.fixture
def server() -> Iterator[GatewayServer]:
    with GatewayServer() as server:
        yield server


@pytest.fixture
def second() -> Iterator[GatewayServer]:
    with GatewayServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less long for what is started here, which is ready at once."""
    monkeypatch.setattr(gateways, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(gateways, "START_POLL_S", 0.02)


def own(pool: GatewayPool, number: int = 0) -> OwnGateway:
    gateway = pool.gateways[number]
    assert isinstance(gateway, OwnGateway)
    return gateway


def pid_of(gateway: OwnGateway) -> int:
    assert gateway.pid is not None
    return gateway.pid


# Turns


async def test_turns_are_bounded_and_all_tasks_are_done(server: GatewayServer) -> None:
    server.delay_s = 0.01
    async with remote_pool(server, turns=3) as pool:
        jobs = [job(f"text {n}", agent=f"w-{n % 7}", task=str(n)) for n in range(40)]
        outcomes = await asyncio.gather(*map(pool.run, jobs))
    assert [outcome.result for outcome in outcomes] == [f"did {j.text}" for j in jobs]
    assert server.most == 3
    assert len({seen["session"] for seen in server.seen}) == 40


async def test_agents_take_turns(server: GatewayServer) -> None:
    async with remote_pool(server, turns=1) as pool, asyncio.TaskGroup() as group:
        group.create_task(pool.run(job("wait")))
        await eventually(lambda: server.running, what="the first task")
        for number in range(20):
            group.create_task(pool.run(job(f"greedy {number}", agent="greedy")))
        group.create_task(pool.run(job("modest", agent="modest")))
        await asyncio.sleep(0)
        server.go_on.set()
    texts = [seen["body"]["messages"][-1]["content"] for seen in server.seen]
    assert texts[:3] == ["wait", "greedy 0", "modest"]


async def test_the_gateway_that_is_least_busy_is_chosen(
    server: GatewayServer, second: GatewayServer
) -> None:
    async with remote_pool(server, second, turns=4) as pool:
        await eventually(lambda: all(g.is_ready for g in pool.gateways), what="both")
        tasks = [asyncio.create_task(pool.run(job("wait"))) for _ in range(6)]
        await eventually(
            lambda: (server.running, second.running) == (3, 3), what="an even share"
        )
        for each in (server, second):
            each.go_on.set()
        assert all(outcome.ok for outcome in await asyncio.gather(*tasks))
    assert [gateway.busy for gateway in pool.gateways] == [0, 0]


async def test_the_time_limit_ends_the_turn(server: GatewayServer) -> None:
    async with remote_pool(server, timeout_s=0.1) as pool:
        outcome = await pool.run(job("hang"))
        assert outcome.error == "no answer within the time limit of 0.1 s"
        assert outcome.retryable
        await eventually(lambda: not server.running, what="the end of the turn")
        assert pool.gateways[0].busy == 0


async def test_a_cancelled_task_gives_its_turn_back(server: GatewayServer) -> None:
    async with remote_pool(server, turns=1) as pool:
        running = asyncio.create_task(pool.run(job("hang")))
        waiting = asyncio.create_task(pool.run(job("never")))
        last = asyncio.create_task(pool.run(job("last")))
        await eventually(lambda: server.running, what="the first task")
        waiting.cancel()
        running.cancel()
        assert (await last).result == "did last"
        for task in (running, waiting):
            with suppress(asyncio.CancelledError):
                await task
            assert task.cancelled()
        assert pool.gateways[0].busy == 0
    assert len(server.seen) == 2


# Gateways of others


async def test_a_wrong_token_is_told_before_any_task(server: GatewayServer) -> None:
    pool = remote_pool(server)
    server.token = "changed"
    with pytest.raises(PermissionDenied, match="token"):
        async with pool:
            pass


async def test_a_gateway_that_is_away_is_told_before_any_task(
    server: GatewayServer,
) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(PilotError, match="refused"):
        async with remote_pool(server):
            pass


async def test_a_lost_remote_gateway_leaves_the_task_to_others_and_is_used_again(
    server: GatewayServer,
) -> None:
    async with remote_pool(server) as pool:
        outcome = await pool.run(job("break off"))
        assert (outcome.ok, outcome.retryable) == (False, True)
        # It is suspect now, and asked before it gets the next task.
        assert (await pool.run(job("next"))).result == "did next"


async def test_a_task_does_not_wait_for_ever_for_a_gateway(
    server: GatewayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "WAIT_LIMIT_S", 0.05)
    async with remote_pool(server) as pool:
        server.shutdown()
        server.server_close()
        outcome = await pool.run(job("one"))
        assert "the gateway was lost" in outcome.error
        outcome = await pool.run(job("two"))
        assert (outcome.ok, outcome.retryable) == (False, True)
        assert outcome.error.startswith("no gateway is ready")
        assert pool.gateways[0].busy == 0


# Gateways of ours


async def test_own_gateways_are_started_and_ended(tmp_path: Path) -> None:
    async with own_pool(tmp_path, gateways=2) as pool:
        await eventually(lambda: all(g.is_ready for g in pool.gateways), what="both")
        pids = [pid_of(own(pool, number)) for number in (0, 1)]
        ports = {gateway.endpoint.port for gateway in pool.gateways if gateway.endpoint}
        assert len(ports) == 2
        assert (await pool.run(job("hello"))).result == "did hello"
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_token_is_no_argument_and_its_folder_is_private(
    tmp_path: Path,
) -> None:
    async with own_pool(tmp_path) as pool:
        gateway = own(pool)
        assert gateway.endpoint is not None
        token = gateway.endpoint.token
        place = Path(f"/proc/{gateway.pid}")
        assert token not in (place / "cmdline").read_text()
        assert token not in (place / "environ").read_text()
        folder = (place / "cwd").readlink()
        assert folder.stat().st_mode & 0o077 == 0
        assert (folder / "openclaw.json").stat().st_mode & 0o077 == 0
    assert not folder.exists()


async def test_a_killed_gateway_loses_no_task(tmp_path: Path) -> None:
    async with own_pool(tmp_path, turns=4) as pool:
        gateway = own(pool)
        mark = tmp_path / "killed"
        deadly = asyncio.create_task(pool.run(job(f"die {mark}", task="deadly")))
        jobs = [job(f"text {n}", agent=f"w-{n % 3}", task=str(n)) for n in range(20)]
        outcomes = await asyncio.gather(*map(pool.run, jobs))
        assert [o.result for o in outcomes] == [f"did {j.text}" for j in jobs]
        assert (await deadly).ok
        assert gateway.starts == 2


async def test_a_gateway_killed_in_the_middle_is_replaced_by_the_other(
    tmp_path: Path,
) -> None:
    async with own_pool(tmp_path, gateways=2) as pool:
        await eventually(lambda: all(g.is_ready for g in pool.gateways), what="both")
        tasks = [asyncio.create_task(pool.run(job("hang"))) for _ in range(2)]
        await eventually(
            lambda: [g.busy for g in pool.gateways] == [1, 1], what="a task on each"
        )
        os.kill(pid_of(own(pool)), signal.SIGKILL)
        await eventually(
            lambda: [g.busy for g in pool.gateways] == [0, 2], what="both on the other"
        )
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_task_that_kills_every_gateway_is_given_up(tmp_path: Path) -> None:
    async with own_pool(tmp_path) as pool:
        outcome = await pool.run(job("die"))
        assert (outcome.ok, outcome.retryable) == (False, True)
        assert "the gateway was lost" in outcome.error
        assert (await pool.run(job("next"))).ok


async def test_a_gateway_that_cannot_start_is_told_with_its_last_words(
    tmp_path: Path,
) -> None:
    config = tmp_path / "broken.json5"
    config.touch()
    with pytest.raises(NotRunning, match="Invalid config: broken"):
        async with own_pool(tmp_path, file=config):
            pass


async def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="cannot start"):
        async with own_pool(tmp_path, program=str(tmp_path / "nothing")):
            pass
