"""Units on a real systemd: the article's way, from nothing to tasks done."""

from __future__ import annotations

import json
import re
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.programs import BIN
from tests.systemd.machine import COMMAND_S

if TYPE_CHECKING:
    from tests.systemd.machine import Machine

UNITS = Path("/run/systemd/system")
AGENTS = 50
TOKEN = secrets.token_hex(16)
SPEC = f"""
[fleet]
name = "words"

[workers]
count = {AGENTS}
exec = "sh -c 'echo \\"$(wc -w) words, 100%\\"'"

[health]
interval = "2s"
"""


@pytest.fixture(scope="module")
def installed(machine: Machine) -> Machine:
    """A machine with the units of a fleet, as the how-to installs them."""
    machine.path("/etc/fleet.toml").write_text(SPEC)
    machine.run(
        *(BIN / "pilotctl", "fleet", "systemd", "/etc/fleet.toml", "--out", UNITS),
        *("--cwd", "/"),
    )
    machine.run("systemd-sysusers", UNITS / "pilotfleet.sysusers")
    machine.run("install", "-d", "-m", "0700", "/etc/pilot")
    machine.path("/etc/pilot/admin.env").write_text(f"PILOT_ADMIN_TOKEN={TOKEN}\n")
    machine.path("/etc/pilot/admin.env").chmod(0o600)
    machine.run("systemctl", "daemon-reload")
    return machine


def test_every_unit_passes_the_check_of_systemd(installed: Machine) -> None:
    written = sorted(path.name for path in installed.path(UNITS).glob("pilot-*"))
    assert written == [
        "pilot-agent@.service",
        "pilot-daemon.service",
        "pilot-fleet.service",
        "pilot-monitor.service",
        "pilot-rendezvous.service",
    ]
    # Silence is what it says of units without a fault.
    assert (
        installed.run("systemd-analyze", "verify", *(UNITS / name for name in written))
        == ""
    )


def test_a_fleet_runs_by_the_loop_of_the_article(installed: Machine) -> None:
    installed.run("systemctl", "start", "pilot-rendezvous", "pilot-daemon")
    loop = f"for i in $(seq 1 {AGENTS}); do systemctl enable --now pilot-agent@$i; done"
    installed.run("bash", "-ec", loop)
    installed.run("systemctl", "enable", "--now", "pilot-monitor")
    states = {installed.state(f"pilot-agent@{number}") for number in (1, 25, AGENTS)}
    assert states == {"active"}
    assert installed.run("systemctl", "--failed", "--quiet") == ""
    result = installed.pilotctl(
        *("--agent", "words-hub", "--json", "task", "submit", f"worker-{AGENTS}"),
        *("--task", "three short words", "--wait"),
    )
    assert "3 words, 100%" in result


def test_services_run_as_their_own_user_and_cannot_gain_rights(
    installed: Machine,
) -> None:
    for unit in ("pilot-rendezvous", "pilot-daemon", "pilot-agent@1", "pilot-monitor"):
        pid = installed.state(unit, "MainPID")
        status = installed.run("cat", f"/proc/{pid}/status")
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        user = installed.run("id", "--user", "pilot")
        assert f"Uid:\t{user}\t" in status
    modes = installed.run("stat", "-c", "%a %U", "/var/lib/pilot", "/run/pilot")
    assert modes.split("\n") == ["700 pilot", "700 pilot"]


def test_a_killed_agent_comes_back(installed: Machine) -> None:
    pid = installed.state("pilot-agent@7", "MainPID")
    installed.run("kill", "-KILL", pid)
    installed.wait_for("pilot-agent@7", "active", other_than=pid)
    assert installed.state("pilot-agent@7", "NRestarts") == "1"


def test_a_killed_rendezvous_and_daemon_come_back_with_the_same_agents(
    installed: Machine,
) -> None:
    addresses = _addresses(installed)
    assert len(addresses) == AGENTS + 1
    for unit in ("pilot-rendezvous", "pilot-daemon"):
        pid = installed.state(unit, "MainPID")
        installed.run("kill", "-KILL", pid)
        installed.wait_for(unit, "active", other_than=pid)
    assert _addresses(installed) == addresses
    result = installed.pilotctl(
        *("--agent", "words-hub", "--json", "task", "submit", "worker-1"),
        *("--task", "two words", "--wait"),
    )
    assert "2 words, 100%" in result


def test_the_monitor_counts_every_agent(installed: Machine) -> None:
    deadline = time.monotonic() + COMMAND_S
    figures = {}
    while time.monotonic() < deadline:
        figures = _fetch(installed, "/api/fleets/words/figures")
        if figures["agents"]["alive"] == AGENTS:
            break
    assert figures["agents"]["alive"] == AGENTS
    # Its history is beside the state of the other programs, for their user alone.
    mode = installed.run("stat", "-c", "%a %U", "/var/lib/pilot/monitor/monitor.db")
    assert mode == "600 pilot"
    pid = installed.state("pilot-monitor", "MainPID")
    installed.run("systemctl", "reload", "pilot-monitor")
    assert installed.state("pilot-monitor", "MainPID") == pid
    installed.run("kill", "-KILL", pid)
    installed.wait_for("pilot-monitor", "active", other_than=pid)
    again = _fetch(installed, "/api/fleets/words/figures")
    assert again["tasks"]["completed"] >= figures["tasks"]["completed"] > 0


def test_stopping_ends_every_service_in_good_order(installed: Machine) -> None:
    installed.run("systemctl", "stop", "pilot-*")
    assert installed.run("systemctl", "--failed", "--quiet") == ""
    assert installed.run("pgrep", "-u", "pilot", check=False) == ""


def _addresses(machine: Machine) -> dict[str, str]:
    answer = json.loads(machine.pilotctl("--json", "agents"))
    return {row["name"]: row["address"] for row in answer["data"]["agents"]}


def _fetch(machine: Machine, path: str) -> dict[str, Any]:
    """Return what the monitor's pages say, which only this machine sees."""
    code = (
        "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
    )
    url = f"http://127.0.0.1:8787{path}"
    answer: dict[str, Any] = json.loads(machine.run(BIN / "python", "-c", code, url))
    return answer
