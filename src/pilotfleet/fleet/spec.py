"""The fleet specification, ``fleet.toml``.

Unknown tables and keys are refused: a misspelt key that is silently ignored would
cost its author an evening.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
import tomllib
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from pilotfleet.errors import ConfigError, InvalidArgument
from pilotfleet.fleet.worker.identities import MAX_IDENTITIES
from pilotfleet.protocol.durations import parse_duration
from pilotfleet.protocol.registry.endpoints import is_loopback
from pilotfleet.protocol.registry.names import MAX_TAGS, check_hostname, normalise_tags

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "EMBEDDED",
    "EventsSection",
    "FleetSection",
    "FleetSpec",
    "HealthSection",
    "HierarchySection",
    "MonitorSection",
    "OpenclawSection",
    "Pattern",
    "WorkersSection",
    "check_spec",
    "load_spec",
]

EMBEDDED: Final = "embedded"
"""The value of ``rendezvous`` that makes the launcher start its own."""

WORKER_PREFIX: Final = "worker-"
MAX_CONCURRENCY: Final = 1_000
MAX_GATEWAYS: Final = 64
MAX_FANOUT: Final = 1_000

_MODULE_FUNCTION: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class Pattern(StrEnum):
    """How the agents of a fleet work together."""

    HUB_AND_SPOKE = "hub-and-spoke"
    MESH = "mesh"
    HIERARCHICAL = "hierarchical"


class FleetSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[fleet]``: what holds for all of it."""

    name: str = "fleet"
    """Also the name of the private network that the agents share."""
    pattern: Pattern = Pattern.HUB_AND_SPOKE
    rendezvous: str = EMBEDDED
    """``embedded``, or ``host:port`` of a registry that runs already."""
    beacon: str = ""
    """``host:port``; by default the registry's host, one port higher."""
    listen: str = ""
    """IP address of the embedded rendezvous; by default loopback, at free ports."""
    listen_port: Annotated[int, msgspec.Meta(ge=1, le=0xFFFE)] = 9000
    """Its registry's port at ``listen``; the beacon is one higher."""
    stagger: str = "0s"
    """Agent starts are spread over this time."""
    polo_gate: bool = False
    """Whether workers take tasks only from agents with enough polo."""
    polo: bool = True
    """Whether finished tasks change polo scores."""


class WorkersSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[workers]``: the agents that do the tasks; by exec, call or openclaw."""

    exec: str = ""
    """The command: the task's text on stdin, the result on stdout."""
    call: str = ""
    """``module:function``, called with the task's text."""
    openclaw: bool = False
    """Each task is a turn of OpenClaw, as ``[openclaw]`` says."""
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_IDENTITIES)] = 1
    per_process: Annotated[int, msgspec.Meta(ge=1, le=MAX_IDENTITIES)] = 200
    """Agents that share one daemon and one worker program."""
    prefix: str = ""
    """Agents are called prefix1, prefix2, … and found under these names. By default
    ``worker-``, and behind the fleet's name where fleets share a rendezvous."""
    tags: tuple[str, ...] = ("worker",)
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=MAX_CONCURRENCY)] = 1
    """Tasks that one agent runs at the same time."""
    timeout: str = "300s"
    """A command that runs longer is killed and its task tried elsewhere."""
    retry_failed: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    """How often a task whose command exited non-zero is tried again."""


class OpenclawSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[openclaw]``: how ``openclaw = true`` runs tasks."""

    agent: str = ""
    """OpenClaw's own agent; empty for its default one."""
    model: str = ""
    config: str = ""
    """Path of OpenClaw's configuration."""
    gateways: Annotated[int, msgspec.Meta(ge=1, le=MAX_GATEWAYS)] = 1
    """Gateways that each worker program starts and watches."""
    gateway: str = ""
    """URL of a gateway that runs already; then none is started."""
    token_file: str = ""
    """Holds the token of that gateway."""
    one_shot: bool = False
    """A process for each task instead of gateways."""
    max_concurrent: Annotated[int, msgspec.Meta(ge=0, le=MAX_CONCURRENCY)] = 0
    """Turns of one worker program at a time; 0 leaves it to the program."""


class HierarchySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[hierarchy]``: only for the hierarchical pattern, ignored by the others."""

    cluster_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_IDENTITIES)] = 50
    """Workers under one sub-orchestrator."""
    fanout: Annotated[int, msgspec.Meta(ge=2, le=MAX_FANOUT)] = 50
    """Orchestrators under one; where there are more, another level is made."""


class HealthSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[health]``: what workers tell about themselves."""

    interval: str = "10s"
    """Between two ``fleet.health`` events of one agent; ``0s`` publishes none."""


class EventsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[events]``: the brokers of the event bus."""

    standby: Annotated[int, msgspec.Meta(ge=0, le=3)] = 1
    """Workers whose brokers stand by for the hub's. A hierarchical fleet has none:
    there the hub stands by for the broker of each cluster."""


class MonitorSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[monitor]``: where it is, the fleet has a ``pilot-monitor``."""

    http: str = "127.0.0.1:8787"
    """Where its pages are; port 0 for a free one."""
    alerts: str = ""
    """Path of the rules of alerts."""
    token_file: str = ""
    """Holds what opens the pages; needed where others can reach them."""


class FleetSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole specification."""

    workers: WorkersSection
    fleet: FleetSection = FleetSection()
    openclaw: OpenclawSection | None = None
    hierarchy: HierarchySection = HierarchySection()
    health: HealthSection = HealthSection()
    monitor: MonitorSection | None = None
    events: EventsSection = EventsSection()

    @property
    def prefix(self) -> str:
        """What the names of the worker agents begin with."""
        if self.workers.prefix:
            return self.workers.prefix
        is_alone = self.fleet.rendezvous == EMBEDDED
        return WORKER_PREFIX if is_alone else f"{self.fleet.name}-{WORKER_PREFIX}"

    @property
    def stagger_s(self) -> float:
        """Spread of agent starts, in seconds."""
        return parse_duration(self.fleet.stagger, "fleet.stagger", needs_unit=True)

    @property
    def timeout_s(self) -> float:
        """Longest run of one command, in seconds."""
        return parse_duration(self.workers.timeout, "workers.timeout", needs_unit=True)

    @property
    def group_size(self) -> int:
        """Agents that share one daemon: a cluster, where there are clusters."""
        is_tree = self.fleet.pattern is Pattern.HIERARCHICAL
        return self.hierarchy.cluster_size if is_tree else self.workers.per_process

    def with_count(self, count: int) -> FleetSpec:
        """Return the same fleet with another number of workers.

        Raises:
            ConfigError: There cannot be so many.
        """
        if not 1 <= count <= MAX_IDENTITIES:
            raise ConfigError(
                f"workers.count: {count} is not from 1 to {MAX_IDENTITIES}"
            )
        workers = msgspec.structs.replace(self.workers, count=count)
        spec = msgspec.structs.replace(self, workers=workers)
        check_spec(spec)
        return spec


def load_spec(path: Path) -> FleetSpec:
    """Read and check a specification file.

    Raises:
        ConfigError: The file is missing, not TOML, or not a valid specification;
            the message names the file and the key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read fleet specification {path}: {error.strerror}",
            hint="examples/wordcount.toml is a specification to start from",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"fleet specification {path} is not TOML: {error}") from None
    try:
        spec = msgspec.convert(table, FleetSpec)
        check_spec(spec)
    except (msgspec.ValidationError, InvalidArgument) as error:
        hint = getattr(error, "hint", None)
        raise ConfigError(f"fleet specification {path}: {error}", hint=hint) from None
    return spec


def check_spec(spec: FleetSpec) -> None:
    """Check what types alone cannot say.

    Raises:
        InvalidArgument: The message names the key.
    """
    _check_names(spec)
    _ = spec.stagger_s
    parse_duration(spec.health.interval, "health.interval", needs_unit=True)
    if not spec.timeout_s:
        raise ConfigError("workers.timeout: a command needs some time")
    _check_work(spec.workers)
    _check_openclaw(spec)
    _check_addresses(spec.fleet)
    _check_monitor(spec.monitor)


def _check_names(spec: FleetSpec) -> None:
    check_hostname(spec.fleet.name)
    check_hostname(f"{spec.fleet.name}-hub")
    check_hostname(f"{spec.prefix}{spec.workers.count}")
    tags = normalise_tags(spec.workers.tags)
    if not tags:
        raise ConfigError("workers.tags: at least one tag, or nobody finds them")
    if spec.fleet.pattern is Pattern.HIERARCHICAL:
        if len(tags) == MAX_TAGS:
            raise ConfigError(
                f"workers.tags: at most {MAX_TAGS - 1} in a hierarchical fleet,"
                " where the cluster's is added"
            )
        check_hostname(f"{spec.fleet.name}-sub-{MAX_IDENTITIES}")
        normalise_tags([f"{spec.fleet.name}-sub"])


def _check_work(workers: WorkersSection) -> None:
    given = [bool(workers.exec), bool(workers.call), workers.openclaw]
    if sum(given) != 1:
        raise ConfigError(
            "workers.exec, call and openclaw: exactly one of the three must be given",
            hint='for example: exec = "python3 examples/wordcount.py"',
        )
    if workers.call and not _MODULE_FUNCTION.fullmatch(workers.call):
        raise ConfigError(f"workers.call: {workers.call!r} is not module:function")
    try:
        if workers.exec and not shlex.split(workers.exec):
            raise ConfigError("workers.exec: the command is empty")
    except ValueError as error:
        raise ConfigError(f"workers.exec: {error}") from None


def _check_openclaw(spec: FleetSpec) -> None:
    table = spec.openclaw
    if table is None:
        return
    if not spec.workers.openclaw:
        raise ConfigError("openclaw: the table is for workers with openclaw = true")
    if table.gateway and not table.gateway.startswith(("http://", "https://")):
        raise ConfigError(f"openclaw.gateway: {table.gateway!r} is not an HTTP URL")
    if table.gateway and table.one_shot:
        raise ConfigError("openclaw: one_shot needs no gateway; give one of the two")
    if table.token_file and not table.gateway:
        raise ConfigError("openclaw.token_file: it is for openclaw.gateway")


def _check_addresses(fleet: FleetSection) -> None:
    for key, value in (("rendezvous", fleet.rendezvous), ("beacon", fleet.beacon)):
        if value not in ("", EMBEDDED) and not _is_host_port(value):
            raise ConfigError(f"fleet.{key}: {value!r} is not host:port")
    if not fleet.listen:
        return
    if fleet.rendezvous != EMBEDDED:
        raise ConfigError("fleet.listen: it is for the embedded rendezvous")
    try:
        address = ipaddress.ip_address(fleet.listen)
    except ValueError:
        raise ConfigError(f"fleet.listen: {fleet.listen!r} is no IP address") from None
    if address.is_unspecified:
        raise ConfigError(
            f"fleet.listen: {fleet.listen} is no address that others can be told",
            hint="name the address of this machine that the others reach",
        )


def _check_monitor(table: MonitorSection | None) -> None:
    if table is None:
        return
    host, _, port = table.http.rpartition(":")
    if not (_is_host_port(table.http) or (host and port == "0")):
        raise ConfigError(f"monitor.http: {table.http!r} is not host:port")
    if not table.token_file and not is_loopback(host.strip("[]")):
        raise ConfigError(
            f"monitor.http: others can reach {table.http}, so a token is needed",
            hint="set monitor.token_file, after: openssl rand -hex 32 > FILE",
        )


def _is_host_port(text: str) -> bool:
    host, separator, port = text.rpartition(":")
    return bool(host and separator and port.isdecimal() and 0 < int(port) <= 0xFFFF)
