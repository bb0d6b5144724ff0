"""pilotfleet: fleets of agents on the Pilot Protocol overlay.

What a program needs is here: :class:`Agent` is one agent, :class:`Fleet` is many. The
names are loaded when they are first used, so that the small programs start quickly.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentChange",
    "AgentWatch",
    "Event",
    "Fleet",
    "FleetSubscription",
    "FoundAgent",
    "Job",
    "Mark",
    "PilotError",
    "Received",
    "Subscription",
    "TaskHandle",
    "TaskLine",
    "TaskResult",
]

# What type checkers see is in the stub beside this file: an import in here would put
# every layer above all that need the version.
_MODULES = {
    "Agent": "fleet.agent",
    "AgentChange": "fleet.agentwatch",
    "AgentWatch": "fleet.agentwatch",
    "Event": "protocol.services.events",
    "Fleet": "fleet.fleet",
    "FleetSubscription": "fleet.subscription",
    "FoundAgent": "fleet.agent",
    "Job": "fleet.worker.job",
    "Mark": "fleet.subscription",
    "PilotError": "errors",
    "Received": "fleet.subscription",
    "Subscription": "fleet.subscription",
    "TaskHandle": "fleet.submissions",
    "TaskLine": "fleet.taskfile",
    "TaskResult": "fleet.schedule",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
