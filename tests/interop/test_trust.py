"""Trust between official 1.18.0 daemons and ours (trust.md).

What commands answer, and requests that a private node approves or refuses, are rows of
the matrix.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.registry import RegistryClient
from pilotfleet.node.home import load_or_create_identity
from pilotfleet.protocol.registry.endpoints import parse_endpoint
from tests.support.programs import World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.programs import Program

pytestmark = [pytest.mark.official, pytest.mark.timeout(240)]

OURS = "ours"
THEIRS = "theirs"
PAIRS = [(THEIRS, OURS), (OURS, THEIRS)]
LIMIT_S = 60.0


@dataclass
class Side:
    """One daemon and the client of its kind."""

    net: World
    name: str
    kind: str
    flags: tuple[str, ...] = ()
    node: str = ""
    program: Program | None = None

    def start(self) -> Side:
        """Start the daemon, or start it again."""
        if self.kind == THEIRS:
            self.program = self.net.start_official_daemon(self.name, *self.flags)
        else:
            self.program = self.net.start_daemon(self.name, *self.flags)
        self.node = str(self.ask("info")["node_id"])
        return self

    def kill(self) -> None:
        """SIGKILL the daemon."""
        assert self.program is not None
        self.program.kill()
        self.net.programs.remove(self.program)

    def run(self, *argv: str) -> Any:
        """Run a command to its end."""
        ctl = self.net.ctl if self.kind == OURS else self.net.official_ctl
        return ctl(self.name, *argv)

    def ask(self, *argv: str) -> Any:
        """Run a command that must succeed; return its data."""
        return data_of(self.run(*argv))

    def trusted(self) -> dict[str, dict[str, Any]]:
        """Return the trust list by node."""
        return {str(row["node_id"]): row for row in self.ask("trust")["trusted"]}

    def pending(self) -> dict[str, str]:
        """Return who waits for a decision, and their words."""
        rows = self.ask("pending")["pending"]
        return {str(row["node_id"]): row["justification"] for row in rows}

    def file(self) -> dict[str, Any]:
        """Return what is in the trust file, nothing if there is none yet."""
        path = self.net.home / self.name / "trust.json"
        tree: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return tree

    def reaches(self, other: Side) -> bool:
        """Tell whether the echo service of ``other`` answers."""
        result = self.run(
            *("connect", other.node, "7", "--message", "hello", "--timeout", "4s")
        )
        return result.returncode == 0 and "hello" in result.stdout


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        made.start_rendezvous()
        yield made


def sides(
    net: World, pair: tuple[str, str], *, a: str = "", b: str = ""
) -> tuple[Side, Side]:
    """Start two daemons with flags of their own."""
    return (
        Side(net, "a", pair[0], tuple(a.split())).start(),
        Side(net, "b", pair[1], tuple(b.split())).start(),
    )


def eventually(is_true: Callable[[], Any], what: str) -> None:
    """Wait for what no command announces."""
    limit = time.monotonic() + LIMIT_S
    while not is_true():
        assert time.monotonic() < limit, f"it did not happen: {what}"
        time.sleep(0.1)


def assert_mutual(a: Side, b: Side) -> None:
    """Both trust each other, and both can use what that opens."""
    eventually(lambda: b.node in a.trusted(), "a trusts b")
    eventually(lambda: a.node in b.trusted(), "b trusts a")
    assert a.reaches(b)
    assert b.reaches(a)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_direct_request_is_rejected(net: World, pair: tuple[str, str]) -> None:
    a, b = sides(net, pair, b="--public")
    a.ask("handshake", b.node, "please")
    eventually(b.pending, "b is asked")
    answer = b.ask("reject", a.node, "not today")
    assert answer == {"node_id": int(a.node), "status": "rejected"}
    eventually(lambda: (a.pending(), "outgoing" not in a.file())[1], "a is told")
    assert a.trusted() == b.trusted() == {}
    assert b.pending() == {}


@pytest.mark.parametrize("pair", PAIRS)
def test_who_was_asked_ends_trust_on_both_sides(
    net: World, pair: tuple[str, str]
) -> None:
    a, b = sides(net, pair)
    a.ask("handshake", b.node)
    eventually(b.pending, "b is asked")
    b.ask("approve", a.node)
    assert_mutual(a, b)
    assert b.ask("untrust", a.node) == {"node_id": int(a.node)}
    eventually(lambda: not a.trusted(), "the other is told")
    assert b.trusted() == {}
    again = b.run("untrust", a.node)
    assert again.returncode == 1
    assert "was not trusted" in again.stderr
    assert b.file()["revoked"][0]["node_id"] == int(a.node)
    assert "revoked" not in a.file()
    assert not a.reaches(b)


@pytest.mark.parametrize("pair", PAIRS)
def test_ended_trust_is_made_again(net: World, pair: tuple[str, str]) -> None:
    a, b = sides(net, pair)
    a.ask("handshake", b.node)
    eventually(b.pending, "b is asked")
    b.ask("approve", a.node)
    assert_mutual(a, b)
    b.ask("untrust", a.node)
    eventually(lambda: not a.trusted(), "the other is told")
    b.ask("handshake", a.node)
    a.ask("handshake", b.node)
    assert_mutual(a, b)


@pytest.mark.parametrize("pair", PAIRS)
def test_public_nodes_that_ask_each_other_trust_each_other(
    net: World, pair: tuple[str, str]
) -> None:
    a, b = sides(net, pair, a="--public", b="--public")
    a.ask("handshake", b.node, "one")
    b.ask("handshake", a.node, "other")
    assert_mutual(a, b)
    assert a.trusted()[b.node]["mutual"] is b.trusted()[a.node]["mutual"] is True


@pytest.mark.parametrize("pair", PAIRS)
def test_automatic_approval_of_a_direct_request(
    net: World, pair: tuple[str, str]
) -> None:
    a, b = sides(net, pair, b="--trust-auto-approve --public")
    a.ask("handshake", b.node)
    assert_mutual(a, b)
    assert b.trusted()[a.node]["mutual"] is False


@pytest.mark.parametrize("pair", PAIRS)
def test_members_of_a_network_trust_each_other_at_once(
    net: World, pair: tuple[str, str]
) -> None:
    a, b = sides(net, pair)
    create = ("network", "create", "--name", "fleet", "--node-id", a.node)
    network = str(data_of(net.run_ctl_admin(*create))["network_id"])
    b.ask("network", "join", network)
    a.ask("handshake", b.node)
    assert_mutual(a, b)
    assert b.trusted()[a.node]["network"] == int(network)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("public", ["", "--public"], ids=["relayed", "direct"])
def test_restarts_between_request_and_approval(
    net: World, pair: tuple[str, str], public: str
) -> None:
    """Neither side's memory nor a tunnel is needed for the answer to arrive."""
    a, b = sides(net, pair, b=public)
    a.ask("handshake", b.node, "one day")
    eventually(b.pending, "b is asked")
    eventually(lambda: b.file().get("pending"), "b has it on disk")
    a.kill()
    b.kill()
    b.start()
    assert b.pending() == {a.node: "one day"}
    a.start()
    b.ask("approve", a.node)
    assert_mutual(a, b)
    a.kill()
    b.kill()
    a.start()
    b.start()
    assert_mutual(a, b)


@pytest.mark.parametrize("pair", PAIRS)
def test_approval_after_everything_restarted(net: World, pair: tuple[str, str]) -> None:
    """The registry, too: of a direct request it then knows nothing at all."""
    a, b = sides(net, pair, b="--public")
    a.ask("handshake", b.node, "one day")
    eventually(b.pending, "b is asked")
    eventually(lambda: b.file().get("pending"), "b has it on disk")
    for side in (a, b):
        side.kill()
    net.programs[0].kill()
    del net.programs[0]
    net.start_rendezvous()
    b.start()
    a.start()
    b.ask("approve", a.node)
    eventually(lambda: b.node in a.trusted(), "a trusts b")
    assert a.reaches(b)
    assert b.reaches(a)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("who", [0, 1], ids=["asker", "answerer"])
def test_a_lost_trust_file_is_made_up_for(
    net: World, pair: tuple[str, str], who: int
) -> None:
    both = a, b = sides(net, pair)
    a.ask("handshake", b.node)
    eventually(b.pending, "b is asked")
    b.ask("approve", a.node)
    assert_mutual(a, b)
    loser, other = both[who], both[1 - who]
    loser.kill()
    (net.home / loser.name / "trust.json").unlink()
    loser.start()
    assert loser.trusted() == {}
    # The registry still knows that the loser consented, so its gate does.
    # (An official echo service wants local trust besides, and hangs up.)
    ping = other.run("ping", loser.node, "--count", "1")
    assert "dial" not in json.loads(ping.stdout)["data"]["results"][0].get("error", "")
    assert ping.returncode == 0 or loser.kind == THEIRS
    loser.ask("handshake", other.node, "I forgot")
    eventually(lambda: other.node in loser.trusted(), "trust is back")


@pytest.mark.parametrize("kind", [OURS, THEIRS])
@pytest.mark.parametrize("asks", [True, False], ids=["asked", "silent"])
async def test_nobody_lets_himself_in(net: World, kind: str, asks: bool) -> None:
    """One's own report of trust opens nothing but oneself."""
    victim = Side(net, "victim", kind).start()
    thief = Side(net, "thief", OURS, ("--public",)).start()
    if asks:
        thief.ask("handshake", victim.node, "let me in")
    # Once there was a tunnel, so nothing but the gate is in the way.
    assert victim.run("ping", thief.node, "--count", "1").returncode == 0
    identity = load_or_create_identity(net.home / "thief" / "identity.json")
    endpoint = parse_endpoint(net.registry)
    number = int(thief.node)
    async with RegistryClient(endpoint) as registry:
        await registry.report_trust(identity, number, int(victim.node))
        assert not await registry.check_trust(int(victim.node), number)
        assert await registry.check_trust(number, int(victim.node))
    assert victim.trusted() == {}
    assert not thief.reaches(victim)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_request_alone_opens_nothing(net: World, pair: tuple[str, str]) -> None:
    a, b = sides(net, pair)
    a.ask("handshake", b.node, "let me in")
    eventually(b.pending, "b is asked")
    assert not a.reaches(b)
    assert not b.reaches(a)


@pytest.mark.parametrize("pair", PAIRS)
def test_rotating_a_key_keeps_trust_and_tunnel(
    net: World, pair: tuple[str, str]
) -> None:
    """``a`` rotates; ``b`` goes on with it, now and after both restarted."""
    a, b = sides(net, pair)
    a.ask("handshake", b.node)
    eventually(b.pending, "b is asked")
    b.ask("approve", a.node)
    assert_mutual(a, b)
    before = a.ask("info")
    rotated = a.ask("rotate-key")
    assert rotated == {
        "type": "rotate_key_ok",
        "node_id": int(a.node),
        "address": before["address"],
        "public_key": rotated["public_key"],
    }
    assert rotated["public_key"] != before["public_key"]
    known = data_of(net.run_ctl_admin("lookup", a.node))
    assert known["public_key"] == rotated["public_key"]
    # The official daemon goes on showing the key that it started with.
    assert a.kind == THEIRS or a.ask("info")["public_key"] == rotated["public_key"]
    assert a.reaches(b)
    assert b.reaches(a)
    # A new tunnel is made with the new key.
    node = a.node
    a.kill()
    a.start()
    assert a.node == node
    assert a.reaches(b)
    assert b.reaches(a)
    b.kill()
    b.start()
    assert_mutual(a, b)
