"""`pilotctl fleet run` with a registry that takes TLS only, and without."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.fleet.support import fleet_run, read_results, write_spec, write_tasks
from tests.support.programs import World, world

if TYPE_CHECKING:
    from collections.abc import Iterator

TASKS = {"one": "1", "two": "2"}


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        yield made


def assert_runs(net: World, rendezvous: str, beacon: str, **env: str) -> None:
    fleet = {"rendezvous": rendezvous} | ({"beacon": beacon} if beacon else {})
    spec = write_spec(net, "cat", count=2, **fleet)
    run, path = fleet_run(
        net, spec, write_tasks(net, TASKS), home=None, results=None, flags=(), **env
    )
    _, stderr = run.communicate()
    assert run.returncode == 0, stderr
    results = read_results(path)
    assert {key: line["result"] for key, line in results.items()} == TASKS


def test_fleet_joins_a_pinned_registry(net: World) -> None:
    net.start_rendezvous(None, "--tls")
    ready = json.loads((net.home / "rendezvous.ready.json").read_text())
    pin = {"PILOT_REGISTRY_FINGERPRINT": ready["tls_fingerprint"]}
    assert_runs(net, net.registry, net.beacon, PILOT_ADMIN_TOKEN=net.admin_token, **pin)


def test_settings_for_the_users_registry_do_not_disturb_an_own_one(net: World) -> None:
    assert_runs(net, "embedded", "", PILOT_REGISTRY_FINGERPRINT="ab" * 32)
