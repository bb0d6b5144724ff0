"""Where alerts are told: webhooks, commands and topics, as they stand in a rule."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Final, Literal

from pilotfleet.errors import ConfigError, InvalidArgument, PermissionDenied
from pilotfleet.protocol.services.webhook import Target, parse_url
from pilotfleet.protocol.topics import is_pattern

__all__ = ["Action", "parse_action"]

MAX_TOPIC: Final = 1_000
_TOPIC_PREFIX: Final = "alerts."


@dataclass(frozen=True, slots=True)
class Action:
    """Where an alert is told."""

    kind: Literal["webhook", "command", "topic"]
    text: str = field(repr=False)
    """As in the file; may hold a secret."""
    webhook: Target | None = field(default=None, repr=False)
    command: tuple[str, ...] = field(default=(), repr=False)
    topic: str = ""

    @property
    def label(self) -> str:
        """What it is called in logs: without what could be a secret."""
        if self.webhook is not None:
            return f"webhook {self.webhook.authority}"
        return f"command {self.command[0]}" if self.command else f"topic {self.topic}"


def parse_action(text: str, place: int) -> Action:
    """Read one target of a rule.

    Args:
        text: As in the file.
        place: Which target it is, for the message: the text may hold a secret.

    Raises:
        ConfigError: It is none.
    """
    kind, _, rest = text.partition(":")
    match kind:
        case "webhook":
            return Action("webhook", text, webhook=_webhook(rest, place))
        case "command":
            return Action("command", text, command=_command(rest, place))
        case "topic":
            _check_topic(rest, place)
            return Action("topic", text, topic=rest)
    raise ConfigError(
        f"to: target {place} is no webhook, command or topic",
        hint='use "webhook:https://…", "command:PROGRAM …" or "topic:alerts.NAME"',
    )


def _webhook(url: str, place: int) -> Target:
    try:
        return parse_url(url)
    except PermissionDenied as error:
        raise ConfigError(f"to: target {place}: {error}") from None
    except InvalidArgument:
        raise ConfigError(
            f"to: target {place}: the URL cannot be posted to",
            hint="use https://HOST/PATH, without spaces",
        ) from None


def _command(line: str, place: int) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(line))
    except ValueError as error:
        raise ConfigError(f"to: target {place}: {error}") from None
    if not words or "\0" in line:
        raise ConfigError(f"to: target {place}: there is no program in the command")
    return words


def _check_topic(topic: str, place: int) -> None:
    is_odd = is_pattern(topic) or not topic.isprintable() or len(topic) > MAX_TOPIC
    if not topic.removeprefix(_TOPIC_PREFIX) or is_odd:
        raise ConfigError(f"to: target {place}: not a topic that can be published to")
    if not topic.startswith(_TOPIC_PREFIX):
        raise ConfigError(
            f"to: target {place}: alerts go to topics that begin with {_TOPIC_PREFIX}",
            hint="otherwise the monitor would take them for events of the fleet",
        )
