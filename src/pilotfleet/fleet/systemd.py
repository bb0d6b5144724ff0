"""The systemd units of a fleet. Performs no I/O.

The article's way: a daemon for all agents of a machine, and ``pilot-agent@N`` for the
program that does the tasks of agent N. ``pilot-fleet.service`` is the other way: the
whole specification under one unit, which starts, heals and scales it. A machine uses
one of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import ConfigError
from pilotfleet.fleet.plan import Part, hub_name, monitor_flags, worker_flags
from pilotfleet.fleet.spec import EMBEDDED, MonitorSection

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pilotfleet.fleet.spec import FleetSpec

__all__ = ["Layout", "write_units"]

STATE: Final = "/var/lib/pilot"
RUNTIME: Final = "/run/pilot"
ADMIN_SECRETS: Final = "/etc/pilot/admin.env"
"""PILOT_ADMIN_TOKEN and PILOT_JOIN_TOKEN; systemd reads it as root."""
AGENT_SETTINGS: Final = "/etc/pilot/agent.env"
"""What commands of tasks may see, such as the key of a model; may be missing."""
SOCKET: Final = f"{RUNTIME}/pilot.sock"
REGISTRY: Final = "127.0.0.1:9000"
BEACON: Final = "127.0.0.1:9001"
HTTP: Final = "127.0.0.1:3000"

BASE_FILES: Final = 512
"""Open files of a program besides its agents' sockets."""
FILES_PER_AGENT: Final = 4
BASE_MEMORY_MB: Final = 512
MEMORY_PER_1000_AGENTS_MB: Final = 256
"""Ten times what idle agents take: a limit is for faults, not for load."""
AGENT_MEMORY: Final = "2G"
"""Of one worker program and the commands it runs."""
FLEET_MEMORY_SHARE: Final = "80%"

_HEADER: Final = "# Written by pilotctl fleet systemd: change it in a drop-in folder."

_HARDENING: Final = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome={home}",
    "PrivateTmp={tmp}",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectControlGroups=yes",
    "ProtectProc=invisible",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "SystemCallArchitectures=native",
    "UMask=0077",
)

_TMP: Final = ("/tmp", "/var/tmp")

_LOGS: Final = (
    "StandardOutput=journal",
    "StandardError=journal",
    # The journal itself is bounded by journald.conf; this bounds one program's part.
    "LogRateLimitIntervalSec=30s",
    "LogRateLimitBurst=1000",
)

_RESTART: Final = ("Restart=always", "RestartSec=2s")
_NO_LIMIT_OF_STARTS: Final = "StartLimitIntervalSec=0"
"""A rendezvous that is away for an hour must not leave agents stopped for ever."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are on the machine that the units are for."""

    programs: Path
    """Folder of our programs, absolute."""
    spec: Path
    """The specification, absolute."""
    folder: Path
    """Where commands of tasks run, absolute."""
    interpreter: Path
    """The Python that runs them, absolute; it may lie elsewhere."""
    part: Part
    """Of a fleet on several machines. The first has the hub, and workers 1 to …"""

    def workers(self, count: int) -> range:
        """Return the numbers of the agents that this machine hosts."""
        index, of = self.part.index, self.part.of
        return range((index - 1) * count // of + 1, index * count // of + 1)


def write_units(spec: FleetSpec, layout: Layout) -> dict[str, str]:
    """Return the text of each file by its name.

    Raises:
        ConfigError: This part has no workers, or would not find the rendezvous.
    """
    part = layout.part
    if not part.is_first and spec.fleet.rendezvous == EMBEDDED:
        raise ConfigError(
            "fleet.rendezvous: the other parts of a fleet must know where it is",
            hint='set [fleet] rendezvous = "host:9000" in the specification',
        )
    if not layout.workers(spec.workers.count):
        raise ConfigError(f"part {part} has none of {spec.workers.count} workers")
    return {
        "pilot-rendezvous.service": _rendezvous(layout),
        "pilot-daemon.service": _daemon(spec, layout),
        "pilot-agent@.service": _agent(spec, layout),
        "pilot-monitor.service": _monitor(spec, layout),
        "pilot-fleet.service": _fleet(spec, layout),
        "pilotfleet.sysusers": f'u pilot - "Pilot fleet" {STATE}\n',
    }


def _rendezvous(layout: Layout) -> str:
    command = [
        *(_program(layout, "pilot-rendezvous"), "--registry-addr", REGISTRY),
        *("--beacon-addr", BEACON, "--http", HTTP),
        *("--store", f"sqlite://{STATE}/registry.db"),
    ]
    return _unit(
        "Pilot rendezvous: registry, beacon and dashboard",
        layout,
        service=[
            f"ExecStart={_join(command)}",
            f"EnvironmentFile={ADMIN_SECRETS}",
            "LimitNOFILE=65536",
            "MemoryMax=4G",
        ],
    )


def _daemon(spec: FleetSpec, layout: Layout) -> str:
    workers, fleet = layout.workers(spec.workers.count), spec.fleet
    count = len(workers)
    is_here = fleet.rendezvous == EMBEDDED
    registry = REGISTRY if is_here else fleet.rendezvous
    beacon = fleet.beacon or (BEACON if is_here else "")
    tags = [word for tag in spec.workers.tags for word in ("--tag", _quote(tag))]
    command = [
        *(_program(layout, "pilot-daemon"), "--registry", _quote(registry)),
        *(("--beacon", _quote(beacon)) if beacon else ()),
        *("--socket", SOCKET, "--home", f"{STATE}/daemon"),
        *(("--hostname", _quote(hub_name(spec))) if layout.part.is_first else ()),
        *("--broker", _quote(",".join(_brokers(spec, layout.part)))),
        *("--agents", str(count)),
        *("--agent-first", str(workers[0]), "--agent-prefix", _quote(spec.prefix)),
        *tags,
        *("--stagger", fleet.stagger, "--task-files", "off"),
        *("--polo-gate", "on" if fleet.polo_gate else "off"),
        *(() if fleet.polo else ("--polo", "off")),
    ]
    # Every agent into the fleet's network, which is made where it is missing.
    enrol = [
        *(_program(layout, "pilotctl"), "fleet", "enrol", _quote(str(layout.spec))),
        *("--socket", SOCKET, "--registry", _quote(registry), "--home", STATE),
    ]
    memory_mb = BASE_MEMORY_MB + count * MEMORY_PER_1000_AGENTS_MB // 1000
    return _unit(
        f"Pilot daemon: {count} agents of fleet {fleet.name}",
        layout,
        after=["pilot-rendezvous.service"] if is_here else [],
        service=[
            f"ExecStart={_join(command)}",
            f"ExecStartPost={_join(enrol)}",
            f"EnvironmentFile={ADMIN_SECRETS}",
            "RuntimeDirectory=pilot",
            "RuntimeDirectoryMode=0700",
            "RuntimeDirectoryPreserve=yes",
            f"LimitNOFILE={BASE_FILES + FILES_PER_AGENT * count}",
            f"MemoryMax={memory_mb}M",
        ],
    )


def _brokers(spec: FleetSpec, part: Part) -> list[str]:
    """Return the hub, then its stand-bys: the first worker of each other machine."""
    count, of = spec.workers.count, part.of
    firsts = [index * count // of + 1 for index in range(1, of)]
    standbys = [f"{spec.prefix}{first}" for first in firsts[: spec.events.standby]]
    return [hub_name(spec), *standbys]


def _agent(spec: FleetSpec, layout: Layout) -> str:
    command = [
        *(_program(layout, "openclaw-worker"), "--id", f"{_quote(spec.prefix)}%i"),
        *("--socket", SOCKET, *map(_quote, worker_flags(spec))),
    ]
    return _unit(
        f"Pilot agent %i of fleet {spec.fleet.name}",
        layout,
        after=["pilot-daemon.service"],
        service=[
            f"ExecStart={_join(command)}",
            f"WorkingDirectory={_escape(str(layout.folder))}",
            f"EnvironmentFile=-{AGENT_SETTINGS}",
            "LimitNOFILE=4096",
            f"MemoryMax={AGENT_MEMORY}",
            "TasksMax=512",
            # Its commands may take until their time limit.
            "KillMode=mixed",
        ],
    )


def _monitor(spec: FleetSpec, layout: Layout) -> str:
    table = spec.monitor or MonitorSection()
    brokers = ",".join(_brokers(spec, layout.part))
    command = [
        *(_program(layout, "pilot-monitor"), "--broker", _quote(brokers)),
        *("--socket", SOCKET, "--http", _quote(table.http)),
        *("--home", f"{STATE}/monitor"),
        *map(_quote, monitor_flags(table)),
    ]
    return _unit(
        f"Pilot monitor of fleet {spec.fleet.name}",
        layout,
        after=["pilot-daemon.service"],
        service=[
            f"ExecStart={_join(command)}",
            # Reads the rules of alerts again.
            "ExecReload=/bin/kill -HUP $MAINPID",
            f"WorkingDirectory={_escape(str(layout.folder))}",
            "LimitNOFILE=4096",
            "MemoryMax=1G",
        ],
    )


def _fleet(spec: FleetSpec, layout: Layout) -> str:
    command = [
        *(_program(layout, "pilotctl"), "fleet", "up", _quote(str(layout.spec))),
        *("--foreground", "--home", f"{STATE}/{_quote(spec.fleet.name)}"),
        *(("--part", str(layout.part)) if layout.part.of > 1 else ()),
    ]
    return _unit(
        f"Pilot fleet {spec.fleet.name}, all of it",
        layout,
        service=[
            f"ExecStart={_join(command)}",
            f"WorkingDirectory={_escape(str(layout.folder))}",
            f"EnvironmentFile=-{AGENT_SETTINGS}",
            f"EnvironmentFile=-{ADMIN_SECRETS}",
            f"LimitNOFILE={BASE_FILES + FILES_PER_AGENT * spec.workers.count}",
            f"MemoryMax={FLEET_MEMORY_SHARE}",
            # It stops its programs in the right order by itself.
            "KillMode=mixed",
        ],
    )


def _unit(
    title: str, layout: Layout, *, service: Sequence[str], after: Sequence[str] = ()
) -> str:
    dependencies = [f"After=network-online.target {' '.join(after)}".rstrip()]
    dependencies += [f"Wants=network-online.target {' '.join(after)}".rstrip()]
    lines = [
        _HEADER,
        "[Unit]",
        f"Description={title}",
        *dependencies,
        _NO_LIMIT_OF_STARTS,
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        "User=pilot",
        "StateDirectory=pilot",
        "StateDirectoryMode=0700",
        f"Environment=HOME={STATE}",
        *service,
        *_RESTART,
        "TimeoutStartSec=10min",
        "TimeoutStopSec=60s",
        *_LOGS,
        *_harden(layout),
        "",
        "[Install]",
        "WantedBy=multi-user.target",
        "",
    ]
    return "\n".join(lines)


def _harden(layout: Layout) -> list[str]:
    """Hide other people's files, except where what the unit runs lies among them."""
    paths = (layout.programs, layout.interpreter, layout.spec, layout.folder)
    in_home = any(path.parts[1:2] in (("home",), ("root",)) for path in paths)
    in_tmp = any(path.is_relative_to(place) for path in paths for place in _TMP)
    return [
        line.format(
            home="read-only" if in_home else "yes", tmp="no" if in_tmp else "yes"
        )
        for line in _HARDENING
    ]


def _program(layout: Layout, name: str) -> str:
    return _quote(str(layout.programs / name))


def _join(words: Sequence[str]) -> str:
    """Join the words of a command, a line for each flag: people read it."""
    return "".join(
        f" \\\n    {word}" if word.startswith("--") else f" {word}" for word in words
    ).lstrip()


def _escape(text: str) -> str:
    """Keep systemd from reading a specifier into a text."""
    return text.replace("%", "%%")


def _quote(word: str) -> str:
    """Return a word of a command as systemd reads it back (systemd.service(5))."""
    escaped = _escape(word).replace("\\", "\\\\").replace("$", "$$")
    if escaped and not set(escaped) & set(" \t\"'\\;"):
        return escaped
    return '"' + escaped.replace('"', '\\"') + '"'
