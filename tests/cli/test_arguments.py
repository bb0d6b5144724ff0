"""The official argument rules (cli.md section 1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.cli.arguments import parse_arguments, parse_invocation
from pilotfleet.cli.invocation import parse_port, read_target
from pilotfleet.errors import InvalidArgument
from pilotfleet.protocol.address import Address


@pytest.mark.parametrize(
    ("tokens", "positionals", "flags"),
    [
        (["a", "--key", "value", "b"], ["a", "b"], {"key": "value"}),
        (["--key=value", "b"], ["b"], {"key": "value"}),
        (["-key", "value"], [], {"key": "value"}),
        (["-key=value"], [], {"key": "value"}),
        (["--key=a=b"], [], {"key": "a=b"}),
        (["--key="], [], {"key": ""}),
        (["-5"], ["-5"], {}),
        (["-1.5", "x"], ["-1.5", "x"], {}),
        (["-"], ["-"], {}),
        (["--data", "-"], [], {"data": "-"}),
        (["--data", "-5"], [], {"data": "-5"}),
        (["--delta", "-2s"], [], {"delta": "-2s"}),
        (["--data", "-x"], [], {"data": "true", "x": "true"}),
        (["--data=-x"], [], {"data": "-x"}),
        (["--check"], [], {"check": "true"}),
        # A boolean flag swallows a positional that follows it.
        (["--trace", "7"], [], {"trace": "7"}),
        (["--a", "1", "--a", "2"], [], {"a": "2"}),
        (["--unknown", "x", "y"], ["y"], {"unknown": "x"}),
        (["0:0000.0000.0007"], ["0:0000.0000.0007"], {}),
        ([""], [""], {}),
    ],
)
def test_tokens_are_divided_like_the_official_program_does(
    tokens: list[str], positionals: list[str], flags: dict[str, str]
) -> None:
    arguments = parse_arguments(tokens)
    assert arguments.positionals == positionals
    assert {name: arguments.text(name) for name in arguments.flags} == flags


@given(st.lists(st.text(alphabet="-=a1. ", max_size=4), max_size=8))
def test_any_tokens_are_divided_without_error(tokens: list[str]) -> None:
    arguments = parse_arguments(tokens)
    values = sum(len(arguments.texts(name)) for name in arguments.flags)
    assert len(arguments.positionals) + values <= len(tokens)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["info"], (["info"], False, False, None)),
        (["--json", "info"], (["info"], True, False, None)),
        (["info", "--json"], (["info"], True, False, None)),
        (["info", "-v"], (["info"], False, True, None)),
        (["--verbose", "info"], (["info"], False, True, None)),
        (["--agent", "w-1", "info"], (["info"], False, False, "w-1")),
        (["info", "--agent=w-1"], (["info"], False, False, "w-1")),
        (["send", "--data", "--json"], (["send", "--data"], True, False, None)),
    ],
)
def test_global_flags_stand_anywhere(
    tokens: list[str], expected: tuple[list[str], bool, bool, str | None]
) -> None:
    assert tuple(parse_invocation(tokens)) == expected


@pytest.mark.parametrize("tokens", [["--agent"], ["--agent="], ["info", "--agent"]])
def test_agent_flag_needs_a_name(tokens: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="needs the name"):
        parse_invocation(tokens)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("true", True), ("1", True), ("", True), ("false", False), ("no", False)],
)
def test_boolean_flag_is_on_for_three_values(value: str, *, expected: bool) -> None:
    assert parse_arguments([f"--flag={value}"]).enabled("flag") is expected
    assert parse_arguments([]).enabled("flag") is False


def test_repeated_flag_keeps_all_values() -> None:
    arguments = parse_arguments(["--tag", "a", "--tag=b"])
    assert arguments.texts("tag") == ["a", "b"]
    assert arguments.texts("none") == []


@pytest.mark.parametrize(("text", "number"), [("5", 5), ("-2", -2), ("+3", 3)])
def test_integer_flag(text: str, number: int) -> None:
    assert parse_arguments([f"--n={text}"]).integer("n", 0) == number
    assert parse_arguments([]).integer("n", 7) == number or number != 7


@pytest.mark.parametrize("text", ["", "x", "1.5", "true", "9" * 19, "٣", "-"])
def test_other_text_is_no_integer(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid integer for --n: "):
        parse_arguments([f"--n={text}"]).integer("n", 0)


def test_integer_below_the_least_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="0 is less than 1"):
        parse_arguments(["--n=0"]).integer("n", 4, least=1)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0:0000.0000.000B", Address(0, 11)),
        ("0:0000.0000.000b", Address(0, 11)),
        ("3:0003.0000.0007", Address(3, 7)),
        ("7", Address(0, 7)),
        ("4294967295", Address(0, 4294967295)),
        ("4294967296", None),
        ("3:0004.0000.0007", None),
        ("0x7", None),
        ("-7", None),
        ("bob", None),
        ("", None),
        ("٣", None),
    ],
)
def test_target_is_an_address_a_number_or_a_name(
    text: str, address: Address | None
) -> None:
    assert read_target(text) == address


@pytest.mark.parametrize("text", ["0", "7", "65535"])
def test_port(text: str) -> None:
    assert parse_port(text) == int(text)


@pytest.mark.parametrize("text", ["", "65536", "-1", "abc", "1.5", "٣", "9" * 50])
def test_other_text_is_no_port(text: str) -> None:
    with pytest.raises(InvalidArgument, match='invalid port "'):
        parse_port(text)
