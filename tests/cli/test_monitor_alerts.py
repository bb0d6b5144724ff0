"""Alerts of ``pilot-monitor`` as a program: fired once, and told at each target."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.cli.monitorsupport import FLEET, Watched, publisher, start_hub
from tests.fleet.crewsupport import PRIVATE_FLEET
from tests.services.webhooksupport import Recorder
from tests.support.programs import BIN, data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.programs import World

RULE: Final = """
[[rule]]
name = "somebody"
severity = "critical"
metric = "agents_alive"
above = 0
to = {targets}
summary = "{{value}} agents"
"""
OTHER_RULE: Final = """
[[rule]]
name = "nobody"
metric = "agents_alive"
below = 0
"""
OFTEN: Final = 1_000


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        yield made


class Told:
    """A monitor with a rule, and what was told at each kind of target."""

    def __init__(self, net: World, webhook: Recorder) -> None:
        self.net = net
        self.webhook = webhook
        self.commands = net.home / "command.ndjson"
        self.rules = net.home / "rules.toml"
        script = net.home / "note.sh"
        script.write_text(f"cat >> {self.commands}\necho >> {self.commands}\n")
        targets = [f"webhook:{webhook.url}", f"command:sh {script}", "topic:alerts.x"]
        self.rule = RULE.format(targets=json.dumps(targets))
        self.rules.write_text(self.rule)
        flags = ("--home", net.home / "history", "--alerts", self.rules)
        self.watched = Watched(net, flags=flags)
        self.topic = listen(net, "hub", "words-hub")

    def of_each(self) -> list[list[dict[str, Any]]]:
        """Return the alerts of each target, without those that came again."""
        told = (
            [delivery.event for delivery in self.webhook.deliveries],
            lines(self.commands),
            [json.loads(event["data"]) for event in lines(self.topic)],
        )
        # At least once: who is killed before it is noted tells it again, as the same.
        return [
            list({(row["id"], row["state"]): row for row in rows}.values())
            for rows in told
        ]

    def wait(self, *expected: str) -> list[dict[str, Any]]:
        """Return the alerts when just these states were told everywhere."""
        self.watched.running().wait_until(
            lambda: all(len(rows) >= len(expected) for rows in self.of_each())
        )
        first, *others = self.of_each()
        assert [row["state"] for row in first] == list(expected)
        assert others == [first, first]
        return first


def listen(net: World, name: str, broker: str) -> Path:
    """Write down what the log of a broker has of alerts, and what comes."""
    flags = ("--topic", "alerts.*", "--since", "1h", "--broker", broker)
    return net.start(
        "topic",
        *(BIN / "pilotctl", "--json", "events", "subscribe", *flags),
        PILOT_SOCKET=str(net.socket(name)),
    ).log


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines that are in a file."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]


async def test_an_alert_fires_once_and_is_resolved_once_whatever_ends_between(
    net: World,
) -> None:
    start_hub(net)
    with Recorder() as webhook:
        told = Told(net, webhook)
        watched = told.watched
        watched.start()
        async with publisher(net) as fleet:
            await fleet.health("worker-0")
            [alert] = told.wait("firing")
            assert (alert["rule"], alert["severity"]) == ("somebody", "critical")
            assert (alert["fleet"], alert["value"]) == (FLEET, 1)
            assert alert["summary"] == "1 agents"

            # Killed while it fires: another one would come before its resolution.
            watched.running().kill()
            watched.start()
            await fleet.health("worker-0", status="stopped")
            assert {row["id"] for row in told.wait("firing", "resolved")} == {
                alert["id"]
            }

            # Killed before a target has confirmed it.
            webhook.answers = [503] * OFTEN
            await fleet.health("worker-0")
            watched.running().wait_until(lambda: len(webhook.answers) < OFTEN)
            watched.running().kill()
            webhook.answers = []
            watched.start()
            told.wait("firing", "resolved", "firing")

            # What fires by a rule that is gone is over.
            told.rules.write_text(OTHER_RULE)
            watched.running().process.send_signal(signal.SIGHUP)
            *_, fired, resolved = told.wait("firing", "resolved", "firing", "resolved")
            assert fired["id"] == resolved["id"] != alert["id"]


async def test_an_alert_goes_to_the_stand_by_while_the_hub_is_away(net: World) -> None:
    start_hub(net)
    hub = net.programs[-1]
    node = str(data_of(net.ctl("hub", "info"))["node_id"])
    made = net.run_ctl_admin("network", "create", "--name", "words", "--node-id", node)
    crew = ("--join", str(data_of(made)["network_id"]), *PRIVATE_FLEET)
    brokers = "words-hub,words-spare"
    for name in ("spare", "watcher"):
        host = ("--hostname", f"words-{name}", "--broker", brokers, *crew)
        net.start_daemon(name, *host)
    rules = net.home / "rules.toml"
    rules.write_text(RULE.format(targets='["topic:alerts.x"]'))
    flags = ("--home", net.home / "history", "--alerts", rules, "--broker", brokers)
    watched = Watched(net, flags=flags, daemon="watcher")
    watched.start()
    topic = listen(net, "watcher", "words-spare")
    hub.kill()
    async with publisher(net, "spare", broker="words-spare") as fleet:
        await fleet.health("worker-0")
        watched.running().wait_until(lambda: bool(lines(topic)))
    [event] = lines(topic)
    assert json.loads(event["data"])["state"] == "firing"
