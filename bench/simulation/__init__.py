"""A deterministic simulator of fleets that are larger than this machine.

A virtual clock drives virtual hosts of agents against the real registry code: every
request is a real frame that the real decoder, service, directory and admission answer,
and every pause of a client is the one that ``pilotfleet.client.pacing`` gives the real
client. ``docs/design/scale.md`` says what is real, modelled and counted.

``python -m bench.simulation --help`` has the options of one run.
"""

from bench.simulation.report import measure

__all__ = ["measure"]
