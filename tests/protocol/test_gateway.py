"""Mappings of a gateway: addresses given out, kept, refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import AlreadyExists, Busy, InvalidArgument, NotFound, PilotError
from pilotfleet.protocol import gateway
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.gateway import (
    MAX_PORTS,
    MappingTable,
    PortPair,
    control_path,
    parse_ports,
    parse_subnet,
)


def node(number: int) -> Address:
    return Address(0, number)


def test_automatic_addresses_start_at_one_and_carry() -> None:
    table = MappingTable("10.4.0.0/16")
    ips = [table.add(node(number)).ip for number in range(1, 258)]
    assert ips[:2] == ["10.4.0.1", "10.4.0.2"]
    # Neither .255 nor .0 is skipped.
    assert ips[253:] == ["10.4.0.254", "10.4.0.255", "10.4.1.0", "10.4.1.1"]


def test_used_address_is_skipped() -> None:
    table = MappingTable()
    assert table.add(node(1), "10.4.0.2").ip == "10.4.0.2"
    assert [table.add(node(n)).ip for n in (2, 3)] == ["10.4.0.1", "10.4.0.3"]


def test_mapping_again_returns_what_there_is() -> None:
    table = MappingTable()
    first = table.add(node(1))
    assert table.add(node(1), "10.4.9.9") is first
    assert table.find(node(1)) is first
    assert table.mappings() == [first]


@pytest.mark.parametrize(
    ("ip", "kind", "text"),
    [
        ("10.5.0.1", InvalidArgument, "IP 10.5.0.1 not in subnet 10.4.0.0/16"),
        ("10.4.0.1", AlreadyExists, "IP 10.4.0.1 already mapped"),
        ("10.4.0", InvalidArgument, "'10.4.0' is not an IPv4 address"),
        ("::1", InvalidArgument, "'::1' is not an IPv4 address"),
    ],
)
def test_refused_address(ip: str, kind: type[PilotError], text: str) -> None:
    table = MappingTable()
    table.add(node(1))
    with pytest.raises(kind) as caught:
        table.add(node(2), ip)
    assert str(caught.value) == text
    assert len(table) == 1


def test_exhausted_subnet_takes_what_is_released() -> None:
    table = MappingTable("127.4.0.0/30")
    for number in (1, 2, 3):
        table.add(node(number))
    # Past the end, the first address, which automatic ones begin behind, stays free.
    with pytest.raises(Busy, match="subnet exhausted"):
        table.add(node(4))
    assert table.add(node(4), "127.4.0.0").ip == "127.4.0.0"
    table.remove("127.4.0.2")
    assert table.add(node(5)).ip == "127.4.0.2"


def test_small_subnet_without_an_address_ending_in_one() -> None:
    assert MappingTable("10.4.0.8/30").add(node(1)).ip == "10.4.0.8"


def test_number_of_mappings_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "MAX_MAPPINGS", 2)
    table = MappingTable()
    table.add(node(1))
    table.add(node(2))
    with pytest.raises(Busy, match="2 addresses are mapped"):
        table.add(node(3))
    assert table.add(node(2)).ip == "10.4.0.2"


def test_removing_what_is_not_mapped() -> None:
    with pytest.raises(NotFound, match=r"IP 10\.4\.0\.1 is not mapped"):
        MappingTable().remove("10.4.0.1")


@given(
    st.lists(st.tuples(st.integers(1, 20), st.none() | st.integers(0, 15)), max_size=40)
)
def test_no_address_stands_for_two_nodes(steps: list[tuple[int, int | None]]) -> None:
    table = MappingTable("127.4.0.0/28")
    for number, last in steps:
        try:
            table.add(node(number), None if last is None else f"127.4.0.{last}")
        except PilotError:
            if last is not None and f"127.4.0.{last}" in table._by_ip:
                table.remove(f"127.4.0.{last}")
    mappings = table.mappings()
    assert len({m.ip for m in mappings}) == len({m.address for m in mappings})
    assert all(table.find(m.address) is m for m in mappings)


def test_ports() -> None:
    assert parse_ports("80, 8080:80,0:7") == (
        PortPair(80, 80),
        PortPair(8080, 80),
        PortPair(0, 7),
    )
    for text in ("", ",", "x", "65536", "1:", ":1", "-1", "1:2:3", "٣"):
        with pytest.raises(InvalidArgument):
            parse_ports(text)
    with pytest.raises(InvalidArgument):
        parse_ports(",".join(["80"] * (MAX_PORTS + 1)))


def test_subnet() -> None:
    assert str(parse_subnet("10.4.3.2/16")) == "10.4.0.0/16"
    for text in ("", "10.4", "10.4.0.0/33", "fe80::/64"):
        with pytest.raises(InvalidArgument, match="invalid subnet"):
            parse_subnet(text)


def test_control_socket_lies_beside_the_daemons() -> None:
    assert control_path("/tmp/pilot.sock") == "/tmp/pilot-gateway.sock"
    assert control_path("/run/x/daemon") == "/run/x/daemon-gateway.sock"
