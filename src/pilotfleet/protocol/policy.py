"""Network policies: documents of rules that allow or deny (services.md section 10).

``load_policy`` checks a document as the official program does, with its words, and
compiles the conditions; ``Policy.decide`` tells what the rules say of one event.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pilotfleet.errors import InvalidArgument
from pilotfleet.protocol.durations import parse_duration
from pilotfleet.protocol.expressions import Expression, parse_expression

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["EVENTS", "Directive", "Policy", "PolicyError", "load_policy"]

# From the specification; which names an event has was seen from 1.18.0.
VERSION: Final = 1
_PEER: Final = frozenset(["peer_id", "peer_tags", "peer_age_s"])
_ALL: Final = frozenset(["peer_id", "network_id", "local_tags"])
_STREAM: Final = _PEER | _ALL | {"port", "members"}
EVENTS: Final[dict[str, frozenset[str]]] = {
    "connect": _STREAM,
    "dial": _STREAM,
    "datagram": _STREAM | {"size", "direction"},
    "cycle": _PEER | _ALL | {"members", "peer_count", "cycle_num", "trusted_count"},
    "join": _ALL | {"members"},
    "leave": _ALL,
}
"""What can happen, and the names that conditions about it may use."""
_GATES: Final = frozenset(["connect", "dial", "datagram"])
"""Events whose outcome is a verdict."""
_VERDICTS: Final = frozenset(["allow", "deny"])
_ACTIONS: Final[dict[str, tuple[str, ...]]] = {
    "allow": (),
    "deny": (),
    "tag": ("add", "remove"),
    "evict": (),
    "evict_where": ("match",),
    "prune": ("count",),
    "fill": ("count",),
    "prune_trust": ("percent",),
    "fill_trust": ("target",),
    "webhook": ("event",),
    "log": ("message",),
}
"""Actions, each with the parameters of which it needs one."""

# Of our choosing.
MAX_DOCUMENT: Final = 64 * 1024
MAX_RULES: Final = 256


class PolicyError(InvalidArgument):
    """A policy document is not valid; ``is_form`` tells form from conditions."""

    def __init__(self, message: str, *, is_form: bool = True) -> None:
        super().__init__(message)
        self.is_form = is_form


class Directive(NamedTuple):
    """One thing that the rules say is to be done."""

    type: str
    rule: str
    params: dict[str, Any] | None


class _Rule(NamedTuple):
    name: str
    on: str
    match: Expression
    actions: tuple[Directive, ...]


class Policy:
    """A checked policy."""

    __slots__ = ("_rules", "default_verdict")

    def __init__(self, rules: tuple[_Rule, ...], default_verdict: str) -> None:
        self._rules = rules
        self.default_verdict = default_verdict

    def __len__(self) -> int:
        return len(self._rules)

    @property
    def events(self) -> frozenset[str]:
        """The events that there are rules for."""
        return frozenset(rule.on for rule in self._rules)

    def decide(
        self, event: str, values: Mapping[str, Any], *, wall: float
    ) -> list[Directive]:
        """Return what is to be done about an event, in the order of the rules.

        For a gate the last word on it is in the list: of the first rule that gives
        a verdict, after which no rule is looked at, or the default.

        Args:
            event: One of :data:`EVENTS`.
            values: The names that conditions use.
            wall: Unix time, for ``since``.

        Raises:
            InvalidArgument: A condition cannot be evaluated.
        """
        functions = _functions(wall)
        directives: list[Directive] = []
        for rule in self._rules:
            if rule.on != event or not self._matches(rule, values, functions):
                continue
            directives += rule.actions
            if event in _GATES and any(a.type in _VERDICTS for a in rule.actions):
                return directives
        if event in _GATES:
            directives.append(Directive(self.default_verdict, "_default", None))
        return directives

    def _matches(
        self,
        rule: _Rule,
        values: Mapping[str, Any],
        functions: Mapping[str, Callable[..., Any]],
    ) -> bool:
        try:
            outcome = rule.match.evaluate(values, functions)
        except InvalidArgument as error:
            raise InvalidArgument(f'policy: rule "{rule.name}" eval: {error}') from None
        return outcome is True


def load_policy(document: str | Mapping[str, Any]) -> Policy:
    """Check a policy and compile its conditions.

    Raises:
        PolicyError: It is not valid; the text begins with ``policy: ``.
    """
    if isinstance(document, str):
        document = _decode(document)
    version = document.get("version", 0)
    if version != VERSION or isinstance(version, bool):
        raise PolicyError(f"policy: unsupported version {version!r:.20} (want 1)")
    default = document.get("default_verdict") or "allow"
    if not isinstance(default, str) or default not in _VERDICTS:
        raise PolicyError(
            'policy: default_verdict must be "allow" or "deny"'
            f' (got "{str(default)[:40]}")'
        )
    rules = document.get("rules")
    if not isinstance(rules, list) or not rules:
        raise PolicyError("policy: at least one rule is required")
    if len(rules) > MAX_RULES:
        raise PolicyError(f"policy: more than {MAX_RULES} rules")
    names: set[str] = set()
    for index, rule in enumerate(rules):
        _check_rule(rule, index, names)
    _check_cycle(document.get("config"))
    return Policy(tuple(_compile(rule) for rule in rules), default)


def _decode(text: str) -> Mapping[str, Any]:
    if len(text) > MAX_DOCUMENT:
        raise PolicyError(f"policy: longer than {MAX_DOCUMENT} characters")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"policy: invalid JSON: {error}") from None
    if not isinstance(document, dict):
        raise PolicyError("policy: invalid JSON: not an object")
    return document


def _check_rule(rule: Any, index: int, names: set[str]) -> None:
    name = _text(rule, "name")
    if not name:
        raise PolicyError(f"policy: rule[{index}]: name is required")
    if name in names:
        raise PolicyError(f'policy: duplicate rule name "{name}"')
    names.add(name)
    where = f'policy: rule "{name}"'
    if _text(rule, "on") not in EVENTS:
        raise PolicyError(f'{where}: unknown event type "{_text(rule, "on")[:40]}"')
    if not _text(rule, "match"):
        raise PolicyError(f"{where}: match expression is required")
    actions = rule.get("actions")
    if not isinstance(actions, list) or not actions:
        raise PolicyError(f"{where}: at least one action is required")
    for number, action in enumerate(actions):
        _check_action(action, f"{where} action[{number}]")


def _check_action(action: Any, where: str) -> None:
    kind = _text(action, "type")
    if kind not in _ACTIONS:
        raise PolicyError(f'{where}: unknown action type "{kind[:40]}"')
    needed, params = _ACTIONS[kind], action.get("params") or {}
    if not isinstance(params, dict):
        raise PolicyError(f"{where}: params must be an object")
    if needed and not any(name in params for name in needed):
        listed = " or ".join(f"'{name}'" for name in needed)
        raise PolicyError(f"{where}: {kind} requires {listed} param")


def _check_cycle(config: Any) -> None:
    cycle = _text(config, "cycle")
    if not cycle:
        return
    try:
        seconds = _seconds(cycle)
    except InvalidArgument:
        raise PolicyError(
            f'policy: config.cycle: invalid duration "{cycle[:40]}"'
        ) from None
    if seconds < 1:
        raise PolicyError("policy: config.cycle must be >= 1s")


def _compile(rule: Mapping[str, Any]) -> _Rule:
    name, on = rule["name"], rule["on"]
    where = f'policy: rule "{name}"'
    match = _parse(rule["match"], EVENTS[on], f"{where} match")
    actions = []
    for number, action in enumerate(rule["actions"]):
        params = action.get("params")
        if action["type"] == "evict_where":
            condition = str(params["match"])
            _parse(condition, _PEER, f"{where} action[{number}] evict_where match")
        actions.append(Directive(action["type"], name, params))
    return _Rule(name, on, match, tuple(actions))


def _parse(text: str, names: frozenset[str], where: str) -> Expression:
    try:
        expression = parse_expression(text, names, _FUNCTION_NAMES)
    except InvalidArgument as error:
        raise PolicyError(f"{where}: {error}", is_form=False) from None
    if not expression.is_condition:
        raise PolicyError(f"{where}: expected bool", is_form=False)
    return expression


def _text(value: Any, key: str) -> str:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""


_FUNCTION_NAMES: Final = frozenset(["has_tag", "duration", "since", "len"])


def _functions(wall: float) -> dict[str, Callable[..., Any]]:
    def since(moment: float) -> float:
        # Nothing ever happened at zero: it stands for "never".
        return wall - moment if moment else 0.0

    return {"has_tag": _has_tag, "duration": _seconds, "since": since, "len": len}


def _has_tag(tags: Any, name: str) -> bool:
    return name in (tags or ())


def _seconds(text: str) -> float:
    return parse_duration(text, "policy", needs_unit=True, allow_negative=True)
