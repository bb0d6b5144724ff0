"""`pilotctl fleet up` and what one does with a fleet that is up."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pilotfleet.fleet.controller import DRAIN_S
from pilotfleet.fleet.journal import Journal
from tests.fleet.support import read_results, write_spec, write_tasks
from tests.fleet.upsupport import (
    appending_command,
    fleet,
    fleet_data,
    fleet_world,
    lines_of,
    start_fleet_command,
    wait_until,
    write_lines,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.programs import World

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def net() -> Iterator[World]:
    with fleet_world() as made:
        yield made


def test_life_of_a_fleet(net: World) -> None:
    spec = write_spec(net, "cat", count=3)
    up = fleet(net, "up", spec)
    assert up.returncode == 0, up.stderr
    assert "starting 3 workers" in up.stderr
    assert "fleet fleet is up" in up.stdout
    assert fleet_data(net, "up", spec)["already"] is True

    status = fleet_data(net, "status")
    home = Path(status["home"])
    assert home == net.home / ".pilot" / "fleets" / "fleet"
    assert stat.S_IMODE((home / "fleet.sock").stat().st_mode) == 0o600
    assert {row["state"] for row in status["members"]} == {"running"}
    assert status["pid"] != os.getpid()

    tasks = write_tasks(net, {"a": "x", "b": "y"})
    results = net.home / "results.jsonl"
    summary = fleet_data(net, "submit", spec, "--tasks", tasks, "--results", results)
    assert (summary["tasks"], summary["succeeded"]) == (2, 2)
    assert read_results(results)["b"]["result"] == "y"
    single = fleet(net, "submit", "--task", "alone", "--wait", "--priority", "5")
    assert single.stdout == "alone\n"

    assert fleet_data(net, "scale", "workers=5")["workers"] == 5
    wait_until(net, lambda status: status["workers"]["workers"] == 5)
    assert fleet_data(net, "rollout", "--batch", "2")["members"] >= 4
    assert fleet(net, "submit", "--task", "again", "--wait").stdout == "again\n"

    frame = fleet(net, "top")
    assert "TASKS/S" in frame.stdout
    assert "\x1b" not in frame.stdout
    assert "ready: 1 agents" in fleet(net, "logs", "hub", "--lines", "5").stdout
    assert len(fleet_data(net, "logs", "--lines", "1")["logs"]) >= 4
    [row] = fleet_data(net, "list")["fleets"]
    assert (row["name"], row["state"]) == ("fleet", "running")

    down = fleet(net, "down")
    assert down.returncode == 0, down.stderr
    assert fleet_data(net, "list")["fleets"][0]["state"] == "stopped"
    again = fleet(net, "status", spec, "--json")
    assert json.loads(again.stderr)["code"] == "not_running"


def write_pairs(net: World, command: str) -> Path:
    """Write a specification of four workers, two of them in a group."""
    spec = write_spec(net, command, count=4)
    spec.write_text(f"{spec.read_text()}per_process = 2\n")
    return spec


def test_a_rollout_stops_when_what_is_replaced_fails_its_tasks(net: World) -> None:
    spec = write_pairs(net, "sh -c 'sleep 0.2; cat'")
    assert fleet(net, "up", spec).returncode == 0
    rows = [{"id": f"t{number}", "task": f"{number}"} for number in range(150)]
    tasks = write_lines(net.home / "many.jsonl", rows)
    fleet(net, "submit", "--tasks", tasks)
    bad = write_pairs(net, "sh -c 'echo broken >&2; exit 3'")
    stopped = fleet(net, "rollout", bad, "--batch", "1")
    assert stopped.returncode == 1
    assert "the first 3 tasks of what was replaced have failed" in stopped.stderr
    assert "exit status 3: broken" in stopped.stderr
    assert fleet(net, "submit", "--task", "fine", "--wait").stdout == "fine\n"
    waited = fleet(net, "submit", "--tasks", tasks, "--wait", "--json")
    done = json.loads(waited.stdout)["data"]
    assert done["succeeded"] + done["failed"] == 150
    assert done["failed"] < 30
    status = fleet_data(net, "status")
    assert all(member["state"] == "running" for member in status["members"])


def test_tasks_submitted_before_down_are_done_after_up(net: World) -> None:
    command, done = appending_command(net, 0.2)
    spec = write_spec(net, command, count=2)
    assert fleet(net, "up", spec).returncode == 0
    rows = [{"id": f"t{n}", "task": f"{n}", "priority": n % 2} for n in range(40)]
    tasks = write_lines(net.home / "many.jsonl", rows)
    batch = fleet_data(net, "submit", "--tasks", tasks)["batch"]
    wait_until(net, lambda status: status["tasks"]["succeeded"] > 3)
    assert fleet(net, "down", "--now").returncode == 0
    assert fleet(net, "up", spec).returncode == 0
    again = fleet_data(net, "submit", "--tasks", tasks, "--wait")
    assert (again["batch"], again["succeeded"]) == (batch, 40)
    assert lines_of(done).keys() == {str(number) for number in range(40)}


def test_down_now_ends_a_down_that_waits_for_tasks(net: World) -> None:
    assert fleet(net, "up", write_spec(net, "sleep 300", count=2)).returncode == 0
    assert fleet(net, "submit", "--task", "long").returncode == 0
    wait_until(net, lambda status: status["workers"].get("busy", 0) > 0)
    with start_fleet_command(net, "down") as down:
        wait_until(net, lambda status: status["state"] == "draining")
        started = time.monotonic()
        assert fleet(net, "down", "--now").returncode == 0
        assert time.monotonic() - started < DRAIN_S
    assert down.returncode == 0


def test_hierarchical_fleet_works_on_while_it_grows_and_shrinks(net: World) -> None:
    command, done = appending_command(net, 0.2)
    spec = write_spec(net, command, count=3, pattern="hierarchical")
    with spec.open("a") as file:
        file.write("[hierarchy]\ncluster_size = 3\nfanout = 2\n")
    assert fleet(net, "up", spec).returncode == 0
    rows = [{"id": f"t{n}", "task": f"{n}"} for n in range(200)]
    tasks = write_lines(net.home / "many.jsonl", rows)
    fleet_data(net, "submit", "--tasks", tasks)
    # A second level comes, and goes again.
    assert fleet_data(net, "scale", "workers=12")["workers"] == 12
    wait_until(net, lambda status: len(status["clusters"]) == 6)
    assert fleet_data(net, "scale", "workers=2")["workers"] == 2
    wait_until(net, lambda status: len(status["clusters"]) == 1)
    again = fleet_data(net, "submit", "--tasks", tasks, "--wait")
    assert (again["succeeded"], again["failed"]) == (200, 0)
    assert lines_of(done).keys() == {str(number) for number in range(200)}


def test_two_submits_at_once(net: World) -> None:
    assert fleet(net, "up", write_spec(net, "cat", count=4)).returncode == 0
    running = []
    for name in ("red", "blue"):
        rows = [{"id": f"t{n}", "task": f"{name} {n}"} for n in range(300)]
        tasks = write_lines(net.home / f"{name}.jsonl", rows)
        results = net.home / f"{name}.results.jsonl"
        command = start_fleet_command(
            *(net, "submit", "--tasks", tasks, "--results", results, "--json")
        )
        running.append((name, command, results))
    for name, command, path in running:
        stdout, stderr = command.communicate(timeout=100)
        assert command.returncode == 0, stderr
        assert json.loads(stdout)["data"]["succeeded"] == 300
        found = {key: row["result"] for key, row in read_results(path).items()}
        assert found == {f"t{n}": f"{name} {n}" for n in range(300)}


def test_submit_of_known_tasks(net: World) -> None:
    assert fleet(net, "up", write_spec(net, "cat", count=2)).returncode == 0
    tasks = write_tasks(net, {"a": "x", "b": "y"})
    first = fleet_data(net, "submit", "--tasks", tasks, "--batch", "b")
    assert (first["added"], first["tasks"]) == (2, 2)
    second = fleet_data(net, "submit", "--tasks", tasks, "--batch", "b")
    assert second["added"] == 0
    other = write_tasks(net, {"b": "another text"})
    refused = fleet(net, "submit", "--tasks", other, "--batch", "b", "--json")
    assert refused.returncode == 1
    error = json.loads(refused.stderr)
    assert error["code"] == "already_exists"
    assert "another task 'b'" in error["message"]


async def test_killed_controller_loses_nothing(net: World) -> None:
    command, done = appending_command(net, 0.1)
    workers, count = 8, 400
    spec = write_spec(net, command, count=workers)
    assert fleet(net, "up", spec).returncode == 0
    tasks = write_tasks(net, {f"t{n}": f"t{n}" for n in range(count)})
    fleet_data(net, "submit", "--tasks", tasks)
    status = wait_until(net, lambda status: status["tasks"]["succeeded"] > 50)
    os.kill(status["pid"], signal.SIGKILL)
    async with Journal(Path(status["home"]) / "journal.db") as journal:
        [batch] = await journal.batches()
        finished = [result.id for _, result in await journal.results(batch.name)]
    assert 50 < len(finished) < count

    up = fleet(net, "up", spec)
    assert up.returncode == 0, up.stderr
    again = fleet_data(net, "submit", "--tasks", tasks, "--wait")
    assert (again["tasks"], again["succeeded"]) == (count, count)
    runs = lines_of(done)
    assert runs.keys() == {f"t{n}" for n in range(count)}
    assert {name: runs[name] for name in finished} == dict.fromkeys(finished, 1)
    assert max(runs.values()) <= 2


def test_second_controller_in_the_same_home_is_refused(net: World) -> None:
    spec = write_spec(net, "cat", count=1)
    home = net.home / "elsewhere"
    assert fleet(net, "up", spec, "--home", home).returncode == 0
    second = fleet(net, "up", spec, "--home", home, "--foreground")
    assert second.returncode == 1
    assert f"a fleet runs in {home} already" in second.stderr
    # One that lives elsewhere is found as well.
    assert fleet_data(net, "status", "--name", "fleet")["home"] == str(home)


def test_start_that_fails_is_told(net: World) -> None:
    up = fleet(net, "up", write_spec(net, "no-such-program", count=1), "--json")
    assert up.returncode == 1
    assert "no-such-program is not a program" in json.loads(up.stderr)["message"]


def test_foreground_is_ready_and_ends_by_sigterm(net: World) -> None:
    ready = net.home / "ready.json"
    program = start_fleet_command(
        *(net, "up", write_spec(net, "cat", count=1)),
        *("--foreground", "--ready-file", ready),
    )
    wait_until_file(ready, program.poll)
    assert json.loads(ready.read_text())["pid"] == program.pid
    program.terminate()
    _, stderr = program.communicate(timeout=60)
    assert program.returncode == 0
    assert "Traceback" not in stderr


def wait_until_file(path: Path, ended: object) -> None:
    """Return when a file is there."""
    import time

    deadline = time.monotonic() + 60
    while not path.exists():
        assert callable(ended)
        assert ended() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
