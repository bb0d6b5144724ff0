"""``pilotctl fleet logs``: what the programs of a fleet write down."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from pilotfleet.cli.fleethome import select_home
from pilotfleet.errors import InvalidArgument, NotFound, StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.output import Output

__all__ = ["logs"]

DEFAULT_LINES: Final = 20
MAX_LINES: Final = 100_000
BYTES_PER_LINE: Final = 400
"""Read from the end of a log for each line wanted; long lines give fewer of them."""
FOLLOW_PAUSE_S: Final = 0.2


def logs(words: Arguments, output: Output) -> None:
    """Show the ends of one log or all; ``-f`` goes on until interrupted."""
    lines = words.integer("lines", DEFAULT_LINES, least=0)
    if lines > MAX_LINES:
        raise InvalidArgument(f"--lines: {lines} is more than {MAX_LINES}")
    home = select_home(words)
    paths = _paths(home, words.positional(0))
    follows = words.has("f") or words.has("follow")
    if output.json and not follows:
        rows = [
            {"member": path.stem, "path": str(path), "lines": _tail(path, lines)[0]}
            for path in paths
        ]
        output.result({"logs": rows, "total": len(rows)})
        return
    shown = _Shown(output, many=len(paths) > 1)
    offsets = {}
    for path in paths:
        texts, offsets[path] = _tail(path, lines)
        for text in texts:
            shown.line(path.stem, text)
    if follows:
        _follow(shown, offsets)


class _Shown:
    """Prints lines, and whose they are when that changes."""

    def __init__(self, output: Output, *, many: bool) -> None:
        self._output = output
        self._many = many
        self._member = ""

    def line(self, member: str, text: str) -> None:
        """Print a line."""
        if self._output.json:
            self._output.line({"member": member, "line": text})
            return
        if self._many and member != self._member:
            self._output.text(f"==> {member} <==")
        self._member = member
        self._output.text(text)


def _paths(home: Path, member: str) -> list[Path]:
    """Return the logs of a fleet, or that of one member.

    Raises:
        NotFound: There is none.
        StorageError: Their folder cannot be read.
    """
    try:
        found = sorted((home / "logs").glob("*.log"))
    except OSError as error:
        raise StorageError(f"cannot read {home}: {error.strerror}") from None
    if not found:
        raise NotFound(f"there are no logs in {home / 'logs'}")
    if not member:
        return found
    named = [path for path in found if path.stem == member]
    if not named:
        names = ", ".join(path.stem for path in found)
        raise NotFound(f"there is no log of {member!r}", hint=f"available: {names}")
    return named


def _tail(path: Path, lines: int) -> tuple[list[str], int]:
    """Return the last lines, and how far the file was read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - lines * BYTES_PER_LINE)
            file.seek(start)
            data = file.read(size - start)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from None
    complete = data.rpartition(b"\n")[0].split(b"\n") if b"\n" in data else []
    if start and complete:
        del complete[0]  # It has no beginning.
    texts = [line.decode(errors="replace") for line in complete]
    end = start + (data.rfind(b"\n") + 1 if b"\n" in data else 0)
    return texts[-lines:] if lines else [], end


def _follow(shown: _Shown, offsets: dict[Path, int]) -> None:
    """Print what is appended, for ever; a log that begins anew is read anew."""
    files: dict[Path, BinaryIO] = {}
    while True:
        for path, offset in offsets.items():
            files[path] = _current(path, files.get(path), offset)
            for line in _appended(files[path]):
                shown.line(path.stem, line)
        # Appending to a file is nothing that one could wait for everywhere.
        time.sleep(FOLLOW_PAUSE_S)


def _current(path: Path, file: BinaryIO | None, offset: int) -> BinaryIO:
    """Return the open log, by what it is now if it was replaced or emptied."""
    if file is None:
        file = open(path, "rb")  # noqa: SIM115 - open while it is followed
        file.seek(offset)
        return file
    if os.fstat(file.fileno()).st_size < file.tell():
        file.seek(0)
    try:
        is_same = os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return file
    if is_same:
        return file
    file.close()
    return open(path, "rb")


def _appended(file: Any) -> list[str]:
    """Return the whole lines behind the place where the file was read to."""
    start = file.tell()
    data = file.read(1 << 20)
    whole = data.rfind(b"\n") + 1
    file.seek(start + whole)
    return [line.decode(errors="replace") for line in data[:whole].splitlines()]
