"""Rules of alerts, and the TOML file that they stand in.

Unknown keys are refused, and so is whatever could never fire: an alert that is
silently ignored is missed when it is too late.
"""

from __future__ import annotations

import string
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from pilotfleet.errors import ConfigError, InvalidArgument
from pilotfleet.fleet.monitor.alerts.targets import Action, parse_action
from pilotfleet.fleet.monitor.source import SERIES
from pilotfleet.protocol.durations import format_duration, parse_duration
from pilotfleet.protocol.services.fleetevents import HEALTH_TOPIC

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "AGENT_METRICS",
    "COUNTERS",
    "FLEET_METRICS",
    "FOLLOWING",
    "TAG_METRICS",
    "Kind",
    "Rule",
    "Scope",
    "load_rules",
    "parse_rules",
]

MAX_RULES: Final = 200
MAX_TARGETS: Final = 10
"""Of one rule."""
MAX_FILE_BYTES: Final = 1 << 20
MAX_TEXT: Final = 1_000
LONGEST_S: Final = 30 * 86_400.0

FOLLOWING: Final = "following"
"""1 while a broker of the fleet is heard; the one metric that is always known."""
COUNTERS: Final = frozenset(
    [
        *("completed", "failed", "events", "events_lost", "events_refused"),
        *("bytes_sent", "bytes_received"),
    ]
)
FLEET_METRICS: Final = frozenset(
    {*SERIES, *COUNTERS, "agents_total", "polo_total", FOLLOWING}
)
_TAG_SERIES: Final = SERIES[: SERIES.index("trust_links")]
TAG_METRICS: Final = frozenset({*_TAG_SERIES, "agents_total", "completed", "failed"})
AGENT_METRICS: Final = frozenset(["state", "completed", "failed", "polo", "tunnels"])

_PLACEHOLDERS: Final = frozenset(["value", "subject", "fleet", "rule"])
_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class Kind(StrEnum):
    """What a rule looks at."""

    THRESHOLD = "threshold"
    RATE = "rate"
    ABSENCE = "absence"


class Scope(StrEnum):
    """What a rule's alerts are about."""

    FLEET = "fleet"
    TAG = "tag"
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, checked."""

    name: str
    kind: Kind
    severity: str
    metric: str
    """Of a threshold or rate; of an absence the pattern of the topics."""
    above: float | None
    below: float | None
    hold_s: float
    """How long the condition must hold before it fires; of an absence, how long no
    event may come."""
    window_s: float
    """What a rate is taken over."""
    fleet: str
    """Empty for all."""
    tag: str
    agent: str
    """A pattern, as of file names; empty for none."""
    to: tuple[Action, ...]
    summary: str

    @property
    def scope(self) -> Scope:
        """What its alerts are about."""
        if self.agent:
            return Scope.AGENT
        return Scope.TAG if self.tag else Scope.FLEET

    @property
    def condition(self) -> str:
        """The condition in words, after the value."""
        if self.kind is Kind.ABSENCE:
            return f"no {self.metric} for {format_duration(self.hold_s)}"
        bound = f"above {self.above:g}" if self.below is None else None
        bound = bound or f"below {self.below:g}"
        unit = " a minute" if self.kind is Kind.RATE else ""
        return f"{self.metric} {bound}{unit}"

    def is_met(self, value: float) -> bool:
        """Tell whether a value is beyond the threshold; one that equals it is not."""
        if self.above is not None:
            return value > self.above
        assert self.below is not None
        return value < self.below

    def fits_agent(self, name: str) -> bool:
        """Tell whether it is about an agent."""
        return fnmatchcase(name, self.agent)

    def describe(self, *, fleet: str, subject: str, value: float | None) -> str:
        """Return the summary of an alert."""
        shown = "unknown" if value is None else f"{value:.6g}"
        names = {"value": shown, "subject": subject or fleet, "fleet": fleet}
        if self.summary:
            return self.summary.format_map({**names, "rule": self.name})[:MAX_TEXT]
        return f"{subject or fleet}: {self.condition} (is {shown})"[:MAX_TEXT]


Text = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TEXT)]


class _RuleTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[[rule]]`` as it stands in the file."""

    name: Annotated[str, msgspec.Meta(pattern=_NAME, max_length=100)]
    to: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_TARGETS)] = ()
    severity: Literal["info", "warning", "critical"] = "warning"
    fleet: str = ""
    tag: str = ""
    agent: str = ""
    metric: Text | None = None
    absent: Text | None = None
    rate: Text | None = None
    above: float | None = None
    below: float | None = None
    window: str = "5m"
    hold: str = msgspec.field(name="for", default="0s")
    summary: Annotated[str, msgspec.Meta(max_length=MAX_TEXT)] = ""


class _RulesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rule: Annotated[tuple[dict[str, object], ...], msgspec.Meta(max_length=MAX_RULES)]


def load_rules(path: Path) -> tuple[Rule, ...]:
    """Read and check a file of rules. Blocks.

    Raises:
        ConfigError: It cannot be read, or a rule is wrong; names file, rule and key.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read alert rules {path}: {error.strerror}",
            hint="examples/alerts.toml is a file to start from",
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"alert rules {path}: larger than {MAX_FILE_BYTES} bytes")
    return parse_rules(content, str(path))


def parse_rules(content: bytes, source: str) -> tuple[Rule, ...]:
    """Check what stands in a file of rules.

    Raises:
        ConfigError: A rule is wrong; names ``source``, rule and key.
    """
    try:
        table = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        # Also what is no UTF-8, and a number of thousands of digits.
        raise ConfigError(f"alert rules {source} is not TOML: {error}") from None
    try:
        tables = msgspec.convert(table, _RulesFile).rule
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"alert rules {source}: {error}", hint="begin each rule with [[rule]]"
        ) from None
    rules: dict[str, Rule] = {}
    for number, each in enumerate(tables, start=1):
        called = each.get("name")
        place = f"rule {called!r}" if isinstance(called, str) else f"rule {number}"
        try:
            rule = _read(msgspec.convert(each, _RuleTable))
        except (msgspec.ValidationError, InvalidArgument) as error:
            hint = getattr(error, "hint", None) or "see docs/reference/alert-rules.md"
            raise ConfigError(
                f"alert rules {source}: {place[:200]}: {error}", hint=hint
            ) from None
        if rule.name in rules:
            raise ConfigError(
                f"alert rules {source}: {place}: name: another rule has it",
                hint="give each rule a name of its own",
            )
        rules[rule.name] = rule
    return tuple(rules.values())


def _read(table: _RuleTable) -> Rule:
    kind, metric = _kind(table)
    if table.tag and table.agent:
        raise ConfigError("tag and agent: a rule is about one of the two")
    rule = Rule(
        name=table.name,
        kind=kind,
        severity=table.severity,
        metric=metric,
        above=table.above,
        below=table.below,
        hold_s=_seconds(table.hold, "for", least=0.0),
        window_s=_seconds(table.window, "window", least=10.0),
        fleet=table.fleet,
        tag=table.tag,
        agent=table.agent,
        to=tuple(parse_action(text, place) for place, text in enumerate(table.to, 1)),
        summary=table.summary,
    )
    _check_metric(rule)
    _check_bounds(rule)
    _check_summary(rule.summary)
    return rule


def _kind(table: _RuleTable) -> tuple[Kind, str]:
    given = [
        (kind, metric)
        for kind, metric in (
            (Kind.THRESHOLD, table.metric),
            (Kind.ABSENCE, table.absent),
            (Kind.RATE, table.rate),
        )
        if metric is not None
    ]
    if len(given) != 1:
        raise ConfigError(
            "metric, absent and rate: exactly one of the three must be given",
            hint='for example: metric = "error_rate" and above = 0.1',
        )
    return given[0]


def _seconds(text: str, key: str, *, least: float) -> float:
    seconds = parse_duration(text, key, needs_unit=True)
    if not least <= seconds <= LONGEST_S:
        raise ConfigError(
            f'{key}: "{text}" is not from {format_duration(least)} to 30 days',
            hint="for example 2m",
        )
    return seconds


def _check_metric(rule: Rule) -> None:
    if rule.kind is Kind.ABSENCE:
        if not rule.metric.startswith("fleet."):
            raise ConfigError(
                f"absent: {rule.metric!r} is no topic that the monitor follows",
                hint='use "fleet.health", "fleet.task" or another topic of fleet.*',
            )
        if rule.scope is not Scope.FLEET and rule.metric != HEALTH_TOPIC:
            raise ConfigError(
                f"absent: {rule.metric!r} is not known of single agents and tags",
                hint='use "fleet.health", or leave out tag and agent',
            )
        if not rule.hold_s:
            raise ConfigError(
                "for: an absence needs the time in which an event should come",
                hint='for example: for = "1m"',
            )
        return
    known = {
        Scope.FLEET: FLEET_METRICS,
        Scope.TAG: TAG_METRICS,
        Scope.AGENT: AGENT_METRICS,
    }[rule.scope]
    key = "metric"
    if rule.kind is Kind.RATE:
        key, known = "rate", known & COUNTERS
    if rule.metric not in known:
        about = {Scope.FLEET: "a fleet", Scope.TAG: "a tag", Scope.AGENT: "an agent"}
        raise ConfigError(
            f"{key}: {rule.metric!r} is no {key} of {about[rule.scope]}",
            hint=f"use one of {', '.join(sorted(known))}",
        )


def _check_bounds(rule: Rule) -> None:
    bounds = [bound for bound in (rule.above, rule.below) if bound is not None]
    if rule.kind is Kind.ABSENCE:
        if bounds:
            raise ConfigError("above and below: an absence has no threshold")
        return
    if len(bounds) != 1:
        raise ConfigError("above and below: exactly one of the two must be given")
    if bounds[0] != bounds[0] or abs(bounds[0]) == float("inf"):
        raise ConfigError("above and below: the threshold must be a finite number")


def _check_summary(summary: str) -> None:
    try:
        parts = list(string.Formatter().parse(summary))
    except ValueError as error:
        raise ConfigError(f"summary: {error}", hint="write {{ for a brace") from None
    for _, name, form, conversion in parts:
        if name is not None and (name not in _PLACEHOLDERS or form or conversion):
            raise ConfigError(
                f"summary: {{{name}}} is no placeholder",
                hint="use {value}, {subject}, {fleet} or {rule}, and nothing else",
            )
