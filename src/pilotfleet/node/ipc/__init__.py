"""The daemon's Unix socket: official commands and pilotfleet's extension."""

from pilotfleet.node.ipc.extension import ExtensionHandler
from pilotfleet.node.ipc.server import IpcServer
from pilotfleet.node.ipc.session import IpcSession

__all__ = ["ExtensionHandler", "IpcServer", "IpcSession"]
