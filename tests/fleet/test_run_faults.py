"""`pilotctl fleet run` when something goes wrong, and when a fleet runs again."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fleet.support import (
    children_of,
    fleet_run,
    processes_with_argument,
    read_results,
    wait_for_command,
    write_spec,
    write_tasks,
)
from tests.support.programs import World, world

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        yield made


def process_below(run: subprocess.Popen[str], *words: str) -> int:
    """Return the process of a run with all these words on its command line."""
    for pid in children_of(run.pid):
        line = Path(f"/proc/{pid}/cmdline").read_text()
        if all(word in line for word in words):
            # Parents come first: a command that is just being started still has
            # the command line of the program that starts it.
            return pid
    raise AssertionError(f"no process {words}")


def wait_for_end(pid: int) -> None:
    """Return once a process that is not our child has ended."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            assert select.select([descriptor], [], [], 30)[0], f"{pid} works on"
        finally:
            os.close(descriptor)


def failure_of(run: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the error that a run ended with; it prints nothing else."""
    stdout, stderr = run.communicate()
    assert run.returncode == 1
    assert stdout == ""
    assert "Traceback" not in stderr
    [line] = stderr.splitlines()
    error: dict[str, Any] = json.loads(line)
    return error


def summary_of(run: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the summary of a run that must have succeeded."""
    stdout, stderr = run.communicate()
    assert run.returncode == 0, stderr
    summary: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return summary


@pytest.mark.parametrize(
    "words",
    [
        ("pilot-daemon", "group-1.sock"),
        ("pilot-daemon", "hub.sock"),
        ("openclaw-worker",),
        ("pilot-rendezvous",),
    ],
)
def test_killed_program_is_started_again_and_the_run_goes_on(
    net: World, words: tuple[str, ...]
) -> None:
    script = net.home / "slow.sh"
    script.write_text("sleep 0.3\ncat\n")
    texts = {f"t{number}": f"text {number}" for number in range(40)}
    spec = write_spec(net, f"sh {script}", count=4)
    run, path = fleet_run(net, spec, write_tasks(net, texts))
    wait_for_command(run, f"sh\0{script}")
    os.kill(process_below(run, *words), signal.SIGKILL)
    summary = summary_of(run)
    assert summary["succeeded"] == len(texts)
    assert summary["restarts"] >= 1
    results = read_results(path)
    assert {key: row["result"] for key, row in results.items()} == texts
    assert processes_with_argument(str(net.home)) == []


def test_command_that_is_no_program_is_found_before_the_first_task(net: World) -> None:
    spec = write_spec(net, "no-such-program --flag", count=2)
    run, results = fleet_run(net, spec, write_tasks(net, {"a": "x"}))
    error = failure_of(run)
    assert "openclaw-worker (runner-1) ended (exit status 1)" in error["message"]
    assert "no-such-program is not a program" in error["message"]
    assert results.read_text() == ""


def test_full_disk_under_the_results_is_told(net: World) -> None:
    spec = write_spec(net, "cat", count=2)
    tasks = write_tasks(net, {"a": "x", "b": "y"})
    run, _ = fleet_run(net, spec, tasks, results=Path("/dev/full"))
    error = failure_of(run)
    assert "/dev/full: No space left on device" in error["message"]
    assert processes_with_argument(str(net.home)) == []


def test_results_that_cannot_be_written_are_told_before_the_start(net: World) -> None:
    spec, tasks = write_spec(net, "cat", count=2), write_tasks(net, {"a": "x"})
    run, _ = fleet_run(net, spec, tasks, results=net.home / "no" / "folder")
    assert "cannot write result file" in failure_of(run)["message"]
    run, _ = fleet_run(net, spec, tasks, results=tasks)
    assert "is the task file" in failure_of(run)["message"]
    assert json.loads(tasks.read_text()) == {"id": "a", "task": "x"}
    assert not (net.home / "fleet").exists()


def test_killed_run_leaves_nothing_that_works_on(net: World) -> None:
    spec = write_spec(net, "sleep 32", count=2)
    run, _ = fleet_run(net, spec, write_tasks(net, {"a": "x"}))
    wait_for_command(run, "sleep\00032")
    run.kill()
    run.communicate()
    for pid in processes_with_argument(str(net.home)):
        wait_for_end(pid)
    assert processes_with_argument(str(net.home)) == []
    spec = write_spec(net, "cat", count=2)
    tasks = write_tasks(net, {"b": "y"})
    error = failure_of(fleet_run(net, spec, tasks)[0])
    assert "holds an unfinished run of" in error["message"]
    assert "--fresh" in error["hint"]
    run, path = fleet_run(net, spec, tasks, flags=("--fresh",))
    assert summary_of(run)["resumed"] == 0
    assert read_results(path).keys() == {"b"}


def test_second_run_at_the_same_time_in_the_same_home_is_refused(net: World) -> None:
    spec, tasks = write_spec(net, "sleep 33", count=2), write_tasks(net, {"a": "x"})
    run, _ = fleet_run(net, spec, tasks)
    wait_for_command(run, "sleep\00033")
    second, _ = fleet_run(net, spec, tasks, results=net.home / "other.jsonl")
    error = failure_of(second)
    assert error["code"] == "already_exists"
    assert error["message"] == f"a fleet runs in {net.home / 'fleet'} already"
    run.terminate()
    run.communicate()


def test_home_that_cannot_be_made_is_told(net: World) -> None:
    spec, tasks = write_spec(net, "cat", count=2), write_tasks(net, {"a": "x"})
    run, _ = fleet_run(net, spec, tasks, home=tasks / "home")
    message = failure_of(run)["message"]
    assert str(tasks / "home") in message
    assert message.endswith("Not a directory")


def identities(home: Path) -> dict[str, Any]:
    """Return the public keys of the agents of a fleet."""
    return {
        str(path.relative_to(home)): json.loads(path.read_text())["public_key"]
        for path in home.rglob("identity.json")
    }


def test_second_run_in_the_same_home_finds_the_same_fleet(net: World) -> None:
    spec = write_spec(net, "cat", count=3)
    texts = {f"t{number}": f"text {number}" for number in range(30)}
    tasks, home = write_tasks(net, texts), net.home / "fleet"
    summary_of(fleet_run(net, spec, tasks)[0])
    before = identities(home), (home / "network.json").read_bytes()
    run, path = fleet_run(net, spec, tasks)
    assert summary_of(run)["succeeded"] == len(texts)
    assert (identities(home), (home / "network.json").read_bytes()) == before
    results = read_results(path)
    assert {result["agent"] for result in results.values()} == {
        "worker-1",
        "worker-2",
        "worker-3",
    }
    assert uncollected(home) == 0


def uncollected(home: Path) -> int:
    """Return how many results the hub would tell the next run of."""
    [store] = (home / "hub").glob("tasks.db")
    with sqlite3.connect(store) as database:
        query = "SELECT count(*) FROM tasks WHERE role = 'submitted' AND NOT collected"
        count = database.execute(query).fetchone()[0]
    database.close()
    return int(count)


def test_renamed_fleet_in_an_old_home_has_its_new_names(net: World) -> None:
    tasks, home = write_tasks(net, {"a": "x"}), net.home / "home"
    first = write_spec(net, "cat", count=2, name="first")
    summary_of(fleet_run(net, first, tasks, home=home)[0])
    second = write_spec(net, "cat", count=1, name="second")
    summary = summary_of(fleet_run(net, second, tasks, home=home)[0])
    assert (summary["agents"], summary["agents_used"]) == (1, 1)
    assert "as second-hub" in (home / "logs" / "hub.log").read_text()


def test_network_of_a_lost_registry_is_made_again(net: World) -> None:
    spec, tasks = write_spec(net, "cat", count=2), write_tasks(net, {"a": "x"})
    summary_of(fleet_run(net, spec, tasks)[0])
    for path in (net.home / "fleet").glob("registry.db*"):
        path.unlink()
    summary_of(fleet_run(net, spec, tasks)[0])


def test_two_fleets_share_a_rendezvous(net: World) -> None:
    net.start_rendezvous()
    where = {"rendezvous": net.registry, "beacon": net.beacon}
    tasks = write_tasks(net, {f"t{number}": "x" for number in range(40)})
    runs = [
        fleet_run(
            net,
            write_spec(net, f"echo {name}", count=3, name=name, **where),
            tasks,
            PILOT_ADMIN_TOKEN=net.admin_token,
        )
        for name in ("red", "blue")
    ]
    for name, (run, path) in zip(("red", "blue"), runs, strict=True):
        assert summary_of(run)["succeeded"] == 40
        for result in read_results(path).values():
            assert result["result"] == f"{name}\n"
            assert result["agent"].startswith(f"{name}-worker-")


def test_fleet_at_a_shared_rendezvous_needs_its_token_once(net: World) -> None:
    net.start_rendezvous()
    spec = write_spec(
        net, "cat", count=2, name="red", rendezvous=net.registry, beacon=net.beacon
    )
    tasks = write_tasks(net, {"a": "x"})
    run, _ = fleet_run(net, spec, tasks)
    assert "PILOT_ADMIN_TOKEN" in failure_of(run)["hint"]
    run, _ = fleet_run(net, spec, tasks, PILOT_ADMIN_TOKEN=net.admin_token)
    summary_of(run)
    summary_of(fleet_run(net, spec, tasks)[0])
    run, _ = fleet_run(
        net, spec, tasks, home=net.home / "other", PILOT_ADMIN_TOKEN=net.admin_token
    )
    assert "a network 'red' that this fleet did not make" in failure_of(run)["message"]


def test_rendezvous_that_is_not_there_is_named(net: World) -> None:
    spec = write_spec(net, "cat", count=2, rendezvous="127.0.0.1:1")
    run, _ = fleet_run(net, spec, write_tasks(net, {"a": "x"}))
    assert "no rendezvous answers at 127.0.0.1:1" in failure_of(run)["message"]
