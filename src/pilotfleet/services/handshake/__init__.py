"""Trust handshakes on port 444."""
