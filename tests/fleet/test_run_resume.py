"""`pilotctl fleet run` that was killed, and is given again."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.fleet.support import read_results, write_spec, write_tasks
from tests.fleet.upsupport import (
    appending_command,
    fleet_world,
    kill_all,
    lines_of,
    start_fleet_command,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.programs import World

pytestmark = pytest.mark.timeout(240)

COUNT = 300


@pytest.fixture
def net() -> Iterator[World]:
    with fleet_world() as made:
        yield made


def run_command(net: World, spec: Path, tasks: Path) -> subprocess.Popen[str]:
    results = net.home / "results.jsonl"
    return start_fleet_command(
        *(net, "run", spec, "--tasks", tasks, "--results", results)
    )


def wait_for_lines(path: Path, count: int) -> None:
    deadline = time.monotonic() + 100
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_same_command_finishes_a_killed_run(net: World) -> None:
    command, done = appending_command(net, 0.1)
    spec = write_spec(net, command, count=8)
    texts = {f"t{n}": f"t{n}" for n in range(COUNT)}
    tasks, results = write_tasks(net, texts), net.home / "results.jsonl"
    for lines in (40, 120):
        run = run_command(net, spec, tasks)
        wait_for_lines(results, lines)
        kill_all(run.pid)
        run.communicate()
    finished = results.read_bytes().count(b"\n")
    # As a write that was cut short leaves it.
    with results.open("ab") as file:
        file.write(b'{"id": "t2')
    run = run_command(net, spec, tasks)
    stdout, stderr = run.communicate(timeout=200)
    assert run.returncode == 0, stderr
    resumed = next(line for line in stderr.splitlines() if "resuming: " in line)
    assert f"of {COUNT} tasks done" in resumed
    assert int(resumed.split()[1]) >= finished
    assert "in an earlier run" in stdout
    assert read_results(results).keys() == texts.keys()
    runs = lines_of(done)
    assert runs.keys() == texts.keys()
    # At the first kill or at the second, each worker had a few in progress.
    assert max(runs.values()) <= 3
    assert sum(runs.values()) - COUNT <= 2 * 2 * 8
    # Nothing is left of a run that needs no home any more.
    assert list((net.home / ".pilot" / "fleets").iterdir()) == []


def test_interrupted_run_is_gone_on_with(net: World) -> None:
    command, done = appending_command(net, 0.1)
    spec = write_spec(net, command, count=4)
    texts = {f"t{n}": f"t{n}" for n in range(60)}
    tasks, results = write_tasks(net, texts), net.home / "results.jsonl"
    run = run_command(net, spec, tasks)
    wait_for_lines(results, 10)
    run.terminate()
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 130, stderr
    first = read_results(results)
    run = run_command(net, spec, tasks)
    _, stderr = run.communicate(timeout=100)
    assert run.returncode == 0, stderr
    assert "resuming: " in stderr
    assert read_results(results).keys() == texts.keys()
    runs = lines_of(done)
    assert {name: runs[name] for name in first} == dict.fromkeys(first, 1)


def test_run_after_a_complete_one_starts_anew(net: World) -> None:
    spec, tasks = write_spec(net, "cat", count=2), write_tasks(net, {"a": "x"})
    home = net.home / "home"
    for _ in range(2):
        run = start_fleet_command(
            *(net, "run", spec, "--tasks", tasks, "--json"),
            *("--results", net.home / "results.jsonl", "--home", home),
        )
        stdout, stderr = run.communicate(timeout=100)
        assert run.returncode == 0, stderr
        summary = json.loads(stdout.splitlines()[-1])
        assert (summary["resumed"], summary["succeeded"]) == (0, 1)
