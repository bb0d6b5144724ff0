"""``pilot-monitor``: watch one or more fleets.

Aggregates their events, keeps history, raises alerts, and shows it all: as web pages,
for Prometheus, as lines of JSON, by OTLP. The first SIGTERM or SIGINT stores what is
known and stops, the second one stops at once; SIGHUP reads the rules of alerts again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import pilotfleet
from pilotfleet.cli.logs import configure_logging
from pilotfleet.cli.monitorsocket import monitor_socket
from pilotfleet.cli.serving import (
    EXIT_INTERRUPTED,
    fast_loop,
    run_command,
    settle_memory,
    tell_ready,
)
from pilotfleet.cli.tokenfile import read_token_file
from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.fleet.agent import Agent
from pilotfleet.fleet.monitor.history.history import Retention
from pilotfleet.fleet.monitor.monitor import Monitor, MonitorConfig
from pilotfleet.fleet.monitor.outputs.ndjson import LineKind
from pilotfleet.protocol.durations import parse_duration
from pilotfleet.protocol.registry.endpoints import (
    format_endpoint,
    is_loopback,
    parse_endpoint,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from pilotfleet.protocol.address import Endpoint

__all__ = ["main"]

logger = logging.getLogger(__name__)

PROGRAM: Final = "pilot-monitor"
HTTP: Final = "127.0.0.1:8787"
MAX_FLEETS: Final = 64
DAY_S: Final = 86_400.0
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,252}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--broker",
    "brokers",
    multiple=True,
    help="Agent whose broker is followed, and its stand-bys: NAME[,NAME...]. Once for"
    " each fleet. By default what the daemon was told.",
)
@click.option("--http", help='Where the pages are; "" for none.', default=HTTP)
@click.option("--http-token-file", help="Holds what opens the pages.", default="")
@click.option(
    "--http-allow-host",
    "allow_hosts",
    multiple=True,
    help="Another host name that the pages answer to, as behind a proxy.",
)
@click.option("--home", help="Folder of the history.", default="")
@click.option("--retention", help="How long hours are kept.", default="400 days")
@click.option("--alerts", help="Rules, as TOML. SIGHUP reads them again.", default="")
@click.option(
    "--ndjson",
    help="Write lines of JSON on standard output: events or figures.",
    type=click.Choice([kind.value for kind in LineKind]),
)
@click.option("--otlp", help="URL of an OpenTelemetry collector.", default="")
@click.option("--topic", help="What is followed.", default="fleet.*")
@click.option("--agent", help="Hosted agent to follow as.", default=None)
@click.option(
    "--socket",
    help="The daemon's. By default the usual one or, without it, that of the hub of the"
    " fleet that runs here.",
    default=None,
    envvar="PILOT_SOCKET",
)
@click.option("--ready-file", help="Written when it follows.", default="")
@click.option("--log-level", help="debug, info, warn or error.", default="info")
@click.option("--log-format", help="text or json.", default="text")
@click.version_option(pilotfleet.__version__, message="pilotfleet %(version)s")
def _command(**flags: Any) -> None:
    """Watch a fleet: its figures as web pages, metrics, history and alerts."""
    configure_logging(flags["log_level"], flags["log_format"])
    brokers = _brokers(flags["brokers"])
    with ExitStack() as stack:
        if not flags["socket"]:
            first = brokers[0] if brokers else ()
            flags["socket"] = stack.enter_context(monitor_socket(first))
        loop = stack.enter_context(asyncio.Runner(loop_factory=fast_loop()))
        loop.run(_watch(flags, brokers))


def main() -> NoReturn:
    """Run ``pilot-monitor`` with the arguments of the process."""
    sys.exit(run_command(_command, PROGRAM))


async def _watch(flags: dict[str, Any], brokers: list[tuple[str, ...]]) -> None:
    stop = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None
    is_ready = False

    def on_signal() -> None:
        if is_ready and not stop.is_set():
            stop.set()
        elif is_ready:
            os._exit(EXIT_INTERRUPTED)
        else:
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    fleets = brokers or await _known_brokers(flags)
    monitor = Monitor(_config(flags, fleets))
    loop.add_signal_handler(signal.SIGHUP, monitor.reload_rules)
    async with monitor:
        settle_memory()
        http = format_endpoint(monitor.http) if monitor.http else ""
        names = list(monitor.fleets())
        ready_file = flags["ready_file"]
        state = {"fleets": names, "http": http}
        tell_ready(Path(ready_file) if ready_file else None, state)
        is_ready = True
        logger.info("ready: fleets %s, http %s", ", ".join(names), http or "off")
        await monitor.run(stop)
        logger.info("stopping")
    logger.info("stopped")


def _brokers(given: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the brokers of each fleet that was named."""
    if len(given) > MAX_FLEETS:
        raise InvalidArgument(f"--broker: at most {MAX_FLEETS} fleets")
    fleets = [tuple(map(str.strip, text.split(","))) for text in given]
    for name in (name for names in fleets for name in names):
        if not _NAME.fullmatch(name):
            raise InvalidArgument(
                f"--broker: {name[:40]!r} is no name of an agent",
                hint="for example --broker batch-hub, or batch-hub,worker-1 with a"
                " stand-by",
            )
    return fleets


async def _known_brokers(flags: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the brokers that the daemon was told."""
    async with await Agent.connect(flags["socket"], name=flags["agent"]) as agent:
        return [tuple(await agent.brokers())]


def _config(flags: dict[str, Any], fleets: list[tuple[str, ...]]) -> MonitorConfig:
    http = _endpoint(flags["http"]) if flags["http"] else None
    token = read_token_file(flags["http_token_file"], "token") or None
    if http is not None and token is None and not is_loopback(http[0]):
        raise InvalidArgument(
            f"--http: others can reach {flags['http']}, so a token is needed",
            hint="openssl rand -hex 32 > FILE, then --http-token-file FILE",
        )
    home = flags["home"]
    return MonitorConfig(
        fleets=tuple(fleets),
        home=Path(home) if home else _default_home(fleets[0][0]),
        topic=flags["topic"],
        socket=Path(flags["socket"]) if flags["socket"] else None,
        agent=flags["agent"],
        http=http,
        token=token,
        allow_hosts=flags["allow_hosts"],
        alerts=Path(flags["alerts"]) if flags["alerts"] else None,
        lines=LineKind(flags["ndjson"]) if flags["ndjson"] else None,
        otlp=flags["otlp"],
        retention=_retention(flags["retention"]),
    )


def _endpoint(text: str) -> Endpoint:
    try:
        return parse_endpoint(text)
    except DecodeError:
        raise InvalidArgument(
            f"--http: {text!r} is not host:port", hint=f"for example {HTTP}"
        ) from None


def _retention(text: str) -> Retention:
    """Read for how long hours are kept; what is finer is never kept longer."""
    days = re.fullmatch(r"(\d{1,5}) ?d(ays?)?", text)
    seconds = int(days[1]) * DAY_S if days else parse_duration(text, "--retention")
    if seconds < 3_600:
        raise InvalidArgument("--retention is at least 1h")
    usual = Retention()
    return Retention(
        seconds_s=min(usual.seconds_s, seconds),
        minutes_s=min(usual.minutes_s, seconds),
        hours_s=seconds,
    )


def _default_home(broker: str) -> Path:
    root = Path(os.environ.get("PILOT_HOME") or Path.home()).absolute()
    return root / ".pilot" / "monitor" / broker
