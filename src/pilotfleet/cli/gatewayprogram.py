"""``pilot-gateway``: local IP addresses for Pilot addresses (services.md section 9).

    pilot-gateway [-socket P] [-subnet N] [-ports L] run [<address> [<ip>]]...
    pilot-gateway [-socket P] map <address> [<ip>]

``map`` tells the gateway that runs already; without one it becomes it, as the
official ``pilotctl gateway map`` expects.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import pilotfleet
from pilotfleet.cli.gatewaysocket import ask_gateway
from pilotfleet.cli.logs import configure_logging
from pilotfleet.cli.serving import fast_loop, run_program, tell_ready
from pilotfleet.cli.settings import Settings
from pilotfleet.client.gateway import Gateway, GatewayConfig
from pilotfleet.client.gatewaycontrol import GatewayControl
from pilotfleet.errors import InvalidArgument, NotRunning
from pilotfleet.protocol.gateway import (
    DEFAULT_PORTS,
    DEFAULT_SUBNET,
    control_path,
    parse_ports,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

logger = logging.getLogger(__name__)

_PORTS: Final = ",".join(str(pair.local) for pair in DEFAULT_PORTS)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidArgument(message, hint="pilot-gateway --help explains the flags")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the gateway until it is told to stop; return the exit status."""
    return run_program(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    options = _make_parser().parse_args(argv)
    configure_logging(options.log_level, options.log_format)
    wanted = _read_targets(options.targets)
    if options.command == "map":
        if not wanted:
            raise InvalidArgument("usage: pilot-gateway map <address> [<ip>]")
        if _tell_running(options.socket, wanted):
            return
    config = GatewayConfig(
        subnet=options.subnet,
        ports=parse_ports(options.ports),
        agent=options.agent or None,
        max_connections=options.max_connections,
    )
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(_run(options, config, wanted))


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pilot-gateway",
        description="Reach Pilot addresses through local IP addresses.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-version", "--version", action="version", version=pilotfleet.__version__)
    texts = {
        "socket": (Settings().socket, "the daemon's socket"),
        "subnet": (DEFAULT_SUBNET, "local addresses; 127.4.0.0/16 needs no root"),
        "ports": (_PORTS, "TCP ports, local[:virtual]"),
        "agent": (os.environ.get("PILOT_AGENT", ""), "hosted agent that dials"),
        "log-level": ("info", "debug, info, warn or error"),
        "log-format": ("text", "text or json"),
    }
    for name, (default, text) in texts.items():
        add(f"-{name}", f"--{name}", default=default, help=f"{text} ({default})")
    add("-max-connections", "--max-connections", type=int, default=256)
    add("-ready-file", "--ready-file", type=Path, default=None)
    add("command", choices=("run", "map"))
    add("targets", nargs="*", metavar="address [ip]")
    return parser


def _read_targets(words: Sequence[str]) -> list[tuple[str, str | None]]:
    """Pair each target with the IP address that follows it, if one does."""
    wanted: list[tuple[str, str | None]] = []
    for word in words:
        try:
            ip = str(ipaddress.IPv4Address(word))
        except ValueError:
            wanted.append((word, None))
            continue
        if not wanted or wanted[-1][1] is not None:
            raise InvalidArgument(f"IP {ip} follows no Pilot address")
        wanted[-1] = (wanted[-1][0], ip)
    return wanted


def _tell_running(socket: str, wanted: Sequence[tuple[str, str | None]]) -> bool:
    try:
        for target, ip in wanted:
            ask_gateway(control_path(socket), op="map", target=target, ip=ip or "")
    except NotRunning:
        return False
    return True


async def _run(
    options: argparse.Namespace,
    config: GatewayConfig,
    wanted: Sequence[tuple[str, str | None]],
) -> None:
    loop = asyncio.get_running_loop()
    async with (
        Gateway(Path(options.socket), config) as gateway,
        GatewayControl(gateway, Path(control_path(options.socket))) as control,
    ):
        for target, ip in wanted:
            await gateway.map(target, ip)
        control.is_ready = True
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, control.stopped.set)
        logger.info(
            "gateway ready: pid %d, subnet %s, %d mappings",
            *(os.getpid(), gateway.subnet, len(wanted)),
        )
        state = {"pid": os.getpid(), "control": str(control.path)}
        tell_ready(options.ready_file, state)
        await control.stopped.wait()
        logger.info("gateway stops")
        for number in (signal.SIGTERM, signal.SIGINT):
            # A second signal does not wait for anything.
            loop.remove_signal_handler(number)
