"""Commands of the event bus (cli.md sections 6.6 and 9)."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from pilotfleet.cli.connection import Deadline
from pilotfleet.cli.gate import check_trust
from pilotfleet.cli.streams import encode, open_deadline, required_data
from pilotfleet.errors import (
    ConnectionFailed,
    DecodeError,
    NotFound,
    NotRunning,
    NotSupported,
    TimedOut,
)
from pilotfleet.protocol.ipc.commands import Command
from pilotfleet.protocol.services.events import (
    EVENT_PORT,
    Event,
    EventDecoder,
    encode_event,
    is_reserved,
)
from pilotfleet.protocol.topics import ALL_TOPICS, is_pattern

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
    """Print the events of a topic, or of a pattern, at a node's broker."""
    context.require(arguments, 2)
    peer = context.resolve(arguments.positional(0))
    check_trust(context, arguments, peer)
    count, deadline = arguments.integer("count", 0), open_deadline(arguments)
    topic = arguments.positional(1)
    request = encode_event(topic)
    if not is_pattern(topic) or topic == ALL_TOPICS:
        _subscribe_at(context, peer, request, count, deadline)
        return
    # An official broker takes it for the name of one topic.
    # Imported here: asyncio alone takes longer than all that other commands do.
    from pilotfleet.cli.eventfeed import Wish, print_events

    wish = Wish(topic, [str(peer)], since=None, count=count, deadline=deadline)
    print_events(wish, context)


def events_publish(context: Context, arguments: Arguments) -> None:
    """Publish one event at the fleet's broker."""
    target, topic = _target_and_topic(context, arguments)
    data, is_confirmed = required_data(arguments), arguments.enabled("confirm")
    with _some_daemon(context, arguments):
        if target:
            peer = context.resolve(target)
            check_trust(context, arguments, peer)
            if not is_confirmed:
                _publish_at(context, peer, topic, data)
                return
            target = str(peer)
        broker = target or arguments.text("broker")
        _publish_through_daemon(context, topic, data, broker, confirm=is_confirmed)


def events_subscribe(context: Context, arguments: Arguments) -> None:
    """Print the events of a topic pattern at the fleet's brokers."""
    # Imported here: asyncio alone takes longer than all that other commands do.
    from pilotfleet.cli.eventfeed import Wish, print_events

    target, topic = _target_and_topic(context, arguments)
    count, deadline = arguments.integer("count", 0), open_deadline(arguments)
    since = arguments.duration("since", 0.0)
    named = target or arguments.text("broker")
    with _some_daemon(context, arguments):
        brokers = [name.strip() for name in named.split(",") if name.strip()]
        for name in brokers:
            peer = context.resolve(name)
            if str(peer) != _own_address(context):
                check_trust(context, arguments, peer)
        wish = Wish(topic, brokers, since=since or None, count=count, deadline=deadline)
        print_events(wish, context)


def events_status(context: Context, arguments: Arguments) -> None:
    """Print what the broker of the daemon's agent counted."""
    with _some_daemon(context, arguments):
        counters = context.daemon().call("events")
    width = max(map(len, counters), default=0)
    lines = [f"{name:<{width}}  {value}" for name, value in counters.items()]
    context.output.result(counters, "\n".join(lines))


@contextlib.contextmanager
def _some_daemon(context: Context, arguments: Arguments) -> Iterator[None]:
    """Use the hub of a fleet that runs here, if it was named or is all there is.

    Raises:
        InvalidArgument: Several fleets run, and none was named.
        NotRunning: No daemon runs.
    """
    is_named = arguments.has("home") or arguments.has("name")
    if not is_named:
        try:
            context.daemon()
        except NotRunning:
            # Imported here: it takes longer than to publish an event.
            from pilotfleet.cli.fleethome import running_homes

            if os.environ.get("PILOT_SOCKET") or not running_homes():
                raise
        else:
            yield
            return
    from pilotfleet.cli.fleethome import select_home, socket_of

    with socket_of(select_home(arguments)) as socket:
        context.socket = str(socket)
        context.daemon()
        yield


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


def _publish_through_daemon(
    context: Context, topic: str, data: str, broker: str, *, confirm: bool
) -> None:
    request: dict[str, Any] = {"topic": topic, "data": data}
    if broker:
        request["broker"] = broker
    if confirm:
        request["confirm"] = True
    try:
        body = context.daemon().call("publish", **request)
    except NotSupported:
        if confirm:
            raise
        peer = context.resolve(broker or _own_address(context))
        _publish_at(context, peer, topic, data)
        return
    except ConnectionFailed as error:
        # The registry's refusals carry no code, only their text.
        if "not found" not in str(error):
            raise
        name = broker or "the fleet's broker"
        raise NotFound(
            f'cannot resolve "{name}": {error}',
            hint="name the broker with --broker: a hostname, address or node number",
        ) from error
    if confirm and not body.get("confirmed"):
        raise NotSupported(
            "the daemon published the event, but cannot wait for a confirmation",
            hint="it needs a newer pilot-daemon",
        )
    result = {"topic": topic, "bytes": body.get("bytes"), "target": body.get("target")}
    how = "published"
    if confirm:
        result["confirmed"] = True
        how = "published, and confirmed,"
    context.output.result(result, f"{how} {body.get('bytes')} bytes to {topic}")


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
    count: int,
    deadline: Deadline,
) -> None:
    """Subscribe with a frame and print what comes."""
    collected: list[dict[str, Any]] = []
    seen = 0
    result: dict[str, Any] = {"events": collected, "timeout": False}
    with context.dial(peer, EVENT_PORT, deadline=Deadline(DIAL_TIMEOUT_S)) as stream:
        stream.write(request)
        try:
            for event in _events(stream, deadline):
                if is_reserved(event.topic):
                    continue
                seen += 1
                row = event_row(event)
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


def event_row(event: Event) -> dict[str, Any]:
    """Return what is printed of an event."""
    text = event.payload.decode("utf-8", "replace")
    return {"topic": event.topic, "data": text, "bytes": len(event.payload)}
