"""The event bus: the broker of every agent, its log, and publishing."""
