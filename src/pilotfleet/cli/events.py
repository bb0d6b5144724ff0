"""Commands of the event bus (cli.md sections 6.6 and 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pilotfleet.cli.connection import Deadline
from pilotfleet.cli.gate import check_trust
from pilotfleet.cli.streams import encode, open_deadline, required_data
from pilotfleet.errors import (
    ConnectionFailed,
    DecodeError,
    NotFound,
    NotSupported,
    TimedOut,
)
from pilotfleet.protocol.ipc.commands import Command
from pilotfleet.protocol.services.events import (
    EVENT_PORT,
    Event,
    EventDecoder,
    encode_event,
    encode_since,
)
from pilotfleet.protocol.topics import ALL_TOPICS, is_pattern, matches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.connection import Stream
    from pilotfleet.cli.invocation import Context
    from pilotfleet.protocol.address import Address

DIAL_TIMEOUT_S = 30.0


def publish(context: Context, arguments: Arguments) -> None:
    """Publish one event at a node's broker."""
    context.require(arguments, 2)
    peer = context.resolve(arguments.positional(0))
    check_trust(context, arguments, peer)
    _publish_at(context, peer, arguments.positional(1), required_data(arguments))


def subscribe(context: Context, arguments: Arguments) -> None:
    """Print the events of a topic at a node's broker."""
    context.require(arguments, 2)
    peer = context.resolve(arguments.positional(0))
    check_trust(context, arguments, peer)
    count, deadline = arguments.integer("count", 0), open_deadline(arguments)
    topic = arguments.positional(1)
    _subscribe_at(context, peer, encode_event(topic), topic, count, deadline)


def events_publish(context: Context, arguments: Arguments) -> None:
    """Publish one event at the fleet's broker."""
    target, topic = _target_and_topic(context, arguments)
    data = required_data(arguments)
    if target:
        peer = context.resolve(target)
        check_trust(context, arguments, peer)
        _publish_at(context, peer, topic, data)
        return
    request: dict[str, Any] = {"topic": topic, "data": data}
    if arguments.has("broker"):
        request["broker"] = arguments.text("broker")
    try:
        body = context.daemon().call("publish", **request)
    except NotSupported:
        peer = context.resolve(arguments.text("broker") or _own_address(context))
        _publish_at(context, peer, topic, data)
        return
    except ConnectionFailed as error:
        # The registry's refusals carry no code, only their text.
        if "not found" not in str(error):
            raise
        name = arguments.text("broker") or "the fleet's broker"
        raise NotFound(
            f'cannot resolve "{name}": {error}',
            hint="name the broker with --broker: a hostname, address or node number",
        ) from error
    result = {"topic": topic, "bytes": body.get("bytes"), "target": body.get("target")}
    context.output.result(result, f"published {body.get('bytes')} bytes to {topic}")


def events_subscribe(context: Context, arguments: Arguments) -> None:
    """Print the events of a topic pattern at the fleet's broker."""
    target, topic = _target_and_topic(context, arguments)
    count, deadline = arguments.integer("count", 0), open_deadline(arguments)
    since = arguments.duration("since", 0.0)
    is_fleet_broker = False
    if not target:
        fleet_broker, is_ours = _fleet_broker(context)
        target = arguments.text("broker") or fleet_broker
        is_fleet_broker = is_ours and target == fleet_broker
    peer = context.resolve(target)
    if target != _own_address(context):
        check_trust(context, arguments, peer)
    # Official brokers expand only "*" alone, so ask them for all and choose here.
    is_expanded_there = is_fleet_broker or not is_pattern(topic)
    wire_topic = topic if is_expanded_there else ALL_TOPICS
    request = encode_event(wire_topic, encode_since(since) if since > 0 else b"")
    _subscribe_at(context, peer, request, topic, count, deadline)


def _target_and_topic(context: Context, arguments: Arguments) -> tuple[str, str]:
    """Return the explicit target, if any, and the topic."""
    rest = list(arguments.positionals)
    topic = arguments.text("topic")
    if not arguments.has("topic"):
        if not rest:
            raise context.usage_error()
        topic = rest.pop()
    target = arguments.text("target") or arguments.text("on")
    if not target and rest:
        target = rest[0]
    return target, topic


def _own_address(context: Context) -> str:
    return str(context.daemon().request_json(Command.INFO).get("address"))


def _fleet_broker(context: Context) -> tuple[str, bool]:
    """Return the broker to use without a target, and whether it is one of ours."""
    try:
        name = context.daemon().call("broker").get("broker")
    except NotSupported:
        return _own_address(context), False
    return str(name) if name else _own_address(context), True


def _publish_at(context: Context, peer: Address, topic: str, data: str) -> None:
    payload = encode(data)
    # Subscribing to the topic itself first is what the official client does; the
    # own publication does not come back.
    subscription, publication = encode_event(topic), encode_event(topic, payload)
    deadline = Deadline(DIAL_TIMEOUT_S)
    with context.dial(peer, EVENT_PORT, deadline=deadline) as stream:
        stream.write(subscription, deadline=deadline)
        stream.write(publication, deadline=deadline)
    result = {"target": str(peer), "topic": topic, "bytes": len(payload)}
    context.output.result(result, f"published {len(payload)} bytes to {topic}")


def _subscribe_at(
    context: Context,
    peer: Address,
    request: bytes,
    pattern: str,
    count: int,
    deadline: Deadline,
) -> None:
    """Subscribe with a frame and print what matches the pattern."""
    collected: list[dict[str, Any]] = []
    seen = 0
    result: dict[str, Any] = {"events": collected, "timeout": False}
    with context.dial(peer, EVENT_PORT, deadline=Deadline(DIAL_TIMEOUT_S)) as stream:
        stream.write(request)
        try:
            for event in _events(stream, deadline):
                if not matches(pattern, event.topic):
                    continue
                seen += 1
                row = _row(event)
                if not context.json:
                    context.output.text(f"[{row['topic']}] {row['data']}")
                elif count > 0:
                    collected.append(row)
                else:
                    context.output.line(row)
                if seen == count:
                    break
        except TimedOut:
            result["timeout"] = True
        except (ConnectionFailed, DecodeError) as error:
            if not collected:
                raise
            result["error"] = str(error)
    if context.json and count > 0:
        context.output.result(result)


def _events(stream: Stream, deadline: Deadline) -> Iterator[Event]:
    decoder = EventDecoder()
    while data := stream.read(deadline=deadline):
        yield from decoder.feed(data)
    raise ConnectionFailed("the broker closed the subscription")


def _row(event: Event) -> dict[str, Any]:
    text = event.payload.decode("utf-8", "replace")
    return {"topic": event.topic, "data": text, "bytes": len(event.payload)}
