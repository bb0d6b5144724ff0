"""pilotfleet: fleets of agents on the Pilot Protocol overlay."""

__version__ = "0.1.0"
