"""Python functions for tasks."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import InvalidArgument
from pilotfleet.fleet.worker.call import CallRunner, load_function
from pilotfleet.fleet.worker.job import MAX_RESULT_BYTES, Job, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

JOB = Job("worker-1", "t-1", "text é")


async def run(function: Callable[[Any], Any], **settings: Any) -> Outcome:
    settings = {"timeout_s": 60.0, "threads": 4} | settings
    return await CallRunner(function, **settings).run(JOB)


# What it is given and returns


async def test_the_text_goes_in_and_the_result_comes_out() -> None:
    outcome = await run(str.upper)
    assert (outcome.ok, outcome.result, outcome.error) == (True, "TEXT É", "")


async def test_a_coroutine_function_is_awaited() -> None:
    async def work(text: str) -> str:
        await asyncio.sleep(0)
        return text[::-1]

    assert (await run(work)).result == "é txet"


async def test_an_object_that_can_be_called_is_a_function() -> None:
    class Work:
        async def __call__(self, text: str) -> str:
            return f"<{text}>"

    assert (await run(Work())).result == "<text é>"


async def test_a_job_is_given_to_whoever_asks_for_one() -> None:
    def work(job: Job) -> str:
        return f"{job.agent} {job.task_id} {job.text}"

    async def awaited(task: Job) -> str:
        return work(task)

    assert (await run(work)).result == "worker-1 t-1 text é"
    assert (await run(awaited)).result == "worker-1 t-1 text é"


async def test_a_function_that_blocks_does_not_hold_up_the_loop() -> None:
    barrier = threading.Barrier(3, timeout=30)

    def meet(_: str) -> str:
        barrier.wait()
        return "met"

    runner = CallRunner(meet, timeout_s=60.0, threads=3)
    outcomes = await asyncio.gather(*(runner.run(JOB) for _ in range(3)))
    assert [outcome.result for outcome in outcomes] == ["met"] * 3


async def test_no_more_threads_run_than_there_may_be() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(_: str) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        return ""

    runner = CallRunner(work, timeout_s=60.0, threads=2)
    await asyncio.gather(*(runner.run(JOB) for _ in range(50)))
    assert most <= 2


async def test_a_function_may_return_something_to_wait_for() -> None:
    async def answer(job: Job) -> str:
        return job.task_id

    runner = CallRunner(
        lambda job: answer(job), timeout_s=None, threads=1, takes_job=True
    )
    assert (await runner.run(JOB)).result == "t-1"


# What goes wrong


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no such city"), "ValueError: no such city"),
        (KeyError(), "KeyError"),
        (SystemExit(3), "SystemExit: 3"),
        (StopIteration(), "RuntimeError: StopIteration"),
    ],
)
async def test_an_exception_fails_the_task_and_leaves_no_traceback(
    error: BaseException, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    def work(_: str) -> str:
        raise error

    caplog.set_level("INFO")
    outcome = await run(work)
    assert (outcome.ok, outcome.retryable) == (False, False)
    assert outcome.error == told
    assert "Traceback" not in outcome.error
    assert "t-1" in caplog.text


@pytest.mark.parametrize("result", [None, 7, b"bytes", {"a": 1}])
async def test_a_result_that_is_no_text_fails_the_task(result: object) -> None:
    outcome = await run(lambda _: result, name="m:f")
    assert not outcome.ok
    assert outcome.error.startswith(f"m:f returned {type(result).__name__}")


async def test_a_result_is_bounded() -> None:
    outcome = await run(lambda _: "x" * (MAX_RESULT_BYTES + 1))
    assert str(MAX_RESULT_BYTES) in outcome.error


async def test_the_time_limit_ends_a_coroutine() -> None:
    ended = asyncio.Event()

    async def work(_: str) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    outcome = await run(work, timeout_s=0.05)
    assert outcome.error == "no result within the time limit of 0.05 s"
    assert outcome.retryable
    assert ended.is_set()


async def test_a_thread_beyond_its_time_limit_keeps_its_place() -> None:
    go_on = threading.Event()
    calls = 0

    def work(_: str) -> str:
        nonlocal calls
        calls += 1
        go_on.wait(30)
        return "done"

    runner = CallRunner(work, timeout_s=0.1, threads=1)
    first, second = await runner.run(JOB), await runner.run(JOB)
    assert not first.ok
    assert not second.ok
    assert calls == 1, "there is one place, and it is taken"
    go_on.set()
    async with asyncio.timeout(10):
        while not (await runner.run(JOB)).ok:
            pass


# Where the function comes from


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """Give a folder whose modules can be imported, and forget them afterwards."""
    (tmp_path / "mytasks.py").write_text(
        "from pilotfleet.fleet.worker.job import Job\n"
        "def shout(text): return text.upper()\n"
        "def of_agent(job: 'Job') -> str: return job.agent\n"
        "def two(a, b): return a\n"
        "number = 7\n"
        "class Tools:\n"
        "    @staticmethod\n"
        "    def quiet(text): return text.lower()\n"
    )
    (tmp_path / "broken.py").write_text("import no_such_module_at_all\n")
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in ("mytasks", "broken"):
        sys.modules.pop(name, None)


async def test_a_function_is_found_in_the_working_directory(folder: Path) -> None:
    assert (await run(load_function("mytasks:shout", folder))).result == "TEXT É"
    assert (await run(load_function("mytasks:of_agent", folder))).result == "worker-1"
    assert (await run(load_function("mytasks:Tools.quiet", folder))).ok


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mytasks", "module:function"),
        (":shout", "module:function"),
        ("mytasks:", "module:function"),
        ("mytasks:nothing", "no function nothing"),
        ("mytasks:number", "no function number"),
        ("mytasks:two", "does not take one argument"),
        ("nowhere_at_all:f", "cannot import nowhere_at_all"),
        ("broken:f", "no_such_module_at_all"),
    ],
)
def test_what_is_no_function_for_a_task_is_refused(
    folder: Path, name: str, told: str
) -> None:
    with pytest.raises(InvalidArgument, match=told):
        load_function(name, folder)
