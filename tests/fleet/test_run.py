"""`pilotctl fleet run` as a user runs it: real programs, real commands."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fleet.support import (
    fleet_run,
    processes_with_argument,
    read_results,
    wait_for_command,
    write_spec,
    write_tasks,
)
from tests.support.programs import World, world

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(240)

TASKS = 1_000
WORKERS = 100


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        yield made


def assert_digests(results: dict[str, dict[str, Any]], texts: dict[str, str]) -> None:
    assert results.keys() == texts.keys()
    for key, text in texts.items():
        assert results[key]["status"] == "SUCCEEDED", results[key]
        digest = hashlib.sha256(text.encode()).hexdigest()
        assert results[key]["result"].startswith(digest)


def test_a_thousand_tasks_give_a_thousand_correct_results(net: World) -> None:
    texts = {f"t{number}": f"text of task {number}" for number in range(TASKS)}
    run, path = fleet_run(
        net, write_spec(net, "sha256sum", count=WORKERS), write_tasks(net, texts)
    )
    stdout, stderr = run.communicate()
    assert run.returncode == 0, stderr
    results = read_results(path)
    assert_digests(results, texts)
    assert len({result["agent"] for result in results.values()}) > WORKERS / 2
    summary = json.loads(stdout.splitlines()[-1])
    assert summary["agents"] == WORKERS
    assert summary["tasks"] == summary["succeeded"] == TASKS
    assert summary["failed"] == 0
    assert summary["tasks_per_second"] > 0
    assert summary["wall_s"] > 0
    # How many come in a run of seconds is a matter of the machine's load.
    assert summary["health_events"] > 0


def test_killed_commands_are_run_again_elsewhere(net: World) -> None:
    script = net.home / "slow-digest.sh"
    script.write_text("sleep 0.1\nexec sha256sum\n")
    texts = {f"t{number}": f"text of task {number}" for number in range(TASKS)}
    spec = write_spec(net, f"sh {script}", count=WORKERS)
    run, path = fleet_run(net, spec, write_tasks(net, texts))
    ended = threading.Event()
    killed: list[int] = []
    killer = threading.Thread(target=kill_some, args=(str(script), ended, killed))
    killer.start()
    stdout, stderr = run.communicate()
    ended.set()
    killer.join()
    assert run.returncode == 0, stderr
    assert len(killed) > 10
    results = read_results(path)
    assert_digests(results, texts)
    assert json.loads(stdout.splitlines()[-1])["retried"] > 0
    assert max(result["attempts"] for result in results.values()) > 1


def kill_some(marker: str, ended: threading.Event, killed: list[int]) -> None:
    """SIGKILL a few of the commands that carry ``marker``, again and again."""
    while len(killed) < 60 and not ended.wait(0.1):
        for pid in processes_with(marker)[:5]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)


def processes_with(marker: str) -> list[int]:
    """Return processes that run the script itself, not those that mention it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[:2] == [b"sh", marker.encode()]:
                    found.append(int(entry.name))
    return found


def test_failing_command_fails_its_task_alone(net: World) -> None:
    script = net.home / "picky.sh"
    script.write_text(
        'read -r line; [ "$line" = good ] && echo fine && exit 0\n'
        "echo no good >&2; exit 3\n"
    )
    spec = write_spec(net, f"sh {script}", count=2)
    run, path = fleet_run(net, spec, write_tasks(net, {"a": "good", "b": "bad"}))
    stdout, _ = run.communicate()
    assert run.returncode == 1
    results = read_results(path)
    assert results["a"]["status"] == "SUCCEEDED"
    assert results["a"]["result"] == "fine\n"
    assert results["b"]["status"] == "FAILED"
    assert "no good" in results["b"]["result"]
    assert results["b"]["attempts"] == 1
    assert json.loads(stdout.splitlines()[-1])["failed"] == 1


def test_interrupt_leaves_no_process_behind(net: World) -> None:
    spec = write_spec(net, "sleep 60", count=2)
    run, _ = fleet_run(net, spec, write_tasks(net, {"a": "x"}))
    wait_for_command(run, "sleep\00060")
    run.send_signal(signal.SIGINT)
    _, stderr = run.communicate()
    assert run.returncode == 130
    assert "Traceback" not in stderr
    assert processes_with_argument(str(net.home)) == []


@pytest.mark.parametrize(
    ("spec", "tasks", "named"),
    [
        (None, '{"id": "a", "task": "x"}', "nowhere.toml"),
        ("[workers]\n", '{"id": "a", "task": "x"}', "exec"),
        ('[workers]\nexec = "cat"\n', None, "nowhere.jsonl"),
        ('[workers]\nexec = "cat"\n', '{"id": "a", "task": "x"}\n{', "line 2"),
    ],
)
def test_bad_input_is_named(
    net: World, spec: str | None, tasks: str | None, named: str
) -> None:
    paths = net.home / "nowhere.toml", net.home / "nowhere.jsonl"
    for path, text in zip(paths, (spec, tasks), strict=True):
        if text is not None:
            path.write_text(text)
    run, _ = fleet_run(net, *paths)
    stdout, stderr = run.communicate()
    assert run.returncode == 1
    assert stdout == ""
    error = json.loads(stderr)
    assert error["code"] == "invalid_argument"
    assert named in error["message"]
