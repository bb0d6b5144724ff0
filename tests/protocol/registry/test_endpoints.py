"""Which endpoint a registration stores."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.registry.endpoints import (
    format_endpoint,
    parse_endpoint,
    stored_endpoint,
)

VECTORS = json.loads(
    (Path(__file__).parents[2] / "vectors" / "registry.json").read_bytes()
)


@pytest.mark.parametrize(
    "rule", VECTORS["computed"]["endpoint_rule"], ids=lambda r: r["listen_addr"]
)
def test_the_recorded_rules_hold(rule: dict[str, str]) -> None:
    peer = parse_endpoint(rule["tcp_peer"])
    assert stored_endpoint(rule["listen_addr"], peer) == rule["stored"]


@pytest.mark.parametrize(
    ("listen_addr", "stored"),
    [
        (":4000", "[2001:db8::7]:4000"),
        ("192.168.1.1:4000", "[2001:db8::7]:4000"),
        ("[fe80::1]:4000", "[2001:db8::7]:4000"),
        ("[::ffff:10.0.0.1]:4000", "[2001:db8::7]:4000"),
        # Documentation and shared networks are kept.
        ("192.0.2.1:4000", "192.0.2.1:4000"),
        ("100.64.0.1:4000", "100.64.0.1:4000"),
        ("[2001:db8::1]:4000", "[2001:db8::1]:4000"),
        ("2001:db8::1:4000", "2001:db8::1:4000"),
        ("203.0.113.5:99999", "203.0.113.5:99999"),
    ],
)
def test_only_the_listed_ranges_are_replaced(listen_addr: str, stored: str) -> None:
    assert stored_endpoint(listen_addr, ("2001:db8::7", 1)) == stored


def test_endpoints_survive_the_way_to_text_and_back() -> None:
    for endpoint in (("1.2.3.4", 5), ("2001:db8::1", 65_535), ("host.example", 0)):
        assert parse_endpoint(format_endpoint(endpoint)) == endpoint


@given(st.text(max_size=40))
def test_any_text_gives_an_endpoint_or_a_decode_error(text: str) -> None:
    assert isinstance(stored_endpoint(text, ("198.51.100.7", 1)), str)
    with contextlib.suppress(DecodeError):
        parse_endpoint(text)
