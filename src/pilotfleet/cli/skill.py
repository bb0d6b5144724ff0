"""Commands for the skill that teaches an OpenClaw agent to use ``pilotctl``."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import AlreadyExists, InvalidArgument, NotFound, StorageError
from pilotfleet.transport.files import replace_file

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

NAME: Final = "pilotctl"
FILE: Final = "SKILL.md"


def install(context: Context, arguments: Arguments) -> None:
    """Copy the skill to where OpenClaw looks for it."""
    target, text = _target(arguments), _text()
    existing = _read(target)
    if existing is not None:
        _check_ours(target, existing, arguments, "replace it with --force")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, text.encode(), mode=0o644)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror}") from error
    data = {"name": NAME, "path": str(target), "replaced": existing is not None}
    context.output.result(data, f"installed {target}")


def uninstall(context: Context, arguments: Arguments) -> None:
    """Remove the skill again, and nothing else that is in its folder."""
    target = _target(arguments)
    existing = _read(target)
    if existing is None:
        raise NotFound(f"{target} is not there", hint="name its folder with --dir")
    _check_ours(target, existing, arguments, "remove it with --force")
    try:
        target.unlink()
        if not any(target.parent.iterdir()):
            target.parent.rmdir()
    except OSError as error:
        raise StorageError(f"cannot remove {target}: {error.strerror}") from error
    data = {"name": NAME, "path": str(target)}
    context.output.result(data, f"removed {target}")


def path(context: Context, arguments: Arguments) -> None:
    """Say where the skill is, or would be."""
    target = _target(arguments)
    existing = _read(target)
    data = {
        "name": NAME,
        "path": str(target),
        "installed": existing is not None,
        "current": existing == _text(),
    }
    context.output.result(data, str(target))


def show(context: Context, _: Arguments) -> None:
    """Print the skill."""
    text = _text()
    context.output.result({"name": NAME, "text": text}, text.rstrip())


def _target(arguments: Arguments) -> Path:
    """Return the skill's file in a folder of skills.

    By default in OpenClaw's managed skills, which every agent of the user has.
    """
    if not arguments.has("dir"):
        return _skills().absolute() / NAME / FILE
    # Empty is likely a variable that was never set, and would be the working folder.
    if not arguments.text("dir"):
        raise InvalidArgument("--dir is empty", hint="name a folder of skills")
    return Path(arguments.text("dir")).absolute() / NAME / FILE


def _check_ours(target: Path, text: str, arguments: Arguments, remedy: str) -> None:
    """Refuse to lose what somebody changed."""
    if text != _text() and not arguments.enabled("force"):
        raise AlreadyExists(f"{target} is there and differs", hint=remedy)


def _skills() -> Path:
    state = os.environ.get("OPENCLAW_STATE_DIR")
    if state:
        return Path(state).expanduser() / "skills"
    home = os.environ.get("OPENCLAW_HOME")
    return (Path(home).expanduser() if home else Path.home()) / ".openclaw" / "skills"


def _text() -> str:
    file = resources.files("pilotfleet") / "skills" / NAME / FILE
    return file.read_text(encoding="utf-8")


def _read(target: Path) -> str | None:
    try:
        return target.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {target}: {error.strerror}") from error
