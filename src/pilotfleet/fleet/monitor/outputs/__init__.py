"""Figures for other programs: Prometheus, OTLP, JSON lines."""
