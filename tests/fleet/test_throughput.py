"""How fast a fleet works, by a clock that the test turns."""

from __future__ import annotations

from pilotfleet.fleet.schedule import TaskResult
from pilotfleet.fleet.throughput import Throughput


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def result(number: int, *, ok: bool = True) -> TaskResult:
    status = "SUCCEEDED" if ok else "FAILED"
    return TaskResult(f"t{number}", status, "w", "", 1, float(number))


def test_nothing_yet() -> None:
    status = Throughput(Clock()).status()
    assert status == {"tasks_per_second": 0.0, "error_rate": 0.0, "slowest": []}


def test_rate_is_of_the_last_minute() -> None:
    clock = Clock()
    throughput = Throughput(clock)
    for second in range(100):
        clock.now = 1000.0 + second
        for number in range(4):
            throughput.add(result(number, ok=number != 0))
    status = throughput.status()
    assert 3.9 < status["tasks_per_second"] < 4.2
    assert status["error_rate"] == 0.25
    assert [row["id"] for row in status["slowest"]] == ["t3"] * 5
    clock.now += 61
    assert throughput.status()["tasks_per_second"] == 0.0
