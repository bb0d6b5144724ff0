"""How agents become and stay known to the registry (registry.md section 5).

All agents of a host share one queue. Each has one deadline at the timer wheel; when
it comes, the agent is queued, and a task that exists only while the queue is not
empty talks to the registry for all that are due. What an agent wants to be known as
is compared with what the registry says of it, so that a restart of ten thousand
agents sends no more than two requests for each.

What an agent wants is decided here in one way; there are two ways to carry it. A
registry with the extension ``batch`` gets the requests of many agents as one message
(`pilotfleet.node.gathering`, `beats`), an official one gets them one by one.

* `membership`: what is kept of one agent;
* `endpoints`: where the registry is told that an agent is;
* `enrolment`: registering one agent;
* `start`: the first registration of all of them;
* `beats`: heartbeats of many agents;
* `registrar`: who does what when.
"""

from pilotfleet.node.registration.enrolment import OFFICIAL_VERSION
from pilotfleet.node.registration.membership import Membership
from pilotfleet.node.registration.registrar import Registrar

__all__ = ["OFFICIAL_VERSION", "Membership", "Registrar"]
