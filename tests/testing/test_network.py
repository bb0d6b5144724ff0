from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfleet.testing.clock import FakeClock
from pilotfleet.testing.network import Conditions, FakeNetwork

if TYPE_CHECKING:
    from collections.abc import Hashable

LOG = list[tuple[float, bytes]]


class Alarm:
    """A participant with one timer."""

    def __init__(self, deadline: float) -> None:
        self.deadline: float | None = deadline
        self.rang_at: float | None = None

    def next_timer(self) -> float | None:
        return self.deadline

    def handle_timer(self, now: float) -> None:
        self.deadline, self.rang_at = None, now


def watch(network: FakeNetwork, name: Hashable) -> LOG:
    """Attach a receiver that records what it gets."""
    log: LOG = []

    def receive(data: bytes, source: Hashable, now: float) -> None:
        assert source == "a"
        log.append((round(now, 6), data))

    network.attach(name, receive)
    return log


def flood(seed: int, conditions: Conditions, count: int = 1000) -> LOG:
    network = FakeNetwork(seed=seed, conditions=conditions)
    log = watch(network, "b")
    for number in range(count):
        network.send(number.to_bytes(2, "big"), "a", "b")
    network.run(limit_s=10)
    return log


def test_a_perfect_network_delivers_all_in_order_after_the_delay() -> None:
    log = flood(0, Conditions(delay_s=0.25))
    assert [int.from_bytes(data, "big") for _, data in log] == list(range(1000))
    assert {at for at, _ in log} == {0.25}


def test_loss_and_duplication_have_the_asked_share() -> None:
    assert 850 < len(flood(1, Conditions(loss=0.1))) < 950
    assert 1050 < len(flood(1, Conditions(duplication=0.1))) < 1150


def test_jitter_reorders() -> None:
    log = flood(2, Conditions(delay_s=0.1, jitter_s=0.1))
    numbers = [data for _, data in log]
    assert numbers != sorted(numbers)
    assert sorted(numbers) == sorted(data for _, data in flood(3, Conditions()))
    assert all(0.1 <= at <= 0.2 for at, _ in log)


def test_the_same_seed_gives_the_same_network() -> None:
    conditions = Conditions(loss=0.2, duplication=0.2, jitter_s=1.0)
    assert flood(7, conditions) == flood(7, conditions)
    assert flood(7, conditions) != flood(8, conditions)


def test_a_partition_cuts_groups_off_until_it_heals() -> None:
    network = FakeNetwork()
    same, other = watch(network, "b"), watch(network, "c")
    network.partition(["a", "b"], ["c"])
    network.send(b"1", "a", "b")
    network.send(b"2", "a", "c")
    network.heal()
    network.send(b"3", "a", "c")
    network.run(limit_s=1)
    assert [data for _, data in same] == [b"1"]
    assert [data for _, data in other] == [b"3"]
    assert (network.sent, network.lost, network.delivered) == (3, 1, 2)


def test_a_filter_drops_what_it_refuses() -> None:
    network = FakeNetwork()
    log = watch(network, "b")
    network.filter = lambda data, source, destination: data != b"no"
    for data in (b"yes", b"no"):
        network.send(data, "a", "b")
    network.run(limit_s=1)
    assert [data for _, data in log] == [b"yes"]


def test_what_nobody_receives_is_lost() -> None:
    network = FakeNetwork()
    watch(network, "b")
    network.send(b"x", "a", "b")
    network.detach("b")
    network.run(limit_s=1)
    assert (network.lost, network.delivered) == (1, 0)


def test_timers_ring_in_their_turn() -> None:
    network = FakeNetwork(FakeClock(100.0))
    alarms = [Alarm(160.0), Alarm(130.0)]
    for number, alarm in enumerate(alarms):
        network.attach(number, lambda data, source, now: None, alarm)
    assert network.run(until=lambda: alarms[1].rang_at is not None, limit_s=1000)
    assert network.clock.now == 130.0
    assert network.step()
    assert [alarm.rang_at for alarm in alarms] == [160.0, 130.0]
    assert not network.step()


def test_running_stops_at_the_limit() -> None:
    network = FakeNetwork()
    network.attach("a", lambda data, source, now: None, Alarm(50.0))
    assert not network.run(until=lambda: False, limit_s=20)
    assert network.clock.now == 20
    assert not network.run(limit_s=20)
    assert network.clock() == 40
