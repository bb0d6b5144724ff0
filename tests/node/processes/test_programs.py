"""``pilot-daemon --processes`` as a user runs it, and what happens to its processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.errors import PilotError
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.ipc.commands import Command
from tests.support.programs import BIN, World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.programs import Program

pytestmark = [pytest.mark.official, pytest.mark.timeout(180)]

FLAGS = ("--agents", "6", "--agent-prefix", "w-", "--processes", "3", "--public")
NAMES = [f"w-{number}" for number in range(1, 7)]


def start(net: World, *flags: str) -> Program:
    return net.start_daemon(
        "many", *FLAGS, "--trust-auto-approve", "--polo-gate", "off", *flags
    )


def ready(net: World) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((net.home / "many.ready.json").read_text())
    return state


@pytest.fixture(scope="module")
def net() -> Iterator[World]:
    """A daemon of three processes with six agents."""
    with world() as net:
        net.start_rendezvous()
        start(net, "--agent-sockets", str(net.home / "agents"))
        yield net


def run(net: World, agent: str, *argv: str) -> Any:
    return data_of(net.ctl("many", "--agent", agent, *argv))


def is_there(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


def test_the_daemon_says_what_it_has_started(net: World) -> None:
    state = ready(net)
    assert state["agents"] == 6
    assert sorted(state["addresses"]) == NAMES
    assert sorted(state["processes"]) == ["1", "2", "3"]
    log = (net.home / "many.log").read_text()
    assert "started 6 of 6 agents" in log
    assert log.count("ready: 6 agents in 3 processes") == 1
    for pid in state["processes"].values():
        # Not the memory with its orders, which may hold secrets.
        assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull


def test_all_agents_are_listed_and_selected(net: World) -> None:
    rows = data_of(net.ctl("many", "agents"))["agents"]
    assert [row["name"] for row in rows] == NAMES
    assert {row["state"] for row in rows} == {"online"}
    for row in rows:
        info = run(net, row["name"], "info")
        assert (info["node_id"], info["hostname"]) == (row["node_id"], row["name"])
        assert run(net, row["name"], "health")["status"] == "ok"
    assert data_of(net.ctl("many", "info"))["hostname"] == "w-1"
    refused = net.ctl("many", "--agent", "w-9", "info")
    assert "no agent 'w-9'" in json.loads(refused.stdout or refused.stderr)["message"]


def test_official_programs_find_the_default_agent(net: World) -> None:
    ours, theirs = net.ctl("many", "info"), net.official_ctl("many", "info")
    assert data_of(theirs)["address"] == data_of(ours)["address"]
    reply = data_of(net.official_ctl("many", "ping", "w-2", "--count", "1"))
    assert [probe.get("error") for probe in reply["results"]] == [None]


def test_official_programs_find_each_agent_at_its_own_socket(net: World) -> None:
    for name in NAMES:
        found = data_of(net.official_ctl(f"agents/{name}", "info"))
        assert found["address"] == ready(net)["addresses"][name]


async def test_streams_between_agents_of_two_processes(net: World) -> None:
    path, addresses = net.socket("many"), ready(net)["addresses"]
    async with (
        await DaemonClient.connect(path) as near,
        await DaemonClient.connect(path) as far,
    ):
        await near.call("select-agent", name="w-2")
        await far.call("select-agent", name="w-3")
        listener = await far.bind(5000)
        stream = await near.dial(Address.parse(addresses["w-3"]), 5000)
        accepted = await listener.accept()
        assert str(accepted.remote.address) == addresses["w-2"]
        data = os.urandom(1 << 20)
        sending = asyncio.create_task(stream.write(data))
        received = bytearray()
        while len(received) < len(data):
            received += await accepted.read(1 << 16)
        await sending
        assert bytes(received) == data


def test_a_file_goes_from_one_process_to_another(net: World) -> None:
    run(net, "w-5", "handshake", "w-6", "please")
    source = net.home / "file.bin"
    source.write_bytes(os.urandom(100_000))
    run(net, "w-5", "send-file", "w-6", str(source))
    stored = net.home / "many" / "agents" / "w-6"
    received = [path.read_bytes() for path in stored.rglob("*") if path.is_file()]
    assert source.read_bytes() in received


async def test_one_connection_serves_agents_of_all_processes(net: World) -> None:
    path, addresses = net.socket("many"), ready(net)["addresses"]
    others = [name for name in NAMES if name != "w-4"]
    for name in others:
        run(net, "w-4", "handshake", name, "please")
    async with (
        await DaemonClient.connect(path) as worker,
        await DaemonClient.connect(path) as hub,
    ):
        answer = await worker.call("task.serve", agents=NAMES, concurrency=2)
        assert answer == {"agents": 6, "concurrency": 2}
        await hub.call("task.watch", agent="w-4")
        for name in others:
            await hub.call(
                "task.submit",
                agent="w-4",
                target=addresses[name],
                task=f"for {name}",
                wait=False,
            )
        offers = worker.pushes()
        done: dict[str, str] = {}
        async with asyncio.timeout(60):
            while len(done) < len(others):
                offer = await anext(offers)
                name, task = offer["agent"], offer["task"]
                assert task["task_description"] == f"for {name}"
                await worker.call(
                    "task.finish",
                    agent=name,
                    task_id=task["task_id"],
                    ok=True,
                    result=f"done by {name}",
                )
                done[task["task_id"]] = f"done by {name}"
            results = {}
            async for update in hub.pushes():
                if "results" in update:
                    results[update["task_id"]] = update["results"]
                if len(results) == len(others):
                    break
        assert results == done


def test_a_killed_process_comes_back_and_the_others_do_not_notice(net: World) -> None:
    asyncio.run(_kill_one(net))


async def _kill_one(net: World) -> None:
    path, state = net.socket("many"), ready(net)
    async with await DaemonClient.connect(path) as other:
        node = (await other.request_json(Command.INFO))["node_id"]
        victim = state["processes"]["2"]
        os.kill(victim, signal.SIGKILL)
        rows = await _until(other, lambda rows: len(rows) == 4)
        assert {row["name"] for row in rows} == {"w-1", "w-3", "w-4", "w-6"}
        rows = await _until(
            other, lambda rows: [row["state"] for row in rows] == ["online"] * 6
        )
        assert {row["name"]: row["address"] for row in rows} == state["addresses"]
        # The same connection all the time.
        assert (await other.request_json(Command.INFO))["node_id"] == node
    assert run(net, "w-5", "info")["address"] == state["addresses"]["w-5"]
    log = (net.home / "many.log").read_text()
    assert "process 2 of the daemon ended (signal 9); its 2 agents start" in log
    assert "Traceback" not in log


def test_clients_wait_while_the_default_agents_process_is_killed(net: World) -> None:
    state = ready(net)
    pids = [pid for pid in _children(state["pid"]) if is_there(pid)]
    assert len(pids) == 3
    os.kill(state["processes"]["1"], signal.SIGKILL)
    # One that is served meanwhile may be told so; one that comes then has an answer.
    for _ in range(200):
        result = net.ctl("many", "info")
        if result.returncode == 0:
            break
    assert data_of(result)["address"] == state["addresses"]["w-1"]


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


async def _until(
    client: DaemonClient, is_so: Callable[[list[dict[str, Any]]], bool]
) -> list[dict[str, Any]]:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(PilotError):
                rows: list[dict[str, Any]] = (await client.call("agents"))["agents"]
                if is_so(rows):
                    return rows


# The end of a daemon


@pytest.fixture
def other() -> Iterator[World]:
    with world() as net:
        net.start_rendezvous()
        yield net


def test_sigterm_ends_all_processes(other: World) -> None:
    program = start(other)
    pids = _children(program.process.pid)
    assert len(pids) == 3
    assert program.terminate() == 0
    assert not any(map(is_there, pids))
    assert not other.socket("many").exists()
    log = program.log.read_text()
    assert log.count("stopped") == 1
    assert "Traceback" not in log


def test_processes_do_not_outlive_their_parent_and_leave_the_way_clear(
    other: World,
) -> None:
    program = start(other)
    addresses = ready(other)["addresses"]
    pids = _children(program.process.pid)
    program.process.kill()
    program.process.wait()
    program.process.poll()
    waiter = other.start("waiter", "sleep", "60")
    waiter.wait_until(lambda: not any(map(is_there, pids)))
    assert "Traceback" not in program.log.read_text()
    start(other)
    assert ready(other)["addresses"] == addresses


def test_tasks_are_found_again_with_another_number_of_processes(other: World) -> None:
    kept: dict[str, list[str]] = {}
    for count in ("3", "2", "1", "3"):
        program = start(other, "--processes", count)
        for name in NAMES:
            listed = run(other, name, "task", "list")["tasks"]
            assert [row["task_id"] for row in listed] == kept.get(name, [])
        if not kept:
            for name in NAMES:
                kept[name] = [asyncio.run(_submit(other, name))]
        assert program.terminate() == 0
    stores = sorted(
        str(path.relative_to(other.home / "many"))
        for path in (other.home / "many").rglob("tasks.db")
    )
    assert stores == [f"processes/{number}-of-3/tasks.db" for number in (1, 2, 3)]


async def _submit(net: World, name: str) -> str:
    """Give somebody who does not exist a task, which so stays open."""
    async with await DaemonClient.connect(net.socket("many")) as client:
        answer = await client.call(
            "task.submit", agent=name, target=9999, task=name, wait=False
        )
    task_id: str = answer["task_id"]
    return task_id


def test_pilotctl_starts_and_stops_a_daemon_of_two_processes(other: World) -> None:
    flags = ("--agents", "4", "--processes", "2", "--agent-prefix", "w-", "--public")
    started = data_of(
        other.ctl(
            *("many", "daemon", "start", "--registry", other.registry, "--wait", "50s"),
            *("--listen", "127.0.0.1:0", "--trust-auto-approve", *flags),
        )
    )
    try:
        assert started["hostname"] == "w-1"
        pids = _children(started["pid"])
        assert len(pids) == 2
        rows = data_of(other.ctl("many", "agents"))["agents"]
        assert [row["name"] for row in rows] == NAMES[:4]
        status = data_of(other.ctl("many", "daemon", "status"))
        assert (status["pid"], status["responsive"]) == (started["pid"], True)
    finally:
        stopped = data_of(other.ctl("many", "daemon", "stop"))
    assert stopped == {"pid": started["pid"]}
    assert not any(map(is_there, pids))
    assert not other.socket("many").exists()


def test_one_process_that_cannot_start_stops_the_start(other: World) -> None:
    start(other).terminate()
    identity = other.home / "many" / "agents" / "w-5" / "identity.json"
    identity.chmod(0o644)
    with pytest.raises(AssertionError, match="ended with 1") as caught:
        start(other)
    text = str(caught.value).rpartition("stopped")[2]
    assert text.count("error: ") == 1
    assert f"identity file {identity} is open to other users" in text
    assert "hint:  run: chmod 600" in text
    assert "Traceback" not in text
    assert not other.socket("many").exists()


def test_a_second_daemon_is_refused(other: World) -> None:
    start(other)
    with pytest.raises(AssertionError, match="already running"):
        start(other)
    with pytest.raises(AssertionError, match="divided among 3 processes"):
        start(other, "--processes", "2", "--socket", str(other.home / "x.sock"))


def test_internal_flags_are_not_for_users(other: World) -> None:
    program = other.start("internal", BIN / "pilot-daemon", "--process", "1/2", "0")
    assert program.process.wait(60) == 1
    text = program.log.read_text()
    assert text.startswith("error: --process is what pilot-daemon starts its own")
    assert "Traceback" not in text
