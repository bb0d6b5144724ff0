"""Settings of a host and of the agents on it.

Flags, files and variables are read in `pilotfleet.cli`; here are only values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pilotfleet.protocol.services.dataexchange import MAX_FRAME

if TYPE_CHECKING:
    from pathlib import Path

    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.transport.tls import TlsConfig

__all__ = [
    "DEFAULT_BEACON_PORT",
    "DEFAULT_REGISTRY",
    "MAX_HOSTED_AGENTS",
    "AgentSpec",
    "HostConfig",
    "NetworkToJoin",
]

DEFAULT_REGISTRY: Final = ("127.0.0.1", 9000)
DEFAULT_BEACON_PORT: Final = 9001
MAX_HOSTED_AGENTS: Final = 100_000
ANY_ADDRESS: Final = ("", 0)


@dataclass(frozen=True, slots=True)
class NetworkToJoin:
    """A network that agents join when they start."""

    network: str
    """Its number or its name."""
    token: str = field(default="", repr=False)
    is_required: bool = True
    """Whether an agent that may not join it must not start."""


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """One agent to host."""

    name: str
    """What this host calls it; unique on the host."""
    home: Path
    """Folder of its trust list, inbox and tasks."""
    identity_path: Path
    """File with its key; made at the first start."""
    hostname: str = ""
    """What the registry calls it; empty for none."""
    tags: tuple[str, ...] = ()
    is_public: bool = False
    listen: Endpoint = ANY_ADDRESS
    """UDP address; an empty host means all, port 0 any free one."""
    advertise: Endpoint | None = None
    """Fixed endpoint to register, for hosts that know their public address."""
    relay_only: bool = False
    """Hide the endpoint; everything goes through the beacon."""


@dataclass(frozen=True, slots=True)
class HostConfig:
    """Everything a host needs to know."""

    home: Path
    """Folder of this host's files."""
    agents: tuple[AgentSpec, ...]
    """The first is the default agent: unselected IPC requests mean it."""
    registry: Endpoint = DEFAULT_REGISTRY
    beacon: Endpoint | None = None
    """None: the registry's host, port 9001."""
    registry_connections: int = 4
    """More help only a registry without the pipeline extension."""
    tls: TlsConfig | None = None
    socket: Path | None = None
    """Unix socket for local programs; None opens none."""
    agent_sockets: Path | None = None
    """Folder for one official-style socket per agent; None makes none."""
    networks: tuple[NetworkToJoin, ...] = ()
    """Joined by every agent."""
    brokers: tuple[str, ...] = ()
    """Hostnames of the fleet's event broker and its stand-bys, in order; none is each
    agent's own."""
    roll_up: tuple[str, ...] = ()
    """Hostnames of the broker above, and its stand-bys, for events that the brokers
    of this host take."""
    roll_up_topics: tuple[str, ...] = ("fleet.*",)
    """Patterns of what goes up."""
    node_report_s: float = 0.0
    """Between two events that tell the fleet what the agents carry; 0: none."""
    owner: str = ""
    """Contact address sent with registrations; used for a single agent only,
    since the registry binds an owner to one key."""
    admin_token: str = field(default="", repr=False)
    trust_auto_approve: bool = False
    strict_dataplane_trust: bool = False
    """Private agents exchange keys only with peers that they trust."""
    webhook: str = field(default="", repr=False)
    """URL that the events of every agent go to. It may hold a secret."""
    webhook_secret: str = field(default="", repr=False)
    """Signs what is posted to a webhook."""
    services_off: frozenset[int] = frozenset()
    """Ports of built-in services that shall not listen."""
    polo: bool = True
    """Sign receipts for finished tasks, by which scores change."""
    polo_gate: bool = True
    """Take tasks only of peers whose score is high enough."""
    min_polo: int | None = None
    """The score that a submitter needs; None: at least that of the worker."""
    task_files: bool = False
    """Mirror the tasks of every agent into files, as the official programs keep them.
    Costs one small file for each change of a task."""
    data_exchange_base64: bool = False
    """Store every message as base64, not just what is no text."""
    data_exchange_max_frame: int = MAX_FRAME
    """Longest message or file in one frame; senders split files."""

    keepalive_s: float = 60.0
    """Between heartbeats of one agent. The registry forgets an agent after half
    an hour, NAT mappings die after minutes: shorter costs traffic, longer
    costs reachability."""
    time_wait_s: float = 10.0
    """How long a closed stream keeps its ports."""
    max_connections_per_port: int = 1024
    max_connections: int = 65536
    idle_timeout_s: float = math.inf
    """Silence after which a stream is ended, though its peer may be alive. Peers that
    are not are found out by probes after about two minutes."""
    syn_rate: int = 100
    """Streams per second that all peers of one agent together may open."""
    syn_whitelist: frozenset[int] = frozenset()
    """Nodes that ``syn_rate`` does not limit."""
    reply_whitelist: frozenset[int] = frozenset()
    """Nodes whose key exchanges no rate limits."""
    rekey_whitelist: frozenset[int] = frozenset()
    """Nodes that may be asked for new keys at any time."""
    stagger_s: float = 0.0
    """Spread of the agents' starts. The registry defends itself as well; this
    keeps other programs on the machine responsive meanwhile."""
    parallel_starts: int = 256
    """Agents that register at the same time. Where the registry takes batches, their
    requests travel together."""
    registry_attempts: int = 10
    """Tries to reach the registry at the start, with growing pauses."""
    discover_timeout_s: float = 5.0
    """How long the first agent waits for the beacon to tell its address."""
    drain_s: float = 5.0
    """How long a stop waits for streams to deliver what was written."""

    @property
    def broker(self) -> str | None:
        """The fleet's first broker."""
        return self.brokers[0] if self.brokers else None
