"""The five figures of a fleet that is up, as its commands show them."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.fleet.support import write_spec, write_tasks
from tests.fleet.upsupport import fleet, fleet_world, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.programs import World

pytestmark = pytest.mark.timeout(240)

TASKS = 200
FAILING = 14
AGENTS = 10


@pytest.fixture
def net() -> Iterator[World]:
    with fleet_world() as made:
        yield made


def test_figures_of_a_fleet_are_those_of_its_tasks(net: World) -> None:
    script = net.home / "work.sh"
    script.write_text("read -r text\ntest $text != fail\n")
    spec = write_spec(net, f"sh {script}", count=AGENTS)
    with spec.open("a") as file:
        file.write('[health]\ninterval = "1s"\n')
    assert fleet(net, "up", spec).returncode == 0
    texts = {f"t{n}": "fail" if n < FAILING else "do" for n in range(TASKS)}
    tasks, results = write_tasks(net, texts), net.home / "results.jsonl"
    fleet(net, "submit", spec, "--tasks", tasks, "--results", results)
    status = wait_until(
        net,
        lambda now: (
            now["figures"]["tasks"]["completed"] + now["figures"]["tasks"]["failed"]
            >= TASKS
            and now["figures"]["polo"]["agents"] == AGENTS
        ),
    )
    figures = status["figures"]
    assert figures["agents"] == {"alive": AGENTS, "late": 0, "lost": 0, "left": 0}
    ended = figures["tasks"]
    assert (ended["completed"], ended["failed"]) == (TASKS - FAILING, FAILING)
    assert ended["error_rate"] == pytest.approx(FAILING / TASKS)
    assert 0 < ended["p50_ms"] <= ended["p95_ms"] <= ended["p99_ms"]
    assert figures["following"]
    assert (figures["events_refused"], figures["events_lost"]) == (0, 0)
    assert sum(status["health"]["agents"].values()) == AGENTS
    for command in (("status",), ("top", "--once")):
        shown = fleet(net, *command).stdout
        assert f"{AGENTS} alive, 0 late, 0 lost" in shown
        assert f"(since up {TASKS - FAILING} and {FAILING})" in shown
    # Workers that are killed and cannot come back are late, then lost.
    for member in status["members"]:
        if member["name"].startswith("runner"):
            os.kill(member["pid"], signal.SIGSTOP)
    wait_until(net, lambda now: now["figures"]["agents"]["late"] == AGENTS)
    wait_until(net, lambda now: now["figures"]["agents"]["lost"] == AGENTS)
    assert fleet(net, "down", "--now").returncode == 0
