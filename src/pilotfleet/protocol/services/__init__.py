"""Messages of the services on well-known ports (services.md)."""
