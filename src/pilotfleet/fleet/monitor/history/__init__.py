"""Figures over time, in SQLite."""
