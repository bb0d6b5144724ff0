"""The error tree.

Errors are grouped by what the caller can do about them::

    PilotError
    ├── InvalidArgument            correct the call
    │   ├── ConfigError            correct the file or variable it names
    │   └── InvalidState           look what became of the thing in the meantime
    │       └── Expired            it is too late
    ├── NotFound                   name something that exists
    ├── AlreadyExists              choose another name, or stop the other one
    ├── PermissionDenied           ask for the right
    │   ├── TrustRequired          make trust with the peer first
    │   └── AuthRequired           give a token
    ├── Unavailable                try again later, or elsewhere
    │   ├── NotRunning             start the daemon
    │   ├── ConnectionFailed       check that the peer can be reached
    │   │   ├── ConnectionRefused  nothing listens there
    │   │   ├── CertificateRefused correct the pin, or the server's certificate
    │   │   └── ConnectionReset    the other side broke it off
    │   ├── Closed                 it was closed on this side
    │   ├── TimedOut               no answer in time
    │   └── Busy                   a bound was reached; slow down
    ├── ProtocolError              the peer broke the protocol
    │   └── DecodeError            bytes or text that are not valid
    ├── RemoteError                the other side answered with an error text
    │   ├── RegistryError
    │   └── DaemonError
    ├── NotSupported               the other side is too old for this
    └── StorageError               the disk or database refused
        └── Conflict               somebody else changed the key first

Every class carries the ``code`` that ``--json`` output shows (cli.md section
2.2), and every error may carry a ``hint``: what to do next, for a person.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class PilotError(Exception):
    """Base of every error that pilotfleet raises on purpose."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class InvalidArgument(PilotError):
    """An argument has a form or value that is not allowed."""

    code = "invalid_argument"


class ConfigError(InvalidArgument):
    """A configuration file, specification or variable is wrong."""


class InvalidState(InvalidArgument):
    """The thing is not in a state in which this can be done with it."""

    code = "invalid_state"


class Expired(InvalidState):
    """The time in which this could be done is over."""

    code = "expired"


class NotFound(PilotError):
    """The named thing does not exist, or may not be seen."""

    code = "not_found"


class AlreadyExists(PilotError):
    """The name, port or file is taken."""

    code = "already_exists"


class PermissionDenied(PilotError):
    """The action is not allowed."""

    code = "permission_denied"


class TrustRequired(PermissionDenied):
    """The peer is private and does not trust this node."""

    code = "trust_required"


class AuthRequired(PermissionDenied):
    """A token is missing or wrong."""

    code = "auth_required"


class Unavailable(PilotError):
    """Something that is needed cannot be used now."""

    code = "connection_failed"


class NotRunning(Unavailable):
    """No daemon answers on the socket."""

    code = "not_running"


class ConnectionFailed(Unavailable):
    """A connection could not be made or was lost."""


class ConnectionRefused(ConnectionFailed):
    """Nothing listens at the destination."""


class CertificateRefused(ConnectionFailed):
    """The other side's certificate is not one that is trusted here."""


class ConnectionReset(ConnectionFailed):
    """The other side broke the connection off."""


class Closed(Unavailable):
    """The object was closed on this side."""


class TimedOut(Unavailable):
    """No answer came in time."""

    code = "timeout"


class Busy(Unavailable):
    """A bound was reached; nothing was kept."""


class ProtocolError(PilotError):
    """The peer broke the protocol."""


class DecodeError(ProtocolError):
    """Bytes or text that are not valid.

    The only error that decoding untrusted input raises.
    """


class RemoteError(PilotError):
    """The other side answered with an error; its text is the message."""

    code = "connection_failed"


class RegistryError(RemoteError):
    """The registry answered ``{"type": "error"}`` (registry.md section 2.6)."""


class DaemonError(RemoteError):
    """The daemon answered with an Error frame (ipc.md section 3)."""


class NotSupported(PilotError):
    """The other side does not offer this."""

    code = "not_implemented"


class StorageError(PilotError):
    """The disk or the database refused."""


class Conflict(StorageError):
    """A compare-and-set failed: the key's revision is not the expected one."""

    def __init__(self, key: str) -> None:
        super().__init__(f"key {key} was changed by somebody else")
        self.key = key


def error_for_code(code: str, message: str, *, hint: str | None = None) -> PilotError:
    """Return the error that a daemon meant by its ``code``.

    The class is the one that callers catch for this reason. Several classes may
    share a code; then it is their common base. A code that only a newer daemon
    knows gives a :class:`DaemonError`.
    """
    return _BY_CODE.get(code, DaemonError)(message, hint=hint)


def error_to_fields(error: PilotError) -> dict[str, str]:
    """Return an error as it travels: ``code``, ``message`` and maybe ``hint``."""
    fields = {"code": error.code, "message": str(error)}
    if error.hint:
        fields["hint"] = error.hint
    return fields


def error_from_fields(fields: Mapping[str, Any]) -> PilotError:
    """Return the error that the other side meant; fields of another form are none."""
    hint = fields.get("hint")
    return error_for_code(
        str(fields.get("code", "internal")),
        str(fields.get("message", "refused")),
        hint=hint if isinstance(hint, str) else None,
    )


_BY_CODE: Final[dict[str, type[PilotError]]] = {
    kind.code: kind
    for kind in (
        PilotError,
        InvalidArgument,
        InvalidState,
        Expired,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        TrustRequired,
        AuthRequired,
        # Not its base Unavailable: a refusal to connect is what this code means.
        ConnectionFailed,
        NotRunning,
        TimedOut,
        NotSupported,
    )
}
