"""What the health events of a worker say."""

from __future__ import annotations

from pilotfleet.fleet.worker.health import HealthBook


def test_tasks_are_counted_for_each_agent() -> None:
    book = HealthBook(["a", "b"], now=0.0, interval_s=10.0)
    for ok in (True, True, False, None):
        book.started("a")
        book.ended("a", ok=ok)
    assert book.report("a", now=1800.0) == {
        "agent": "a",
        "status": "idle",
        "tasks_completed": 2,
        "tasks_failed": 1,
        "uptime_hours": 0.5,
        "interval_s": 10.0,
    }
    assert book.report("b", now=1800.0)["tasks_completed"] == 0


def test_status_is_busy_while_any_task_runs() -> None:
    book = HealthBook(["a", "b"], now=0.0, interval_s=10.0)
    book.started("a")
    book.started("a")
    book.ended("a", ok=True)
    assert book.report("a", now=1.0)["status"] == "busy"
    assert book.report("b", now=1.0)["status"] == "idle"
    book.ended("a", ok=True)
    assert book.report("a", now=1.0)["status"] == "idle"


def test_a_worker_that_stops_says_so() -> None:
    book = HealthBook(["a"], now=0.0, interval_s=10.0)
    book.started("a")
    book.is_draining = True
    assert book.report("a", now=1.0)["status"] == "draining"
    book.is_stopped = True
    assert book.report("a", now=1.0)["status"] == "stopped"
