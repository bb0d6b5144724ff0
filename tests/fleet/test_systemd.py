"""The text of the units; tests/systemd runs them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pilotfleet.errors import ConfigError
from pilotfleet.fleet.plan import Part
from pilotfleet.fleet.spec import (
    EventsSection,
    FleetSection,
    FleetSpec,
    MonitorSection,
    WorkersSection,
)
from pilotfleet.fleet.systemd import Layout, write_units

LAYOUT = Layout(
    programs=Path("/opt/pilot/bin"),
    spec=Path("/etc/pilot/fleet.toml"),
    folder=Path("/srv/work"),
    interpreter=Path("/usr/bin/python3.11"),
    part=Part(),
)


def make_spec(command: str = "cat", *, count: int = 50, **fleet: str) -> FleetSpec:
    return FleetSpec(
        workers=WorkersSection(exec=command, count=count),
        fleet=msgspec.convert({"name": "batch", **fleet}, FleetSection),
    )


def units(spec: FleetSpec, **layout: Any) -> dict[str, str]:
    return write_units(spec, dataclasses.replace(LAYOUT, **layout))


def test_words_of_a_command_reach_the_program_as_they_are() -> None:
    text = units(make_spec(r"""sh -c 'echo "$HOME" 100% \n; true'"""))
    agent = text["pilot-agent@.service"]
    assert r"""--exec "sh -c 'echo \"$$HOME\" 100%% \\n; true'" """.rstrip() in agent


def test_a_flag_within_a_command_is_no_line_of_its_own() -> None:
    agent = units(make_spec("tool --deep --fast"))["pilot-agent@.service"]
    assert '--exec "tool --deep --fast"' in agent


def test_the_monitor_shows_pages_and_keeps_its_history_with_the_others() -> None:
    unit = units(make_spec())["pilot-monitor.service"]
    assert "--http 127.0.0.1:8787" in unit
    assert "--home /var/lib/pilot/monitor" in unit
    assert "ExecReload=/bin/kill -HUP $MAINPID" in unit
    table = MonitorSection(http="10.0.0.1:80", alerts="/a b", token_file="/t")
    spec = msgspec.structs.replace(make_spec(), monitor=table)
    unit = units(spec)["pilot-monitor.service"]
    assert "--http 10.0.0.1:80" in unit
    assert '--alerts "/a b"' in unit
    assert "--http-token-file /t" in unit


@pytest.mark.parametrize(
    ("standby", "parts", "brokers"),
    [
        # The only daemon of one machine cannot stand by for itself.
        (3, 1, "batch-hub"),
        (1, 3, "batch-hub,batch-worker-17"),
        (3, 3, "batch-hub,batch-worker-17,batch-worker-34"),
        (0, 3, "batch-hub"),
    ],
)
def test_first_workers_of_other_machines_stand_by_for_the_hubs_broker(
    standby: int, parts: int, brokers: str
) -> None:
    spec = msgspec.structs.replace(
        make_spec(count=50, rendezvous="10.0.0.1:9000"),
        events=EventsSection(standby=standby),
    )
    for index in range(1, parts + 1):
        files = units(spec, part=Part(index, parts))
        for unit in ("pilot-daemon.service", "pilot-monitor.service"):
            assert f"--broker {brokers} " in files[unit].replace("\n", " ")


@pytest.mark.parametrize("secret", ["PILOT_ADMIN_TOKEN", "admin.env"])
def test_commands_of_tasks_do_not_see_the_admin_token(secret: str) -> None:
    assert secret not in units(make_spec())["pilot-agent@.service"]


def test_parts_share_the_workers_and_the_first_has_the_hub() -> None:
    spec = make_spec(count=10, rendezvous="10.0.0.1:9000")
    texts = [
        units(spec, part=Part(index, 3))["pilot-daemon.service"] for index in (1, 2, 3)
    ]
    assert ["--hostname batch-hub" in text for text in texts] == [True, False, False]
    for text, first, count in zip(texts, (1, 4, 7), (3, 3, 4), strict=True):
        assert f"--agent-first {first} " in text
        assert f"--agents {count} " in text


def test_a_second_part_needs_a_rendezvous_that_it_can_find() -> None:
    with pytest.raises(ConfigError, match=r"fleet\.rendezvous"):
        units(make_spec(), part=Part(2, 2))


def test_a_part_without_workers_is_refused() -> None:
    spec = make_spec(count=1, rendezvous="10.0.0.1:9000")
    with pytest.raises(ConfigError, match="has none of 1 workers"):
        units(spec, part=Part(1, 2))


def test_homes_stay_readable_for_what_lies_in_one() -> None:
    hidden = units(make_spec())["pilot-daemon.service"]
    assert "ProtectHome=yes" in hidden
    python = Path("/home/me/.pyenv/bin/python3")
    readable = units(make_spec(), interpreter=python)["pilot-daemon.service"]
    assert "ProtectHome=read-only" in readable


@pytest.mark.parametrize(("place", "word"), [("/tmp", "no"), ("/opt", "yes")])
def test_programs_in_a_temporary_folder_stay_in_sight(place: str, word: str) -> None:
    text = units(make_spec(), programs=Path(place, "bin"))["pilot-agent@.service"]
    assert f"PrivateTmp={word}\n" in text


def test_limits_grow_with_the_agents() -> None:
    small, large = (
        units(make_spec(count=count))["pilot-daemon.service"] for count in (1, 20_000)
    )
    assert "LimitNOFILE=516\n" in small
    assert "LimitNOFILE=80512\n" in large
