"""Policy documents: what is valid, what they say, never more than they may cost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import InvalidArgument
from pilotfleet.protocol.expressions import MAX_LENGTH, parse_expression
from pilotfleet.protocol.policy import EVENTS, Directive, PolicyError, load_policy

NAMES = frozenset(["port", "size", "tags", "name", "ok"])
FUNCTIONS = frozenset(["has_tag"])
VALUES = {"port": 80, "size": 2.5, "tags": ["a", "b"], "name": "web-1", "ok": True}


def rule(**fields: Any) -> dict[str, Any]:
    allow = {
        "name": "r",
        "on": "connect",
        "match": "true",
        "actions": [{"type": "allow"}],
    }
    return {**allow, **fields}


def document(*rules: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"version": 1, "rules": list(rules) or [rule()], **fields}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("2 ** 3 ** 2", 512.0),
        ("-2 ** 2", -4.0),
        ("7 % 4 - 1", 2),
        ("port == 80 and size > 2", True),
        ("port == 81 || ok && !false", True),
        ("not ok or port != 80", False),
        ("not (port == 81)", True),
        ("port in [80, 443]", True),
        ("port not in [80, 443]", False),
        ("port in 1..1023", True),
        ("'a' in tags", True),
        ('has_tag(tags, "c")', False),
        ("name startsWith 'web' and name endsWith '-1'", True),
        ("name contains 'eb'", True),
        ("name + '!' == \"web-1!\"", True),
        ("'a' < 'b'", True),
        ("ok ? 'yes' : 'no'", "yes"),
        (r"'it\'s' == 'it' + \"'s\"".replace('\\"', '"'), True),
        ("nil == port", False),
        ("1e3 == 1000", True),
        # The right side is not looked at.
        ("false and port < 'x'", False),
        ("true or port < 'x'", True),
    ],
)
def test_expression(text: str, value: object) -> None:
    expression = parse_expression(text, NAMES, FUNCTIONS)
    functions = {"has_tag": lambda tags, name: name in tags}
    assert expression.evaluate(VALUES, functions) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port ==", "unexpected token EOF (1:7)\n | port ==\n | ......^"),
        ("nosuch > 1", "unknown name nosuch (1:1)\n | nosuch > 1\n | ^"),
        ("port 3", 'unexpected token Number("3") (1:6)\n | port 3\n | .....^'),
        ("len(port)", "unknown name len (1:1)\n | len(port)\n | ^"),
        ("port in [1, 2", "unexpected token EOF (1:13)\n | port in [1, 2\n | "),
        ("port # 3", "unrecognized character: '#' (1:6)\n | port # 3\n | .....^"),
        ("ok and\n port )", 'unexpected token Operator(")") (2:7)\n |  port )\n'),
        ("", "unexpected token EOF (1:1)\n | \n | ^"),
        ("(" * 100, "expression is nested too deeply"),
        ("-" * 100 + "1", "expression is nested too deeply"),
        ("1" * (MAX_LENGTH + 1), "expression of more than"),
    ],
)
def test_bad_expression_shows_the_place(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_expression(text, NAMES, FUNCTIONS)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "text",
    [
        "port < 'x'",
        "ok + 1",
        "port and ok",
        "not port",
        "name > 1",
        "port contains 'x'",
        "1 / 0",
        "1e300 ** 9 > 1",
        "0..99999999 == nil",
        "port in port",
        "has_tag(port)",
    ],
)
def test_expression_that_makes_no_sense(text: str) -> None:
    expression = parse_expression(text, NAMES, FUNCTIONS)
    with pytest.raises(InvalidArgument, match="cannot evaluate"):
        expression.evaluate(VALUES, {"has_tag": lambda tags, name: name in tags})


@given(st.text(alphabet="portsize 019.()[]?:!=<>&|+-*'\"\\,\n", max_size=60))
def test_any_text_is_an_expression_or_an_error(text: str) -> None:
    try:
        parse_expression(text, NAMES, FUNCTIONS).evaluate(VALUES, {})
    except InvalidArgument:
        return


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({}, "policy: unsupported version 0 (want 1)"),
        (document(version=2), "policy: unsupported version 2 (want 1)"),
        ({"version": 1, "rules": []}, "policy: at least one rule is required"),
        ({"version": 1, "rules": "x"}, "policy: at least one rule is required"),
        (document(rule(name="")), "policy: rule[0]: name is required"),
        (document(rule(), rule()), 'policy: duplicate rule name "r"'),
        (document(rule(on="x")), 'policy: rule "r": unknown event type "x"'),
        (document(rule(match="")), 'policy: rule "r": match expression is required'),
        (document(rule(actions=[])), 'policy: rule "r": at least one action is req'),
        (
            document(rule(actions=[{"type": "x"}])),
            'policy: rule "r" action[0]: unknown action type "x"',
        ),
        (
            document(rule(actions=[{"type": "allow"}, {"type": "prune"}])),
            "policy: rule \"r\" action[1]: prune requires 'count' param",
        ),
        (
            document(rule(actions=[{"type": "tag"}])),
            "policy: rule \"r\" action[0]: tag requires 'add' or 'remove' param",
        ),
        (document(default_verdict="x"), 'policy: default_verdict must be "allow" or'),
        (document(default_verdict=["x"]), 'policy: default_verdict must be "allow" or'),
        (
            document(rule(match="1" + "+1" * 2000 + " > 1")),
            'policy: rule "r" match: too many operators',
        ),
        (
            document(rule(match="2" + "**2" * 1300 + " > 1")),
            'policy: rule "r" match: too many operators',
        ),
        (document(config={"cycle": "1ms"}), "policy: config.cycle must be >= 1s"),
        (document(config={"cycle": "1d"}), "policy: config.cycle: invalid duration"),
        (
            document(rule(match="port ==")),
            'policy: rule "r" match: unexpected token EOF (1:7)',
        ),
        (document(rule(match="1")), 'policy: rule "r" match: expected bool'),
        (document(rule(match="size > 1")), 'policy: rule "r" match: unknown name size'),
        (
            document(
                rule(actions=[{"type": "evict_where", "params": {"match": "port > 1"}}])
            ),
            'policy: rule "r" action[0] evict_where match: unknown name port',
        ),
        ({"version": 1, "rules": [3]}, "policy: rule[0]: name is required"),
    ],
)
def test_bad_policy(policy: Any, message: str) -> None:
    for form in (policy, json.dumps(policy)):
        with pytest.raises(PolicyError) as caught:
            load_policy(form)
        assert str(caught.value).startswith(message)


def test_text_that_is_no_policy() -> None:
    for text in ("x", "[]", "[" * 100_000, "3"):
        with pytest.raises(PolicyError, match="policy: "):
            load_policy(text)


def test_first_verdict_wins() -> None:
    policy = load_policy(
        document(
            rule(
                name="note",
                actions=[{"type": "log", "params": {"message": "m"}}],
            ),
            rule(name="web", match="port in [80, 443]"),
            rule(name="rest", actions=[{"type": "deny"}]),
            default_verdict="deny",
        )
    )
    directives = policy.decide("connect", {"port": 80}, wall=0.0)
    assert [(d.type, d.rule) for d in directives] == [("log", "note"), ("allow", "web")]
    directives = policy.decide("connect", {"port": 81}, wall=0.0)
    assert [d.rule for d in directives] == ["note", "rest"]
    # No rule is about it: the default.
    assert policy.decide("dial", {"port": 80}, wall=0.0) == [
        Directive("deny", "_default", None)
    ]
    assert policy.decide("cycle", {}, wall=0.0) == []
    assert policy.events == {"connect"}


def test_event_that_cannot_be_judged() -> None:
    policy = load_policy(document(rule(match="port > 1")))
    with pytest.raises(InvalidArgument, match='rule "r" eval'):
        policy.decide("connect", {}, wall=0.0)


def test_longest_chain_of_operators_can_be_judged() -> None:
    chain = "port" + "+1" * 199 + " > 199"
    for match in (chain, "(" * 31 + chain + ")" * 31):
        policy = load_policy(document(rule(match=match)))
        (directive,) = policy.decide("connect", {"port": 1}, wall=0.0)
        assert directive.rule == "r"


def test_functions() -> None:
    text = (
        "duration('1h30m') == 5400 and since(40) == 60 and since(0) == 0"
        " and has_tag(peer_tags, 'a') and not has_tag(local_tags, 'a')"
    )
    policy = load_policy(document(rule(match=text)))
    (directive,) = policy.decide("connect", {"peer_tags": ["a"]}, wall=100.0)
    assert directive.rule == "r"


def test_every_event_can_be_ruled() -> None:
    rules = [
        rule(
            name=name, on=name, match=" and ".join(f"{n} == {n}" for n in sorted(names))
        )
        for name, names in EVENTS.items()
    ]
    assert load_policy(document(*rules)).events == set(EVENTS)
