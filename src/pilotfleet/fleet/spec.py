"""The fleet specification, ``fleet.toml``.

Unknown tables and keys are refused: a misspelt key that is silently ignored would
cost its author an evening.
"""

from __future__ import annotations

import shlex
import tomllib
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from pilotfleet.errors import ConfigError, InvalidArgument
from pilotfleet.fleet.worker.identities import MAX_IDENTITIES
from pilotfleet.protocol.durations import parse_duration
from pilotfleet.protocol.registry.names import check_hostname, normalise_tags

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "EMBEDDED",
    "FleetSection",
    "FleetSpec",
    "Pattern",
    "WorkersSection",
    "load_spec",
]

EMBEDDED: Final = "embedded"
"""The value of ``rendezvous`` that makes the launcher start its own."""

WORKER_PREFIX: Final = "worker-"
MAX_CONCURRENCY: Final = 1_000


class Pattern(StrEnum):
    """How the agents of a fleet work together."""

    HUB_AND_SPOKE = "hub-and-spoke"
    MESH = "mesh"
    HIERARCHICAL = "hierarchical"


AVAILABLE: Final = frozenset([Pattern.HUB_AND_SPOKE])
"""Patterns of this release; the others are known, so that they can be refused."""


class FleetSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[fleet]``: what holds for all of it."""

    name: str = "fleet"
    """Also the name of the private network that the agents share."""
    pattern: Pattern = Pattern.HUB_AND_SPOKE
    rendezvous: str = EMBEDDED
    """``embedded``, or ``host:port`` of a registry that runs already."""
    beacon: str = ""
    """``host:port``; by default the registry's host, one port higher."""
    stagger: str = "0s"
    """Agent starts are spread over this time."""


class WorkersSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[workers]``: the agents that do the tasks."""

    exec: str
    """The command: the task's text on stdin, the result on stdout."""
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_IDENTITIES)] = 1
    prefix: str = ""
    """Agents are called prefix1, prefix2, … and found under these names. By default
    ``worker-``, and behind the fleet's name where fleets share a rendezvous."""
    tags: tuple[str, ...] = ("worker",)
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=MAX_CONCURRENCY)] = 1
    """Commands that one agent runs at the same time."""
    timeout: str = "300s"
    """A command that runs longer is killed and its task tried elsewhere."""
    retry_failed: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    """How often a task whose command exited non-zero is tried again."""


class HierarchySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[hierarchy]``: only for the hierarchical pattern, ignored by the others."""

    cluster_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_IDENTITIES)] = 50
    """Workers under one sub-orchestrator."""


class FleetSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole specification."""

    workers: WorkersSection
    fleet: FleetSection = FleetSection()
    hierarchy: HierarchySection = HierarchySection()

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
        _check(spec)
    except (msgspec.ValidationError, InvalidArgument) as error:
        raise ConfigError(f"fleet specification {path}: {error}") from None
    return spec


def _check(spec: FleetSpec) -> None:
    """Check what types alone cannot say."""
    if spec.fleet.pattern not in AVAILABLE:
        raise ConfigError(
            f"fleet.pattern: {spec.fleet.pattern} belongs to a later release;"
            f" this one has {', '.join(sorted(AVAILABLE))}"
        )
    check_hostname(spec.fleet.name)
    check_hostname(f"{spec.prefix}{spec.workers.count}")
    if not normalise_tags(spec.workers.tags):
        raise ConfigError("workers.tags: at least one tag, or nobody finds them")
    _ = spec.stagger_s
    if not spec.timeout_s:
        raise ConfigError("workers.timeout: a command needs some time")
    try:
        if not shlex.split(spec.workers.exec):
            raise ConfigError("workers.exec: the command is empty")
    except ValueError as error:
        raise ConfigError(f"workers.exec: {error}") from None
    for key, value in (
        ("rendezvous", spec.fleet.rendezvous),
        ("beacon", spec.fleet.beacon),
    ):
        if value not in ("", EMBEDDED) and not _is_host_port(value):
            raise ConfigError(f"fleet.{key}: {value!r} is not host:port")


def _is_host_port(text: str) -> bool:
    host, separator, port = text.rpartition(":")
    return bool(host and separator and port.isdecimal() and 0 < int(port) <= 0xFFFF)
