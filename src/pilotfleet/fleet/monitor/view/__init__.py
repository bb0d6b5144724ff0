"""What is known about a fleet, from its events and the registry. Performs no I/O."""
