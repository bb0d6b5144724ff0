"""What the events of a fleet say. Any member of a fleet may publish anything.

Whatever is not of the documented form is None here, and counted by who asks.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec

__all__ = [
    "BrokerReport",
    "Health",
    "NodeReport",
    "NodeRow",
    "NodeTotals",
    "TaskRow",
    "TaskRows",
    "believed_interval",
    "clean",
    "named_agent",
    "read_broker",
    "read_health",
    "read_node",
    "read_tasks",
]

SUCCEEDED: Final = "SUCCEEDED"

MAX_EVENT: Final = 1 << 20
"""Longer ones are not looked at; ours have at most 64 KiB."""
MAX_NAME: Final = 64
MAX_STATUS: Final = 32
MAX_ROWS: Final = 10_000
MAX_COUNT: Final = 1 << 53
MAX_CARRIED: Final = 1 << 32
"""Agents and tunnels of a daemon: those of all daemons still add up in 64 bits."""
MAX_COUNTERS: Final = 32
SHORTEST_INTERVAL_S: Final = 0.5
LONGEST_INTERVAL_S: Final = 3_600.0

_Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
_Host: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
_Carried: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_CARRIED)]
_Time: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
_Interval: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class Health(msgspec.Struct):
    """``fleet.health``: how an agent is."""

    agent: _Name
    status: str = ""
    tasks_completed: _Count = 0
    tasks_failed: _Count = 0
    uptime_hours: Annotated[float, msgspec.Meta(ge=0, le=1e7)] = 0.0
    interval_s: _Interval | None = None


class TaskRow(msgspec.Struct):
    """A task that ended."""

    agent: _Name
    task_id: Annotated[str, msgspec.Meta(max_length=256)]
    status: Annotated[str, msgspec.Meta(max_length=64)]
    ms: _Time = 0.0
    text: str = ""
    at: _Time | None = None
    """When it ended, by the worker's clock; tells two runs of one task apart."""

    @property
    def is_success(self) -> bool:
        """Whether it ended well."""
        return self.status == SUCCEEDED


class TaskRows(msgspec.Struct):
    """``fleet.task``."""

    tasks: Annotated[list[TaskRow], msgspec.Meta(max_length=MAX_ROWS)]


class NodeRow(msgspec.Struct):
    """What a daemon carries for one of its agents."""

    agent: _Name
    node_id: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0
    tunnels: _Carried = 0
    bytes_sent: _Count = 0
    bytes_received: _Count = 0
    peers: Annotated[list[str], msgspec.Meta(max_length=1_000)] = []


class NodeTotals(msgspec.Struct):
    """What a daemon carries for all of them."""

    agents: _Carried = 0
    tunnels: _Carried = 0
    bytes_sent: _Count = 0
    bytes_received: _Count = 0


class NodeReport(msgspec.Struct):
    """``fleet.node``: how a daemon is."""

    host: _Host
    totals: NodeTotals
    version: Annotated[str, msgspec.Meta(max_length=64)] = ""
    interval_s: _Interval = 10.0
    agents: Annotated[list[NodeRow], msgspec.Meta(max_length=MAX_ROWS)] = []


class BrokerReport(msgspec.Struct):
    """``fleet.broker``: what a broker counted."""

    broker: str
    counters: dict[str, int]


class _Named(msgspec.Struct):
    agent: _Name


_Kind = TypeVar("_Kind")
_health: Final = msgspec.json.Decoder(Health)
_tasks: Final = msgspec.json.Decoder(TaskRows)
_node: Final = msgspec.json.Decoder(NodeReport)
_named: Final = msgspec.json.Decoder(_Named)
_object: Final = msgspec.json.Decoder(dict[str, object])


def read_health(payload: bytes) -> Health | None:
    """Read ``fleet.health``."""
    health = _read(_health, payload)
    if health is None or not health.agent.isprintable():
        return None
    health.status = clean(health.status, MAX_STATUS)
    return health


def read_tasks(payload: bytes) -> list[TaskRow] | None:
    """Read the rows of ``fleet.task``; one that is wrong makes all of them wrong."""
    rows = _read(_tasks, payload)
    if rows is None:
        return None
    sound = all(
        row.agent.isprintable() and row.task_id.isprintable() for row in rows.tasks
    )
    return rows.tasks if sound else None


def read_node(payload: bytes) -> NodeReport | None:
    """Read ``fleet.node``."""
    report = _read(_node, payload)
    if report is None or not (
        report.host.isprintable() and report.version.isprintable()
    ):
        return None
    return report if all(row.agent.isprintable() for row in report.agents) else None


def read_broker(payload: bytes) -> BrokerReport | None:
    """Read ``fleet.broker``."""
    found = _read(_object, payload)
    name = found.pop("broker", None) if found is not None else None
    if found is None or not isinstance(name, str):
        return None
    if not (0 < len(name) <= MAX_NAME and name.isprintable()):
        return None
    counters = {
        key: value
        for key, value in found.items()
        if type(value) is int and 0 <= value <= MAX_COUNT and _is_word(key)
    }
    return BrokerReport(name, dict(list(counters.items())[:MAX_COUNTERS]))


def named_agent(payload: bytes) -> str | None:
    """Return the agent that an event of any other form is about, if it names one."""
    named = _read(_named, payload)
    return named.agent if named is not None else None


def clean(text: str, limit: int) -> str:
    """Return the beginning of a text, without what would move a cursor."""
    text = text[:limit]
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def believed_interval(interval_s: float) -> float:
    """Return the time to the next event, by what an event says of it.

    It may be next to nothing, which no rate can be taken over, or days, in which an
    agent or daemon would keep its place though it was never heard again.
    """
    return min(max(interval_s, SHORTEST_INTERVAL_S), LONGEST_INTERVAL_S)


def _is_word(text: str) -> bool:
    return len(text) <= MAX_NAME and text.isascii() and text.isidentifier()


def _read(decoder: msgspec.json.Decoder[_Kind], payload: bytes) -> _Kind | None:
    if len(payload) > MAX_EVENT:
        return None
    try:
        return decoder.decode(payload)
    # Deep nesting and what is not UTF-8 leave msgspec's own error tree.
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
