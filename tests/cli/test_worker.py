"""`openclaw-worker` as a user runs it, beside a real daemon."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.daemon import DaemonClient
from tests.fleet.worker.openclaw.gatewayserver import GatewayServer
from tests.fleet.worker.openclaw.support import program
from tests.support.programs import BIN, READY_S, Program, World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(240)

BOSS, WORKER = "boss", "worker-1"


@pytest.fixture
def net() -> Iterator[World]:
    """Two daemons that let each other in."""
    with world() as net:
        net.start_rendezvous()
        start_daemon(net, BOSS)
        start_daemon(net, WORKER)
        befriend(net)
        yield net


def start_daemon(net: World, name: str) -> Program:
    flags = ("--trust-auto-approve", "--polo-gate", "off")
    return net.start_daemon(name, "--hostname", name, *flags)


def befriend(net: World) -> None:
    data_of(net.ctl(BOSS, "handshake", address(net, WORKER)))
    data_of(net.ctl(WORKER, "handshake", address(net, BOSS)))


def address(net: World, name: str) -> str:
    return str(data_of(net.ctl(name, "info"))["address"])


def start_worker(net: World, command: object, *flags: object) -> Program:
    return start_kind(net, "--exec", command, *flags)


def start_kind(net: World, *flags: object) -> Program:
    ready = net.home / "worker.ready.json"
    ready.unlink(missing_ok=True)
    worker = net.start(
        "worker",
        BIN / "openclaw-worker",
        *("--id", agent_name(net), "--socket", net.socket(WORKER)),
        *("--ready-file", ready, *flags),
    )
    worker.wait_until(ready.exists)
    return worker


def agent_name(net: World) -> str:
    """Return what the worker's daemon calls its one agent."""
    ready = json.loads((net.home / f"{WORKER}.ready.json").read_text())
    return str(next(iter(ready["addresses"])))


def submit(net: World, text: str) -> str:
    answer = data_of(
        net.ctl(BOSS, "task", "submit", address(net, WORKER), "--task", text)
    )
    assert answer["accepted"], answer
    return str(answer["task_id"])


def task_of(net: World, name: str, task_id: str) -> dict[str, Any]:
    rows = data_of(net.ctl(name, "task", "list"))["tasks"]
    return next(row for row in rows if row["task_id"] == task_id)


def wait_for(net: World, program: Program, task_id: str, status: str) -> None:
    program.wait_until(lambda: task_of(net, BOSS, task_id)["status"] == status)


def result_of(net: World, task_id: str) -> str:
    return str(data_of(net.ctl(BOSS, "task", "result", task_id))["content"])


def slow_command(net: World) -> tuple[Path, Path]:
    """Return a command that says when it runs, and the file it says it in."""
    started = net.home / "started"
    script = net.home / "slow.sh"
    script.write_text(f"echo x >> {started}\nsleep 1\ncat\n")
    return script, started


def test_tasks_are_run_and_results_returned(net: World) -> None:
    worker = start_worker(net, "tr a-z A-Z")
    task_id = submit(net, "hello")
    wait_for(net, worker, task_id, "SUCCEEDED")
    assert result_of(net, task_id) == "HELLO"
    assert task_of(net, WORKER, task_id)["status"] == "SUCCEEDED"
    assert worker.terminate() == 0


def test_a_failing_command_is_told_to_the_submitter(net: World) -> None:
    worker = start_worker(net, "sh -c 'echo why >&2; exit 4'")
    task_id = submit(net, "hello")
    wait_for(net, worker, task_id, "FAILED")
    assert task_of(net, BOSS, task_id)["error"] == "exit status 4: why"


def test_a_long_result_arrives_whole(net: World) -> None:
    worker = start_worker(net, "sh -c 'seq 1 150000'")
    task_id = submit(net, "count")
    wait_for(net, worker, task_id, "SUCCEEDED")
    expected = "".join(f"{number}\n" for number in range(1, 150_001))
    assert asyncio.run(fetch(net, task_id)) == expected


async def fetch(net: World, task_id: str) -> str:
    """Fetch a result from the submitter's daemon, piece by piece."""
    pieces: list[str] = []
    offset: int | None = 0
    async with await DaemonClient.connect(net.socket(BOSS)) as client:
        while offset is not None:
            answer = await client.call("task.result", task_id=task_id, offset=offset)
            pieces.append(answer["content"])
            offset = answer.get("next_offset")
    return "".join(pieces)


def test_a_task_that_came_before_its_worker_is_run(net: World) -> None:
    task_id = submit(net, "early")
    worker = start_worker(net, "cat")
    wait_for(net, worker, task_id, "SUCCEEDED")
    assert result_of(net, task_id) == "early"


def test_a_first_signal_lets_the_running_task_end(net: World) -> None:
    script, started = slow_command(net)
    worker = start_worker(net, f"sh {script}")
    task_id = submit(net, "kept")
    worker.wait_until(started.exists)
    assert worker.terminate() == 0
    assert task_of(net, WORKER, task_id)["status"] == "SUCCEEDED"
    assert result_of(net, task_id) == "kept"


def test_a_second_signal_gives_the_running_task_back(net: World) -> None:
    script, started = slow_command(net)
    script.write_text(f"echo x >> {started}\nsleep 1000\n")
    worker = start_worker(net, f"sh {script}")
    task_id = submit(net, "given back")
    worker.wait_until(started.exists)
    worker.process.send_signal(signal.SIGTERM)
    worker.wait_until(lambda: "waiting for 1 task" in worker.log.read_text())
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(READY_S) == 130
    second = start_worker(net, "cat")
    wait_for(net, second, task_id, "SUCCEEDED")
    assert result_of(net, task_id) == "given back"


def test_a_killed_worker_loses_no_task(net: World) -> None:
    script, started = slow_command(net)
    worker = start_worker(net, f"sh {script}")
    task_id = submit(net, "survivor")
    worker.wait_until(started.exists)
    worker.kill()
    second = start_worker(net, "cat")
    wait_for(net, second, task_id, "SUCCEEDED")
    assert result_of(net, task_id) == "survivor"


def test_a_killed_daemon_loses_no_task_and_the_worker_comes_back(net: World) -> None:
    script, started = slow_command(net)
    worker = start_worker(net, f"sh {script}")
    task_id = submit(net, "survivor")
    worker.wait_until(started.exists)
    daemon = next(p for p in net.programs if p.log.name == f"{WORKER}.log")
    daemon.kill()
    start_daemon(net, WORKER)
    wait_for(net, worker, task_id, "SUCCEEDED")
    assert result_of(net, task_id) == "survivor"
    assert worker.terminate() == 0


def test_a_killed_submitter_gets_its_result_after_its_restart(net: World) -> None:
    script, started = slow_command(net)
    worker = start_worker(net, f"sh {script}")
    task_id = submit(net, "survivor")
    worker.wait_until(started.exists)
    next(p for p in net.programs if p.log.name == f"{BOSS}.log").kill()
    worker.wait_until(lambda: task_of(net, WORKER, task_id)["status"] == "SUCCEEDED")
    start_daemon(net, BOSS)
    wait_for(net, worker, task_id, "SUCCEEDED")
    assert result_of(net, task_id) == "survivor"


FUNCTIONS = """
import os, pathlib, time
from pilotfleet.fleet.worker.job import Job

def shout(text):
    return text.upper()

async def whose(job: Job) -> str:
    return f"{job.agent} {os.path.exists(os.environ['PILOT_SOCKET'])}"

def slow(text):
    pathlib.Path("started").touch()
    time.sleep(1)
    return text

def fail(text):
    raise ValueError("no such city")
"""


@pytest.fixture
def functions(net: World) -> Path:
    """Give a folder with a module of functions for tasks."""
    folder = net.home / "functions"
    folder.mkdir()
    (folder / "mytasks.py").write_text(FUNCTIONS)
    return folder


@pytest.mark.parametrize(
    ("function", "status", "told"),
    [
        ("shout", "SUCCEEDED", "HELLO"),
        ("whose", "SUCCEEDED", "{agent} True"),
        ("fail", "FAILED", "ValueError: no such city"),
    ],
)
def test_a_function_does_the_tasks(
    net: World, functions: Path, function: str, status: str, told: str
) -> None:
    call = f"mytasks:{function}"
    worker = start_kind(net, "--call", call, "--cwd", functions)
    task_id = submit(net, "hello")
    wait_for(net, worker, task_id, status)
    ended = task_of(net, BOSS, task_id)
    result = result_of(net, task_id) if status == "SUCCEEDED" else ended["error"]
    assert result == told.format(agent=agent_name(net))
    assert worker.terminate() == 0


def test_a_first_signal_lets_a_running_function_end(
    net: World, functions: Path
) -> None:
    worker = start_kind(net, "--call", "mytasks:slow", "--cwd", functions)
    task_id = submit(net, "kept")
    worker.wait_until((functions / "started").exists)
    assert worker.terminate() == 0
    assert task_of(net, WORKER, task_id)["status"] == "SUCCEEDED"
    assert result_of(net, task_id) == "kept"


def test_a_gateway_does_the_tasks_and_a_first_signal_lets_them_end(
    net: World,
) -> None:
    token = net.home / "token"
    token.write_text("secret\n")
    with GatewayServer() as server:
        gateway = ("--gateway", server.url, "--gateway-token-file", token)
        worker = start_kind(net, "--openclaw", *gateway)
        first = submit(net, "hello")
        wait_for(net, worker, first, "SUCCEEDED")
        assert result_of(net, first) == "did hello"
        second = submit(net, "wait")
        worker.wait_until(lambda: server.running > 0)
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_until(lambda: "waiting for 1 task" in worker.log.read_text())
        server.go_on.set()
        assert worker.process.wait(READY_S) == 0
    assert task_of(net, WORKER, second)["status"] == "SUCCEEDED"
    assert result_of(net, second) == "did wait"


def test_a_worker_takes_its_gateways_along(net: World) -> None:
    folder = net.home / "bin"
    folder.mkdir()
    program(folder)
    path = f"{folder}:{os.environ['PATH']}"
    ready = net.home / "worker.ready.json"
    worker = net.start(
        "worker",
        BIN / "openclaw-worker",
        *("--id", agent_name(net), "--socket", net.socket(WORKER)),
        *("--openclaw", "--gateways", "2", "--ready-file", ready),
        PATH=path,
        TMPDIR=str(net.home),
    )
    worker.wait_until(ready.exists)
    task_id = submit(net, "hello")
    wait_for(net, worker, task_id, "SUCCEEDED")
    assert result_of(net, task_id) == "did hello"
    listing = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children")
    gateways = [int(word) for word in listing.read_text().split()]
    assert gateways
    worker.kill()
    # Nobody else knows of them: the kernel ends them with their worker.
    worker_gone = time.monotonic() + READY_S
    while any(Path(f"/proc/{pid}/cwd").exists() for pid in gateways):
        assert time.monotonic() < worker_gone
        time.sleep(0.05)


def test_an_agent_that_is_not_hosted_is_named(net: World) -> None:
    run = worker_run("--id", "nobody", "--exec", "cat", "--socket", net.socket(WORKER))
    assert run.returncode == 1
    assert "nobody" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--exec", "cat"), "--id"),
        (("--id", "a", "--exec", ""), "--exec"),
        (("--id", "a", "--exec", "'"), "--exec"),
        (("--id", "a", "--id", "a", "--exec", "cat"), "twice"),
        (("--ids", "a-[2-1]", "--exec", "cat"), "a-[2-1]"),
        (("--id", "a", "--exec", "cat", "--concurrency", "0"), "--concurrency"),
        (("--id", "a", "--exec", "cat", "--timeout", "soon"), "--timeout"),
        (("--id", "a", "--exec", "cat", "--cwd", "/no/such/folder"), "/no/such"),
        (("--id", "a"), "--exec"),
        (("--id", "a", "--exec", "cat", "--openclaw"), "exactly one"),
        (("--id", "a", "--exec", "cat", "--call", "m:f"), "exactly one"),
        (("--id", "a", "--exec", "cat", "--one-shot"), "--one-shot"),
        (("--id", "a", "--exec", "cat", "--gateways", "2"), "--gateways"),
        (("--id", "a", "--exec", "cat", "--gateways", "0"), "--gateways goes with"),
        (("--id", "a", "--call", "json"), "module:function"),
        (("--id", "a", "--call", "json:nothing"), "nothing"),
        (("--id", "a", "--openclaw", "--gateway", "here"), "here"),
        (("--id", "a", "--openclaw", "--gateways", "-1"), "--gateways"),
        (("--id", "a", "--openclaw", "--gateways", "0"), "--gateways"),
        (("--id", "a", "--openclaw", "--openclaw-config", "/none"), "/none"),
        (
            ("--id", "a", "--openclaw", "--gateways", "2", "--one-shot"),
            "--gateways, --gateway and --one-shot",
        ),
        (
            (
                *("--id", "a", "--openclaw", "--gateway", "http://h"),
                *("--gateway-token-file", "/none"),
            ),
            "cannot read /none: No such file",
        ),
        (
            (
                *("--id", "a", "--openclaw", "--gateway", "http://h"),
                *("--gateway-token-file", "/none"),
            ),
            "OPENCLAW_GATEWAY_TOKEN",
        ),
        (
            (
                *("--id", "a", "--openclaw", "--gateway", "http://h"),
                *("--gateway-token-file", "/dev/null"),
            ),
            "/dev/null holds no token",
        ),
        (("--id", "a", "--exec", "cat", "--bogus"), "--bogus"),
        (("--id", "a", "--exec", "cat", "extra"), "extra"),
        (("--id", "a", "--exec", "cat", "--concurrency", "many"), "--concurrency"),
        (("--id", "a", "--exec", "cat", "--max-processes", "-1"), "--max-processes"),
        (("--id", "a", "--exec", "cat", "--timeout", "0s"), "--timeout"),
        (("--id", "a", "--exec", "cat", "--drain", "-1s"), "--drain"),
        (("--id", "a", "--exec", "cat", "--health-interval", "x"), "--health-interval"),
        (("--id", "a", "--exec", "cat", "--log-level", "loud"), "loud"),
        (("--id", "a", "--exec", "no-such-program x"), "no-such-program"),
        (("--id", "a", "--exec", "/etc/passwd"), "/etc/passwd"),
        (("--id", "a", "--exec", "./here", "--cwd", "/tmp"), "./here"),
    ],
)
def test_a_wrong_flag_is_named(flags: tuple[str, ...], named: str) -> None:
    run = worker_run(*flags)
    assert run.returncode == 1
    error, *hints = run.stderr.splitlines()
    assert error.startswith("error: ")
    assert named in error + "".join(hints)
    assert all(line.startswith("hint:") for line in hints)


def test_a_gateway_that_is_away_is_told_at_once() -> None:
    run = worker_run("--id", "a", "--openclaw", "--gateway", "http://127.0.0.1:1")
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert last == "error: http://127.0.0.1:1: Connection refused"


def worker_run(*flags: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "openclaw-worker", *map(str, flags)],
        capture_output=True,
        text=True,
        timeout=READY_S,
        check=False,
    )
