"""What a monitor says of a fleet is what can be counted without it."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.fleet.upsupport import fleet_world
from tests.fleets.counted import NAME, RUN_S, CountedFleet, nearest_rank

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(600)

WORKERS: Final = 50
MANY_WORKERS: Final = 200
TASKS: Final = 2_000
FAILING: Final = 140
AWAY_TASKS: Final = 300
AWAY_FAILING: Final = 20
AWAY_S: Final = 20
"""How long the monitor is off at least, while there are events."""
LATE_S: Final = 3
"""From the end of a task to its event, on a busy machine."""
DIRECTORY_S: Final = 60


@pytest.fixture
def counted() -> Iterator[CountedFleet]:
    with fleet_world() as net:
        yield CountedFleet(net)


def texts(prefix: str, count: int, *, bad: int, seconds: float = 0) -> dict[str, str]:
    """Return tasks of which some fail, and one of twenty takes longer."""
    every = count // bad

    def text(number: int) -> str:
        is_bad = number % every == 0 and number // every < bad
        takes_s = seconds or (0.3 if number % 20 == 7 else 0)
        return f"{'bad' if is_bad else 'good'} {takes_s}"

    return {f"{prefix}{number}": text(number) for number in range(count)}


def test_the_five_figures_are_those_of_a_count_of_the_raw_events(
    counted: CountedFleet,
) -> None:
    counted.up(WORKERS)
    counted.monitor.start()
    befriend(counted)
    summary = counted.finish(counted.submit(texts("t", TASKS, bad=FAILING)))
    assert (summary["succeeded"], summary["failed"]) == (TASKS - FAILING, FAILING)
    rows = counted.wait_ends(TASKS)
    statuses = Counter(row["status"] for row in rows)
    failed = TASKS - statuses["SUCCEEDED"]
    assert (statuses["SUCCEEDED"], failed) == (TASKS - FAILING, FAILING)

    tasks = counted.monitor.wait_tasks(TASKS - failed, failed)["tasks"]
    assert tasks["error_rate"] == pytest.approx(failed / TASKS)
    times = sorted(row["ms"] for row in rows)
    for percent in (50, 95, 99):
        expected = nearest_rank(times, percent)
        assert tasks[f"p{percent}_ms"] == pytest.approx(expected, rel=0.01)

    assert len(counted.agents()) == WORKERS
    here = {"alive": WORKERS, "late": 0, "lost": 0, "left": 0}
    # Right after so much work the health events of some may be late.
    counted.monitor.wait(lambda now: now["agents"] == here)
    check_trust(counted)
    check_polo(counted)


def befriend(counted: CountedFleet) -> None:
    """Make three pairs that trust each other, and part one of them."""
    daemon, own = "group-1", ("--agent", "worker-1")
    for peer in ("worker-2", "worker-3", "worker-4"):
        counted.ctl(daemon, *own, "handshake", peer, "to be counted")
        counted.ctl(daemon, "--agent", peer, "approve", "worker-1")
    counted.wait(lambda now: now["trust_links"] == 3, limit_s=DIRECTORY_S)
    assert len(counted.trust_links()) == 2 * 3
    node = str(counted.ctl(daemon, "--agent", "worker-4", "info")["node_id"])
    counted.ctl(daemon, *own, "untrust", node)


def check_trust(counted: CountedFleet) -> None:
    counted.wait(lambda now: now["trust_revoked"] == 1, limit_s=DIRECTORY_S)
    figures = counted.monitor.figures()
    assert figures["trust_links"] == len(counted.trust_links()) / 2 == 2
    assert figures["trust_linked"] == 3


def check_polo(counted: CountedFleet) -> None:
    # Receipts are counted, and the directory is read, for some seconds after the end.
    counted.wait(
        lambda now: now["polo"]["total"] == sum(counted.polo()), limit_s=DIRECTORY_S
    )
    polo, scores = counted.monitor.figures()["polo"], counted.polo()
    assert sum(scores) > 0
    assert polo["agents"] == len(scores) == WORKERS
    assert (polo["lowest"], polo["highest"]) == (scores[0], scores[-1])
    for percent in (10, 50, 90, 99):
        assert polo[f"p{percent}"] == nearest_rank(scores, percent)
    for first, last, agents in polo["histogram"]:
        assert agents == sum(first <= score <= last for score in scores)
    assert sum(agents for _, _, agents in polo["histogram"]) == WORKERS


def test_a_monitor_that_is_killed_or_away_counts_every_task_once_and_in_its_second(
    counted: CountedFleet,
) -> None:
    counted.up(WORKERS)
    monitor = counted.monitor
    monitor.start()
    run = counted.submit(texts("t", TASKS, bad=FAILING))
    for enough in (TASKS // 5, TASKS // 2):
        wait_ended(counted, enough)
        assert ended(monitor.figures()) < TASKS, "the run was over before the kill"
        monitor.running().kill()
        monitor.start()
    counted.finish(run)
    counted.wait_ends(TASKS)
    monitor.wait_tasks(TASKS - FAILING, FAILING)

    monitor.running().kill()
    off = time.time()
    counted.finish(
        counted.submit(texts("away", AWAY_TASKS, bad=AWAY_FAILING, seconds=2))
    )
    rows = counted.wait_ends(TASKS + AWAY_TASKS)
    on = time.time()
    assert on - off >= AWAY_S
    monitor.start()
    failed = FAILING + AWAY_FAILING
    figures = monitor.wait_tasks(len(rows) - failed, failed)
    assert figures["events_lost"] == 0
    assert figures["agents"]["alive"] == WORKERS
    assert monitor.running().terminate() == 0
    check_seconds(counted, rows, int(off), int(on))


def wait_ended(counted: CountedFleet, count: int) -> None:
    counted.wait(lambda now: ended(now) >= count, limit_s=RUN_S)


def ended(figures: dict[str, Any]) -> int:
    tasks = figures["tasks"]
    return int(tasks["completed"] + tasks["failed"])


def check_seconds(
    counted: CountedFleet, rows: list[dict[str, Any]], off: int, on: int
) -> None:
    """Check the history against the times that the workers tell."""
    seconds = counted.seconds()
    ends = {at: row["completed"] + row["failed"] for at, row in seconds.items()}
    assert sum(ends.values()) == len(rows)
    assert sum(row["failed"] for row in seconds.values()) == FAILING + AWAY_FAILING
    # The time in which it was off has no gap, and nobody was missed in it.
    assert set(range(off, on)) <= seconds.keys()
    assert {seconds[at]["agents_alive"] for at in range(off, on)} == {WORKERS}
    for at in range(off, on):
        known = sum(count for second, count in ends.items() if second <= at)
        least = sum(row["at"] < at + 1 - LATE_S for row in rows)
        most = sum(row["at"] < at + 1 for row in rows)
        assert least <= known <= most, (at - off, least, known, most)


def test_the_health_of_two_hundred_workers_is_seen(counted: CountedFleet) -> None:
    counted.up(MANY_WORKERS)
    counted.monitor.start()
    counted.wait(lambda now: now["agents"]["alive"] == MANY_WORKERS, limit_s=60)
    counted.wait(lambda _: len(counted.agents()) == MANY_WORKERS, limit_s=60)
    assert counted.agents() == {f"worker-{n + 1}" for n in range(MANY_WORKERS)}
    page = counted.monitor.get(f"/api/fleets/{NAME}/agents?limit=1000")
    assert page.count(b'"alive"') >= MANY_WORKERS
    # One that is away for two intervals is late: a busy machine must not make it so.
    agents = counted.monitor.figures()["agents"]
    assert (agents["lost"], agents["left"]) == (0, 0)
