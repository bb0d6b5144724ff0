"""A herd comes in at the admitted rate: admission and clients on a test's clock."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter

import pytest

from pilotfleet.client.pacing import MAX_DEFERRALS, deferral_pause_s
from pilotfleet.registry.admission import Admission
from pilotfleet.registry.config import ServiceConfig
from pilotfleet.registry.context import PeerContext
from pilotfleet.registry.directory.refusal import Refused

RATE, BURST = 2_500.0, 2_500.0


def peers(count: int) -> list[PeerContext]:
    """Return connections from so many addresses."""
    return [PeerContext(f"198.51.{n >> 8}.{n & 255}") for n in range(count)]


def admission(**changes: float | bool) -> Admission:
    """Return an admission of one rate for all addresses together."""
    settings = {"new_nodes_per_second": RATE, "new_nodes_burst": BURST, **changes}
    return Admission(ServiceConfig(**settings))  # type: ignore[arg-type]


def come_in(
    gate: Admission, agents: list[PeerContext], *, seed: int
) -> tuple[Counter[int], Counter[int], int]:
    """Let agents register at the same instant, and again when they are told to.

    Returns:
        How many were let in and how many refused in each tenth of a second, and how
        often one agent had to wait at most.
    """
    rng, order = random.Random(seed), itertools.count()
    coming = [(0.0, next(order), agent, 0) for agent in agents]
    admitted: Counter[int] = Counter()
    refused: Counter[int] = Counter()
    longest = 0
    while coming:
        now, _, agent, waits = heapq.heappop(coming)
        try:
            gate.admit(agent, now)
            admitted[int(now * 10)] += 1
        except Refused as refusal:
            refused[int(now * 10)] += 1
            longest = max(longest, waits + 1)
            pause = deferral_pause_s(refusal.facts["retry_after"], rng)
            heapq.heappush(coming, (now + pause, next(order), agent, waits + 1))
    return admitted, refused, longest


@pytest.mark.parametrize("addresses", [1, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_ten_thousand_at_the_same_instant_come_in_without_a_stampede(
    addresses: int, seed: int
) -> None:
    agents = (peers(addresses) * 10_000)[:10_000]
    gate = admission(new_nodes_per_second_per_ip=RATE, new_nodes_burst_per_ip=BURST)
    admitted, refused, longest = come_in(gate, agents, seed=seed)
    assert sum(admitted.values()) == 10_000
    # The herd itself is refused once; hardly anybody is a second time.
    assert refused[0] == pytest.approx(7_500, abs=100)
    assert sum(refused.values()) - refused[0] < 500
    assert longest <= 3 < MAX_DEFERRALS
    # After the burst never more than the rate, with room for what it lets gather.
    later = [count for tenth, count in admitted.items() if tenth > 0]
    assert max(later) < 2 * RATE / 10
    assert max(admitted) / 10 < 1.6 * 7_500 / RATE


def test_a_hundred_thousand_come_in_before_they_give_up() -> None:
    admitted, _, longest = come_in(admission(), peers(100_000), seed=1)
    assert sum(admitted.values()) == 100_000
    assert longest < MAX_DEFERRALS


def test_programs_on_this_host_are_exempt_unless_they_are_to_be_limited() -> None:
    local = PeerContext("127.0.0.1")
    free, limited = admission(), admission(limit_local=True)
    for _ in range(int(BURST)):
        free.admit(local, 0.0)
        limited.admit(local, 0.0)
    free.admit(local, 0.0)
    assert free.room(local, 0.0, most=7) == 7
    assert limited.room(local, 0.0, most=7) == 0
    with pytest.raises(Refused):
        limited.admit(local, 0.0)


def test_a_refusal_by_one_limit_costs_nothing_at_the_other() -> None:
    gate = admission(
        new_nodes_burst=5.0,
        new_nodes_per_second_per_ip=10.0,
        new_nodes_burst_per_ip=2.0,
    )
    one, other = peers(2)
    for _ in range(2):
        gate.admit(one, 0.0)
    for number in range(1, 50):
        with pytest.raises(Refused) as refused:
            gate.admit(one, 0.0)
        # The queue of this address is as long as its own refusals.
        assert refused.value.facts["retry_after"] == pytest.approx(0.1 * number)
    for _ in range(2):
        gate.admit(other, 0.0)


def test_nobody_is_told_to_come_back_at_once() -> None:
    gate = admission(new_nodes_burst=1.0)
    gate.admit(peers(1)[0], 0.0)
    with pytest.raises(Refused) as refused:
        gate.admit(peers(1)[0], 0.0)
    assert refused.value.facts["retry_after"] == 0.05
