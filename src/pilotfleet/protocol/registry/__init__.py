"""Messages between nodes and the registry (registry.md)."""
