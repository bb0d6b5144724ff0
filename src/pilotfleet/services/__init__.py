"""The services that run on an agent's well-known ports."""
