"""Everything that pilotctl prints: results, errors, notes (cli.md section 2).

Results go to stdout, everything else to stderr. With ``--json`` a result is one
line ``{"data":…,"status":"ok"}`` and an error one line with ``"status":"error"``.
What would steer a terminal is made visible where there is one; files and pipes get
every character as it is.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.terminal import escaped, printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

    from pilotfleet.errors import PilotError

__all__ = ["Output", "compact_json"]

_ESCAPES: Final = {
    # The official program's encoder writes these so, for the sake of HTML. They
    # can stand only inside strings, so replacing them in the whole is safe.
    ord("<"): "\\u003c",
    ord(">"): "\\u003e",
    ord("&"): "\\u0026",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def compact_json(value: Any) -> str:
    """Return a value as the official program encodes it, on one line."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.translate(_ESCAPES)


class Output:
    """Where one invocation prints to."""

    __slots__ = ("json",)

    def __init__(self, *, json: bool) -> None:
        self.json = json

    def result(self, data: Any, text: str | None = None) -> None:
        """Print what a command was asked for.

        Args:
            data: The object of the JSON envelope.
            text: The layout for people; without one they get indented JSON.
        """
        if self.json:
            self.line({"data": data, "status": "ok"})
        elif text is None:
            text = json.dumps(data, indent=2, ensure_ascii=False)
            _write(sys.stdout, text, is_json=True)
        else:
            _write(sys.stdout, text)

    def line(self, value: Any) -> None:
        """Print one object on one line, without envelope."""
        _write(sys.stdout, compact_json(value), is_json=True)

    def text(self, text: str) -> None:
        """Print plain text, whatever the mode."""
        _write(sys.stdout, text)

    def note(self, text: str) -> None:
        """Tell people, on stderr, what is going on; silent with ``--json``."""
        if not self.json:
            _write(sys.stderr, text)

    def warn(self, text: str) -> None:
        """Print a warning on stderr in either mode."""
        _write(sys.stderr, f"warning: {text}")

    def error(self, error: PilotError) -> None:
        """Print why a command failed."""
        message = str(error)
        if not self.json:
            hint = f"\nhint:  {error.hint}" if error.hint else ""
            _write(sys.stderr, f"error: {message}{hint}")
            return
        details: Mapping[str, Any] = getattr(error, "details", {})
        envelope: Mapping[str, Any] = {
            **details,
            "code": error.code,
            "error": message,
            "message": message,
            "status": "error",
        }
        if error.hint:
            envelope = {**envelope, "hint": error.hint}
        _write(sys.stderr, compact_json(envelope), is_json=True)


def _write(stream: TextIO, text: str, *, is_json: bool = False) -> None:
    if stream.isatty():
        text = escaped(text) if is_json else printable(text.replace("\r\n", "\n"))
    # Text from peers or arguments may hold what the terminal's encoding, or any
    # encoding, has no bytes for. A flush per line, for readers of a pipe.
    encoding = stream.encoding or "utf-8"
    stream.write(f"{text}\n".encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()
