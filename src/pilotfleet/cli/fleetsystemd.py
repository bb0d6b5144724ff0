"""``pilotctl fleet systemd`` and ``fleet enrol``: fleets as services of the system."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pilotfleet.cli.fleethome import registry_tls
from pilotfleet.cli.settings import Settings
from pilotfleet.client.daemon import DaemonClient
from pilotfleet.client.registry import RegistryClient
from pilotfleet.client.socketpath import default_socket
from pilotfleet.errors import DecodeError, InvalidArgument, StorageError
from pilotfleet.fleet.enrolment import enrol_agents
from pilotfleet.fleet.plan import Part
from pilotfleet.fleet.processes import find_program
from pilotfleet.fleet.spec import load_spec
from pilotfleet.fleet.systemd import Layout, write_units
from pilotfleet.protocol.registry.endpoints import parse_endpoint

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.output import Output

__all__ = ["enrol", "systemd"]


def systemd(words: Arguments, output: Output) -> None:
    """Write the units of a fleet.

    Raises:
        InvalidArgument: Something is missing.
        StorageError: They cannot be written.
    """
    if not (words.positionals and words.text("out")):
        raise InvalidArgument("fleet systemd needs SPEC and --out")
    path = Path(words.positional(0)).absolute()
    folder = Path(words.text("cwd") or Path.cwd()).absolute()
    if not folder.is_dir():
        raise InvalidArgument(
            f"--cwd: {folder} is not a folder", hint="commands of tasks run there"
        )
    units = write_units(
        load_spec(path),
        Layout(
            programs=Path(find_program("pilotctl")).parent.absolute(),
            spec=path,
            folder=folder,
            interpreter=Path(sys.executable).resolve(),
            part=Part.parse(words.text("part", "1/1")),
        ),
    )
    out = Path(words.text("out"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in units.items():
            (out / name).write_text(text)
    except OSError as error:
        raise StorageError(f"cannot write to {out}: {error.strerror}") from None
    files = [str(out / name) for name in units]
    output.result({"files": files}, "\n".join(files))


def enrol(words: Arguments, output: Output) -> None:
    """Bring the agents of a running daemon into the fleet's network.

    Raises:
        PilotError: Something is missing, or daemon or registry refuse.
    """
    if not words.positionals:
        raise InvalidArgument("fleet enrol needs SPEC")
    joined, agents = asyncio.run(_enrol(words))
    output.result(
        {"agents": agents, "joined": joined},
        f"{agents} agents are in the network, {joined} of them new",
    )


async def _enrol(words: Arguments) -> tuple[int, int]:
    spec = load_spec(Path(words.positional(0)))
    settings = Settings()
    address = words.text("registry") or settings.registry
    try:
        endpoint = parse_endpoint(address)
    except DecodeError:
        raise InvalidArgument(f"--registry: {address!r} is not host:port") from None
    socket = words.text("socket") or default_socket()
    home = Path(words.text("home") or settings.directory)
    async with (
        await DaemonClient.connect(socket) as client,
        RegistryClient(endpoint, tls=registry_tls()) as registry,
    ):
        return await enrol_agents(
            spec,
            client,
            registry,
            path=home / "network.json",
            admin_token=settings.admin_token,
            token=os.environ.get("PILOT_JOIN_TOKEN", ""),
        )
