"""A process of OpenClaw for each task, played by a program that prints the like."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.fleet.worker.openclaw.config import OpenClawConfig
from pilotfleet.fleet.worker.openclaw.oneshot import OneShotRunner
from tests.fleet.worker.openclaw.support import job

if TYPE_CHECKING:
    from pathlib import Path

    from pilotfleet.fleet.worker.job import Outcome

GOOD = {"ok": True, "status": "ok", "final": "the answer", "payloads": []}
BAD = {
    "ok": False,
    "status": "error",
    "final": "",
    "error": {"message": "no API key for provider", "kind": "run_error"},
}
LATE = {"ok": False, "status": "timeout", "final": None}


async def outcome(
    tmp_path: Path, prints: object, status: int = 0, **settings: Any
) -> Outcome:
    """Run a task with a program that prints something and ends with a status."""
    text = prints if isinstance(prints, str) else json.dumps(prints)
    program = tmp_path / "openclaw"
    program.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat > {tmp_path}/stdin\n'
        f"echo {shlex.quote(text)}\necho words >&2\nexit {status}\n"
    )
    program.chmod(0o755)
    config = OpenClawConfig(program=str(program), **settings)
    return await OneShotRunner(config).run(job("the secret task"))


async def test_the_answer_is_the_result(tmp_path: Path) -> None:
    ended = await outcome(tmp_path, GOOD)
    assert (ended.ok, ended.result) == (True, "the answer")


async def test_the_task_is_no_argument(tmp_path: Path) -> None:
    config = tmp_path / "c.json5"
    await outcome(
        tmp_path, GOOD, model="a/b", file=config, folder=tmp_path, timeout_s=12.5
    )
    assert (tmp_path / "stdin").read_text() == "the secret task"
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[:5] == ["agent", "exec", "--message-file", "-", "--json"]
    assert arguments[5:] == [
        *("--timeout", "13", "--model", "a/b", "--config", str(config)),
        *("--cwd", str(tmp_path)),
    ]


@pytest.mark.parametrize(
    ("envelope", "status", "told"),
    [(BAD, 1, "openclaw: no API key for provider"), (LATE, 2, "openclaw: timeout")],
)
async def test_a_failed_run_is_told_and_may_be_tried_again(
    tmp_path: Path, envelope: object, status: int, told: str
) -> None:
    ended = await outcome(tmp_path, envelope, status)
    assert (ended.ok, ended.retryable, ended.result) == (False, True, "")
    assert ended.error == told


async def test_what_prints_no_envelope_fails_the_task(tmp_path: Path) -> None:
    ended = await outcome(tmp_path, "no json")
    assert (ended.ok, ended.error) == (False, "openclaw agent exec printed no result")
    ended = await outcome(tmp_path, "", 78)
    assert (ended.ok, ended.error) == (False, "exit status 78: words")
