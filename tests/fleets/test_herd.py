"""A thousand agents start at the same instant, and their rendezvous is killed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

import pytest

from bench.herd import Prober
from pilotfleet.client.registry import RegistryClient
from pilotfleet.protocol.registry.endpoints import parse_endpoint
from tests.support.programs import BIN, world

if TYPE_CHECKING:
    from tests.support.programs import World

pytestmark = pytest.mark.timeout(120)

HOSTS: Final = 2
PER_HOST: Final = 500
AGENTS: Final = HOSTS * PER_HOST
KEEPALIVE: Final = "5s"
STAGGER_S: Final = 4.0
TAG: Final = "herd"
TOGETHER: Final = 100


def start_host(net: World, name: str, *flags: str, agents: int = PER_HOST) -> None:
    net.start(
        name,
        *(BIN / "pilot-daemon", "--registry", net.registry, "--beacon", net.beacon),
        *("--listen", "127.0.0.1:0", "--socket", net.socket(name)),
        *("--home", net.home / name, "--agents", str(agents)),
        *("--agent-prefix", f"{name}-", "--tag", TAG, "--public", *flags),
    )


def test_a_thousand_agents_outlive_a_rendezvous_that_is_killed() -> None:
    with world() as net, contextlib.ExitStack() as stack:
        rendezvous = net.start_rendezvous(None, "--limit-local")
        prober = Prober(net, TAG)
        stack.callback(prober.stop)
        for number in range(HOSTS):
            start_host(net, f"h{number}", "--keepalive", KEEPALIVE)
        prober.wait_for(AGENTS)
        assert prober.lost() == 0
        rendezvous.kill()
        net.start_rendezvous(None, "--limit-local")
        back = time.time()
        asyncio.run(all_are_heard(net, since=int(back) + 1))
        # Meanwhile searches were answered, and every agent was found in each.
        prober.read_until(time.time())
        after = [row["total"] for row in prober.rows if row["at"] > back]
        assert set(after) == {AGENTS}


async def all_are_heard(net: World, *, since: int) -> None:
    """Return once every agent was heard after a moment (unix time)."""
    async with RegistryClient(parse_endpoint(net.registry)) as registry:
        # Nodes have the numbers from 1 on, and none was removed.
        waiting = list(range(1, AGENTS + 1))
        async with asyncio.timeout(60):
            while waiting:
                asked = waiting[:TOGETHER]
                replies = await asyncio.gather(*map(registry.lookup, asked))
                silent = [
                    node
                    for node, reply in zip(asked, replies, strict=True)
                    if reply["last_seen_unix"] < since
                ]
                waiting = waiting[TOGETHER:] + silent
                # At leisure: it is the registry that is tested.
                await asyncio.sleep(0.05)


def test_stagger_spreads_the_starts_of_a_host() -> None:
    with world() as net, contextlib.ExitStack() as stack:
        net.start_rendezvous()
        prober = Prober(net, TAG)
        stack.callback(prober.stop)
        start_host(net, "calm", "--stagger", f"{STAGGER_S:g}s", agents=40)
        prober.wait_for(40)
        first = next(row["at"] for row in prober.rows if row["total"])
        last = prober.rows[-1]["at"]
        # The first agent goes alone; then one each tenth of a second.
        assert last - first >= STAGGER_S * 0.8
        middle = [row["total"] for row in prober.rows if row["at"] < first + 2.0]
        assert 5 <= max(middle) <= 30
