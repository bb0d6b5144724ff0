"""The monitor's pages and their JSON."""
