"""Other agents: how they are named, and which address that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from pilotfleet.errors import DaemonError, InvalidArgument, NotFound
from pilotfleet.protocol.address import BACKBONE, Address
from pilotfleet.protocol.ipc.commands import Command

if TYPE_CHECKING:
    from pilotfleet.client.daemon import DaemonClient

__all__ = ["FoundAgent", "Target", "resolve_target", "target_text"]


@dataclass(frozen=True, slots=True)
class FoundAgent:
    """An agent as the registry's search shows it."""

    node_id: int
    address: str
    name: str
    """Its hostname; empty when it has none."""
    tags: frozenset[str]
    polo: int
    is_online: bool

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """Read a row of a search."""
        return cls(
            node_id=int(row.get("node_id", 0)),
            address=str(row.get("address", "")),
            name=str(row.get("hostname") or ""),
            tags=frozenset(row.get("tags") or ()),
            polo=int(row.get("polo") or 0),
            is_online=bool(row.get("online")),
        )


Target: TypeAlias = str | int | Address | FoundAgent
"""Another agent: its hostname, address or node id, or what ``Agent.find`` gave."""


async def resolve_target(client: DaemonClient, target: Target) -> Address:
    """Return the address of another agent.

    Raises:
        InvalidArgument: The name is not valid text.
        NotFound: Nobody of that name can be seen.
    """
    match target:
        case Address():
            return target
        case FoundAgent():
            return Address.parse(target.address)
        case int():
            return Address(BACKBONE, target)
    stated = Address.stated_by(target)
    if stated is not None:
        return stated
    try:
        name = target.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"name {target[:40]!r} is not valid text") from None
    try:
        answer = await client.request_json(Command.RESOLVE_HOSTNAME, name)
    except DaemonError as error:
        raise NotFound(
            f"cannot resolve {target!r}: {error}",
            hint="is the name right, and do you share a network or trust?",
        ) from None
    return Address.parse(str(answer.get("address")))


def target_text(target: Target) -> str:
    """Return a text that means the same agent."""
    return target.address if isinstance(target, FoundAgent) else str(target)
