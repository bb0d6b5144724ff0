"""Twenty sub-orchestrators over fifty workers each do ten thousand tasks."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.fleets.big import digests

if TYPE_CHECKING:
    from tests.fleets.big import BigFleet

pytestmark = pytest.mark.timeout(1_000)

CLUSTERS: Final = 20
CLUSTER: Final = 50
TASKS: Final = 10_000
SOME: Final = 2_000
"""Results before something is killed."""
DEAD: Final = "7"
"""The sub-orchestrator, and ..."""
DEAD_GROUPS: Final = ("3", "12")
"""... the groups of workers that are killed."""
EACH: Final = 2
"""Tasks that a worker holds at a time."""


SLOW: Final = f"sh -c 'sleep {max(0.3, 0.06 * (os.cpu_count() or 1))}; exec sha256sum'"
"""Of such tasks a fleet runs forty at a time, or eight for each processor: all of them
take 75 s at least, time to see the dead return."""


def prepare(big: BigFleet, command: str = "sha256sum") -> dict[str, str]:
    """Write specification and tasks; return the results that must come out."""
    rows = list(digests(TASKS))
    big.describe(
        pattern="hierarchical",
        count=CLUSTERS * CLUSTER,
        command=command,
        more=["[hierarchy]", f"cluster_size = {CLUSTER}"],
    )
    big.write_tasks({key: text for key, text, _ in rows})
    return {key: result for key, _, result in rows}


def members(*, sub: str, groups: tuple[str, ...]) -> list[str]:
    """Return the programs of a sub-orchestrator and of groups of workers."""
    pairs = [(f"group-{number}", f"runner-{number}") for number in groups]
    return [
        f"sub-{sub}",
        f"subrunner-{sub}",
        *(name for pair in pairs for name in pair),
    ]


def test_twenty_times_fifty_workers_do_ten_thousand_tasks(big: BigFleet) -> None:
    expected = prepare(big)
    big.start()
    big.wait_for_results(SOME)
    big.measure_memory()
    summary = big.end()
    big.check_results(expected)
    big.check_journal(TASKS)
    assert summary["tasks"] == summary["succeeded"] == TASKS
    assert summary["agents"] == CLUSTERS * CLUSTER
    # Nothing was wrong, so nothing was mended: a slow machine is no dead one. With ten
    # others at its processors, some workers still seem out of reach for a while.
    assert (summary["restarts"], summary["reparented"]) == (0, 0)
    assert summary["retried"] <= TASKS / 10


def test_it_does_so_while_many_of_them_are_killed(big: BigFleet) -> None:
    expected = prepare(big, SLOW)
    doomed = members(sub=DEAD, groups=DEAD_GROUPS)
    big.start()
    big.wait_for_results(SOME)
    killed = time.monotonic()
    big.kill(*doomed)
    watch_the_recovery(big, doomed, killed)
    summary = big.end()
    big.check_results(expected)
    big.check_journal(TASKS)
    assert summary["tasks"] == summary["succeeded"] == TASKS
    assert summary["restarts"] == len(doomed)
    # One cluster moved to a sibling, at most a second time to even out the load.
    assert 1 <= summary["reparented"] <= 3
    # What the dead had: not more than they hold, and again each time that they are
    # tried while they are dead, after rests of 1, 2, 4 s and so on.
    held = (1 + len(DEAD_GROUPS)) * (CLUSTER * EACH + CLUSTER // 10)
    dead_s = big.measured["seconds_after_the_kill"]["all programs run again"]
    assert 0 < summary["retried"] <= held * (1 + math.log2(1 + dead_s))
    assert summary["attempts"] - TASKS >= summary["retried"]


def watch_the_recovery(big: BigFleet, doomed: list[str], killed: float) -> None:
    """Follow the fleet's status until the dead are back and work again."""
    seconds = big.measured.setdefault("seconds_after_the_kill", {})

    def note(what: str) -> None:
        seconds.setdefault(what, round(time.monotonic() - killed, 1))

    done: list[int] = []

    def has_healed() -> bool:
        status = big.status()
        by_name = {row["name"]: row for row in status["members"]}
        row = cluster_of(status, DEAD)
        if row["parent"] != row["name"]:
            # On a busy machine it may be over before anybody looks.
            note("its cluster is with a sibling")
        if all(by_name[name]["restarts"] for name in doomed) and all(
            by_name[name]["state"] == "running" for name in doomed
        ):
            note("all programs run again")
            if row["state"] == "up" and row["parent"] == row["name"]:
                note("its cluster is its own again")
                done.append(row["tasks_completed"])
        # It counts from nothing again.
        has_grown = len(done) > 1 and done[-1] > min(done)
        if has_grown:
            note("it has completed tasks after its return")
        return has_grown

    big.wait_for(has_healed, "the return of what was killed")
    big.measured["completed_after_return"] = done


def cluster_of(status: dict[str, Any], number: str) -> dict[str, Any]:
    """Return the row of a sub-orchestrator and its cluster."""
    [row] = [row for row in status["clusters"] if row["cluster"] == f"c{number}"]
    found: dict[str, Any] = row
    return found
