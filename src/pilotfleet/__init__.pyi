"""What the package offers, for type checkers."""

from pilotfleet.errors import PilotError as PilotError
from pilotfleet.fleet.agent import Agent as Agent
from pilotfleet.fleet.agent import FoundAgent as FoundAgent
from pilotfleet.fleet.agentwatch import AgentChange as AgentChange
from pilotfleet.fleet.agentwatch import AgentWatch as AgentWatch
from pilotfleet.fleet.fleet import Fleet as Fleet
from pilotfleet.fleet.schedule import TaskResult as TaskResult
from pilotfleet.fleet.submissions import TaskHandle as TaskHandle
from pilotfleet.fleet.subscription import FleetSubscription as FleetSubscription
from pilotfleet.fleet.subscription import Mark as Mark
from pilotfleet.fleet.subscription import Received as Received
from pilotfleet.fleet.subscription import Subscription as Subscription
from pilotfleet.fleet.taskfile import TaskLine as TaskLine
from pilotfleet.fleet.worker.job import Job as Job
from pilotfleet.protocol.services.events import Event as Event

__all__: list[str]
__version__: str
