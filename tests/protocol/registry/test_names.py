"""The form of hostnames, tags and network names."""

from __future__ import annotations

import pytest

from pilotfleet.errors import InvalidArgument
from pilotfleet.protocol.registry.names import (
    check_hostname,
    check_network_name,
    is_hostname_prefix,
    normalise_tags,
)

RULE = "must be lowercase alphanumeric with hyphens, start/end with alphanumeric"


@pytest.mark.parametrize("name", ["a", "a-b", "0", "a" * 63, "x--y"])
def test_good_hostnames_are_accepted(name: str) -> None:
    check_hostname(name)
    check_network_name(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a" * 64, "hostname too long (max 63 chars)"),
        ("ü" * 32, "hostname too long (max 63 chars)"),
        ("Bad_Name", f"hostname {RULE}"),
        ("-a", f"hostname {RULE}"),
        ("a-", f"hostname {RULE}"),
        ("", f"hostname {RULE}"),
        ("a\n", f"hostname {RULE}"),
        ("localhost", 'hostname "localhost" is reserved'),
        ("backbone", 'hostname "backbone" is reserved'),
        ("broadcast", 'hostname "broadcast" is reserved'),
    ],
)
def test_bad_hostnames_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_hostname(name)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "network name required"),
        ("a" * 64, "network name too long (max 63 chars)"),
        ("--name", f"network name {RULE}"),
        ("backbone", 'network name "backbone" is reserved'),
    ],
)
def test_bad_network_names_are_refused(name: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_network_name(name)
    assert str(caught.value) == reason


def test_tags_lose_one_hash_and_duplicates() -> None:
    assert normalise_tags(["#gpu", "web", "gpu"]) == ("gpu", "web")


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ([""], "empty tag not allowed"),
        (["#"], "empty tag not allowed"),
        (["##a"], 'tag "#a" must be lowercase alphanumeric with hyphens'),
        (["A"], 'tag "A" must be lowercase alphanumeric with hyphens'),
        (["a" * 33], f'tag "{"a" * 33}" too long (max 32 chars)'),
        ([f"t{n}" for n in range(11)], "too many tags (max 10)"),
    ],
)
def test_bad_tags_are_refused(tags: list[str], reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        normalise_tags(tags)
    assert str(caught.value) == reason


def test_prefixes_are_told_from_what_no_hostname_begins_with() -> None:
    assert is_hostname_prefix("worker-")
    assert not is_hostname_prefix("-")
    assert not is_hostname_prefix("W")
    assert not is_hostname_prefix("a" * 64)
