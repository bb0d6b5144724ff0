"""The ways in which the agents of a fleet work together.

Each is a small module over the public API, of use on its own: :mod:`.hub`,
:mod:`.mesh`, and :mod:`.top` with :mod:`.hierarchy`. :func:`open_pattern` opens the
one that a specification names.
"""

from pilotfleet.fleet.patterns.opening import PatternRun, open_pattern

__all__ = ["PatternRun", "open_pattern"]
