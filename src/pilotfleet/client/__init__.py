"""Clients of the registry and of a daemon's local socket."""
