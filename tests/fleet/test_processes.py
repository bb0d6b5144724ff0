"""Programs of a fleet: their start, their log, their end."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import NotRunning, TimedOut
from pilotfleet.fleet import processes
from pilotfleet.fleet.exitstatus import describe_exit
from pilotfleet.fleet.processes import ChildProcess, find_program
from tests.node.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT_S = 20.0


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return what makes a shell script a program that can be found by name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def make(script: str) -> str:
        path = folder / "pilot-script"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path.name

    return make


async def start(tmp_path: Path, *arguments: str) -> ChildProcess:
    return await ChildProcess.start("one", arguments, home=tmp_path / "home")


def ready_file(tmp_path: Path) -> Path:
    return ChildProcess.ready_file(tmp_path / "home", "one")


def test_programs_beside_the_interpreter_come_first(
    program: Callable[[str], str],
) -> None:
    assert find_program("pilotctl") == str(Path(sys.executable).parent / "pilotctl")
    assert find_program(program("true")).endswith("bin/pilot-script")
    with pytest.raises(NotRunning, match="program no-such-program is not installed"):
        find_program("no-such-program")


async def test_program_is_ready_when_it_says_so(
    tmp_path: Path, program: Callable[[str], str]
) -> None:
    script = 'echo \'{"n": 1}\' > "$1.new"; mv "$1.new" "$1"; exec sleep 1000'
    child = await start(tmp_path, program(script), str(ready_file(tmp_path)))
    try:
        assert await child.wait_ready(LIMIT_S) == {"n": 1}
        assert child.is_running
        assert child.title == "pilot-script (one)"
    finally:
        await child.stop()
    assert not child.is_running
    await child.stop()


async def test_ready_file_of_an_earlier_run_does_not_count(
    tmp_path: Path, program: Callable[[str], str]
) -> None:
    ready_file(tmp_path).parent.mkdir(parents=True)
    ready_file(tmp_path).write_text("{}")
    child = await start(tmp_path, program("exec sleep 1000"))
    try:
        with pytest.raises(TimedOut, match=r"was not ready after 0\.05 s: it said"):
            await child.wait_ready(0.05)
    finally:
        await child.stop()


@pytest.mark.parametrize(
    ("script", "how", "last"),
    [
        ("echo first; echo 'error: last' >&2; exit 3", "exit status 3", "error: last"),
        (
            "echo 'error: why'; echo 'hint:  do so'; exit 1",
            "exit status 1",
            "error: wh",
        ),
        ("echo alive; kill -KILL $$", "it was killed by signal 9 (SIGKILL)", "alive"),
        ("echo; exit 0", "exit status 0", "it said nothing"),
        ("yes noise | head -c 96000; echo end; exit 1", "exit status 1", "end"),
    ],
)
async def test_program_that_ends_at_its_start_is_named_with_its_last_words(
    tmp_path: Path, program: Callable[[str], str], script: str, how: str, last: str
) -> None:
    child = await start(tmp_path, program(script))
    with pytest.raises(NotRunning) as caught:
        await child.wait_ready(LIMIT_S)
    message = f"pilot-script (one) ended ({how}): {last}"
    assert str(caught.value).startswith(message)
    advice = "do so; " if "do so" in script else ""
    assert caught.value.hint == f"{advice}its log is {child.log}"
    assert str(await child.wait()).startswith("pilot-script (one) ended")


async def test_last_words_are_not_those_of_an_earlier_run(
    tmp_path: Path, program: Callable[[str], str]
) -> None:
    for script, last in (("echo old; exit 1", "old"), ("exit 1", "it said nothing")):
        child = await start(tmp_path, program(script))
        assert str(await child.wait()).endswith(f": {last}")
    assert child.log.read_text() == "old\n"


async def test_large_log_becomes_the_old_one_while_the_program_runs(
    tmp_path: Path, program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MAX_LOG_BYTES", 1_000)
    script = f"yes noise | head -c 6000; echo last; touch {tmp_path}/said; read -r x"
    script += f" < {tmp_path}/go; echo after; exit 1"
    os.mkfifo(tmp_path / "go")
    child = await start(tmp_path, program(script))
    old = child.log.with_name("one.log.1")
    try:
        await eventually((tmp_path / "said").exists, what="the noise")
        assert child.has_large_log
        child.bound_log()
        assert not child.has_large_log
        assert child.log.read_bytes() == b""
        assert old.stat().st_size == 1_000
        assert old.read_text().endswith("noise\nlast\n")
        assert stat.S_IMODE(old.stat().st_mode) == 0o600
        (tmp_path / "go").write_text("\n")
        assert str(await child.wait()).endswith("(exit status 1): after")
    finally:
        await child.stop()


async def test_large_log_becomes_the_old_one_at_the_next_start(
    tmp_path: Path, program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MAX_LOG_BYTES", 3)
    for said in ("first", "second", "third"):
        child = await start(tmp_path, program(f"echo {said}"))
        await child.wait()
    logs = {path.name: path.read_text() for path in child.log.parent.iterdir()}
    assert logs == {"one.log": "third\n", "one.log.1": "second\n"}


async def test_log_is_private_and_the_environment_reaches_the_program(
    tmp_path: Path, program: Callable[[str], str]
) -> None:
    name = program("echo $TOKEN; readlink /proc/self/fd/0")
    child = await ChildProcess.start(
        "one", [name], home=tmp_path / "home", environment={"TOKEN": "secret"}
    )
    await child.wait()
    assert child.log.read_text() == "secret\n/dev/null\n"
    assert stat.S_IMODE(child.log.stat().st_mode) == 0o600


async def test_program_that_ignores_the_request_to_end_is_killed_with_its_children(
    tmp_path: Path, program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STOP_GRACE_S", 0.05)
    script = f"trap '' TERM; sleep 1000 & echo $! > {tmp_path}/new"
    script += f"; mv {tmp_path}/new {tmp_path}/pid; wait; wait"
    child = await start(tmp_path, program(script))
    await eventually((tmp_path / "pid").exists, what="the child of the child")
    await child.stop()
    grandchild = int((tmp_path / "pid").read_text())
    await eventually(lambda: not is_running(grandchild), what="its end")


def is_running(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "exit status 0"),
        (7, "exit status 7"),
        (-15, "killed by signal 15 (SIGTERM)"),
        (-99, "killed by signal 99"),
    ],
)
def test_exit_status_is_put_into_words(status: int, text: str) -> None:
    assert describe_exit(status) == text
