"""Watch a fleet: aggregate its events, keep their history, raise alerts, show it."""
