"""``pilot-rendezvous``: registry, beacon and HTTP of a fleet.

Every flag is taken with one dash as well as with two, as the official programs
do. The first SIGTERM or SIGINT stops in good order, the second one at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import pilotfleet
from pilotfleet.cli.logs import configure_logging
from pilotfleet.cli.serving import (
    EXIT_INTERRUPTED,
    fast_loop,
    run_program,
    settle_memory,
    tell_ready,
)
from pilotfleet.cli.tokenfile import read_token_file
from pilotfleet.errors import (
    ConfigError,
    DecodeError,
    InvalidArgument,
)
from pilotfleet.protocol.durations import parse_duration
from pilotfleet.protocol.registry.endpoints import parse_endpoint
from pilotfleet.registry.beacon_table import BeaconConfig
from pilotfleet.registry.dashboard.config import DashboardConfig
from pilotfleet.registry.rendezvous import WILDCARDS, Rendezvous, RendezvousConfig
from pilotfleet.registry.server import PlainClients, ServerConfig
from pilotfleet.registry.service import ServiceConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.transport.certificates import ServerTls

__all__ = ["main"]

logger = logging.getLogger(__name__)

SYSTEM_STORE: Final = "/var/lib/pilot/registry.db"


def _default_store() -> str:
    """Return the store of a rendezvous that was not told of one."""
    if os.geteuid() == 0:
        return f"sqlite://{SYSTEM_STORE}"
    return f"sqlite://{_home() / 'registry.db'}"


def _home() -> Path:
    return Path(os.environ.get("PILOT_HOME") or Path.home()).absolute() / ".pilot"


def _option(name: str, text: str, **settings: Any) -> Callable[[Any], Any]:
    """Declare a flag with one dash and with two."""
    return click.option(f"--{name}", f"-{name}", help=text, **settings)


@click.command(context_settings={"help_option_names": ["-h", "-help", "--help"]})
@_option("registry-addr", "TCP address of the registry.", default="127.0.0.1:9000")
@_option("beacon-addr", "UDP address of the beacon.", default="127.0.0.1:9001")
@_option(
    "beacon-advertise",
    "Where nodes reach the beacon, if not where it listens.",
    default="",
)
@_option("beacon-id", "Number of this beacon among its peers.", default=0)
@_option("beacon-peer", "Another beacon, host:port. May be repeated.", multiple=True)
@_option("http", "HTTP address; empty for none.", default="127.0.0.1:3000")
@_option(
    "http-token-file",
    "File that holds the token of the pages and their API.",
    default="",
)
@_option(
    "http-allow-host",
    "Host name that the pages are reached by. May be repeated.",
    multiple=True,
)
@_option(
    "dashboard",
    "The public directory and its API on the HTTP address.",
    default="on",
    type=click.Choice(["on", "off"]),
)
@_option(
    "store",
    "sqlite:///PATH, nats://HOST:PORT or memory:",
    default=lambda: _default_store(),
    show_default=f"sqlite://{SYSTEM_STORE} for root, else ~/.pilot/registry.db",
    envvar="PILOT_STORE",
)
@_option("admin-token", "Prefer --admin-token-file.", envvar="PILOT_ADMIN_TOKEN")
@_option("admin-token-file", "File that holds the admin token.")
@_option("stale-threshold", "Silence after which a node is removed.", default="30m")
@_option("require-signatures", "Refuse unsigned registrations.", is_flag=True)
@_option(
    "limit-local",
    "Limit the rate of registrations and receipts also for programs on this host.",
    is_flag=True,
)
@_option(
    "requests-per-ip",
    "Requests per second of one address, above it slowed; 0: no limit.",
    default=100_000,
    show_default=True,
    type=click.IntRange(min=0),
)
@_option("tls", "Serve the registry over TLS 1.3.", is_flag=True)
@_option("tls-cert", "Certificate (and chain) in PEM; without it one is made.")
@_option("tls-key", "Key of the certificate in PEM.")
@_option(
    "tls-dir",
    "Folder of the certificate that is made.",
    show_default="that of the SQLite store, else ~/.pilot",
)
@_option(
    "plain-clients",
    "With --tls, who may do without it.",
    default=PlainClients.NONE.value,
    type=click.Choice([choice.value for choice in PlainClients]),
)
@_option("tls-fingerprint", "Print what clients pin, and exit.", is_flag=True)
@_option("ready-file", "Written, as JSON, when everything listens.")
@_option("log-level", "debug, info, warn or error.", default="info")
@_option("log-format", "text or json.", default="text")
@click.version_option(
    pilotfleet.__version__, "--version", "-version", message="pilotfleet %(version)s"
)
def main(**flags: Any) -> None:
    """Run the registry, beacon and HTTP server of a fleet."""
    sys.exit(run_program(lambda: _run(flags)))


def _run(flags: dict[str, Any]) -> None:
    if flags["tls_fingerprint"]:
        sys.stdout.write(f"{_open_tls(flags).fingerprint}\n")
        return
    configure_logging(flags["log_level"], flags["log_format"])
    tls = _tls(flags)
    config = _read_config(flags, tls)
    ready_file = Path(flags["ready_file"]) if flags["ready_file"] else None
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(_serve(config, ready_file, tls))


async def _serve(
    config: RendezvousConfig, ready_file: Path | None, tls: ServerTls | None
) -> None:
    stop = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None
    is_ready = False

    def on_signal() -> None:
        if is_ready and not stop.is_set():
            stop.set()
        elif is_ready:
            # The second one: what is not written by now is lost, as the
            # operator wants it.
            os._exit(EXIT_INTERRUPTED)
        else:
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    if tls is not None:
        loop.add_signal_handler(signal.SIGHUP, _renew, tls)
    async with Rendezvous(config) as rendezvous:
        settle_memory()
        addresses = rendezvous.addresses.as_text()
        fingerprint = {"tls_fingerprint": tls.fingerprint} if tls else {}
        tell_ready(ready_file, addresses | fingerprint)
        is_ready = True
        logger.info(
            "ready: registry %s, beacon %s, http %s, store %s, %d nodes",
            addresses["registry"],
            addresses["beacon"],
            addresses["http"] or "off",
            _without_password(config.store),
            len(rendezvous.directory.nodes.live),
        )
        await stop.wait()
        logger.info("stopping")
    logger.info("stopped")


def _read_config(flags: dict[str, Any], tls: ServerTls | None) -> RendezvousConfig:
    http = flags["http"]
    advertised = flags["beacon_advertise"]
    return RendezvousConfig(
        registry=_endpoint("--registry-addr", flags["registry_addr"]),
        beacon=_endpoint("--beacon-addr", flags["beacon_addr"]),
        http=_endpoint("--http", http) if http else None,
        store=flags["store"],
        advertised_beacon=(
            _endpoint("--beacon-advertise", advertised) if advertised else None
        ),
        tls=tls.context if tls else None,
        server=ServerConfig(
            plain_clients=PlainClients(flags["plain_clients"]),
            requests_per_second_per_ip=flags["requests_per_ip"] or None,
        ),
        service=ServiceConfig(
            admin_token=read_token_file(flags["admin_token_file"], "admin token")
            or flags["admin_token"]
            or "",
            require_signed_registration=flags["require_signatures"],
            limit_local=flags["limit_local"],
            stale_after_s=parse_duration(flags["stale_threshold"], "--stale-threshold"),
        ),
        dashboard=DashboardConfig(
            enabled=flags["dashboard"] == "on",
            token=read_token_file(flags["http_token_file"], "HTTP token"),
            allow_hosts=flags["http_allow_host"],
        ),
        limits=BeaconConfig(
            beacon_id=flags["beacon_id"],
            peers=tuple(_endpoint("--beacon-peer", p) for p in flags["beacon_peer"]),
        ),
    )


def _endpoint(flag: str, text: str) -> Endpoint:
    try:
        return parse_endpoint(text)
    except DecodeError:
        raise InvalidArgument(
            f"{flag}: {text!r} is not host:port", hint="for example 127.0.0.1:9000"
        ) from None


def _tls(flags: dict[str, Any]) -> ServerTls | None:
    if not flags["tls"]:
        for name in ("tls_cert", "tls_key", "tls_dir"):
            if flags[name]:
                flag = name.replace("_", "-")
                raise InvalidArgument(f"--{flag} needs --tls")
        return None
    tls = _open_tls(flags)
    # What daemons are given to pin it with.
    logger.info("TLS certificate fingerprint %s", tls.fingerprint)
    return tls


def _open_tls(flags: dict[str, Any]) -> ServerTls:
    # Reading certificates takes a library that most rendezvous never need.
    from pilotfleet.transport.certificates import self_signed_tls, server_tls

    certificate, key = flags["tls_cert"], flags["tls_key"]
    if certificate or key:
        return server_tls(
            Path(certificate) if certificate else None, Path(key) if key else None
        )
    host, _ = _endpoint("--registry-addr", flags["registry_addr"])
    hosts = [] if host in WILDCARDS else [host]
    return self_signed_tls(_tls_folder(flags), hosts=hosts)


def _tls_folder(flags: dict[str, Any]) -> Path:
    if flags["tls_dir"]:
        return Path(flags["tls_dir"])
    scheme, _, path = flags["store"].partition("://")
    if scheme == "sqlite" and path.startswith("/"):
        return Path(path).parent
    return _home()


def _renew(tls: ServerTls) -> None:
    """Take a new certificate into use, for connections from now on."""
    try:
        changed = tls.reload()
    except ConfigError as error:
        logger.error("the old TLS certificate stays: %s", error)
        return
    if changed:
        logger.warning(
            "new TLS certificate; who pinned the old one needs its fingerprint %s",
            tls.fingerprint,
        )
    else:
        logger.info("the TLS certificate is the same")


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.rpartition("@")[2]


if __name__ == "__main__":
    main()
