"""The file that tells of a fleet's network. The network itself: test_run_faults."""

from __future__ import annotations

import asyncio
import stat
from typing import TYPE_CHECKING

import pytest

from pilotfleet.client.registry import RegistryClient
from pilotfleet.errors import (
    AuthRequired,
    ConfigError,
    ConnectionFailed,
    StorageError,
)
from pilotfleet.fleet.network import (
    FleetNetwork,
    find_network,
    open_network,
    wait_for_network,
    write_secret,
)
from tests.node.support import ADMIN_TOKEN, open_world

if TYPE_CHECKING:
    from pathlib import Path


def nobody_asks() -> str:
    raise AssertionError("the admin token is not needed")


async def test_network_is_made_once_and_then_found(tmp_path: Path) -> None:
    path = tmp_path / "network.json"
    async with open_world(tmp_path) as world, world.host("hub", "hub") as host:
        owner = host.default_agent.node_id
        async with RegistryClient(world.addresses.registry) as registry:
            made = await open_network(
                path, "red", registry=registry, owner=owner, admin_token=token
            )
            found = await open_network(
                path, "red", registry=registry, owner=owner, admin_token=nobody_asks
            )
            assert found == made
            with pytest.raises(ConfigError, match="'red' that this fleet did not make"):
                await open_network(
                    tmp_path / "other.json",
                    "red",
                    registry=registry,
                    owner=owner,
                    admin_token=token,
                )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert made.token not in repr(made)


async def test_other_parts_find_the_network_of_the_first(tmp_path: Path) -> None:
    path, copy = tmp_path / "network.json", tmp_path / "copy.json"
    async with open_world(tmp_path) as world, world.host("hub", "hub") as host:
        owner = host.default_agent.node_id
        host_name, port = world.addresses.registry
        address = f"{host_name}:{port}"
        async with RegistryClient(world.addresses.registry) as registry:
            assert await find_network(copy, "red", registry=registry, token="t") is None
            waiting = asyncio.create_task(
                wait_for_network(copy, "red", address=address, tls=None, token="t")
            )
            made = await open_network(
                path,
                "red",
                registry=registry,
                owner=owner,
                admin_token=token,
                token="t",
            )
        assert made.token == "t"
        assert await waiting == made
        with pytest.raises(AuthRequired, match="a token is needed to join"):
            await wait_for_network(copy, "red", address=address, tls=None, token="")
        copy.write_bytes(path.read_bytes())
        found = await wait_for_network(copy, "red", address=address, tls=None, token="")
        assert found == made


async def test_first_part_is_waited_for_with_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.fleet.network.PART_WAIT_S", 0.3)
    path = tmp_path / "network.json"
    async with open_world(tmp_path) as world:
        address = "{}:{}".format(*world.addresses.registry)
        with pytest.raises(ConnectionFailed, match="it has no network 'red'"):
            await wait_for_network(path, "red", address=address, tls=None, token="t")
    with pytest.raises(ConnectionFailed, match="part 1 of the fleet is not found at"):
        await wait_for_network(path, "red", address=address, tls=None, token="t")


def token() -> str:
    return ADMIN_TOKEN


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b'{"network_id": "x", "token": ""}'),
        *(b'{"token": "\xff"}', b'{"a": ' * 90_000),
    ],
)
async def test_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "network.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"network\.json is damaged"):
        await open_network(
            path,
            "red",
            registry=RegistryClient(("127.0.0.1", 1)),
            owner=1,
            admin_token=nobody_asks,
        )


def test_secret_replaces_a_file_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    write_secret(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(StorageError, match="cannot write"):
        write_secret(tmp_path / "no" / "folder", b"x")


def test_token_is_no_part_of_what_is_shown() -> None:
    assert "secret" not in repr(FleetNetwork(7, "secret"))
