"""The private network of a fleet: made once, then used by every later run.

Its members may resolve and dial each other without pairwise handshakes: n joins
instead of n² handshakes. What a run has to know of it is kept in ``network.json``.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import msgspec

from pilotfleet.errors import ConfigError, RegistryError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pilotfleet.client.registry import RegistryClient

__all__ = ["FleetNetwork", "open_network", "write_secret"]


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
) -> FleetNetwork:
    """Return the network that ``path`` tells of; make it where there is none.

    Args:
        path: Where ``network.json`` is, or will be.
        name: The network's name; that of the fleet.
        registry: Where the network is.
        owner: The node that owns a new network.
        admin_token: Asked for the rendezvous' token when a network is made.

    Raises:
        ConfigError: The file is damaged, or the name is another fleet's.
        RegistryError: The registry refuses.
    """
    known = _read(path)
    # A rendezvous that lost its data, or a fleet that was renamed, needs a new one.
    if known is not None and await _exists(registry, known.network_id, name):
        return known
    token = secrets.token_hex(16)
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
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"{path} is damaged: {error}", hint="remove it, and its network is replaced"
        ) from None


async def _exists(registry: RegistryClient, network_id: int, name: str) -> bool:
    networks = await registry.list_networks()
    return any(
        row.get("id") == network_id and row.get("name") == name for row in networks
    )
