"""Which alerts fire: rules, the values of now, and what was before. Performs no I/O.

::

               met                  met for as long as the rule says
    nothing ────────▶ pending ──────────────────────▶ firing ──▶ told
       ▲                 │                               │
       └──── not met ────┴─────────── not met ───────────┴─────▶ resolved, told

An alert is about one subject: a fleet, a tag or an agent. It fires once and is resolved
once, whatever happens in between, also over restarts. What is not known (no task has
ended, the broker is away, the monitor is catching up) changes nothing. A subject that
is no longer there resolves its alert.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from pilotfleet.errors import DecodeError
from pilotfleet.fleet.monitor.alerts.counterrates import CounterRate
from pilotfleet.fleet.monitor.alerts.rules import FOLLOWING, Kind, Scope
from pilotfleet.fleet.monitor.figures import AlertRow, AlertState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pilotfleet.fleet.monitor.alerts.rules import Rule

__all__ = ["AgentValue", "AlertBook", "AlertChange", "Values"]

MAX_SUBJECTS: Final = 1_000
"""Alerts of one rule in one fleet; those beyond are one alert together."""
MAX_RESOLVED: Final = 200
"""Remembered, to be shown."""
OTHERS: Final = "agent:*"
"""Subject of the alert for all that are too many."""


class AgentValue(Protocol):
    """An agent as the rules see it."""

    @property
    def name(self) -> str:
        """Its name in the fleet."""

    @property
    def last_seen(self) -> float:
        """When its last health event came."""


class Values(Protocol):
    """What the rules are held against; None is what is not known."""

    def fleets(self) -> Sequence[str]:
        """Return the fleets that are watched."""

    def is_current(self, fleet: str, at: float) -> bool:
        """Tell whether the fleet is heard and its events are counted up to now."""

    def behind_s(self, fleet: str) -> float:
        """Return by how much the times of a fleet are behind ours."""

    def fleet_value(self, fleet: str, metric: str) -> float | None:
        """Return a metric of ``rules.FLEET_METRICS``."""

    def tag_value(self, fleet: str, tag: str, metric: str) -> float | None:
        """Return a metric of ``rules.TAG_METRICS``."""

    def agent_values(
        self, fleet: str, metric: str | None
    ) -> Iterable[tuple[AgentValue, float | None]]:
        """Yield the agents that should be there, with a metric of each."""

    def last_event_at(self, fleet: str, pattern: str) -> float | None:
        """Return when the last event of such a topic came."""

    def last_health_at(self, fleet: str, tag: str) -> float | None:
        """Return when the last health event of an agent with the tag came."""


@dataclass(frozen=True, slots=True)
class AlertChange:
    """An alert that fires or is resolved, to be told."""

    id: str
    """Of the alert: the same when it fires, when it is resolved and when either is
    told twice."""
    rule: Rule
    row: AlertRow
    at: float

    def payload(self) -> dict[str, Any]:
        """Return what is told, as it stands in JSON."""
        row = self.row
        return {
            "id": self.id,
            "rule": row.rule,
            "severity": row.severity,
            "fleet": row.fleet,
            "subject": row.subject,
            "state": row.state,
            "value": row.value,
            "summary": row.summary,
            "since": row.since,
            "at": self.at,
        }


class _Alert(msgspec.Struct):
    """One that is pending or fires."""

    state: AlertState
    since: float
    """When it took on this state."""
    value: float | None
    id: str = ""


class _Group(msgspec.Struct):
    """The alerts of one rule in one fleet."""

    rule: str
    fleet: str
    alerts: dict[str, _Alert] = {}


class _Saved(msgspec.Struct):
    groups: list[_Group]
    resolved: list[AlertRow]


_saved: Final = msgspec.msgpack.Decoder(_Saved)


class AlertBook:
    """The alerts of all rules."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = {rule.name: rule for rule in rules}
        self._groups: dict[tuple[str, str], _Group] = {}
        self._rates: dict[tuple[str, str], dict[str, CounterRate]] = {}
        self._resolved: deque[AlertRow] = deque(maxlen=MAX_RESOLVED)
        # Since when each fleet is heard without a break: silence before does not count.
        self._heard_since: dict[str, float] = {}
        self._behind: dict[str, float] = {}
        self._changes: list[AlertChange] = []
        self.version = 0
        """Grows with each change that must survive a restart."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules in use."""
        return tuple(self._rules.values())

    def evaluate(self, values: Values, at: float) -> list[AlertChange]:
        """Hold all rules against the values of now; return what is to be told."""
        fleets = list(values.fleets())
        current = {fleet: values.is_current(fleet, at) for fleet in fleets}
        self._hear(current, at)
        self._behind = {fleet: values.behind_s(fleet) for fleet in fleets}
        for rule in self._rules.values():
            for fleet in fleets:
                if rule.fleet in ("", fleet):
                    self._evaluate(rule, fleet, values, current[fleet], at)
        for group in list(self._groups.values()):
            # The fleet is not watched any more, or the rule is for another one.
            rule = self._rules[group.rule]
            if group.fleet not in fleets or rule.fleet not in ("", group.fleet):
                summary = f"the rule {rule.name} is not for {group.fleet} any more"
                self._end(rule, group, set(), at, summary=summary)
        return self._taken()

    def rows(self) -> list[AlertRow]:
        """Return what fires, what is pending, and what was resolved lately."""
        rows = [
            self._row(self._rules[group.rule], group.fleet, subject, alert)
            for group in self._groups.values()
            for subject, alert in group.alerts.items()
        ]
        rows.sort(key=lambda row: (row.state is not AlertState.FIRING, -row.since))
        return [*rows, *reversed(self._resolved)]

    def reload(self, rules: Sequence[Rule], at: float) -> list[AlertChange]:
        """Use other rules; those of the same name go on with their alerts.

        Alerts of rules that are gone are resolved.
        """
        names = {rule.name: rule for rule in rules}
        for group in list(self._groups.values()):
            if group.rule not in names:
                summary = f"the rule {group.rule} is gone"
                self._end(self._rules[group.rule], group, set(), at, summary=summary)
        # A counter that runs for another metric or window would mislead.
        self._rates = {
            key: rates
            for key, rates in self._rates.items()
            if names.get(key[0]) == self._rules[key[0]]
        }
        self._rules = names
        self.version += 1
        return self._taken()

    def save(self) -> bytes:
        """Return what is needed to go on after a restart."""
        saved = _Saved(list(self._groups.values()), list(self._resolved))
        return msgspec.msgpack.encode(saved)

    def load(self, data: bytes) -> None:
        """Go on with what :meth:`save` returned. Alerts without a rule are forgotten.

        Raises:
            DecodeError: It is something else.
        """
        try:
            saved = _saved.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise DecodeError(f"damaged state of alerts: {error}") from error
        for group in saved.groups:
            if group.rule in self._rules:
                self._groups[group.rule, group.fleet] = group
        self._resolved.extend(saved.resolved)

    # Private

    def _hear(self, current: dict[str, bool], at: float) -> None:
        for fleet, is_current in current.items():
            if not is_current:
                self._heard_since.pop(fleet, None)
            elif self._heard_since.setdefault(fleet, at) > at:
                self._heard_since[fleet] = at

    def _evaluate(
        self, rule: Rule, fleet: str, values: Values, is_current: bool, at: float
    ) -> None:
        # Values of before an outage say nothing about now.
        if not is_current and rule.metric != FOLLOWING:
            return
        key = (rule.name, fleet)
        group = self._groups.get(key) or _Group(*key)
        there: set[str] = set()
        excess = 0
        for subject, value, is_met in self._observe(rule, fleet, values, at):
            there.add(subject)
            is_known = subject in group.alerts
            if is_met and not is_known and len(group.alerts) >= MAX_SUBJECTS:
                excess += 1
            elif is_known or is_met:
                self._step(rule, group, subject, value, is_met, at)
        if excess or OTHERS in group.alerts:
            there.add(OTHERS)
            self._step(rule, group, OTHERS, float(excess), excess > 0, at)
        if group.alerts:
            self._groups[key] = group
            self._end(rule, group, there, at)
        for gone in self._rates.get(key, {}).keys() - there:
            del self._rates[key][gone]

    def _observe(
        self, rule: Rule, fleet: str, values: Values, at: float
    ) -> Iterator[tuple[str, float | None, bool | None]]:
        """Yield the subjects of a rule, their values, and whether they meet it."""
        if rule.scope is Scope.AGENT:
            metric = None if rule.kind is Kind.ABSENCE else rule.metric
            for agent, value in values.agent_values(fleet, metric):
                if rule.fits_agent(agent.name):
                    subject = f"agent:{agent.name}"
                    # Zero: it is known of the registry only.
                    seen = agent.last_seen or None
                    yield self._judge(rule, fleet, subject, value, seen, at)
            return
        subject, value, last = "", None, None
        if rule.scope is Scope.TAG:
            subject = f"tag:{rule.tag}"
            if rule.kind is Kind.ABSENCE:
                last = values.last_health_at(fleet, rule.tag)
            else:
                value = values.tag_value(fleet, rule.tag, rule.metric)
        elif rule.kind is Kind.ABSENCE:
            last = values.last_event_at(fleet, rule.metric)
        else:
            value = values.fleet_value(fleet, rule.metric)
        yield self._judge(rule, fleet, subject, value, last, at)

    def _judge(
        self,
        rule: Rule,
        fleet: str,
        subject: str,
        value: float | None,
        last: float | None,
        at: float,
    ) -> tuple[str, float | None, bool | None]:
        if rule.kind is Kind.ABSENCE:
            return subject, *self._silence(rule, fleet, last, at)
        if rule.kind is Kind.RATE and value is not None:
            rates = self._rates.setdefault((rule.name, fleet), {})
            rate = rates.get(subject)
            if rate is None:
                rate = rates[subject] = CounterRate(rule.window_s)
            value = rate.take(value, at)
        return subject, value, None if value is None else rule.is_met(value)

    def _silence(
        self, rule: Rule, fleet: str, last: float | None, at: float
    ) -> tuple[float | None, bool | None]:
        """Return for how long no event came, and whether that is too long."""
        if last is not None:
            # A broker whose clock is behind does not make events older.
            last += self._behind[fleet]
        if last is not None and at - last < rule.hold_s:
            return max(0.0, at - last), False
        heard_s = at - self._heard_since.get(fleet, at)
        if heard_s < rule.hold_s:
            # What came while nobody listened cannot be known.
            return None, None
        return heard_s if last is None else at - last, True

    def _step(
        self,
        rule: Rule,
        group: _Group,
        subject: str,
        value: float | None,
        is_met: bool | None,
        at: float,
    ) -> None:
        """Move the alert of one subject on."""
        if is_met is None:
            return
        alert = group.alerts.get(subject)
        if not is_met:
            if alert is not None:
                alert.value = value
                self._finish(rule, group, subject, at)
            return
        if alert is None:
            alert = group.alerts[subject] = _Alert(AlertState.PENDING, at, value)
            self.version += 1
        alert.value = value
        # A clock that was put back must not make a pending alert wait for hours.
        alert.since = min(alert.since, at)
        # The time of an absence is in its value already.
        hold_s = 0.0 if rule.kind is Kind.ABSENCE else rule.hold_s
        if alert.state is AlertState.PENDING and at - alert.since >= hold_s:
            alert.state, alert.since = AlertState.FIRING, at
            alert.id = _make_id(rule.name, group.fleet, subject, at)
            self.version += 1
            row = self._row(rule, group.fleet, subject, alert)
            self._changes.append(AlertChange(alert.id, rule, row, at))

    def _finish(
        self, rule: Rule, group: _Group, subject: str, at: float, *, summary: str = ""
    ) -> None:
        """Forget a pending alert; resolve one that fires, ``summary`` says why."""
        alert = group.alerts.pop(subject)
        self.version += 1
        if alert.state is not AlertState.FIRING:
            return
        row = msgspec.structs.replace(
            self._row(rule, group.fleet, subject, alert),
            state=AlertState.RESOLVED,
            resolved_at=at,
        )
        if summary:
            row = msgspec.structs.replace(row, summary=summary)
        self._resolved.append(row)
        self._changes.append(AlertChange(alert.id, rule, row, at))

    def _end(
        self,
        rule: Rule,
        group: _Group,
        there: set[str],
        at: float,
        *,
        summary: str = "",
    ) -> None:
        """Finish the alerts whose subjects are not there."""
        for subject in group.alerts.keys() - there:
            self._finish(rule, group, subject, at, summary=summary)
        if not group.alerts:
            self._groups.pop((group.rule, group.fleet), None)

    def _row(self, rule: Rule, fleet: str, subject: str, alert: _Alert) -> AlertRow:
        summary = rule.describe(fleet=fleet, subject=subject, value=alert.value)
        if subject == OTHERS:
            summary = f"{alert.value or 0:g} more agents: {rule.condition}"
        return AlertRow(
            rule=rule.name,
            severity=rule.severity,
            fleet=fleet,
            subject=subject,
            state=alert.state,
            since=alert.since,
            value=alert.value,
            summary=summary,
        )

    def _taken(self) -> list[AlertChange]:
        changes, self._changes = self._changes, []
        return changes


def _make_id(rule: str, fleet: str, subject: str, at: float) -> str:
    text = "\0".join((rule, fleet, subject, repr(at)))
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=12).hexdigest()
