"""The official program's argument rules (cli.md section 1.1).

They are no ordinary parser's rules: one or two dashes mean the same, an unknown
flag is ignored, a negative number is a positional, and whether a flag takes a
value depends only on what the next token looks like.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pilotfleet.errors import InvalidArgument
from pilotfleet.protocol.durations import parse_duration

__all__ = [
    "Arguments",
    "Invocation",
    "parse_arguments",
    "parse_invocation",
    "read_number",
]

_NUMBER_CHARACTERS: Final = frozenset("0123456789.")
_JSON: Final = frozenset(["--json", "-json"])
_VERBOSE: Final = frozenset(["-v", "--verbose", "-verbose"])
_AGENT: Final = frozenset(["--agent", "-agent"])
_MAX_INTEGER_DIGITS: Final = 18


class Invocation(NamedTuple):
    """A command line without its global flags."""

    tokens: list[str]
    json: bool
    verbose: bool
    agent: str | None


class Arguments:
    """The positionals and flags of one command."""

    __slots__ = ("_flags", "first", "positionals")

    def __init__(
        self, positionals: list[str], flags: dict[str, list[str]], first: str = ""
    ) -> None:
        self.positionals = positionals
        self.first = first
        """The first token, for commands that take it whatever it looks like."""
        self._flags = flags

    @property
    def flags(self) -> list[str]:
        """The names of the flags that were given."""
        return list(self._flags)

    def positional(self, index: int, default: str = "") -> str:
        """Return a positional, or ``default`` when there are fewer."""
        return self.positionals[index] if index < len(self.positionals) else default

    def has(self, name: str) -> bool:
        """Tell whether a flag was given, with whatever value."""
        return name in self._flags

    def text(self, name: str, default: str = "") -> str:
        """Return a flag's value; of several the last."""
        return self._flags[name][-1] if name in self._flags else default

    def texts(self, name: str) -> list[str]:
        """Return all values of a flag that may be repeated."""
        return list(self._flags.get(name, ()))

    def enabled(self, name: str) -> bool:
        """Tell whether a boolean flag is on."""
        return self.has(name) and self.text(name) in ("true", "1", "")

    def integer(self, name: str, default: int, *, least: int | None = None) -> int:
        """Return a flag's whole number.

        Raises:
            InvalidArgument: It is not one, or is below ``least``.
        """
        if not self.has(name):
            return default
        text = self.text(name)
        digits = text[1:] if text[:1] in ("-", "+") else text
        valid = digits.isascii() and digits.isdigit()
        if not valid or len(digits) > _MAX_INTEGER_DIGITS:
            raise InvalidArgument(
                f'invalid integer for --{name}: "{text[:40]}" is not a whole number'
            )
        number = int(text)
        if least is not None and number < least:
            raise InvalidArgument(
                f"invalid integer for --{name}: {number} is less than {least}"
            )
        return number

    def duration(
        self, name: str, default: float, *, allow_negative: bool = False
    ) -> float:
        """Return a flag's seconds.

        Raises:
            InvalidArgument: It is not a duration, or is negative.
        """
        if not self.has(name):
            return default
        return parse_duration(
            self.text(name), f"--{name}", allow_negative=allow_negative
        )


def read_number(text: str, maximum: int) -> int | None:
    """Return the number that a text of digits states, None for any other text."""
    valid = text.isascii() and text.isdigit() and len(text) <= _MAX_INTEGER_DIGITS
    return int(text) if valid and int(text) <= maximum else None


def parse_invocation(tokens: list[str]) -> Invocation:
    """Take the global flags out, wherever they stand.

    Raises:
        InvalidArgument: ``--agent`` without a name.
    """
    rest: list[str] = []
    agent: str | None = None
    json = verbose = False
    waiting = iter(tokens)
    for token in waiting:
        name, separator, value = token.partition("=")
        if token in _JSON:
            json = True
        elif token in _VERBOSE:
            verbose = True
        elif name in _AGENT:
            agent = value if separator else next(waiting, "")
            if not agent:
                raise InvalidArgument("--agent needs the name of a hosted agent")
        else:
            rest.append(token)
    return Invocation(rest, json, verbose, agent)


def parse_arguments(tokens: list[str]) -> Arguments:
    """Divide the tokens after a command into positionals and flags."""
    positionals: list[str] = []
    flags: dict[str, list[str]] = {}
    index = 0
    while index < len(tokens):
        token = tokens[index]
        index += 1
        if not _is_flag(token):
            positionals.append(token)
            continue
        name, separator, value = token.lstrip("-").partition("=")
        if not separator:
            value = "true"
            if index < len(tokens) and _is_value(tokens[index]):
                value = tokens[index]
                index += 1
        flags.setdefault(name, []).append(value)
    return Arguments(positionals, flags, tokens[0] if tokens else "")


def _is_flag(token: str) -> bool:
    rest = token[1:]
    return token[:1] == "-" and bool(rest) and not _NUMBER_CHARACTERS.issuperset(rest)


def _is_value(token: str) -> bool:
    if not token.startswith("-") or token == "-":
        return True
    return token[1:2].isdigit()
