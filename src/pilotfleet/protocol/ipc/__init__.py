"""Frames on the daemon's local socket (ipc.md)."""
