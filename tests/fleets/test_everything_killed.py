"""A run whose every process is killed at once, and that is given again."""

from __future__ import annotations

import contextlib
import json
import os
import select
from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest

from tests.fleet.support import processes_with_argument
from tests.fleets.big import kill_at_once

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fleets.big import BigFleet

pytestmark = pytest.mark.timeout(600)

TASKS: Final = 2_000
WORKERS: Final = 200
GROUPS: Final = 4
SOME: Final = 700
"""Results before everything is killed."""
LONGEST_COMMAND_S: Final = 10.0

FINISHED: Final = """
SELECT description FROM tasks WHERE role = 'received' AND status = 'SUCCEEDED'
"""


def test_finished_tasks_do_not_run_again(big: BigFleet) -> None:
    done = big.net.home / "done.txt"
    script = prepare(big, done)
    big.start()
    big.wait_for_results(SOME)
    kill_at_once([big.run.pid])
    big.run.communicate()
    wait_for_ends(script)
    # A task is finished when its worker's daemon has taken its end, and says so.
    finished = {
        task
        for number in range(1, GROUPS + 1)
        for (task,) in big.query(f"group-{number}/tasks.db", FINISHED)
    }
    in_file = {json.loads(line)["id"] for line in whole_lines(big.results)}
    before = Counter(done.read_text().split())
    # What was delivered was finished, what is finished was done, each once.
    assert len(in_file) >= SOME
    assert in_file <= finished <= before.keys()
    assert set(before.values()) == {1}
    assert len(before) < TASKS
    big.start()
    summary = big.end()
    big.check_results({f"t{number}": "ok\n" for number in range(TASKS)})
    big.check_journal(TASKS)
    after = Counter(done.read_text().split())
    again = {task for task, times in after.items() if times > 1}
    big.measured |= {
        "finished_when_killed": len(finished),
        "of_these_in_the_result_file": len(in_file),
        "done_but_not_finished": len(before) - len(finished),
        "ran_again": len(again),
    }
    assert after.keys() == {f"t{number}" for number in range(TASKS)}
    assert not again & finished
    # Only what had come to its end, and was not taken yet, ran a second time.
    assert again <= before.keys() - finished
    assert max(after.values()) <= 2
    assert len(in_file) <= summary["resumed"] <= len(finished)


def prepare(big: BigFleet, done: Path) -> Path:
    """Write specification, tasks, and the command that tells at its end of itself."""
    script = big.net.home / "append.sh"
    script.write_text(f"read -r task\nsleep 0.05\necho $task >> {done}\necho ok\n")
    big.describe(
        pattern="hub-and-spoke",
        count=WORKERS,
        command=f"sh {script}",
        more=[f"per_process = {WORKERS // GROUPS}"],
    )
    big.write_tasks({f"t{number}": f"t{number}" for number in range(TASKS)})
    return script


def wait_for_ends(script: Path) -> None:
    """Wait for commands that were started in the very moment of the kill."""
    for pid in processes_with_argument(str(script)):
        with contextlib.suppress(ProcessLookupError):
            ended = os.pidfd_open(pid)
            select.select([ended], [], [], LONGEST_COMMAND_S)
            os.close(ended)


def whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a file that were written to their end."""
    return [line for line in path.read_bytes().splitlines(True) if line[-1:] == b"\n"]
