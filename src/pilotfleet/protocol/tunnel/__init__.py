"""Encrypted tunnels between nodes (wire.md sections 4 to 10)."""
