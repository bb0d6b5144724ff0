"""The conditions in network policies: a small part of the "expr" language.

Enough for what policies compare (services.md section 10): literals, lists, ranges,
names, function calls, arithmetic, comparison, ``in``, ``contains``, ``startsWith``,
``endsWith``, ``and``/``or``/``not`` (also ``&&``, ``||``, ``!``), ``?:``. A text is
parsed once into nested nodes and evaluated against a table of values;
nothing in it can loop, so its cost is bounded by its length, its depth by the limits
below.

Errors show the place as the official program does::

    unexpected token EOF (1:7)
     | port ==
     | ......^
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pilotfleet.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Expression", "parse_expression"]

MAX_LENGTH: Final = 4096
MAX_DEPTH: Final = 64
MAX_OPERATORS: Final = 200
"""A chain of operators nests as deep as it is long, and Python's stack has an end."""
MAX_RANGE: Final = 65_536

_TOKEN: Final = re.compile(
    r"""\s*(?:
    (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
    |(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<name>[A-Za-z_]\w*)
    |(?P<operator>\.\.|\*\*|&&|\|\||[=!<>]=|[-+*/%<>!?:,()\[\]])
    )""",
    re.VERBOSE,
)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r"}
_BINARY: Final = {
    **dict.fromkeys(("or", "||"), 10),
    **dict.fromkeys(("and", "&&"), 15),
    **dict.fromkeys(("==", "!=", "<", ">", "<=", ">="), 20),
    **dict.fromkeys(("in", "not in", "contains", "startsWith", "endsWith"), 20),
    "..": 25,
    **dict.fromkeys(("+", "-"), 30),
    **dict.fromkeys(("*", "/", "%"), 60),
    "**": 100,
}
"""Operators and how tightly they bind."""
_NOT_BINDS: Final = 50
_CONSTANTS: Final = {"true": True, "false": False, "nil": None}


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class _Node(NamedTuple):
    kind: str
    """``value``, ``name``, ``list``, ``call``, ``unary``, ``if`` or an operator."""
    value: Any
    parts: tuple[_Node, ...] = ()


class Expression:
    """A parsed condition."""

    __slots__ = ("_root", "text")

    def __init__(self, text: str, root: _Node) -> None:
        self.text = text
        self._root = root

    @property
    def is_condition(self) -> bool:
        """Whether it may come to true or false, by its outermost operator."""
        root = self._root
        if root.kind == "value":
            return isinstance(root.value, bool)
        return root.kind not in _ARITHMETIC and root.kind not in ("list", "..")

    def evaluate(
        self,
        values: Mapping[str, Any],
        functions: Mapping[str, Callable[..., Any]],
    ) -> Any:
        """Return what the expression comes to.

        Raises:
            InvalidArgument: Its parts do not fit together, like ``"a" < 1``.
        """
        try:
            return _evaluate(self._root, values, functions)
        except (
            *(TypeError, ValueError, KeyError),
            *(ZeroDivisionError, OverflowError, AttributeError),
        ) as error:
            raise InvalidArgument(f"cannot evaluate {self.text!r}: {error}") from None


def parse_expression(
    text: str, names: frozenset[str], functions: frozenset[str]
) -> Expression:
    """Parse a condition that may use ``names`` and call ``functions``.

    Raises:
        InvalidArgument: It is none, or names something unknown.
    """
    if len(text) > MAX_LENGTH:
        raise InvalidArgument(f"expression of more than {MAX_LENGTH} characters")
    return Expression(text, _Parser(text, names, functions).parse())


class _Parser:
    """Precedence climbing over the tokens of one text."""

    def __init__(
        self, text: str, names: frozenset[str], functions: frozenset[str]
    ) -> None:
        self._text = text
        self._names = names
        self._functions = functions
        self._tokens = self._tokenise()
        self._index = 0
        self._depth = 0
        self._operators = 0

    def parse(self) -> _Node:
        """Return the root, once everything is read."""
        root = self._parse_condition()
        if self._token.kind != "EOF":
            raise self._unexpected()
        return root

    @property
    def _token(self) -> _Token:
        return self._tokens[self._index]

    def _tokenise(self) -> list[_Token]:
        tokens: list[_Token] = []
        at, end = 0, len(self._text.rstrip())
        while at < end:
            match = _TOKEN.match(self._text, at)
            if match is None or match.lastgroup is None:
                at += len(self._text[at:]) - len(self._text[at:].lstrip())
                raise self._error(f"unrecognized character: {self._text[at]!a}", at)
            kind = match.lastgroup
            tokens.append(_Token(kind, match[kind], match.start(kind)))
            at = match.end()
        # Where the reference points: at the last character that there is.
        tokens.append(_Token("EOF", "", max(0, end - 1)))
        return tokens

    def _error(self, problem: str, at: int) -> InvalidArgument:
        line = self._text.count("\n", 0, at) + 1
        column = at - (self._text.rfind("\n", 0, at) + 1)
        shown = self._text.splitlines()[line - 1] if self._text else ""
        return InvalidArgument(
            f"{problem} ({line}:{column + 1})\n | {shown}\n | {'.' * column}^"
        )

    def _unexpected(self) -> InvalidArgument:
        token = self._token
        if token.kind == "EOF":
            return self._error("unexpected token EOF", token.at)
        kind = token.kind.capitalize()
        return self._error(f'unexpected token {kind}("{token.text}")', token.at)

    def _take(self, *texts: str) -> str | None:
        """Consume the next token if it is one of these operators or words."""
        token = self._token
        if token.kind in ("operator", "name") and token.text in texts:
            self._index += 1
            return token.text
        return None

    def _expect(self, text: str) -> None:
        if self._take(text) is None:
            raise self._unexpected()

    def _parse_condition(self) -> _Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error("expression is nested too deeply", self._token.at)
        node = self._parse_binary(0)
        if self._take("?"):
            chosen = self._parse_condition()
            self._expect(":")
            node = _Node("if", None, (node, chosen, self._parse_condition()))
        self._depth -= 1
        return node

    def _parse_binary(self, least: int) -> _Node:
        node = self._parse_unary()
        while (operator := self._operator(least)) is not None:
            self._operators += 1
            if self._operators > MAX_OPERATORS:
                raise self._error("too many operators", self._token.at)
            # ``**`` binds to the right, everything else to the left.
            binds = _BINARY[operator]
            right = self._parse_binary(binds if operator == "**" else binds + 1)
            node = _Node(operator, None, (node, right))
        return node

    def _operator(self, least: int) -> str | None:
        token = self._token
        if token.kind not in ("operator", "name"):
            return None
        after = self._tokens[min(self._index + 1, len(self._tokens) - 1)]
        operator, width = token.text, 1
        if operator == "not" and after.text == "in":
            operator, width = "not in", 2
        if operator not in _BINARY or _BINARY[operator] < least:
            return None
        self._index += width
        return operator

    def _parse_unary(self) -> _Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error("expression is nested too deeply", self._token.at)
        operator = self._take("not", "!", "-", "+")
        if operator is None:
            node = self._parse_primary()
        else:
            tight = _NOT_BINDS if operator in ("not", "!") else _BINARY["**"]
            node = _Node("unary", operator, (self._parse_binary(tight),))
        self._depth -= 1
        return node

    def _parse_primary(self) -> _Node:
        token = self._token
        self._index += 1
        match token.kind:
            case "number":
                is_whole = token.text.isdigit()
                number = int(token.text) if is_whole else float(token.text)
                return _Node("value", number)
            case "string":
                return _Node("value", _unescape(token.text))
            case "name":
                return self._parse_name(token)
            case "operator" if token.text == "(":
                node = self._parse_condition()
                self._expect(")")
                return node
            case "operator" if token.text == "[":
                return _Node("list", None, self._parse_items("]"))
        self._index -= 1
        raise self._unexpected()

    def _parse_name(self, token: _Token) -> _Node:
        if token.text in _CONSTANTS:
            return _Node("value", _CONSTANTS[token.text])
        if self._take("("):
            if token.text not in self._functions:
                raise self._error(f"unknown name {token.text}", token.at)
            return _Node("call", token.text, self._parse_items(")"))
        if token.text not in self._names:
            raise self._error(f"unknown name {token.text}", token.at)
        return _Node("name", token.text)

    def _parse_items(self, closing: str) -> tuple[_Node, ...]:
        items: list[_Node] = []
        while not self._take(closing):
            if items:
                self._expect(",")
            items.append(self._parse_condition())
        return tuple(items)


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[1]), text[1:-1])


def _evaluate(
    node: _Node, values: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]
) -> Any:
    def part(index: int) -> Any:
        return _evaluate(node.parts[index], values, functions)

    match node.kind:
        case "value":
            return node.value
        case "name":
            return values.get(node.value)
        case "list":
            return [part(index) for index in range(len(node.parts))]
        case "call":
            return functions[node.value](*map(part, range(len(node.parts))))
        case "unary":
            return _negate(node.value, part(0))
        case "if":
            return part(1) if _truth(part(0)) else part(2)
        case "or" | "||":
            return _truth(part(0)) or _truth(part(1))
        case "and" | "&&":
            return _truth(part(0)) and _truth(part(1))
        case operator:
            return _apply(operator, part(0), part(1))


def _negate(operator: str, value: Any) -> Any:
    if operator in ("not", "!"):
        return not _truth(value)
    return -_number(value) if operator == "-" else _number(value)


def _apply(operator: str, left: Any, right: Any) -> Any:
    if operator in _ARITHMETIC:
        if operator == "+" and isinstance(left, str):
            return left + _text(right)
        return _ARITHMETIC[operator](_number(left), _number(right))
    match operator:
        case "==":
            return left == right
        case "!=":
            return left != right
        case "in":
            return left in (right or ())
        case "not in":
            return left not in (right or ())
        case "contains":
            return _text(right) in _text(left)
        case "startsWith":
            return _text(left).startswith(_text(right))
        case "endsWith":
            return _text(left).endswith(_text(right))
        case "..":
            return _span(_number(left), _number(right))
    # What is left orders: numbers with numbers, texts with texts.
    same = isinstance(left, str) and isinstance(right, str)
    if not same:
        left, right = _number(left), _number(right)
    return _ORDER[operator](left, right)


_ARITHMETIC: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right,
    "%": lambda left, right: left % right,
    # Of floats: whole numbers could grow without bound.
    "**": lambda left, right: float(left) ** float(right),
}
_ORDER: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": lambda left, right: bool(left < right),
    ">": lambda left, right: bool(left > right),
    "<=": lambda left, right: bool(left <= right),
    ">=": lambda left, right: bool(left >= right),
}


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is not true or false")
    return value


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.40} is not a number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a text")
    return value


def _span(first: float, last: float) -> range:
    if last - first > MAX_RANGE:
        raise ValueError(f"range of more than {MAX_RANGE} numbers")
    return range(int(first), int(last) + 1)
