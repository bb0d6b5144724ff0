"""Compare two JSON values field by field and name each difference.

Values must be equal, but for fields that are different on each run (times, keys,
rates): of these only the shape is compared, that is keys and kinds, recursively,
and for a list the union of its elements.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Difference", "Shape", "differences", "shape_of"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that is not as in the reference."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path or 'answer'}: {self.problem}"


@dataclass(slots=True)
class Shape:
    """The kinds that a value takes, and the shapes of what it holds."""

    kinds: set[str] = field(default_factory=set)
    keys: dict[str, Shape] = field(default_factory=dict)
    element: Shape | None = None

    def add(self, value: Any) -> None:
        """Widen the shape so that it covers ``value``."""
        self.kinds.add(kind_of(value))
        if isinstance(value, dict):
            for key, item in value.items():
                self.keys.setdefault(key, Shape()).add(item)
        elif isinstance(value, list):
            for item in value:
                self.element = self.element or Shape()
                self.element.add(item)


def kind_of(value: Any) -> str:
    """Return the JSON name of a value's kind; all numbers are one kind."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    names: dict[type, str] = {str: "string", list: "list", dict: "object"}
    return names[type(value)]


def shape_of(value: Any) -> Shape:
    """Return the shape of one value."""
    shape = Shape()
    shape.add(value)
    return shape


def differences(
    reference: Any, found: Any, *, varies: Callable[[str], bool], path: str = ""
) -> Iterator[Difference]:
    """Yield what is different in ``found``; ``varies`` says which paths differ anyway.

    A path reads ``stdout.data.results[].rtt_ms``.
    """
    if varies(path):
        yield from _shape_differences(shape_of(reference), shape_of(found), path)
    elif isinstance(reference, dict) and isinstance(found, dict):
        yield from _key_differences(reference, found, path)
        for key in sorted(reference.keys() & found.keys()):
            inner = f"{path}.{key}" if path else key
            yield from differences(
                reference[key], found[key], varies=varies, path=inner
            )
    elif isinstance(reference, list) and isinstance(found, list):
        if len(reference) != len(found):
            yield Difference(path, f"{len(found)} entries, not {len(reference)}")
        for expected, item in zip(reference, found, strict=False):
            yield from differences(expected, item, varies=varies, path=f"{path}[]")
    elif reference != found or kind_of(reference) != kind_of(found):
        yield Difference(path, f"{_short(found)}, not {_short(reference)}")


def _key_differences(
    reference: dict[str, Any], found: dict[str, Any], path: str
) -> Iterator[Difference]:
    prefix = f"{path}." if path else ""
    for key in sorted(reference.keys() - found.keys()):
        yield Difference(f"{prefix}{key}", "missing")
    for key in sorted(found.keys() - reference.keys()):
        yield Difference(f"{prefix}{key}", "not in the official answer")


def _shape_differences(
    reference: Shape, found: Shape, path: str
) -> Iterator[Difference]:
    if reference.kinds != found.kinds:
        kinds = " or ".join(sorted(found.kinds)), " or ".join(sorted(reference.kinds))
        yield Difference(path, f"{kinds[0]}, not {kinds[1]}")
    if "object" in reference.kinds & found.kinds:
        yield from _key_differences(reference.keys, found.keys, path)
        for key in sorted(reference.keys.keys() & found.keys.keys()):
            yield from _shape_differences(
                reference.keys[key], found.keys[key], f"{path}.{key}"
            )
    # An empty list has no elements to compare.
    if reference.element is not None and found.element is not None:
        yield from _shape_differences(reference.element, found.element, f"{path}[]")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:160]}…"
