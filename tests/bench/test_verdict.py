"""The verdict on a run of many agents: everything that is missed is said."""

from __future__ import annotations

from bench.fleets import mistakes
from bench.hosting import Snapshot
from bench.processmemory import Memory
from bench.verdict import MIB, State, all_of, of_states, table
from pilotfleet.fleet.control import BatchResult
from pilotfleet.fleet.schedule import TaskResult
from pilotfleet.fleet.taskfile import TaskLine

AGENTS = 10_000
TASKS = 20_000


def state(at: float, mib: float, *, cpu_s: float = 0.0, files: int = 0) -> State:
    memory = Memory(rss=int(mib * MIB), pss=0, uss=0)
    snapshot = Snapshot(at, memory, AGENTS + 28 + files, cpu_s)
    return State(f"at {at}", snapshot, tasks=40)


def missed(*states: State, loads: tuple[int, ...]) -> list[str]:
    after_load = [states[number] for number in loads]
    checks = of_states(states, after_load, agents=AGENTS, tasks=TASKS)
    return [check.what for check in checks if not check.is_met]


def test_a_run_inside_its_budgets_misses_nothing() -> None:
    states = (
        state(0, 105),
        state(100, 300, cpu_s=60),
        state(700, 300, cpu_s=100),
        state(800, 310, cpu_s=160),
        state(900, 312, cpu_s=230),
        state(999, 312, cpu_s=231),
    )
    assert missed(*states, loads=(1, 3, 4)) == []


def test_each_budget_can_be_missed() -> None:
    states = (
        state(0, 200),
        state(100, 300, cpu_s=60),
        state(700, 300, cpu_s=121),
        state(800, 310, cpu_s=160),
        state(900, 500, cpu_s=230),
        state(999, 500, cpu_s=231, files=100),
    )
    assert [what.split(",")[0] for what in missed(*states, loads=(1, 3, 4))] == [
        "memory of an idle agent",
        "memory of an agent at most",
        "processor of an idle agent after work",
        "memory that the last 20",
        "open files",
        "open files more than at the start",
    ]


def test_what_is_missed_stands_below_the_table() -> None:
    checks = [all_of("agents", 9, 10), all_of("pairs", 5, 5), all_of("tasks", 1, 2)]
    found = table(checks)
    assert found.note == "Missed: agents; tasks."
    assert found.column("met") == ["MISSED", "yes", "MISSED"]
    assert table(checks[1:2]).note == "All of it is met."


def test_wrong_missing_and_second_results_are_named() -> None:
    lines = [TaskLine(str(number), f"task {number}") for number in range(4)]
    texts = [("0", "task 0", ""), ("0", "task 0", ""), ("1", "x", ""), ("2", "", "no")]
    rows = [
        BatchResult(seq, TaskResult(task_id, "", "", text, 1, 0.0, error))
        for seq, (task_id, text, error) in enumerate(texts)
    ]
    wrong = mistakes(lines, rows)
    assert sum("wrong or second" in text for text in wrong) == 3
    assert "no right result: 2: no" in wrong
    assert "no right result: 3: none at all" in wrong
    assert mistakes(lines[:1], rows[:1]) == []
