"""Flags of ``pilot-daemon`` (cli.md section 4.4) and what they configure.

A setting comes from, strongest first: flag, environment, config.json, default.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pilotfleet
from pilotfleet.cli.arguments import read_number
from pilotfleet.cli.settings import (
    DEFAULT_BEACON,
    DEFAULT_REGISTRY,
    SYSTEM_TRUST,
    choose_registry_trust,
)
from pilotfleet.client.socketpath import default_socket
from pilotfleet.errors import ConfigError, DecodeError, InvalidArgument, PilotError
from pilotfleet.node.config import AgentSpec, HostConfig, NetworkToJoin
from pilotfleet.protocol.durations import parse_duration
from pilotfleet.protocol.registry.endpoints import parse_endpoint
from pilotfleet.protocol.registry.names import check_hostname, normalise_tags
from pilotfleet.protocol.services.dataexchange import (
    MAX_FRAME,
    MAX_MAX_FRAME,
    MIN_MAX_FRAME,
)
from pilotfleet.protocol.services.polo import MAX_SCORE
from pilotfleet.protocol.services.webhook import parse_url
from pilotfleet.transport.tls import TlsConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pilotfleet.protocol.address import Endpoint

__all__ = ["PROCESS_FLAG", "DaemonOptions", "read_options"]

logger = logging.getLogger(__name__)

_TEXTS: Final = """
    admin-token advertise-endpoint beacon config email endpoint hostname identity
    idle-timeout keepalive listen log-format log-level log-max-backups log-max-size
    max-conns-per-port max-conns-total networks owner registry registry-fingerprint
    registry-trust rekey-whitelist reply-whitelist socket syn-rate-limit syn-whitelist
    time-wait webhook webhook-secret
    agent-first agent-prefix agent-sockets agents broker fleet home polo
    node-report polo-gate processes ready-file roll-up stagger task-files
""".split()  # noqa: SIM905 - a list of names is easier to read and to sort so.
"""Flags with a value; the last two lines are not of the official program."""
_SWITCHES: Final = """
    dataexchange-b64 encrypt no-dataexchange no-echo no-eventstream no-tasksubmit
    public registry-tls relay-only strict-dataplane-trust trust-auto-approve
""".split()  # noqa: SIM905
_IGNORED_TEXTS: Final = {
    "compat-beacon": "there is no transport over TCP 443",
    "motd-feed-url": "there is no message of the day",
    "motd-interval": "there is no message of the day",
    "pprof": "it is for programs in Go",
    "proxy": "nothing goes through a proxy",
    "proxy-cmd": "nothing goes through a proxy",
    "sandbox-dir": "files are not confined; let systemd do that",
    "security-profile": "there is one profile",
    "telemetry-url": "nothing is ever reported to anybody",
    "tls-trust": "there is no transport over TCP 443",
    "transport": "packets go over UDP",
}
"""Flags of the vendor's cloud, or of parts of the reference that we do not have, and
why they mean nothing here."""
_IGNORED_SWITCHES: Final = {
    "beacon-rtt-probe": "there is one beacon",
    "no-addr-watch": "it cannot be turned off",
    "no-path-watch": "it cannot be turned off",
    "no-rx-watchdog": "there is no such watchdog",
    "no-skillinject": "nothing is ever injected",
    "sandbox": "files are not confined; let systemd do that",
}
_AS_HERE: Final = {"transport": "udp", "security-profile": "compatible"}
"""Values of ignored flags that ask for what is done anyway."""

ENVIRONMENT: Final = {
    "registry": "PILOT_REGISTRY",
    "beacon": "PILOT_BEACON",
    "socket": "PILOT_SOCKET",
    "admin_token": "PILOT_ADMIN_TOKEN",
    "registry_trust": "PILOT_REGISTRY_TRUST",
    "registry_fingerprint": "PILOT_REGISTRY_FINGERPRINT",
    "broker": "PILOT_BROKER",
    "webhook_secret": "PILOT_WEBHOOK_SECRET",
    "strict_dataplane_trust": "PILOT_STRICT_DATAPLANE_TRUST",
    "syn_whitelist": "PILOT_SYN_WHITELIST",
    "reply_whitelist": "PILOT_REPLY_WHITELIST",
    "rekey_whitelist": "PILOT_REKEY_WHITELIST",
}
JOIN_TOKEN: Final = "PILOT_JOIN_TOKEN"
"""Token for ``--join``: a command line can be read by every user."""
MAX_FRAME_VARIABLE: Final = "PILOT_DATAEXCHANGE_MAX_FRAME"
SERVICE_SWITCHES: Final = {
    "no_echo": 7,
    "no_dataexchange": 1001,
    "no_eventstream": 1002,
    "no_tasksubmit": 1003,
}
DEFAULT_KEEPALIVE: Final = "60s"
TRUTHS: Final = {
    **dict.fromkeys(("1", "t", "true"), True),
    **dict.fromkeys(("0", "f", "false"), False),
}
MAX_NUMBER: Final = 0xFFFF_FFFF
MAX_AGENTS: Final = 100_000
MAX_PROCESSES: Final = 64
"""Every one costs as much as a daemon without agents."""
PROCESS_FLAG: Final = "--process"
"""First argument of the processes that a daemon starts itself; not for users."""
MAX_BROKERS: Final = 16
"""Each is a connection of every subscriber."""
SHORTEST_REPORT_S: Final = 1.0
LONGEST_REPORT_S: Final = 3600.0
MAX_LOG_BACKUPS: Final = 1000
"""Each is looked for when the log is rotated."""


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """Everything the command line and its surroundings say."""

    host: HostConfig
    processes: int
    """Among how many processes the agents are divided."""
    log_level: str
    log_format: str
    log_max_bytes: int
    log_backups: int
    ready_file: Path | None
    ignored: Mapping[str, str]
    """Flags that were given and mean nothing here, and why."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidArgument(message, hint="pilot-daemon --help lists the flags")


def read_options(argv: Sequence[str] | None) -> DaemonOptions:
    """Read flags, environment and config.json.

    Raises:
        InvalidArgument: A flag, variable or value is wrong; the message names it.
    """
    flags = vars(_make_parser().parse_args(argv))
    if flags["fleet"]:
        _take_from_spec(flags, Path(flags["fleet"]))
    home = _home(flags["home"])
    settings = _Settings(flags, _read_config(flags["config"], home))
    ignored = {
        name: why
        for name, why in (_IGNORED_TEXTS | _IGNORED_SWITCHES).items()
        if settings.text(_key(name)) not in ("", "false", _AS_HERE.get(name))
    }
    host = _host_config(settings, home)
    return DaemonOptions(
        host=host,
        processes=_processes(settings, len(host.agents)),
        log_level=settings.text("log_level", "info"),
        log_format=settings.text("log_format", "text"),
        log_max_bytes=settings.number("log_max_size", 50) * 1024 * 1024,
        log_backups=min(settings.number("log_max_backups", 3), MAX_LOG_BACKUPS),
        ready_file=Path(flags["ready_file"]) if flags["ready_file"] else None,
        ignored=ignored,
    )


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pilot-daemon",
        description="Host agents of the Pilot Protocol overlay.",
        allow_abbrev=False,
        # Its own -h would take "-help", which official clients ask, for "-h elp".
        add_help=False,
    )
    parser.add_argument("-h", "-help", "--help", action="help")
    for name in _TEXTS:
        parser.add_argument(f"-{name}", f"--{name}")
    for name in _SWITCHES:
        # As in Go: a switch may be given a value, -encrypt=false.
        parser.add_argument(f"-{name}", f"--{name}", nargs="?", const="true")
    ignored = parser.add_argument_group("accepted and ignored")
    for name in _IGNORED_TEXTS:
        ignored.add_argument(f"-{name}", f"--{name}")
    for name in _IGNORED_SWITCHES:
        ignored.add_argument(f"-{name}", f"--{name}", nargs="?", const="true")
    for name, metavar in (
        ("tag", "T"),
        ("join", "NETWORK[:TOKEN]"),
        ("roll-up-topic", "PATTERN"),
    ):
        parser.add_argument(
            f"-{name}",
            f"--{name}",
            dest=_key(name),
            action="append",
            default=[],
            metavar=metavar,
        )
    parser.add_argument(
        "-version",
        "--version",
        action="version",
        version=f"pilotfleet {pilotfleet.__version__}",
    )
    return parser


class _Settings:
    """One setting after the other, by the precedence of the module's docstring."""

    def __init__(self, flags: dict[str, Any], config: dict[str, Any]) -> None:
        self.flags = flags
        self._config = config

    def text(self, key: str, default: str = "") -> str:
        given = self.flags.get(key)
        if given is not None:
            return str(given)
        variable = os.environ.get(ENVIRONMENT.get(key, ""), "")
        if variable:
            return variable
        value = self._config.get(key)
        if isinstance(value, bool):
            return "true" if value else "false"
        return default if value is None or value == "" else str(value)

    def switch(self, key: str, default: bool = False) -> bool:
        text = self.text(key).lower()
        if not text:
            return default
        if text not in TRUTHS:
            raise InvalidArgument(f"{_flag(key)}: {text!r} is not true or false")
        return TRUTHS[text]

    def number(self, key: str, default: int) -> int:
        text = self.text(key, str(default))
        number = read_number(text, MAX_NUMBER)
        if number is None:
            raise InvalidArgument(
                f"{_flag(key)}: {text[:40]!r} is not a whole number from 0 to"
                f" {MAX_NUMBER}"
            )
        return number

    def nodes(self, key: str) -> frozenset[int]:
        nodes = set()
        for part in filter(None, map(str.strip, self.text(key).split(","))):
            node = read_number(part, MAX_NUMBER)
            if node is None:
                raise InvalidArgument(
                    f"{_flag(key)}: {part[:40]!r} is not a node number"
                )
            nodes.add(node)
        return frozenset(nodes)

    def seconds(self, key: str, default: str) -> float:
        return parse_duration(self.text(key, default), _flag(key))

    def endpoint(self, key: str, default: str = "") -> Endpoint | None:
        text = self.text(key, default)
        if not text:
            return None
        try:
            return parse_endpoint(text)
        except DecodeError:
            raise InvalidArgument(f"{_flag(key)}: {text!r} is not host:port") from None


def _take_from_spec(flags: dict[str, Any], path: Path) -> None:
    """Fill the flags that were not given from a fleet's specification."""
    # Late: only the daemons of a fleet read one.
    from pilotfleet.fleet.spec import EMBEDDED, load_spec

    spec = load_spec(path)
    stated = {
        "agents": str(spec.workers.count),
        "agent_prefix": spec.prefix,
        "stagger": spec.fleet.stagger,
        "polo": "on" if spec.fleet.polo else "off",
        "polo_gate": "on" if spec.fleet.polo_gate else "off",
    }
    if spec.fleet.rendezvous != EMBEDDED:
        stated["registry"] = spec.fleet.rendezvous
    if spec.fleet.beacon:
        stated["beacon"] = spec.fleet.beacon
    for key, value in stated.items():
        if flags[key] is None:
            flags[key] = value
    flags["tag"] = flags["tag"] or list(spec.workers.tags)


def _host_config(settings: _Settings, home: Path) -> HostConfig:
    if not settings.switch("encrypt", default=True):
        raise InvalidArgument("tunnel encryption cannot be turned off")
    registry = settings.endpoint("registry", DEFAULT_REGISTRY)
    assert registry is not None
    beacon = settings.endpoint("beacon")
    if beacon is None and settings.text("registry", DEFAULT_REGISTRY) == (
        DEFAULT_REGISTRY
    ):
        beacon = parse_endpoint(DEFAULT_BEACON)
    agent_sockets = settings.text("agent_sockets")
    agents = _agents(settings, home)
    return HostConfig(
        home=home,
        agents=agents,
        registry=registry,
        beacon=beacon,
        tls=_tls(settings),
        socket=Path(settings.text("socket", default_socket())),
        agent_sockets=Path(agent_sockets) if agent_sockets else None,
        networks=_networks(settings),
        brokers=_names(settings, "broker"),
        roll_up=_names(settings, "roll_up"),
        roll_up_topics=tuple(settings.flags["roll_up_topic"]) or ("fleet.*",),
        node_report_s=_node_report_s(settings),
        owner=settings.text("email") or settings.text("owner"),
        admin_token=settings.text("admin_token"),
        trust_auto_approve=settings.switch("trust_auto_approve"),
        strict_dataplane_trust=settings.switch("strict_dataplane_trust"),
        webhook=_webhook(settings),
        webhook_secret=settings.text("webhook_secret"),
        services_off=frozenset(
            port for key, port in SERVICE_SWITCHES.items() if settings.switch(key)
        ),
        polo=_is_on(settings, "polo"),
        polo_gate=_min_polo(settings) is not None or _is_on(settings, "polo_gate"),
        min_polo=_min_polo(settings),
        task_files=_has_task_files(settings, len(agents)),
        data_exchange_base64=settings.switch("dataexchange_b64"),
        data_exchange_max_frame=_max_frame(),
        keepalive_s=settings.seconds("keepalive", DEFAULT_KEEPALIVE) or 60.0,
        time_wait_s=settings.seconds("time_wait", "10s"),
        max_connections_per_port=settings.number("max_conns_per_port", 1024),
        max_connections=settings.number("max_conns_total", 65536),
        idle_timeout_s=settings.seconds("idle_timeout", "0s") or math.inf,
        syn_rate=settings.number("syn_rate_limit", 0) or 100,
        syn_whitelist=settings.nodes("syn_whitelist"),
        reply_whitelist=settings.nodes("reply_whitelist"),
        rekey_whitelist=settings.nodes("rekey_whitelist"),
        stagger_s=settings.seconds("stagger", "0s"),
    )


def _agents(settings: _Settings, home: Path) -> tuple[AgentSpec, ...]:
    """Return the agents: the numbered ones, the named one, or both.

    Without --agents there is the one agent of an official daemon. With it there are
    just the numbered ones, unless --hostname or --identity asks for that one, too.
    """
    flags = settings.flags
    first, count, prefix, tags = _numbered(settings)
    named = flags["hostname"] is not None or flags["identity"] is not None
    specs = []
    if named or not count:
        # Tags are what the numbered agents are found by, where there are any.
        specs.append(_named_agent(settings, home, () if count else tags))
    listen = settings.endpoint("listen") or ("", 0)
    for number in range(first, first + count):
        name = f"{prefix}{number}"
        folder = home / "agents" / name
        specs.append(
            AgentSpec(
                name=name,
                home=folder,
                identity_path=folder / "identity.json",
                hostname=name,
                tags=tags,
                is_public=settings.switch("public"),
                # One socket each: a port that was asked for goes to the first.
                listen=listen if not specs else (listen[0], 0),
                relay_only=settings.switch("relay_only"),
            )
        )
    return tuple(specs)


def _named_agent(settings: _Settings, home: Path, tags: tuple[str, ...]) -> AgentSpec:
    hostname = settings.text("hostname")
    if hostname:
        check_hostname(hostname)
    identity = settings.text("identity")
    advertise = settings.endpoint("advertise_endpoint") or settings.endpoint("endpoint")
    return AgentSpec(
        name=hostname or "agent",
        home=home,
        identity_path=Path(identity) if identity else home / "identity.json",
        hostname=hostname,
        tags=tags,
        is_public=settings.switch("public"),
        listen=settings.endpoint("listen") or ("", 0),
        advertise=advertise,
        relay_only=settings.switch("relay_only"),
    )


def _numbered(settings: _Settings) -> tuple[int, int, str, tuple[str, ...]]:
    """Return the first number, how many there are, their prefix, and all tags."""
    flags = settings.flags
    count = settings.number("agents", 0)
    prefix = settings.text("agent_prefix", "worker-")
    tags = tuple(flags["tag"])
    if count > MAX_AGENTS:
        raise InvalidArgument(f"--agents: {count} agents (max {MAX_AGENTS})")
    first = settings.number("agent_first", 1)
    if count:
        check_hostname(f"{prefix}{first + count - 1}")
    return first, count, prefix, tuple(normalise_tags(tags))


def _processes(settings: _Settings, agents: int) -> int:
    count = settings.number("processes", 1)
    if not 1 <= count <= MAX_PROCESSES:
        raise InvalidArgument(f"--processes: {count} is not 1 to {MAX_PROCESSES}")
    if count > agents:
        hosted = "1 agent" if agents == 1 else f"{agents} agents"
        raise InvalidArgument(
            f"--processes: {count} processes for {hosted}",
            hint=f"use --processes {agents} or less; each hosts one agent at least",
        )
    return count


def _webhook(settings: _Settings) -> str:
    url = settings.text("webhook")
    if url:
        try:
            parse_url(url)
        except PilotError as error:
            raise InvalidArgument(f"--webhook: {error}") from None
    return url


def _names(settings: _Settings, key: str) -> tuple[str, ...]:
    """Return the brokers of a list, each once."""
    parts = map(str.strip, settings.text(key).split(","))
    names = tuple(dict.fromkeys(part for part in parts if part))
    if len(names) > MAX_BROKERS:
        raise InvalidArgument(f"{_flag(key)}: {len(names)} brokers (max {MAX_BROKERS})")
    return names


def _node_report_s(settings: _Settings) -> float:
    """Return the pause between reports: of a fleet's daemon, unless told."""
    default = "10s" if settings.text("broker") else "0s"
    seconds = settings.seconds("node_report", default)
    if seconds and not SHORTEST_REPORT_S <= seconds <= LONGEST_REPORT_S:
        raise InvalidArgument(f"--node-report: {seconds:g}s is not 0s, or 1s to 1h")
    return seconds


def _is_on(settings: _Settings, key: str) -> bool:
    text = settings.text(key, "on").lower()
    if text not in ("on", "off", "true", "false"):
        score = " or a score" if key == "polo_gate" else ""
        raise InvalidArgument(f"{_flag(key)}: {text[:40]!r} is not on or off{score}")
    return text in ("on", "true")


def _min_polo(settings: _Settings) -> int | None:
    """Return the score that --polo-gate names, if it names one."""
    text = settings.text("polo_gate")
    number = read_number(text.removeprefix("-"), MAX_SCORE)
    return -number if number is not None and text.startswith("-") else number


def _has_task_files(settings: _Settings, agents: int) -> bool:
    """Return whether tasks are mirrored: unless told, those of a single agent."""
    text = settings.text("task_files", "auto").lower()
    if text not in ("auto", "on", "off"):
        raise InvalidArgument(f"--task-files: {text[:40]!r} is not auto, on or off")
    return text == "on" or (text == "auto" and agents == 1)


def _max_frame() -> int:
    """Return the longest data exchange frame; a wrong value counts as none."""
    text = os.environ.get(MAX_FRAME_VARIABLE, "")
    if not text:
        return MAX_FRAME
    size = read_number(text, MAX_MAX_FRAME)
    if size is not None and size >= MIN_MAX_FRAME:
        return size
    logger.warning(
        "%s is ignored: not a number from %d to %d",
        MAX_FRAME_VARIABLE,
        MIN_MAX_FRAME,
        MAX_MAX_FRAME,
    )
    return MAX_FRAME


def _networks(settings: _Settings) -> tuple[NetworkToJoin, ...]:
    token = os.environ.get(JOIN_TOKEN, "")
    listed = [part.strip() for part in settings.text("networks").split(",")]
    # As the reference, go on without a network of --networks that refuses us.
    joins = [NetworkToJoin(part, is_required=False) for part in listed if part]
    for text in settings.flags["join"]:
        network, separator, own_token = text.partition(":")
        if not network:
            raise InvalidArgument(f"--join: {text!r} names no network")
        joins.append(NetworkToJoin(network, own_token if separator else token))
    return tuple(joins)


def _tls(settings: _Settings) -> TlsConfig | None:
    trust = choose_registry_trust(
        tls=settings.switch("registry_tls") if settings.text("registry_tls") else None,
        trust=settings.text("registry_trust"),
        fingerprint=settings.text("registry_fingerprint"),
    )
    if trust is None:
        return None
    return TlsConfig(fingerprint=None if trust == SYSTEM_TRUST else trust)


def _home(flag: str | None) -> Path:
    if flag:
        return Path(flag).expanduser().absolute()
    return Path(os.environ.get("PILOT_HOME") or Path.home()).absolute() / ".pilot"


def _read_config(flag: str | None, home: Path) -> dict[str, Any]:
    """Read config.json; ``-`` and ``_`` are the same in its keys."""
    path = Path(flag) if flag else home / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        if flag:
            raise ConfigError(f"configuration {path} does not exist") from None
        return {}
    except (OSError, ValueError, RecursionError) as error:
        # The reference goes on with its defaults, and so do we.
        logger.warning("cannot read %s: %s", path, error)
        return {}
    if not isinstance(config, dict):
        logger.warning("%s does not hold an object", path)
        return {}
    return {_key(str(key)): value for key, value in config.items()}


def _key(name: str) -> str:
    return name.replace("-", "_")


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")
