from __future__ import annotations

import pytest

from pilotfleet.protocol.stream.rtt import RttEstimator

# vectors/wire.json, key "rto": sample, SRTT, RTTVAR, RTO in milliseconds.
STEPS = [
    (100, 100.0, 50.0, 300.0),
    (120, 102.5, 42.5, 272.5),
    (80, 99.6875, 37.5, 249.6875),
    (300, 124.726562, 78.203125, 437.539062),
    (5, 109.760742, 88.583984, 464.09668),
]


def test_samples_give_the_published_estimates() -> None:
    rtt = RttEstimator()
    assert rtt.rto == 1.0
    for sample, srtt, rttvar, rto in STEPS:
        rtt.add_sample(sample / 1000)
        assert rtt.srtt * 1000 == pytest.approx(srtt, abs=1e-5)
        assert rtt.rttvar * 1000 == pytest.approx(rttvar, abs=1e-5)
        assert rtt.rto * 1000 == pytest.approx(rto, abs=1e-5)


@pytest.mark.parametrize(("sample", "rto"), [(0.0, 0.2), (0.001, 0.2), (60.0, 10.0)])
def test_timeout_stays_between_its_limits(sample: float, rto: float) -> None:
    rtt = RttEstimator()
    rtt.add_sample(sample)
    assert rtt.rto == rto
    assert rtt.srtt > 0


def test_backing_off_doubles_with_a_random_part_up_to_the_cap() -> None:
    rtt = RttEstimator()
    rtt.back_off(0.0)
    assert rtt.rto == 2.0
    rtt.back_off(0.5)
    assert rtt.rto == pytest.approx(4.5)
    rtt.back_off(0.0)
    rtt.back_off(0.0)
    assert rtt.rto == 10.0


def test_a_sample_ends_the_back_off() -> None:
    rtt = RttEstimator()
    rtt.back_off(0.0)
    rtt.add_sample(0.1)
    assert rtt.rto == pytest.approx(0.3)


def test_an_answer_to_a_repetition_eases_the_back_off_without_being_a_sample() -> None:
    rtt = RttEstimator()
    rtt.add_sample(0.1)
    for _ in range(5):
        rtt.back_off(0.0)
    rtt.ease(0.4)
    assert rtt.srtt == 0.1
    assert rtt.rto == pytest.approx(0.8)
    rtt.ease(0.0)
    assert rtt.rto == pytest.approx(0.3)
    rtt.ease(5.0)
    assert rtt.rto == pytest.approx(0.3)


def test_where_acknowledgements_wait_the_timeout_is_a_second_at_least() -> None:
    rtt = RttEstimator()
    rtt.add_sample(0.001)
    assert rtt.rto == 0.2
    rtt.expect_late_acks()
    assert rtt.rto == 1.0
    rtt.add_sample(0.001)
    assert rtt.rto == 1.0
    rtt.back_off(0.0)
    # The answer may well be to the first copy, only late.
    rtt.ease(0.001)
    assert rtt.rto == 2.0
    rtt.add_sample(0.001)
    assert rtt.rto == 1.0
