"""A program of a fleet that ends, and is started again."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import NotRunning, PilotError, TimedOut
from pilotfleet.fleet import keeper as module
from pilotfleet.fleet import processes
from pilotfleet.fleet.keeper import Command, Keeper, MemberState, MemberStatus
from pilotfleet.fleet.plan import Member, Role
from tests.node.support import eventually

if TYPE_CHECKING:
    from pathlib import Path

READY = 'while [ "$1" != --ready-file ]; do shift; done\necho "{}" > "$2.new"'
READY += '; mv "$2.new" "$2"'


@dataclass
class Kept:
    """A keeper of a shell script, and what it told."""

    home: Path
    script: Path
    deaths: list[MemberStatus] = field(default_factory=list)
    failures: list[PilotError] = field(default_factory=list)
    ready: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        member = Member("one", Role.RUNNER, hosts=("w-1", "w-2"), ready_s=10.0)
        self.keeper = Keeper(
            member,
            self.home,
            command=lambda member: Command(member.arguments, {"SAY": "secret"}),
            on_ready=lambda _, ready: self.ready.append(ready),
            on_death=lambda keeper: self.deaths.append(keeper.status),
            on_failure=self.failures.append,
        )

    def write(self, text: str) -> None:
        """Make this the program; it must become ready by itself."""
        new = self.script.with_name("new")
        new.write_text(f"#!/bin/sh\n{text}\n")
        new.chmod(0o755)
        new.replace(self.script)

    @property
    def state(self) -> MemberState:
        return self.keeper.status.state


@pytest.fixture
async def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.05)
    script = tmp_path / "program"
    monkeypatch.setattr(processes, "find_program", lambda name: str(script))
    made = Kept(tmp_path / "home", script)
    made.write(f"{READY}; exec sleep 1000")
    yield made
    await made.keeper.stop()


async def test_program_that_ends_is_started_again(kept: Kept) -> None:
    await kept.keeper.start()
    first = kept.keeper.status
    assert (first.state, first.restarts, first.last_exit) == ("running", 0, "")
    assert (first.agents, first.hosts) == (2, ["w-1", "w-2"])
    os.kill(first.pid, signal.SIGKILL)
    await eventually(lambda: len(kept.ready) == 2, what="a new start")
    again = kept.keeper.status
    assert (again.state, again.restarts) == ("running", 1)
    assert again.pid not in (0, first.pid)
    assert again.last_exit == "it was killed by signal 9 (SIGKILL)"
    [death] = kept.deaths
    assert (death.name, death.state, death.pid) == ("one", "waiting", 0)
    assert kept.failures == []


async def test_first_start_is_tried_once_and_has_the_last_words(kept: Kept) -> None:
    kept.write("echo why >&2; exit 3")
    with pytest.raises(NotRunning, match=r"ended \(exit status 3\): why"):
        await kept.keeper.start()
    assert kept.state is MemberState.STOPPED
    assert kept.deaths == []


async def test_program_that_is_never_ready_is_stopped(kept: Kept) -> None:
    kept.keeper.member = Member("one", Role.RUNNER, ready_s=0.05)
    kept.write("exec sleep 1000")
    with pytest.raises(TimedOut):
        await kept.keeper.start()
    assert kept.keeper.status.pid == 0


async def test_program_that_cannot_stay_up_is_given_up_with_its_last_words(
    kept: Kept,
) -> None:
    await kept.keeper.start()
    kept.write("echo gone wrong; exit 4")
    os.kill(kept.keeper.status.pid, signal.SIGTERM)
    await eventually(lambda: kept.failures, what="the end of all tries")
    [failure] = kept.failures
    text = "one does not stay up (5 quick ends in a row): openclaw-worker (one) ended"
    assert str(failure) == f"{text} (exit status 4): gone wrong"
    assert str(kept.home / "logs" / "one.log") in str(failure.hint)
    assert kept.state is MemberState.FAILED
    assert len(kept.deaths) == module.MAX_QUICK_ENDS


async def test_program_that_runs_for_a_while_between_its_ends_is_never_given_up(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEADY_S", 0.0)
    await kept.keeper.start()
    for count in range(2, module.MAX_QUICK_ENDS + 4):
        os.kill(kept.keeper.status.pid, signal.SIGKILL)
        await eventually(lambda n=count: len(kept.ready) == n, what="a new start")  # type: ignore[misc]
    assert kept.failures == []
    assert kept.keeper.status.restarts == len(kept.deaths)


async def test_program_that_was_removed_is_missed_and_found_again(kept: Kept) -> None:
    await kept.keeper.start()
    text = kept.script.read_text()
    kept.script.unlink()
    os.kill(kept.keeper.status.pid, signal.SIGKILL)
    await eventually(lambda: len(kept.deaths) == 2, what="a start that fails")
    assert kept.deaths[1].last_exit != ""
    kept.write(text.removeprefix("#!/bin/sh\n"))
    await eventually(lambda: len(kept.ready) == 2, what="a new start")


async def test_stopped_program_stays_stopped(kept: Kept) -> None:
    await kept.keeper.start()
    await kept.keeper.stop()
    assert (kept.state, kept.keeper.status.pid) == (MemberState.STOPPED, 0)
    assert kept.deaths == []
    await kept.keeper.stop()


@pytest.mark.parametrize(
    ("drain", "said"), [(True, ["TERM"]), (False, ["INT", "TERM"])]
)
async def test_worker_program_is_told_how_to_stop(
    kept: Kept, tmp_path: Path, drain: bool, said: list[str]
) -> None:
    kept.write(
        f"cd {tmp_path}; trap 'echo TERM >> said; t=1' TERM\n"
        "trap 'echo INT >> said' INT\n"
        f"{READY}; until [ $t ]; do sleep 0.01; done; sleep 0.05"
    )
    await kept.keeper.start()
    await kept.keeper.stop(drain=drain)
    assert sorted((tmp_path / "said").read_text().split()) == said


async def test_replaced_program_has_its_new_arguments(kept: Kept) -> None:
    kept.write(f"echo $1; {READY}; exec sleep 1000")
    await kept.keeper.start()
    old = kept.keeper.member
    new = Member("one", Role.RUNNER, arguments=("--new",))
    await kept.keeper.replace(new)
    assert kept.keeper.member is new
    assert (kept.home / "logs" / "one.log").read_text() == "--ready-file\n--new\n"
    kept.write(f"[ $1 = --bad ] && exit 9; echo $1; {READY}; exec sleep 1000")
    with pytest.raises(NotRunning, match="exit status 9"):
        await kept.keeper.replace(Member("one", Role.RUNNER, arguments=("--bad",)))
    await eventually(lambda: kept.state is MemberState.RUNNING, what="the old one")
    assert kept.keeper.member is new
    assert old is not new


async def test_defect_is_told_and_not_kept(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kept.keeper.start()

    def fail(_: Keeper) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(kept.keeper, "_on_death", fail)
    os.kill(kept.keeper.status.pid, signal.SIGKILL)
    await eventually(lambda: kept.failures, what="the failure")
    assert "one is not kept running: ValueError('a defect')" in str(kept.failures[0])


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(Command(("a",), {"PILOT_JOIN_TOKEN": "secret"}))


async def test_starts_may_be_cancelled(kept: Kept) -> None:
    kept.write("exec sleep 1000")
    starting = asyncio.create_task(kept.keeper.start())
    await eventually(lambda: kept.state is MemberState.STARTING, what="the start")
    starting.cancel()
    await asyncio.wait([starting])
    assert (kept.state, kept.keeper.status.pid) == (MemberState.STOPPED, 0)
