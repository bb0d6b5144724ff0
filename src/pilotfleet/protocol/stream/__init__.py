"""Reliable streams inside tunnels (wire.md section 11)."""
