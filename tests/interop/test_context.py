"""``context`` of ours and of the official program: the same commands, with reasons."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

from pilotfleet.cli.catalogue_admin import LEFT_OUT
from tests.support.official import official_program
from tests.support.programs import BIN

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.official

NAMED_OTHERWISE: Final = {
    "trusted": "trusted list",
}
"""Official names of commands that ours lists by their full name."""
NOT_LISTED_THERE: Final = {
    "context": "the official catalogue leaves itself out",
    "trusted list": "there it is listed as 'trusted'",
    **{
        f"gateway {name}": "there it is listed under pilot_gateway"
        for name in ("start", "stop", "map", "unmap", "list")
    },
}
"""Commands that both programs have and only our catalogue lists under commands."""
OURS: Final = {
    "agents": "a daemon of ours hosts many agents",
    "find-agents": "ours finds agents by tag",
    "fleet": "ours runs fleets",
    "events subscribe": "the fleet's event bus",
    "events publish": "the fleet's event bus",
    "events status": "the fleet's event bus",
    **{
        f"task {name}": "tasks are of releases before 1.18, and ours"
        for name in (
            *("submit", "accept", "decline", "execute", "send-results", "list"),
            *("queue", "result", "show", "cancel"),
        )
    },
    **{
        f"skill {name}": "ours teaches an agent only when told to"
        for name in ("install", "uninstall", "path", "show")
    },
    **{
        f"polo {name}": "reputation is of releases before 1.18, and ours"
        for name in ("show", "receipts", "audit", "claim")
    },
    "enable-tasks": "tasks are of releases before 1.18, and ours",
    "disable-tasks": "tasks are of releases before 1.18, and ours",
    "my-polo": "reputation is of releases before 1.18, and ours",
    "managed score": "for daemons up to 1.9.1",
    "managed rankings": "for daemons up to 1.9.1",
    "motd": "no command there; here it says why there is none",
    "telemetry": "no command there; here it says why there is none",
    "appstore": "there it is listed under app_store; here it says why there is none",
}
"""Commands that only ours has, and why."""


def context(program: Path, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, "--json", "context", *words],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def catalogues(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    programs = (BIN / "pilotctl", official_program("pilotctl"))
    ours, theirs = (
        json.loads(context(program, tmp_path).stdout)["data"] for program in programs
    )
    return ours, theirs


def test_commands_differ_only_as_named(
    catalogues: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    ours, theirs = catalogues
    official = {*theirs["commands"], *theirs["extras"]["commands"]}
    official = {NAMED_OTHERWISE.get(name, name) for name in official}
    here = set(ours["commands"])
    assert official - here == set()
    assert here - official == {*OURS, *NOT_LISTED_THERE} - official
    # A reason for something that is no difference is out of date.
    assert set(OURS) <= here - official


def test_left_out_commands_are_official_and_say_why(
    catalogues: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    ours, theirs = catalogues
    official = {*theirs["commands"], "appstore"}
    assert set(LEFT_OUT) - official == {"motd", "telemetry"}
    for name in LEFT_OUT:
        assert ours["commands"][name]["errors"] == ["not_supported"]


def test_operators_commands_are_where_the_official_ones_are(
    catalogues: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    ours, theirs = catalogues
    here, there = ours["extras"]["commands"], theirs["extras"]["commands"]
    assert set(there) <= set(here)
    more = {*OURS, *NOT_LISTED_THERE}
    assert set(here) - set(there) <= more
    core = {NAMED_OTHERWISE.get(name, name) for name in theirs["commands"]}
    assert core.isdisjoint(here)


def test_catalogues_have_the_same_form(
    catalogues: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    ours, theirs = catalogues
    assert set(ours) == set(theirs)
    assert ours["version"] == theirs["version"]
    assert ours["config_file"] == theirs["config_file"]
    assert set(theirs["error_codes"]) <= set(ours["error_codes"])
    assert set(theirs["global_flags"]) <= set(ours["global_flags"])
    for part in ("commands", "extras", "pilot_gateway"):
        assert type(ours[part]) is type(theirs[part])
    assert set(ours["extras"]) == set(theirs["extras"])
    assert set(ours["pilot_gateway"]) == set(theirs["pilot_gateway"])
    gateways = (ours["pilot_gateway"]["commands"], theirs["pilot_gateway"]["commands"])
    assert set(gateways[0]) == set(gateways[1])


def test_every_command_states_arguments_results_and_errors(
    catalogues: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    ours, theirs = catalogues
    for name, entry in ours["commands"].items():
        assert entry["description"], name
        assert entry["returns"], name
        assert set(entry["errors"]) <= set(ours["error_codes"]), name
    for name, entry in theirs["commands"].items():
        mine = ours["commands"][NAMED_OTHERWISE.get(name, name)]
        assert set(entry) <= set(mine), name


@pytest.mark.parametrize(
    "words", [("find",), ("daemon", "start"), ("set-tags",), ("nosuch",), ("daemon",)]
)
def test_one_command_is_looked_up_alike(words: tuple[str, ...], tmp_path: Path) -> None:
    ours = context(BIN / "pilotctl", tmp_path, *words)
    theirs = context(official_program("pilotctl"), tmp_path, *words)
    assert ours.returncode == theirs.returncode
    if theirs.returncode:
        assert (ours.stdout, theirs.stdout) == ("", "")
        mine, official = json.loads(ours.stderr), json.loads(theirs.stderr)
        assert mine["code"] == official["code"] == "not_found"
        start = f'unknown command "{" ".join(words)}" — valid: '
        assert mine["message"].startswith(start)
        assert official["message"].startswith(start)
    else:
        mine, official = json.loads(ours.stdout), json.loads(theirs.stdout)
        assert set(official["data"]) <= set(mine["data"])
