"""The protocol cores: bytes, events and deadlines, never I/O or a clock."""
