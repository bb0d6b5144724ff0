"""Durable storage of the directory: versioned keys and values."""
