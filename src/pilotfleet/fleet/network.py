"""The private network of a fleet: made once, then used by every later run.

Its members may resolve and dial each other without pairwise handshakes: n joins
instead of n² handshakes. What a run has to know of it is kept in ``network.json``.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from typing import TYPE_CHECKING, Final

import msgspec

from pilotfleet.client.registry import RegistryClient
from pilotfleet.errors import (
    AuthRequired,
    ConfigError,
    ConnectionFailed,
    RegistryError,
    StorageError,
    Unavailable,
)
from pilotfleet.protocol.registry.endpoints import parse_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pilotfleet.transport.tls import TlsConfig

__all__ = [
    "FleetNetwork",
    "check_rendezvous",
    "find_network",
    "open_network",
    "wait_for_network",
    "write_secret",
]

ANSWER_S: Final = 10.0
PART_WAIT_S: Final = 120.0
"""The first part of a fleet may be started last."""
PART_POLL_S: Final = 0.5


class FleetNetwork(msgspec.Struct, frozen=True):
    """``network.json``. Holds a secret, so 0600."""

    network_id: int
    token: str

    def __repr__(self) -> str:
        return f"FleetNetwork({self.network_id})"


async def open_network(
    path: Path,
    name: str,
    *,
    registry: RegistryClient,
    owner: int,
    admin_token: Callable[[], str],
    token: str = "",
) -> FleetNetwork:
    """Return the network that ``path`` tells of; make it where there is none.

    Args:
        path: Where ``network.json`` is, or will be.
        name: The network's name; that of the fleet.
        registry: Where the network is.
        owner: The node that owns a new network.
        admin_token: Asked for the rendezvous' token when a network is made.
        token: What joins a new network; by default a random one.

    Raises:
        ConfigError: The file is damaged, or the name is another fleet's.
        RegistryError: The registry refuses.
    """
    known = _read(path)
    # A rendezvous that lost its data, or a fleet that was renamed, needs a new one.
    if known is not None and await _exists(registry, known.network_id, name):
        return known
    token = token or secrets.token_hex(16)
    try:
        network_id = await registry.create_network(
            owner, name, join_rule="token", token=token, admin_token=admin_token()
        )
    except RegistryError as error:
        if "already exists" not in str(error):
            raise
        raise ConfigError(
            f"the rendezvous has a network {name!r} that this fleet did not make",
            hint="choose another name in [fleet], or run with the --home of then",
        ) from None
    network = FleetNetwork(network_id, token)
    write_secret(path, msgspec.json.encode(network))
    return network


async def find_network(
    path: Path, name: str, *, registry: RegistryClient, token: str
) -> FleetNetwork | None:
    """Return the network that another part of the fleet has made; None for not yet.

    Args:
        path: Where a copy of the ``network.json`` of the first part may be.
        name: The network's name; that of the fleet.
        registry: Where the network is.
        token: What joins it; empty to take that of the copy.

    Raises:
        AuthRequired: There is neither a token nor a copy.
        ConfigError: The copy is damaged.
        RegistryError: The registry refuses.
    """
    known = _read(path)
    token = token or (known.token if known is not None else "")
    if not token:
        raise AuthRequired(
            f"a token is needed to join the fleet's network {name!r}",
            hint="set PILOT_JOIN_TOKEN to the same secret for all parts of the fleet,"
            f" or copy network.json of part 1's home to {path}",
        )
    for row in await registry.list_networks():
        if row.get("name") == name:
            return FleetNetwork(int(row["id"]), token)
    return None


async def check_rendezvous(address: str, tls: TlsConfig | None) -> None:
    """Find out now what a daemon would only try again and again.

    Raises:
        ConnectionFailed: No registry answers there.
    """
    try:
        async with (
            asyncio.timeout(ANSWER_S),
            RegistryClient(parse_endpoint(address), tls=tls) as registry,
        ):
            await registry.list_networks()
    except (TimeoutError, Unavailable) as error:
        reason = str(error) or f"no answer in {ANSWER_S:g} s"
        raise ConnectionFailed(
            f"no rendezvous answers at {address}: {reason}",
            hint='check [fleet] rendezvous, or set it to "embedded"',
        ) from None


async def wait_for_network(
    path: Path, name: str, *, address: str, tls: TlsConfig | None, token: str
) -> FleetNetwork:
    """Return the network that the first part of the fleet makes, once it is there.

    Args:
        path: Where a copy of the ``network.json`` of the first part may be.
        name: The network's name; that of the fleet.
        address: The registry's ``host:port``.
        tls: How to check the registry; None for plain TCP.
        token: What joins the network; empty to take that of the copy.

    Raises:
        AuthRequired: There is neither a token nor a copy.
        ConnectionFailed: It is not there after two minutes.
    """
    reason = f"it has no network {name!r}"
    try:
        async with asyncio.timeout(PART_WAIT_S):
            while True:
                async with RegistryClient(parse_endpoint(address), tls=tls) as registry:
                    try:
                        network = await find_network(
                            path, name, registry=registry, token=token
                        )
                    except Unavailable as error:
                        network, reason = None, str(error)
                if network is not None:
                    return network
                await asyncio.sleep(PART_POLL_S)
    except TimeoutError:
        raise ConnectionFailed(
            f"part 1 of the fleet is not found at {address}: {reason}",
            hint="start part 1; other machines must reach its [fleet] listen address",
        ) from None


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that nobody else can read, from its first byte on.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _read(path: Path) -> FleetNetwork | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=FleetNetwork)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is damaged: {error}", hint="remove it, and its network is replaced"
        ) from None


async def _exists(registry: RegistryClient, network_id: int, name: str) -> bool:
    networks = await registry.list_networks()
    return any(
        row.get("id") == network_id and row.get("name") == name for row in networks
    )
