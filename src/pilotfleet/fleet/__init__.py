"""Fleets: specification, launch, orchestration and workers."""
