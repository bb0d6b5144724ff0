"""When alerts fire and when they are resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.fleet.monitor.alerts import book as alerts
from pilotfleet.fleet.monitor.alerts.book import AlertBook
from pilotfleet.fleet.monitor.alerts.counterrates import CounterRate
from pilotfleet.fleet.monitor.view.topicclock import MAX_TOPICS, TopicClock
from tests.fleet.monitor.alertsupport import FLEET, MadeValues, rule, rules, told

if TYPE_CHECKING:
    from pilotfleet.fleet.monitor.alerts.rules import Rule

ERRORS = 'metric = "error_rate"\nabove = 0.1\n'
T0 = 1_800_000_000.0


def run(book: AlertBook, steps: list[tuple[float, float | None]]) -> list[str]:
    """Return what was told: time and state of each change."""
    values, said = MadeValues(), []
    for at, value in steps:
        values.metrics["error_rate"] = value
        said += [f"{at:g} {c.row.state}" for c in book.evaluate(values, T0 + at)]
    return said


@pytest.mark.parametrize(
    ("bound", "value", "fires"),
    [
        ("above = 0.1", 0.1, False),
        ("above = 0.1", 0.1000001, True),
        ("below = 0.1", 0.1, False),
        ("below = 0.1", 0.0999999, True),
        ("above = 0", 0.0, False),
        ("above = 0", -1.0, False),
        ("above = 0", None, False),
    ],
)
def test_exactly_at_the_threshold(bound: str, value: float | None, fires: bool) -> None:
    book = AlertBook([rule(f'metric = "error_rate"\n{bound}')])
    assert run(book, [(0, value)]) == (["0 firing"] if fires else [])


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        # Pending for just less than the time, and for just that time.
        ([(0, 1), (119.9, 1)], []),
        ([(0, 1), (120, 1)], ["120 firing"]),
        # What is over within the time never fires, however often.
        ([(0, 1), (100, 0), (130, 1), (240, 0), (250, 1), (369, 1)], []),
        ([(0, 1), (120, 1), (121, 1), (200, 1)], ["120 firing"]),
        ([(0, 1), (120, 1), (121, 0), (122, 0)], ["120 firing", "121 resolved"]),
        (
            [(0, 1), (120, 1), (121, 0), (122, 1), (241, 1), (242, 1), (243, 0)],
            ["120 firing", "121 resolved", "242 firing", "243 resolved"],
        ),
        # What is not known changes nothing, in either state.
        ([(0, 1), (60, None), (120, 1)], ["120 firing"]),
        ([(0, 1), (60, None), (200, None)], []),
        ([(0, 1), (120, 1), (150, None), (160, 1)], ["120 firing"]),
        ([(0, 1), (120, 1), (150, None), (160, 0)], ["120 firing", "160 resolved"]),
        # A clock that is put back makes nothing wait for hours.
        ([(0, 1), (-5000, 1), (-4881, 1), (-4880, 1)], ["-4880 firing"]),
    ],
)
def test_it_must_hold_for_the_time(
    steps: list[tuple[float, float | None]], said: list[str]
) -> None:
    made = rule(ERRORS + 'for = "2m"')
    assert run(AlertBook([made]), steps) == said
    # The same with a restart after each step.
    told_over_restarts, state = [], None
    for step in steps:
        book = AlertBook([made])
        if state is not None:
            book.load(state)
        told_over_restarts += run(book, [step])
        state = book.save()
    assert told_over_restarts == said


@given(
    values=st.lists(
        st.tuples(st.sampled_from([1, 30, 61]), st.sampled_from([0, 1, None])),
        max_size=60,
    ),
    hold_s=st.sampled_from([0, 45, 120]),
    restarts=st.sets(st.integers(0, 60)),
)
def test_fired_and_resolved_alternate(
    values: list[tuple[float, float | None]], hold_s: int, restarts: set[int]
) -> None:
    made = rule(ERRORS + f'for = "{hold_s}s"')
    book, at, states, ids = AlertBook([made]), T0, [], []
    for place, (pause, value) in enumerate(values):
        at += pause
        if place in restarts:
            state, book = book.save(), AlertBook([made])
            book.load(state)
        for change in book.evaluate(MadeValues({"error_rate": value}), at):
            states.append(change.row.state)
            ids.append(change.id)
    assert states[::2] == ["firing"] * len(states[::2])
    assert states[1::2] == ["resolved"] * len(states[1::2])
    # One id for each pair, and no other.
    assert ids[1::2] == ids[::2][: len(ids[1::2])]
    assert len(set(ids)) == len(ids[::2])


def test_what_is_told() -> None:
    book = AlertBook([rule(ERRORS + 'severity = "critical"\nfor = "10s"')])
    values = MadeValues({"error_rate": 0.5})
    assert book.evaluate(values, T0) == []
    [pending] = book.rows()
    assert (pending.state, pending.since, pending.value) == ("pending", T0, 0.5)
    [fired] = book.evaluate(values, T0 + 10)
    values.metrics["error_rate"] = 0.05
    [resolved] = book.evaluate(values, T0 + 20)
    payload = resolved.payload()
    assert payload.pop("id") == fired.id
    assert payload == {
        "rule": "r",
        "severity": "critical",
        "fleet": FLEET,
        "subject": "",
        "state": "resolved",
        "value": 0.05,
        "summary": "batch: error_rate above 0.1 (is 0.05)",
        "since": T0 + 10,
        "at": T0 + 20,
    }
    [row] = book.rows()
    assert (row.state, row.since, row.resolved_at) == ("resolved", T0 + 10, T0 + 20)


def test_rows_begin_with_what_fires() -> None:
    book = AlertBook(
        [
            rule('metric = "p99_ms"\nabove = 1\nfor = "1h"', name="waits"),
            rule('metric = "tunnels"\nabove = 1', name="over"),
            rule('metric = "error_rate"\nabove = 0.1', name="fires"),
        ]
    )
    book.evaluate(MadeValues({"p99_ms": 2, "tunnels": 2, "error_rate": 1}), T0)
    book.evaluate(MadeValues({"p99_ms": 2, "tunnels": 0, "error_rate": 1}), T0 + 1)
    assert [row.rule for row in book.rows()] == ["fires", "waits", "over"]


def test_tag_that_disappears_keeps_its_alert() -> None:
    book = AlertBook([rule('metric = "agents_alive"\nbelow = 2\ntag = "gpu"')])
    values = MadeValues()
    assert book.evaluate(values, T0) == []
    values.tags["gpu"] = {"agents_alive": 1}
    assert told(book.evaluate(values, T0 + 1)) == [("tag:gpu", "firing")]
    values.tags.clear()
    assert book.evaluate(values, T0 + 2) == []
    values.tags["gpu"] = {"agents_alive": 2}
    assert told(book.evaluate(values, T0 + 3)) == [("tag:gpu", "resolved")]


def test_each_agent_of_the_pattern_has_its_alert() -> None:
    book = AlertBook([rule('metric = "state"\nabove = 1\nagent = "worker-*"')])
    values = MadeValues(agents={"worker-1": 2, "worker-2": 1, "hub": 2, "worker-3": 2})
    fired = told(book.evaluate(values, T0))
    assert fired == [("agent:worker-1", "firing"), ("agent:worker-3", "firing")]
    values.agents["worker-1"] = 0
    del values.agents["worker-3"]  # It left.
    resolved = told(book.evaluate(values, T0 + 1))
    assert sorted(resolved) == [
        ("agent:worker-1", "resolved"),
        ("agent:worker-3", "resolved"),
    ]


def test_agents_beyond_the_bound_are_one_alert(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alerts, "MAX_SUBJECTS", 3)
    book = AlertBook([rule('metric = "state"\nabove = 1\nagent = "*"')])
    values = MadeValues(agents={f"w{n}": 2 for n in range(10)})
    fired = book.evaluate(values, T0)
    assert told(fired)[-1] == ("agent:*", "firing")
    assert fired[-1].row.summary == "7 more agents: state above 1"
    assert len(fired) == 4
    assert book.evaluate(values, T0 + 1) == []
    values.agents = {f"w{n}": 2 for n in range(3)}
    assert told(book.evaluate(values, T0 + 2)) == [("agent:*", "resolved")]


def test_fleets_are_apart() -> None:
    book = AlertBook([rule(ERRORS), rule(ERRORS + 'fleet = "b"', name="only-b")])
    values = MadeValues({"error_rate": 1}, names=("a", "b"))
    fired = [(c.rule.name, c.row.fleet) for c in book.evaluate(values, T0)]
    assert fired == [("r", "a"), ("r", "b"), ("only-b", "b")]
    values.names = ("a",)
    resolved = [(c.rule.name, c.row.fleet) for c in book.evaluate(values, T0 + 1)]
    assert sorted(resolved) == [("only-b", "b"), ("r", "b")]


# Absence


def test_absence_of_an_event() -> None:
    book = AlertBook([rule('absent = "fleet.health"\nfor = "1m"')])
    values = MadeValues(seen={"fleet.health": T0 - 30})
    assert book.evaluate(values, T0) == []
    assert book.evaluate(values, T0 + 29.9) == []
    # 60 s of silence, but only 30 of them were heard by this monitor.
    assert book.evaluate(values, T0 + 30) == []
    [fired] = book.evaluate(values, T0 + 60)
    assert fired.row.value == 90
    assert fired.row.summary == "batch: no fleet.health for 1m0s (is 90)"
    values.seen["fleet.health"] = T0 + 61
    assert told(book.evaluate(values, T0 + 61)) == [("", "resolved")]


def test_clock_of_a_broker_that_is_behind_makes_no_absence() -> None:
    book = AlertBook([rule('absent = "fleet.health"\nfor = "1m"')])
    values = MadeValues(behind=300)
    for second in range(0, 200, 10):
        values.seen["fleet.health"] = T0 + second - 300
        assert book.evaluate(values, T0 + second) == []


def test_what_never_came_is_absent_after_the_time() -> None:
    for text, subject in (("", ""), ('tag = "gpu"', "tag:gpu")):
        book = AlertBook([rule(f'absent = "fleet.health"\nfor = "1m"\n{text}')])
        assert book.evaluate(MadeValues(), T0) == []
        assert book.evaluate(MadeValues(), T0 + 59) == []
        assert told(book.evaluate(MadeValues(), T0 + 60)) == [(subject, "firing")]


def test_absence_of_agents() -> None:
    book = AlertBook([rule('absent = "fleet.health"\nfor = "1m"\nagent = "w*"')])
    values = MadeValues(agents={"w1": None, "w2": None, "new": None})
    values.seen = {"w1": T0, "w2": T0 + 50}
    book.evaluate(values, T0)
    assert told(book.evaluate(values, T0 + 60)) == [("agent:w1", "firing")]


def test_restart_neither_fires_nor_resolves_an_absence() -> None:
    made = rule('absent = "fleet.health"\nfor = "1m"')
    values = MadeValues(seen={"fleet.health": T0})
    book = AlertBook([made])
    book.evaluate(values, T0)
    assert len(book.evaluate(values, T0 + 60)) == 1
    state, book = book.save(), AlertBook([made])
    book.load(state)
    for seen in ({}, {"fleet.health": T0}):
        values.seen = seen
        assert book.evaluate(values, T0 + 70) == []
        assert book.evaluate(values, T0 + 170) == []
    values.seen = {"fleet.health": T0 + 180}
    assert told(book.evaluate(values, T0 + 181)) == [("", "resolved")]


# What is not heard


def test_broker_that_is_away_changes_nothing_but_following() -> None:
    book = AlertBook(
        [
            rule(ERRORS, name="errors"),
            rule('metric = "state"\nabove = 1\nagent = "*"', name="lost"),
            rule('absent = "fleet.*"\nfor = "10s"', name="silent"),
            rule('metric = "following"\nbelow = 1\nfor = "30s"', name="deaf"),
        ]
    )
    values = MadeValues({"error_rate": 1, "following": 1}, agents={"w": 2})
    values.seen["fleet.*"] = T0
    assert {c.rule.name for c in book.evaluate(values, T0)} == {"errors", "lost"}
    values.is_heard, values.agents = False, {}
    values.metrics = {"error_rate": 0, "following": 0}
    assert book.evaluate(values, T0 + 1) == []
    fired = book.evaluate(values, T0 + 31)
    assert [c.rule.name for c in fired] == ["deaf"]
    values.is_heard = True
    values.metrics = {"error_rate": 0, "following": 1}
    ended = book.evaluate(values, T0 + 40)
    assert {c.rule.name for c in ended} == {"errors", "lost", "deaf"}
    # Silence counts from when events could be heard again.
    assert book.evaluate(values, T0 + 49) == []
    assert [c.rule.name for c in book.evaluate(values, T0 + 50)] == ["silent"]


# Rates


def test_rate_needs_a_whole_window() -> None:
    book = AlertBook([rule('rate = "failed"\nabove = 10\nwindow = "1m"')])
    said = []
    for second in range(121):
        # 12 a minute from the beginning, and none after a minute and a half.
        values = MadeValues({"failed": min(second, 90) // 5})
        said += [(second, c.row.state) for c in book.evaluate(values, T0 + second)]
    assert said[0] == (60, "firing")
    assert [state for _, state in said] == ["firing", "resolved"]
    assert 95 <= said[1][0] <= 105


@pytest.mark.parametrize(
    ("values", "rate"),
    [
        ([0, 30, 60], 30),
        ([60, 60, 60], 0),
        # It began anew in between: what it counts since then is added.
        ([100, 110, 5], 7.5),
        ([100, 0, 0], 0),
    ],
)
def test_rate_of_a_counter(values: list[float], rate: float) -> None:
    counter = CounterRate(120)
    found = [counter.take(each, T0 + 60 * n) for n, each in enumerate(values)]
    assert found == [None, None, rate]


def test_rate_after_the_clock_was_put_back() -> None:
    counter = CounterRate(60)
    for at in (0, 60):
        counter.take(5, T0 + at)
    assert counter.take(500, T0 - 1000) is None
    assert counter.take(500, T0 - 940) == 0


def test_rate_remembers_few_points() -> None:
    counter = CounterRate(100)
    for tick in range(10_000):
        rate = counter.take(tick, T0 + tick / 10)
    assert rate == pytest.approx(600)
    assert len(counter._points) <= 23


# Restarts and other rules


def reloaded(book: AlertBook, new: list[Rule]) -> list[tuple[str, str]]:
    return [(c.rule.name, c.row.state) for c in book.reload(new, T0 + 5)]


def test_alert_of_a_rule_that_is_gone_says_so() -> None:
    book = AlertBook([rule(ERRORS, name="a")])
    book.evaluate(MadeValues({"error_rate": 0.5}), T0)
    (change,) = book.reload([], T0 + 5)
    assert change.row.summary == "the rule a is gone"
    assert change.payload()["summary"] == change.row.summary
    assert [row.summary for row in book.rows()] == [change.row.summary]


def test_other_rules_take_over_alerts_of_their_name() -> None:
    made = rules(f'[[rule]]\nname = "a"\n{ERRORS}[[rule]]\nname = "b"\n{ERRORS}')
    book = AlertBook(made)
    values = MadeValues({"error_rate": 0.5})
    assert len(book.evaluate(values, T0)) == 2
    changed = rule('metric = "error_rate"\nabove = 0.2', name="a")
    assert reloaded(book, [changed]) == [("b", "resolved")]
    assert book.evaluate(values, T0 + 6) == []
    higher = rule('metric = "error_rate"\nabove = 0.9', name="a")
    assert reloaded(book, [higher]) == []
    assert [c.row.state for c in book.evaluate(values, T0 + 7)] == ["resolved"]


def test_alerts_of_a_rule_that_is_gone_are_forgotten_at_a_restart() -> None:
    book = AlertBook([rule(ERRORS)])
    book.evaluate(MadeValues({"error_rate": 1}), T0)
    other = AlertBook([rule(ERRORS, name="other")])
    other.load(book.save())
    assert other.rows() == []


def test_version_grows_with_what_must_be_kept() -> None:
    book, values = AlertBook([rule(ERRORS)]), MadeValues({"error_rate": 1})
    versions = []
    for value in (0, 1, 1, 1, None, 0, 0):
        values.metrics["error_rate"] = value
        book.evaluate(values, T0)
        versions.append(book.version)
    assert versions[0] == 0
    assert versions[1] == versions[4] < versions[5] == versions[6]


@given(data=st.binary(max_size=60))
def test_damaged_state_is_refused(data: bytes) -> None:
    book = AlertBook([rule(ERRORS)])
    try:
        book.load(data)
    except DecodeError:
        assert book.rows() == []


def test_topics_remembered_are_bounded() -> None:
    clock = TopicClock()
    clock.take("fleet.health", T0)
    for number in range(MAX_TOPICS - 1):
        clock.take(f"other.{number}", T0 + number)
    clock.take("fleet.health", T0 + 5)
    clock.take("fleet.health", T0 + 1)
    clock.take("one.more", T0)
    assert clock.last_event_at("fleet.*") == T0 + 5
    assert clock.last_event_at("other.0") is None
    assert clock.last_event_at("other.1") == T0 + 1
    assert clock.last_event_at("*") == T0 + MAX_TOPICS - 2
