"""Sockets, the clock and timers: everything that touches the system."""
