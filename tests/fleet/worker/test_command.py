"""Commands for tasks, with real processes."""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pilotfleet.fleet.worker.command import CommandRunner
from pilotfleet.fleet.worker.environment import FLEET_SECRETS
from pilotfleet.fleet.worker.job import MAX_RESULT_BYTES, Job, Outcome

LONG_S = 60.0


def job(text: str = "") -> Job:
    return Job("worker-1", "t-1", text)


def runner(*command: str, **settings: Any) -> CommandRunner:
    return CommandRunner(command, **({"timeout_s": LONG_S} | settings))


def shell(script: str, **settings: Any) -> CommandRunner:
    return runner("sh", "-c", script, **settings)


async def test_the_task_goes_in_and_the_result_comes_out() -> None:
    outcome = await runner("sha256sum").run(job("text é"))
    assert outcome.ok
    assert outcome.result == f"{hashlib.sha256('text é'.encode()).hexdigest()}  -\n"
    assert (outcome.error, outcome.retryable) == ("", False)


async def test_no_shell_reads_the_command() -> None:
    outcome = await runner("echo", "$HOME; true | `id` *").run(job())
    assert outcome.result == "$HOME; true | `id` *\n"


async def test_folder_is_where_it_runs(tmp_path: Path) -> None:
    outcome = await runner("pwd", folder=tmp_path).run(job())
    assert outcome.result == f"{tmp_path}\n"


async def test_a_command_is_told_whose_task_it_has() -> None:
    outcome = await shell("echo $PILOT_AGENT $PILOT_TASK_ID").run(job())
    assert outcome.result == "worker-1 t-1\n"


async def test_a_command_gets_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*FLEET_SECRETS, "OPENCLAW_GATEWAY_TOKEN", "NOTIFY_SOCKET"):
        monkeypatch.setenv(name, "do-not-tell")
    monkeypatch.setenv("GREETING", "hello")
    outcome = await runner("env").run(job())
    assert "GREETING=hello" in outcome.result
    assert "do-not-tell" not in outcome.result


async def test_bytes_that_are_no_text_are_replaced() -> None:
    outcome = await shell(r"printf 'a\377b'").run(job())
    assert outcome.result == "a\ufffdb"


async def test_a_text_that_cannot_be_encoded_runs_still() -> None:
    assert (await runner("cat").run(job("a\ud800b"))).result == "a?b"


async def test_exit_status_fails_the_task_with_the_last_words() -> None:
    outcome = await shell("yes noise | head -c 100000 >&2; echo why >&2; exit 3").run(
        job()
    )
    assert not outcome.ok
    assert not outcome.retryable
    assert outcome.error.startswith("exit status 3: ")
    assert outcome.error.endswith("why")
    assert len(outcome.error) < 3000


@pytest.mark.parametrize(("name", "number"), [("KILL", 9), ("TERM", 15)])
async def test_a_killed_command_may_be_tried_again(name: str, number: int) -> None:
    outcome = await shell(f"kill -{name} $$").run(job())
    assert outcome.error == f"killed by signal {number} (SIG{name})"
    assert (outcome.ok, outcome.retryable) == (False, True)


async def test_a_command_that_cannot_start_is_not_the_tasks_fault() -> None:
    outcome = await runner("/no/such/program").run(job("text"))
    assert (outcome.ok, outcome.retryable) == (False, True)
    assert "/no/such/program" in outcome.error


async def test_a_command_need_not_read_its_task() -> None:
    assert (await runner("true").run(job("x" * 1_000_000))).ok


async def test_much_goes_in_while_much_comes_out() -> None:
    text = "line of text\n" * 75_000
    assert (await runner("cat").run(job(text))).result == text


@pytest.mark.parametrize(("size", "ok"), [(MAX_RESULT_BYTES, True), (1 << 24, False)])
async def test_a_result_is_bounded(size: int, ok: bool) -> None:
    outcome = await shell(f"head -c {size} /dev/zero | tr '\\0' x").run(job())
    assert outcome.ok is ok
    if not ok:
        assert str(MAX_RESULT_BYTES) in outcome.error
        assert not outcome.retryable


async def test_an_endless_writer_is_stopped() -> None:
    assert "longer than" in (await runner("yes").run(job())).error


async def test_the_time_limit_kills_the_command_and_its_children() -> None:
    script = "sleep 1000 & sleep 1000; true"
    running = asyncio.ensure_future(shell(script, timeout_s=0.5).run(job()))
    pids = await some_children(3)
    outcome = await running
    assert outcome.error == "killed after the time limit of 0.5 s"
    assert outcome.retryable
    assert await all_gone(pids)


async def test_cancelling_kills_the_command() -> None:
    running = asyncio.ensure_future(runner("sleep", "1000").run(job()))
    pids = await some_children()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert running.cancelled()
    assert await all_gone(pids)


async def test_a_background_process_does_not_hold_up_the_result() -> None:
    async with asyncio.timeout(10):
        outcome = await shell("sleep 1000 & echo done").run(job())
    assert outcome.result == "done\n"


async def test_many_at_once_leave_no_descriptor_behind() -> None:
    commands = runner("sha256sum")
    await commands.run(job("warm up"))
    before = len(os.listdir("/proc/self/fd"))
    texts = [f"text {number}" for number in range(100)]
    outcomes: list[Outcome] = await asyncio.gather(*map(commands.run, map(job, texts)))
    for text, outcome in zip(texts, outcomes, strict=True):
        assert outcome.result.startswith(hashlib.sha256(text.encode()).hexdigest())
    await runner("/no/such/program").run(job())
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_the_time_it_took_is_told() -> None:
    outcome = await runner("sleep", "0.2").run(job())
    assert 200 <= outcome.wall_ms < 5000


async def some_children(count: int = 1) -> list[int]:
    """Wait until at least so many processes run below this one."""
    for _ in range(500):
        if len(pids := children()) >= count:
            return pids
        await asyncio.sleep(0.01)
    raise AssertionError("the command was not started")


def children() -> list[int]:
    """Return every process that this one has started, and theirs."""
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        for listing in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            with suppress(OSError):
                pids = [int(pid) for pid in listing.read_text().split()]
                found += pids
                waiting += pids
    return found


async def all_gone(pids: list[int]) -> bool:
    """Wait for processes that were killed to be gone; init may have to reap them."""
    for _ in range(500):
        if not any(is_running(pid) for pid in pids):
            return True
        await asyncio.sleep(0.01)
    return False


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
