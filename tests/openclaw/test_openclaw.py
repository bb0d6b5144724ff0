"""Fleets whose tasks the real OpenClaw does, with a stub for its model."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pilotfleet.fleet.worker.job import Job
from pilotfleet.fleet.worker.openclaw.config import DEFAULT_TURNS, OpenClawConfig
from pilotfleet.fleet.worker.openclaw.oneshot import OneShotRunner
from tests.openclaw.stub import MODEL, NONCE
from tests.support.programs import BIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.openclaw.stub import Stub

pytestmark = [pytest.mark.openclaw, pytest.mark.timeout(900)]

WAIT_S: Final = 600.0
BEFORE: Final = 20
"""Tasks that the gateway finishes before it is killed."""

SPEC: Final = """
[fleet]
name = "claws"
pattern = "hub-and-spoke"
rendezvous = "embedded"

[workers]
count = {count}
openclaw = true
timeout = "300s"

[openclaw]
config = "{config}"
model = "{model}"
"""


class Run:
    """A fleet that runs tasks, each with a nonce that no other has."""

    def __init__(self, folder: Path, stub: Stub, *, workers: int, tasks: int) -> None:
        self.nonces = [f"nonce-{secrets.token_hex(8)}" for _ in range(tasks)]
        self._results = folder / "results.jsonl"
        config, spec = folder / "openclaw.json", folder / "fleet.toml"
        config.write_text(json.dumps(stub.config()))
        spec.write_text(SPEC.format(count=workers, config=config, model=MODEL))
        lines = [
            json.dumps({"id": str(number), "task": f"Say {nonce} and nothing else."})
            for number, nonce in enumerate(self.nonces)
        ]
        (folder / "tasks.jsonl").write_text("\n".join(lines))
        self.log = folder / "run.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(BIN / "pilotctl", "fleet", "run", spec),
                    *("--tasks", folder / "tasks.jsonl", "--results", self._results),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )

    def wait_until(self, is_so: Callable[[], object]) -> None:
        """Wait for something that the run does."""
        deadline = time.monotonic() + WAIT_S
        while not is_so():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def finished(self) -> list[dict[str, Any]]:
        """Return the results that there are, in the order they came."""
        text = self._results.read_text() if self._results.exists() else ""
        # The last line may be half written.
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def results(self) -> list[dict[str, Any]]:
        """Wait for the end, and return every result in the order of the tasks."""
        assert self.process.wait(WAIT_S) == 0, self.log.read_text()
        results = self.finished()
        assert sorted(int(result["id"]) for result in results) == [
            *range(len(self.nonces))
        ]
        return sorted(results, key=lambda result: int(result["id"]))

    def gateways(self) -> list[int]:
        """Return the gateways that run below this fleet."""
        return [
            pid
            for pid in descendants(self.process.pid)
            if name_of(pid).startswith("openclaw-gatew")
        ]

    def end(self) -> None:
        """Stop it, if the test has not seen its end."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(WAIT_S)


def descendants(pid: int) -> list[int]:
    found, waiting = [], [pid]
    while waiting:
        for listing in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            try:
                pids = [int(word) for word in listing.read_text().split()]
            except OSError:  # It ended meanwhile.
                continue
            found += pids
            waiting += pids
    return found


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def nonces_of(request: dict[str, Any]) -> set[str]:
    return set(NONCE.findall(json.dumps(request["messages"])))


def check_answers(run: Run, results: list[dict[str, Any]]) -> None:
    """Every task has the answer to its own text, and only to that."""
    for nonce, result in zip(run.nonces, results, strict=True):
        assert result["status"] == "SUCCEEDED", result
        assert result["result"].strip() == nonce


def check_requests(run: Run, stub: Stub) -> None:
    """Every conversation was about one task, and held by OpenClaw itself."""
    assert set(run.nonces) == {
        nonce for request in stub.requests for nonce in nonces_of(request)
    }
    for request in stub.requests:
        assert len(nonces_of(request)) == 1, "two tasks in one conversation"
        assert request["stream"] is True
        system = request["messages"][0]
        assert system["role"] == "system"
        assert "running inside OpenClaw" in json.dumps(system["content"])
        tools = {tool["function"]["name"] for tool in request["tools"]}
        assert {"read", "write", "exec"} <= tools


def test_a_hundred_identities_share_a_gateway_that_is_killed_in_the_middle(
    tmp_path: Path, stub: Stub
) -> None:
    stub.held_after = BEFORE
    asked_by_first = BEFORE + DEFAULT_TURNS
    run = Run(tmp_path, stub, workers=100, tasks=60)
    try:
        run.wait_until(lambda: len(run.finished()) == BEFORE)
        run.wait_until(lambda: len(stub.requests) == asked_by_first)
        finished = {result["result"].strip() for result in run.finished()}
        [first] = run.gateways()
        os.kill(first, signal.SIGKILL)
        stub.release()
        run.wait_until(lambda: len(stub.requests) > asked_by_first)
        [second] = run.gateways()
        results = run.results()
    finally:
        run.end()
    assert second != first
    check_answers(run, results)
    check_requests(run, stub)
    assert len({result["agent"] for result in results}) >= 50
    # The second began what the first had not finished, each once, and nothing else.
    asked = [nonce for request in stub.requests for nonce in nonces_of(request)]
    assert len(set(asked[:asked_by_first])) == asked_by_first
    assert sorted(asked[asked_by_first:]) == sorted(set(run.nonces) - finished)


async def test_a_task_runs_without_a_gateway(tmp_path: Path, stub: Stub) -> None:
    file = tmp_path / "openclaw.json"
    file.write_text(json.dumps(stub.config()))
    config = OpenClawConfig(file=file, model=MODEL, folder=tmp_path, timeout_s=300.0)
    nonce = f"nonce-{secrets.token_hex(8)}"
    outcome = await OneShotRunner(config).run(Job("solo", "t-1", f"Say {nonce}."))
    assert (outcome.ok, outcome.result.strip()) == (True, nonce), outcome
    [request] = stub.requests
    assert "running inside OpenClaw" in json.dumps(request["messages"][0]["content"])


def test_openclaw_lists_the_skill_that_was_installed() -> None:
    subprocess.run([BIN / "pilotctl", "skill", "install"], check=True)
    skill = listed_skills()["pilotctl"]
    assert skill["eligible"], skill
    assert skill["modelVisible"]
    assert skill["source"] == "openclaw-managed"
    assert len(skill["description"]) < 160


def listed_skills() -> dict[str, dict[str, Any]]:
    run = subprocess.run(
        ["openclaw", "skills", "list", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
    )
    return {skill["name"]: skill for skill in json.loads(run.stdout)["skills"]}
