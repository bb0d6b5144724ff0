"""Files of rules: what stands in them, and what is refused with a remedy."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import ConfigError
from pilotfleet.fleet.monitor.alerts.rules import Kind, Scope, load_rules, parse_rules
from tests.fleet.monitor.alertsupport import rule, rules

EXAMPLE = Path("examples/alerts.toml")
SECRET = "hunter2"


def test_example_is_sound() -> None:
    found = load_rules(EXAMPLE)
    assert {each.kind for each in found} == set(Kind)
    assert {each.scope for each in found} == set(Scope)


def test_rule_with_everything() -> None:
    made = rule(
        'severity = "critical"\nfleet = "batch"\ntag = "gpu"\nmetric = "p99_ms"\n'
        'above = 2000\nfor = "2m"\nsummary = "{rule} {fleet} {subject} {value} {{}}"\n'
        'to = ["webhook:https://u:p@h.example:444/x?y=z", "command:a \'b c\'",'
        ' "topic:alerts.slow"]'
    )
    assert (made.kind, made.scope, made.hold_s) == (Kind.THRESHOLD, Scope.TAG, 120)
    webhook, command, topic = made.to
    assert webhook.webhook is not None
    assert webhook.webhook.is_tls
    assert webhook.label == "webhook h.example:444"
    assert command.command == ("a", "b c")
    assert topic.topic == "alerts.slow"
    text = made.describe(fleet="batch", subject="tag:gpu", value=1.0)
    assert text == "r batch tag:gpu 1 {}"


def test_secrets_are_not_shown() -> None:
    made = rule(
        'metric = "error_rate"\nabove = 0.1\n'
        f'to = ["webhook:https://u:{SECRET}@h/{SECRET}", "command:run {SECRET}"]'
    )
    shown = repr(made) + "".join(action.label for action in made.to)
    assert SECRET not in shown


THRESHOLD = 'metric = "error_rate"\nabove = 0.1\n'


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('metrik = "x"', "unknown field `metrik`", "alert-rules.md"),
        ("above = 1", "metric, absent and rate: exactly one", "error_rate"),
        (THRESHOLD + 'absent = "fleet.health"', "exactly one", "error_rate"),
        ('metric = "error_rate"', "above and below: exactly one", None),
        (THRESHOLD + "below = 1", "above and below: exactly one", None),
        ('metric = "error_rate"\nabove = nan', "finite", None),
        ('metric = "x"\nabove = 1', "metric: 'x' is no metric of a fleet", "p99_ms"),
        ('metric = "state"\nabove = 1', "no metric of a fleet", "error_rate"),
        ('metric = "tunnels"\nabove = 1\ntag = "t"', "of a tag", "p99_ms"),
        ('metric = "p99_ms"\nabove = 1\nagent = "a"', "of an agent", "state"),
        ('rate = "p99_ms"\nabove = 1', "rate: 'p99_ms' is no rate", "failed"),
        ('rate = "failed"\nabove = 1\nwindow = "1s"', "window:", "2m"),
        (THRESHOLD + 'for = "120"', "invalid duration for for", "unit"),
        (THRESHOLD + 'for = "-1s"', "negative", None),
        (THRESHOLD + 'for = "9999h"', "for:", "2m"),
        (THRESHOLD + 'tag = "t"\nagent = "a"', "tag and agent", None),
        (THRESHOLD + 'severity = "bad"', "severity", None),
        ('absent = "fleet.health"', "for: an absence needs", '"1m"'),
        ('absent = "other"\nfor = "1m"', "absent: 'other'", "fleet.health"),
        (
            'absent = "fleet.task"\nfor = "1m"\ntag = "t"',
            "absent: 'fleet.task' is not known of single",
            "fleet.health",
        ),
        ('absent = "fleet.health"\nfor = "1m"\nabove = 1', "has no threshold", None),
        (THRESHOLD + 'summary = "{x}"', "{x} is no placeholder", "{value}"),
        (THRESHOLD + 'summary = "{value.real}"', "no placeholder", "{value}"),
        (THRESHOLD + 'summary = "{value!r}"', "no placeholder", "{value}"),
        (THRESHOLD + 'summary = "{value:9999d}"', "no placeholder", "{value}"),
        (THRESHOLD + 'summary = "{}"', "no placeholder", "{value}"),
        (THRESHOLD + 'summary = "{"', "summary:", "{{"),
        (THRESHOLD + 'to = ["mail:me"]', "target 1 is no webhook", "command:"),
        (THRESHOLD + 'to = ["webhook:ftp://x"]', "target 1: the URL", "https"),
        (THRESHOLD + 'to = ["webhook:http://169.254.1.1/"]', "link-local", None),
        (THRESHOLD + 'to = ["command:"]', "no program", None),
        (THRESHOLD + 'to = ["command:a \'b"]', "target 1: No closing", None),
        (THRESHOLD + 'to = ["topic:fleet.health"]', "begin with alerts.", "events"),
        (THRESHOLD + 'to = ["topic:alerts.*"]', "not a topic", None),
    ],
)
def test_mistakes_are_named(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        rule(text, name="errors")
    assert "alerts.toml: rule 'errors': " in str(caught.value)
    assert message in str(caught.value)
    assert caught.value.hint
    if hint is not None:
        assert hint in caught.value.hint


def test_mistakes_do_not_tell_secrets() -> None:
    for url in (f"https://u:{SECRET}:x/", f"https://h:{SECRET}/", f"x://{SECRET}"):
        with pytest.raises(ConfigError) as caught:
            rule(THRESHOLD + f'to = ["webhook:{url}"]')
        assert SECRET not in str(caught.value)


def test_mistakes_of_the_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    with pytest.raises(
        ConfigError, match=r"cannot read alert rules .*a\.toml: No such"
    ):
        load_rules(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"a\.toml is not TOML"):
        load_rules(path)
    path.write_text("[rule]")
    with pytest.raises(ConfigError, match=r"a\.toml"):
        load_rules(path)
    path.write_text("#" * (1 << 21))
    with pytest.raises(ConfigError, match="larger"):
        load_rules(path)
    with pytest.raises(ConfigError, match="rule 2"):
        rules(f'[[rule]]\nname = "a"\n{THRESHOLD}[[rule]]\nnam = "b"\n')
    with pytest.raises(ConfigError, match="another rule has it"):
        rules(f'[[rule]]\nname = "a"\n{THRESHOLD}' * 2)


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_rules_or_refused(content: bytes) -> None:
    with contextlib.suppress(ConfigError):
        parse_rules(b'[[rule]]\nname = "a"\n' + content, "f")
